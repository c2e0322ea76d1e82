from __future__ import annotations

import time
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.planner import Limits, Problem, evaluate, milp
from edgekit.planner.covers import Cover, Crowds
from edgekit.planner.linear import Linear
from edgekit.planner.memory import Crowd, Level, Memory
from edgekit.planner.solver import totals_of
from edgekit.planner.table import tabulate


def tight(benchmark: ModuleType, layers: int, seed: int, memory: float) -> tuple[Problem, Limits]:
    problem = benchmark.joint(layers, seed)
    whole = [0] * len(problem.groups)
    in_float = evaluate(problem, [0] * len(problem.layers), whole)
    in_int8 = evaluate(problem, [2] * len(problem.layers), whole)
    return problem, Limits(
        loss=0.05 * in_int8.loss,
        weight_bytes=in_float.weight_bytes // 5,
        memory_bytes=int(memory * in_float.memory_bytes),
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_tight_memory_is_proven_by_splitting_it(
    seed: int, benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole program given to HiGHS finds nothing better than what the tree proves."""
    problem, limits = tight(benchmark, 24, seed, 0.12)
    table = tabulate(problem, limits)
    rows: list[int] = []
    add = Linear.add
    monkeypatch.setattr(Linear, "add", lambda self, *row: (rows.append(1), add(self, *row))[1])
    monkeypatch.setattr(milp, "_MANY", 0)
    found = milp.minimise(table, limits, "latency_ms", 1e-3, time.monotonic() + 300)
    assert found.picked is not None
    assert rows, "nothing competed for memory"
    value = totals_of(table, found.picked).latency_ms
    assert value * (1 - 1e-3) <= found.bound <= value
    monkeypatch.setattr(milp, "_MANY", 10**9)
    whole = milp.minimise(table, limits, "latency_ms", 1e-4, time.monotonic() + 300)
    assert whole.picked is not None
    assert found.bound <= totals_of(table, whole.picked).latency_ms * (1 + 1e-9)
    assert whole.bound <= value * (1 + 1e-9)


@st.composite
def crowded(draw: st.DrawFn) -> tuple[Memory, list[list[int]], np.ndarray]:
    """A step with up to four tensors of up to three sizes, a column for each; and shares of these columns."""
    sizes = draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True), min_size=1, max_size=4))
    shares = []
    for of_tensor in sizes:
        weights = np.array(draw(st.lists(st.integers(0, 4), min_size=len(of_tensor), max_size=len(of_tensor))))
        shares += (weights / max(4, weights.sum())).tolist()
    tensors, first = [], 0
    for of_tensor in sizes:
        columns = {size: first + k for k, size in enumerate(of_tensor)}
        levels = sorted(columns, reverse=True)
        tensors.append(
            tuple(Level(size, tuple(columns[s] for s in levels[: place + 1])) for place, size in enumerate(levels))
        )
        first += len(of_tensor)
    room = draw(st.integers(1, 25))
    return Memory(None, 0.0, (Crowd(room, tuple(tensors)),)), sizes, np.array(shares)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(crowded(), st.integers(0, 12))
def test_covers_cut_what_is_broken_and_no_choice_that_fits(
    case: tuple[Memory, list[list[int]], np.ndarray], weights: int
) -> None:
    memory, sizes, shares = case
    crowds = Crowds(memory, len(shares))
    found = [
        crowds.cover(step, broken)
        for step, broken in crowds.broken(crowds.reached(shares), float(weights), float(weights))
    ]
    room = memory.crowds[0].room_bytes
    for cover in found:
        assert sum(shares[column] * times for column, times in cover.columns) > cover.limit
        for choice in np.ndindex(*(len(one) + 1 for one in sizes)):  # the last of each: the least size
            total = sum(one[k] for one, k in zip(sizes, choice, strict=True) if k < len(one))
            if total + cover.above_bytes >= room:  # does not fit beside more weights than that
                continue
            starts = np.cumsum([0, *map(len, sizes[:-1])])
            chosen = {int(start) + k for start, one, k in zip(starts, sizes, choice, strict=True) if k < len(one)}
            assert sum(times for column, times in cover.columns if column in chosen) <= cover.limit


def test_a_larger_tensor_stands_in_for_one_of_a_cover() -> None:
    large, middle, small = (Level(size, (column,)) for column, size in enumerate((8.0, 5.0, 5.0)))
    crowds = Crowds(Memory(None, 0.0, (Crowd(9.0, ((large,), (middle,), (small,))),)), 3)
    ((step, broken),) = crowds.broken(np.array([0.0, 0.9, 0.9]), 0.0, 0.0)
    assert crowds.cover(step, broken) == Cover(((0, 1), (1, 1), (2, 1)), 1, -1.0)
