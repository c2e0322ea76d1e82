from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.backends import ExecutedNode
from edgekit.cost.table import (
    CostTable,
    anchored,
    at_pace,
    crossing_elements,
    fit_boundary,
    layer_times_ms,
    mac_baseline_ms,
    pace,
    predict_ms,
)
from edgekit.types import Edge, Kind, Layer, Precision

FP32, INT8, W8 = Precision.FP32, Precision.INT8, Precision.W8
MILLISECONDS = st.floats(0, 1e3)


def layers(count: int, macs: list[int] | None = None) -> tuple[Layer, ...]:
    return tuple(
        Layer(f"l{i}", "Conv", (f"t{i}",), f"t{i + 1}", (f"w{i}",), 0, 8, 0, 4, 4, macs[i] if macs else 100)
        for i in range(count)
    )


def chain(elements: list[int]) -> tuple[Edge, ...]:
    """The input into l0, l0 into l1 ..."""
    return tuple(Edge(f"l{i - 1}" if i else "", f"l{i}", f"t{i}", count) for i, count in enumerate(elements))


@st.composite
def planted(draw: st.DrawFn) -> tuple[CostTable, tuple[Edge, ...], dict[str, Precision]]:
    count = draw(st.integers(1, 8))
    row = st.fixed_dictionaries({FP32: MILLISECONDS, INT8: MILLISECONDS, W8: MILLISECONDS})
    latency = {f"l{i}": draw(row) for i in range(count)}
    anchors = {p: sum(times[p] for times in latency.values()) for p in (FP32, INT8, W8)}
    boundary, interval = draw(st.floats(0, 1e-3)), draw(st.floats(0.01, 0.5))
    table = CostTable(FP32, dict.fromkeys(latency, FP32), latency, anchors, boundary, interval, "planted")
    edges = chain(draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count)))
    return table, edges, {name: draw(st.sampled_from([FP32, INT8, W8])) for name in latency}


@given(st.dictionaries(st.text(max_size=3), st.floats(1e-6, 1e3), min_size=1), st.floats(1e-3, 1e4))
def test_anchored_times_sum_to_the_anchor_in_the_same_proportions(times: dict[str, float], anchor: float) -> None:
    scaled = anchored(times, anchor)
    assert list(scaled) == list(times)
    assert sum(scaled.values()) == pytest.approx(anchor)
    for (a, x), (b, y) in pairwise(times.items()):
        assert scaled[a] * y == pytest.approx(scaled[b] * x)


def test_where_the_clock_saw_no_time_the_layers_share_it_equally() -> None:
    assert anchored({"a": 0.0, "b": 0.0}, 3.0) == {"a": 1.5, "b": 1.5}
    assert anchored({"a": 0.0, "b": 1.0}, 3.0) == {"a": 0.0, "b": 3.0}


def test_times_by_layer_lose_nothing() -> None:
    nodes = [
        ExecutedNode((), False, "f32", 1.0),  # before the first layer
        ExecutedNode(("l1",), True, "u8", 2.0),
        ExecutedNode(("l0",), True, "u8", 4.0),
        ExecutedNode(("l1",), False, "f32", 8.0),
        ExecutedNode(("l2", "l1"), True, "f32", 16.0),
    ]
    assert layer_times_ms(nodes, layers(4)) == {"l0": 5.0, "l1": 10.0, "l2": 16.0, "l3": 0.0}


@given(planted())
def test_prediction_is_the_sum_of_layers_and_crossings(
    case: tuple[CostTable, tuple[Edge, ...], dict[str, Precision]],
) -> None:
    table, edges, plan = case
    crossing = 0
    for edge in edges:
        source = plan[edge.producer] if edge.producer else FP32
        crossing += edge.elements if (source is INT8) != (plan[edge.consumer] is INT8) else 0
    assert crossing_elements(edges, plan) == crossing
    expected = sum(table.latency_ms[name][p] for name, p in plan.items()) + table.boundary_ms_per_element * crossing
    figure = predict_ms(table, edges, plan)
    assert figure.kind is Kind.PREDICTED
    assert figure.source == "planted"
    assert figure.value == pytest.approx(expected)
    assert figure.low == pytest.approx(expected / (1 + table.interval))
    assert figure.high == pytest.approx(expected * (1 + table.interval))


def test_a_table_that_knows_no_latency_says_why_instead() -> None:
    table = CostTable(FP32, {"l0": FP32}, {"l0": {FP32: 2.0}}, {FP32: 2.0}, 0.0, 0.1, "", unknown="nobody measured it")
    figure = predict_ms(table, (), {"l0": FP32})
    assert (figure.kind, figure.value, figure.source) == (Kind.NONE, None, "nobody measured it")


def test_a_uniform_plan_is_predicted_at_its_anchor_and_the_crossing_of_the_input() -> None:
    latency = {"l0": {FP32: 2.0, INT8: 1.0}, "l1": {FP32: 3.0, INT8: 2.0}}
    table = CostTable(FP32, dict.fromkeys(latency, FP32), latency, {FP32: 5, INT8: 3}, 0.01, 0.1, "")
    edges = chain([10, 50])
    assert predict_ms(table, edges, {"l0": FP32, "l1": FP32}).value == 5.0
    assert predict_ms(table, edges, {"l0": INT8, "l1": INT8}).value == pytest.approx(3.1)
    assert predict_ms(table, edges, {"l0": FP32, "l1": INT8}).value == pytest.approx(4.5)


@given(st.floats(0, 1), st.lists(st.integers(0, 10**7), min_size=1))
def test_the_fit_recovers_a_planted_coefficient(slope: float, elements: list[int]) -> None:
    found = fit_boundary((count, slope * count) for count in elements)
    assert found == pytest.approx(slope if any(elements) else 0.0)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(-1e3, 1e3))))
def test_the_fit_is_the_least_squares_one_and_never_negative(rows: list[tuple[int, float]]) -> None:
    slope = fit_boundary(rows)
    assert slope >= 0
    assert math.isfinite(slope)

    def error(coefficient: float) -> float:
        return sum((rest - coefficient * count) ** 2 for count, rest in rows)

    for other in (slope * 1.01, slope * 0.99, slope + 1e-9):
        assert error(slope) <= error(other) * (1 + 1e-9) + 1e-9


def test_the_mac_baseline_lies_between_the_uniform_totals() -> None:
    table = CostTable(FP32, {}, {}, {FP32: 10.0, INT8: 4.0}, 0.0, 0.1, "")
    nets = layers(3, [100, 200, 700])
    plan = {layer.name: FP32 for layer in nets}
    assert mac_baseline_ms(table, nets, plan) == 10.0
    assert mac_baseline_ms(table, nets, plan | {"l2": INT8}) == pytest.approx(10 - 0.7 * 6)
    assert mac_baseline_ms(table, nets, dict.fromkeys(plan, INT8)) == pytest.approx(4.0)


def test_the_mac_baseline_without_int8_is_the_float_total() -> None:
    table = CostTable(Precision.BF16, {}, {}, {Precision.BF16: 7.0}, 0.0, 0.1, "")
    nets = layers(2, [0, 0])
    assert mac_baseline_ms(table, nets, dict.fromkeys(("l0", "l1"), Precision.BF16)) == 7.0


def test_a_table_follows_the_pace_of_another_race() -> None:
    latency = {"l0": {FP32: 2.0, INT8: 1.0}, "l1": {FP32: 3.0, INT8: 2.0}}
    crossings = {"l0": {"l1": 0.5}}
    table = CostTable(FP32, dict.fromkeys(latency, FP32), latency, {FP32: 5, INT8: 3}, 0.01, 0.1, "", crossings)
    twice = at_pace(table, 2)
    assert twice.latency_ms == {"l0": {FP32: 4.0, INT8: 2.0}, "l1": {FP32: 6.0, INT8: 4.0}}
    assert twice.anchors_ms == {FP32: 10, INT8: 6}
    assert (twice.boundary_ms_per_element, twice.crossing_ms) == (0.02, {"l0": {"l1": 1.0}})
    assert at_pace(table, 1) == table


def test_the_pace_is_the_mean_of_what_was_seen() -> None:
    assert pace([(5.0, 10.0), (3.0, 6.0)]) == pytest.approx(2)
    assert pace([(5.0, 10.0), (3.0, 1.5)]) == pytest.approx(1)
    assert pace([]) == pace([(0.0, 1.0)]) == 1
