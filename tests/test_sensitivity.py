from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import sensitivity
from edgekit.sensitivity import LOSS_CEILING, LOSS_FLOOR, layer_losses, relative_noise_power
from edgekit.types import Precision
from tests.quantized import CASES, case, run

INT8, W8, FP32 = Precision.INT8, Precision.W8, Precision.FP32


def power(values: list[float], reference: list[float]) -> float:
    return relative_noise_power({"y": np.float32(values)}, {"y": np.float32(reference)})


def test_noise_power_by_hand() -> None:
    assert power([1, 2, 2], [1, 2, 3]) == pytest.approx(1 / 14)
    assert power([0, 0], [3, 4]) == pytest.approx(1)
    assert power([3, 4], [3, 4]) == LOSS_FLOOR
    assert power([0.5], [0]) == pytest.approx(0.25), "a silent reference counts as a unit signal"
    for broken in (math.nan, math.inf, 1e30):
        assert power([broken, 4], [3, 4]) == LOSS_CEILING


def test_outputs_count_alike_whatever_their_size() -> None:
    reference = {"small": np.float32([1e-3]), "large": np.float32([1e3]), "index": np.int64([7])}
    outputs = {"small": np.float32([0]), "large": np.float32([1e3]), "index": np.int64([0])}
    assert relative_noise_power(outputs, reference) == pytest.approx(0.5)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20), st.floats(-3, 3).map(lambda x: 10**x))
def test_noise_power_does_not_depend_on_the_scale(values: list[float], scale: float) -> None:
    reference = np.float64(values) + 101
    noisy = reference + 0.1
    one = relative_noise_power({"y": noisy}, {"y": reference})
    assert relative_noise_power({"y": noisy * scale}, {"y": reference * scale}) == pytest.approx(one)


@pytest.mark.parametrize("precision", [INT8, W8])
@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_the_layer_alone(name: str, precision: Precision) -> None:
    source = case(name)
    seen: list[tuple[str, float]] = []
    ranges = source.ranges if precision is INT8 else {}
    losses = layer_losses(
        source.graph, precision, source.names, ranges, source.data, on_layer=lambda *row: seen.append(row)
    )
    assert list(losses.items()) == seen
    assert list(losses) == source.names
    for layer, loss in losses.items():
        noise = []
        for index in range(len(source.data)):
            sample = source.data.sample(index)
            outputs, reference = (run(source.write(plan), sample) for plan in ({layer: precision}, {}))
            shares = [np.square(outputs[n] - y).sum() / np.square(y).sum() for n, y in reference.items()]
            noise.append(max(LOSS_FLOOR, float(np.mean(shares))))
        assert loss == pytest.approx(np.mean(noise), rel=0.02, abs=1e-13)
        weights = next(one.weights for one in source.graph.layers if one.name == layer)
        if precision is INT8 or weights:
            assert LOSS_FLOOR < loss < 0.1, layer
        else:
            assert loss == LOSS_FLOOR, "weight-only changes nothing where there are no weights"


def test_float_loses_nothing() -> None:
    source = case("conv_net")
    assert set(layer_losses(source.graph, FP32, source.names, {}, source.data).values()) == {LOSS_FLOOR}


@pytest.mark.parametrize("name", CASES)
def test_losses_of_layers_nearly_add_up(name: str) -> None:
    """What the planner builds on: the whole int8 model is about as noisy as its layers together."""
    source = case(name)
    together = sum(layer_losses(source.graph, INT8, source.names, source.ranges, source.data).values())
    whole = []
    for index in range(len(source.data)):
        sample = source.data.sample(index)
        outputs, reference = (run(source.write(plan), sample) for plan in (source.uniform(INT8), {}))
        whole.append(relative_noise_power(outputs, reference))
    assert together / 4 < np.mean(whole) < together * 4


def test_a_coarser_range_costs_more() -> None:
    source = case("conv_net")
    first = source.names[0]
    wide = {name: type(one)(one.low * 64, one.high * 64) for name, one in source.ranges.items()}
    fine = layer_losses(source.graph, INT8, [first], source.ranges, source.data)[first]
    coarse = layer_losses(source.graph, INT8, [first], wide, source.data)[first]
    assert coarse > 4 * fine


@pytest.mark.parametrize("name", ["inverted_residual", "transformer"])
def test_what_is_held_in_memory_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = case(name)
    found, held = [], []
    for room in (1 << 29, 4096, 0):
        monkeypatch.setattr(sensitivity, "_HELD_BYTES", room)
        held.append(sensitivity._held(source.graph, len(source.data)))
        found.append(layer_losses(source.graph, INT8, source.names, source.ranges, source.data))
    assert not held[-1]
    assert set(held[1]) < set(held[0])
    assert held[0][: len(held[1])] == held[1], "the last ones of the graph stay longest"
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert found[2] == pytest.approx(found[0], rel=1e-3)


def test_threads_change_nothing_that_matters() -> None:
    source = case("inverted_residual")
    one, two = (layer_losses(source.graph, INT8, source.names, source.ranges, source.data, n) for n in (1, 2))
    assert one == pytest.approx(two, rel=1e-3)
