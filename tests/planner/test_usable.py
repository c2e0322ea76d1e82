from __future__ import annotations

import itertools

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.planner import Limits, Problem, evaluate
from edgekit.planner.table import Table, tabulate
from edgekit.planner.usable import Usable, consistent, everything, usable_of
from tests.planner.problems import bounded, keeps, problems

thorough = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def plans(table: Table, usable: Usable) -> list[tuple[int, ...]]:
    """Every pick of one column per node that uses only what is usable."""
    spans = [range(table.starts[n], table.starts[n + 1]) for n in range(table.nodes)]
    found = []
    for pick in itertools.product(*([c for c in span if usable.columns[c]] for span in spans)):
        at = [tuple(pick[n] - table.starts[n] for n in factor.nodes) for factor in table.factors]
        if all(mask[where] for mask, where in zip(usable.cells, at, strict=True)):
            found.append(pick)
    return found


@thorough
@given(problems(grouped=True), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.3, 0.5]))
def test_what_is_left_supports_itself_and_loses_no_plan(problem: Problem, seed: int, dropped: float) -> None:
    table = tabulate(problem, Limits())
    rng = np.random.default_rng(seed)
    start = everything(table)
    start = Usable(
        rng.random(start.columns.shape) >= dropped / 3, [rng.random(mask.shape) >= dropped for mask in start.cells]
    )
    left = consistent(table, start)
    if left is None:
        assert plans(table, start) == []
        return
    assert plans(table, left) == plans(table, start)
    for mask, factor in zip(left.cells, table.factors, strict=True):
        for axis, node in enumerate(factor.nodes):
            combined = mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))
            assert (combined == left.columns[table.starts[node] : table.starts[node + 1]]).all()


@thorough
@given(bounded())
def test_no_undominated_plan_within_the_limits_is_dropped(case: tuple[Problem, Limits]) -> None:
    problem, limits = case
    table = tabulate(problem, limits)
    picks = plans(table, everything(table))
    layers = len(problem.layers)
    options = [tuple(int(table.option[c]) for c in pick) for pick in picks]
    allowed = {
        pick
        for pick, chosen in zip(picks, options, strict=True)
        if keeps(evaluate(problem, chosen[:layers], chosen[layers:]), limits)
    }
    usable = usable_of(table, limits)
    assert allowed <= set(plans(table, usable) if usable is not None else [])
