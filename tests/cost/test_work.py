from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from edgekit.cost.work import FEATURES, Units, Work, conv_kind, features, layers_of, macs_by_kind, work_of
from edgekit.graph import load
from tests import zoo
from tests.graph.nets import random_nets


@pytest.mark.parametrize(
    ("weight", "group", "stride", "kind"),
    [
        ([64, 64, 3, 3], 1, 1, "conv3x3"),
        ([64, 64, 3, 3], 1, 2, "conv"),  # no Winograd at stride 2
        ([64, 3, 3, 3], 1, 1, "conv"),  # three input channels
        ([64, 64, 5, 5], 1, 1, "conv"),
        ([64, 64, 1, 1], 1, 2, "pointwise"),
        ([64, 1, 3, 3], 64, 1, "depthwise"),
        ([64, 1, 1, 1], 64, 1, "depthwise"),
        ([128, 1, 3, 3], 64, 1, "depthwise"),  # two outputs for each channel
        ([64, 16, 3, 3], 4, 1, "grouped"),
        ([64, 64, 3], 1, 1, "conv"),  # one dimension
    ],
)
def test_kinds_of_convolutions(weight: list[int], group: int, stride: int, kind: str) -> None:
    assert conv_kind(weight, group, stride) == kind


def kinds(model: onnx.ModelProto, folder: Path) -> tuple[Work, ...]:
    path = folder / "net.onnx"
    onnx.save(model, path)
    return work_of(load(path))


def test_recurrent_and_attention_layers_have_kinds_of_their_own(tmp_path: Path) -> None:
    assert {"recurrent"} <= set(macs_by_kind(kinds(zoo.lstm(), tmp_path)))
    found = macs_by_kind(kinds(zoo.transformer(), tmp_path))
    assert set(found) == {"matmul", "attention"}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random_nets())
def test_every_layer_is_a_kernel_and_no_mac_is_lost(tmp_path: Path, model: onnx.ModelProto) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    graph = load(path)
    found = work_of(graph)
    assert sum(macs_by_kind(found).values()) == sum(layer.macs for layer in graph.layers)
    assert sum(w.macs > 0 for w in found) == len(graph.layers)
    assert list(layers_of(found)) == [layer.name for layer in graph.layers]
    assert all(w.output_elements > 0 for w in found)


def test_units_scale_what_they_measure() -> None:
    kernel = Work("a", "pointwise", 6000, 100, 50, 200)
    row = features([kernel], Units(macs_per_ms=3000.0, bytes_per_ms=100.0, element_bytes=4))[0]
    found = {name: value for name, value in zip(FEATURES, row, strict=True) if value}
    assert found == {"layer": 1.0, "pointwise": 2.0, "activation_bytes": 12.0, "weight_bytes": 2.0}
    assert features([], Units(1.0, 1.0, 1)).shape == (0, len(FEATURES))


@pytest.mark.parametrize("after", ["silu", "gelu", "hard swish", "scale and shift", "bias of a product"])
def test_what_changes_one_result_alone_is_no_kernel(after: str, tmp_path: Path) -> None:
    net = zoo.Net()
    if after == "bias of a product":
        x = net.op("MatMul", net.input("x", (1, 8, 16)), net.random(16, 16))
        y = net.op("Add", x, net.weight(np.ones(16)))
        original = net.model([net.op("MatMul", y, net.random(16, 4))])
    else:
        x = net.conv(net.input("x", (1, 3, 8, 8)), 3, 16)
        if after == "silu":
            y = net.op("Mul", x, net.op("Sigmoid", x))
        elif after == "gelu":
            half = net.op("Mul", x, net.weight(np.float32([0.5])))
            erf = net.op("Erf", net.op("Div", x, net.weight(np.float32([2**0.5]))))
            y = net.op("Mul", half, net.op("Add", erf, net.weight(np.float32([1]))))
        elif after == "hard swish":
            y = net.hard_swish(x)
        else:
            y = net.op("Mul", net.op("Relu", x), net.weight(np.float32([3])))
            y = net.op("Add", y, net.weight(np.float32([1])))
        original = net.model([net.conv(y, 16, 4)])
    assert len(kinds(original, tmp_path)) == 2


def test_what_joins_two_results_is_a_kernel_and_what_changes_it_is_none(tmp_path: Path) -> None:
    """A residual sum with its activation; a gate of another layer's; a result that grows."""
    net = zoo.Net()
    x = net.conv(net.input("x", (1, 3, 8, 8)), 3, 16)
    y = net.conv(x, 16, 16)
    joined = net.op("Relu", net.op("Add", x, y))
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", joined), 16, 16, 1))
    gated = net.op("Mul", joined, gate)
    grown = net.op("Add", gated, net.weight(np.ones((2, 1, 1, 1))))
    found = kinds(net.model([net.conv(grown, 16, 4)]), tmp_path)
    assert [one.kind for one in found if not one.macs] == ["elementwise", "pool", "elementwise", "elementwise"]
