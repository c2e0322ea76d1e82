from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.cost.levels import Levels, Sum, fit_levels, levelled, sum_of
from edgekit.cost.table import CostTable, total_ms
from edgekit.types import Edge, Precision

FP32, INT8 = Precision.FP32, Precision.INT8
LATENCY = {"a": {FP32: 2.0, INT8: 1.0}, "b": {FP32: 3.0, INT8: 2.0}, "c": {FP32: 1.0}}
TABLE = CostTable(
    FP32, dict.fromkeys(LATENCY, FP32), LATENCY, {FP32: 6, INT8: 4}, 0.01, 0.1, "planted", {"a": {"b": 0.5}}
)
EDGES = (Edge("a", "b", "ab", 10), Edge("b", "c", "bc", 20))
PLANS = [{"a": a, "b": b, "c": FP32} for a in (FP32, INT8) for b in (FP32, INT8)]


def test_a_sum_knows_its_kinds() -> None:
    mixed = {"a": FP32, "b": INT8, "c": FP32}
    assert sum_of(TABLE, EDGES, mixed, 9.0) == Sum(3.0, 2.0, 0.5 + 20 * 0.01, 9.0)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*(st.floats(0.9, 1.1),) * 3), st.integers(0, 1000))
def test_levels_predict_better_than_a_table_of_unlucky_anchors(planted: tuple[float, float, float], seed: int) -> None:
    """Whatever the levels are, and with noise of a race: on other plans the sums come out nearer than without."""
    truth = levelled(TABLE, Levels(*planted))
    rng = np.random.default_rng(seed)
    rows = [
        sum_of(TABLE, EDGES, plan, total_ms(truth, EDGES, plan) * (1 + 0.005 * rng.standard_normal()))
        for plan in PLANS * 4
    ]
    found = levelled(TABLE, fit_levels(rows))
    for plan in PLANS:
        before = abs(total_ms(TABLE, EDGES, plan) / total_ms(truth, EDGES, plan) - 1)
        after = abs(total_ms(found, EDGES, plan) / total_ms(truth, EDGES, plan) - 1)
        assert after <= max(before, 0.012)


def test_without_a_race_nothing_changes() -> None:
    assert fit_levels([]) == Levels()
    assert levelled(TABLE, Levels()) == TABLE


def test_what_was_never_seen_keeps_its_level() -> None:
    levels = fit_levels([Sum(5.0, 0.0, 0.0, 5.5)] * 10)
    assert levels.floats == pytest.approx(1.1, abs=0.003)
    assert (levels.int8, levels.crossings) == (1.0, 1.0)


def test_no_level_is_negative() -> None:
    assert fit_levels([Sum(1.0, 0.0, 0.0, 1.0)] * 99 + [Sum(1.0, 0.0, 9.0, 1.0)] * 99).crossings >= 0


def test_anchors_and_crossings_follow() -> None:
    found = levelled(TABLE, Levels(2.0, 3.0, 4.0))
    assert found.latency_ms["b"] == {FP32: 6.0, INT8: 6.0}
    assert found.anchors_ms == {FP32: 12.0, INT8: 12.0}
    assert (found.boundary_ms_per_element, found.crossing_ms) == (0.04, {"a": {"b": 2.0}})
