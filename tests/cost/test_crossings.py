from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.cost.crossings import fit_crossings
from edgekit.types import Edge, Precision

FP32, INT8 = Precision.FP32, Precision.INT8
Plan = dict[str, Precision]
MILLISECONDS = st.floats(0.1, 2.0)


def plan_of(names: list[str], int8: set[str]) -> Plan:
    return {name: INT8 if name in int8 else FP32 for name in names}


def alternating(names: list[str]) -> list[Plan]:
    return [
        plan_of(names, {name for place, name in enumerate(names) if place // run % 2 == turn})
        for run in (1, 2)
        for turn in (0, 1)
    ]


class Net:
    """A chain whose every edge has a cost of its own for each way of crossing, found at its producer or consumer."""

    def __init__(self, times: list[tuple[float, float]], ways: list[tuple[float, float]], at: list[bool]) -> None:
        self.names = [f"l{place}" for place in range(len(times))]
        self.float_ms = {name: one for name, (one, _) in zip(self.names, times, strict=True)}
        self.int8_ms = {name: one for name, (_, one) in zip(self.names, times, strict=True)}
        self.edges = [Edge(p, c, f"{p}:0", 1000) for p, c in zip(self.names, self.names[1:], strict=False)]
        self.ways, self.at = ways, at

    def times_ms(self, plan: Plan) -> dict[str, float]:
        times = {name: (self.int8_ms if plan[name] is INT8 else self.float_ms)[name] for name in self.names}
        for edge, (out_ms, in_ms), at_producer in zip(self.edges, self.ways, self.at, strict=True):
            owner = edge.producer if at_producer else edge.consumer
            ends = plan[edge.producer], plan[edge.consumer]
            times[owner] += {(INT8, FP32): out_ms, (FP32, INT8): in_ms}.get(ends, 0.0)
        return times


@st.composite
def nets(draw: st.DrawFn) -> Net:
    count = draw(st.integers(4, 12))
    times = draw(st.lists(st.tuples(MILLISECONDS, MILLISECONDS), min_size=count, max_size=count))
    way = st.floats(0, 1.0)
    ways = draw(st.lists(st.tuples(way, way), min_size=count - 1, max_size=count - 1))
    return Net(times, ways, draw(st.lists(st.booleans(), min_size=count - 1, max_size=count - 1)))


@given(net=nets(), data=st.data())
def test_any_plan_of_a_chain_is_predicted_from_the_alternating_ones(net: Net, data: st.DataObject) -> None:
    mixed = [(plan, net.times_ms(plan)) for plan in alternating(net.names)]
    found = fit_crossings(net.edges, net.float_ms, net.int8_ms, mixed)
    plan = plan_of(net.names, data.draw(st.sets(st.sampled_from(net.names))))
    crossing = [edge for edge in net.edges if plan[edge.producer] is not plan[edge.consumer]]
    true_ms = sum(net.times_ms(plan).values())
    layers_ms = sum(
        net.int8_ms[name] + found.shift_ms[name] if plan[name] is INT8 else net.float_ms[name] for name in net.names
    )
    predicted_ms = layers_ms + sum(found.cost_ms[edge.producer][edge.consumer] for edge in crossing)
    planted_ms = sum(out + into for out, into in net.ways)
    moved = [abs(out - into) / 2 for out, into in net.ways]
    kept_ms = sum(net.int8_ms.values())
    # Exact but for the doubt about little evidence, and where an int8 entry had less time than should move from it.
    if max(moved, default=0.0) * 2 < min(net.int8_ms.values(), default=math.inf):
        assert abs(predicted_ms - true_ms) <= 0.1 * planted_ms + 1e-9
    assert all(ms >= 0 for row in found.cost_ms.values() for ms in row.values())
    assert sum(found.shift_ms.values()) == pytest.approx(0, abs=1e-9 * kept_ms)
    assert all(net.int8_ms[name] + shift >= -1e-9 for name, shift in found.shift_ms.items())


def test_an_edge_that_is_dear_one_way_only_is_so_in_prediction() -> None:
    net = Net([(1.0, 1.0)] * 6, [(0.0, 0.0)] * 2 + [(0.6, 0.0)] + [(0.0, 0.0)] * 2, [True] * 5)
    mixed = [(plan, net.times_ms(plan)) for plan in alternating(net.names)]
    found = fit_crossings(net.edges, net.float_ms, net.int8_ms, mixed)
    assert found.cost_ms["l2"]["l3"] == pytest.approx(0.3, rel=0.2)
    assert found.shift_ms["l2"] == pytest.approx(0.3, rel=0.2)
    assert found.shift_ms["l3"] == pytest.approx(-0.3, rel=0.2)
    assert all(found.cost_ms[f"l{i}"][f"l{i + 1}"] < 0.03 for i in (0, 1, 3, 4))


def test_an_edge_from_a_layer_that_stays_float_costs_what_it_was_seen_to() -> None:
    names = ["l0", "l1", "l2", "l3"]
    edges = [Edge("", "l0", "x", 10), Edge("l0", "l1", "a", 10), Edge("l1", "l2", "b", 10), Edge("l2", "l3", "c", 10)]
    able = names[1:]
    mixed = []
    for plan in alternating(able):
        full = plan | {"l0": FP32}
        times = dict.fromkeys(names, 1.0)
        times["l0"] += 0.4 if full["l1"] is INT8 else 0.0
        mixed.append((full, times))
    found = fit_crossings(edges, dict.fromkeys(names, 1.0), dict.fromkeys(able, 1.0), mixed)
    assert found.cost_ms["l0"]["l1"] == pytest.approx(0.4, rel=0.2)
    assert found.shift_ms["l0"] == 0
    assert "" not in found.cost_ms, "the input never crosses where its layer stays float"


def test_no_mixed_plan_tells_nothing() -> None:
    net = Net([(1.0, 0.5)] * 3, [(0.1, 0.2)] * 2, [True, False])
    found = fit_crossings(net.edges, net.float_ms, net.int8_ms, [])
    assert found.cost_ms == {}
    assert set(found.shift_ms.values()) == {0.0}
