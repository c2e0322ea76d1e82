"""Which operators are kept from half precision, on nets whose values are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.compress.half import HEADROOM, LARGEST, label_types, magnitudes, shrinks, unsafe_in_half
from edgekit.compress.observers import Histogram, Range
from edgekit.compress.symmetric import around_zero, choose_ranges
from edgekit.compress.weights import affine_parameters
from edgekit.graph import Graph, load
from edgekit.types import Precision
from tests.zoo import Net


class Samples:
    """Arrays for the only input."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays)

    def sample(self, i: int, /) -> dict[str, np.ndarray]:
        return {"x": self._arrays[i]}


def ones(scale: float) -> np.ndarray:
    return np.full((1, 8), scale, np.float32)


def scaling_net(tmp_path: Path, factor: float) -> Graph:
    """x -> Relu -> x * factor -> Gemm."""
    net = Net()
    y = net.op("Mul", net.op("Relu", net.input("x", [1, 8])), net.weight(np.array([factor], np.float32)))
    path = tmp_path / "net.onnx"
    onnx.save(net.model([net.op("Gemm", y, net.weight(np.full((8, 4), 1 / 64)))]), path)
    return load(path)


def test_magnitudes_are_the_largest_over_all_samples(tmp_path: Path) -> None:
    graph = scaling_net(tmp_path, -3.0)
    found = magnitudes(graph, Samples(ones(1), ones(5), ones(-7)))
    assert found["x"] == 7
    product = next(node for node in graph.model.graph if node.op_type == "Mul")
    assert found[product.outputs[0].name or ""] == 15
    assert set(found) == {"x", *(value.name for node in graph.model.graph for value in node.outputs)}


@pytest.mark.parametrize(("scale", "unsafe"), [(1.0, False), (LARGEST / HEADROOM / 101, False), (LARGEST / 150, True)])
def test_who_writes_or_reads_a_large_tensor_stays_in_single(tmp_path: Path, scale: float, unsafe: bool) -> None:
    graph = scaling_net(tmp_path, 100.0)
    found = unsafe_in_half(graph, magnitudes(graph, Samples(ones(scale))))
    kinds = {node.op_type for node in graph.model.graph if node.name in found}
    assert kinds == ({"Mul", "Gemm"} if unsafe else set())
    assert all("fp16 holds 65504" in reason for reason in found.values())


@pytest.mark.parametrize(("factor", "word"), [(1e6, "holds 1e+06"), (1e-7, "is 1e-07 at most")])
def test_constants_that_halves_cannot_hold(tmp_path: Path, factor: float, word: str) -> None:
    graph = scaling_net(tmp_path, factor)
    found = unsafe_in_half(graph, dict.fromkeys(magnitudes(graph, Samples(ones(1e-3))), 1.0))
    assert [word in reason for reason in found.values()] == [True]


def test_values_that_would_lose_all_digits(tmp_path: Path) -> None:
    graph = scaling_net(tmp_path, 1.0)
    found = unsafe_in_half(graph, magnitudes(graph, Samples(ones(1e-6))))
    assert found
    assert all("no digits" in reason for reason in found.values())


def test_infinite_values_are_unsafe(tmp_path: Path) -> None:
    graph = scaling_net(tmp_path, 1.0)
    assert magnitudes(graph, Samples(ones(np.inf)))["x"] == math.inf
    assert unsafe_in_half(graph, {"x": math.inf})


def test_squares_of_a_normalisation(tmp_path: Path) -> None:
    net = Net()
    normal = net.op("LayerNormalization", net.input("x", [1, 8]), net.random(8), net.random(8))
    path = tmp_path / "net.onnx"
    onnx.save(net.model([net.op("Gemm", normal, net.random(8, 4))]), path)
    graph = load(path)
    steep = np.linspace(-200, 200, 8, dtype=np.float32).reshape(1, 8)
    assert not unsafe_in_half(graph, magnitudes(graph, Samples(steep / 4)))
    (reason,) = unsafe_in_half(graph, magnitudes(graph, Samples(steep))).values()
    assert "squares of x reach 4e+04" in reason
    largest = magnitudes(graph, Samples(steep))
    (factor,) = shrinks(graph, largest).values()
    assert factor == 0.5
    assert (200 * factor) ** 2 < LARGEST / HEADROOM <= 200**2
    assert shrinks(graph, magnitudes(graph, Samples(steep / 4))) == {}


def test_labels(tmp_path: Path) -> None:
    graph = scaling_net(tmp_path, 1.0)
    layer = graph.layers[0].name
    model = graph.model.clone()
    label_types(model, [layer], {layer: Precision.INT8}, {layer: "because"}, {layer: 0.5})
    labels = {node.name: dict(node.metadata_props) for node in model.graph}
    assert labels.pop(layer) == {
        "edgekit.precision": "int8",
        "edgekit.single": "because",
        "edgekit.shrink": "0.5",
    }
    assert not any(labels.values())


@given(st.floats(-1e6, 0, width=32), st.floats(0, 1e6, width=32))
def test_ranges_around_zero_have_their_zero_point_in_the_middle(low: float, high: float) -> None:
    bounds = around_zero(Range(low, high))
    assert bounds.low <= low
    assert bounds.high >= high
    scale, zero_point = affine_parameters(bounds)
    assert zero_point == 128
    assert float(scale) == pytest.approx(max(max(-low, high) or 1.0, 1e-30) / 127, rel=1e-6)


def test_ranges_for_symmetric_grids() -> None:
    rng = np.random.default_rng(0)
    values = {"signed": rng.standard_normal(4096), "positive": np.abs(rng.standard_normal(4096)) ** 3}
    seen = {}
    for name, array in values.items():
        seen[name] = Histogram(name)
        seen[name].update(array.astype(np.float32))
    plain = choose_ranges(seen, "min-max", 99.99)
    assert plain["positive"].low == 0
    around = choose_ranges(seen, "mse", 99.99, symmetric=True)
    for name, bounds in around.items():
        assert bounds.low == pytest.approx(-bounds.high * 128 / 127)
        step = bounds.high / 127
        error = np.square(values[name] - np.clip(np.rint(values[name] / step), -128, 127) * step).mean()
        whole = max(-plain[name].low, plain[name].high) / 127
        assert error <= np.square(values[name] - np.rint(values[name] / whole) * whole).mean()
