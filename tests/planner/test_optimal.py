from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgekit.errors import InfeasibleError
from edgekit.planner import (
    LATENCY_WINDOW,
    LOSS_WINDOW,
    GroupOption,
    Limits,
    PlanningGroup,
    Problem,
    ShapeCost,
    evaluate,
    milp,
    pareto,
    solve,
)
from edgekit.planner.problem import Quantity
from edgekit.planner.solver import totals_of
from edgekit.planner.table import tabulate
from tests.planner.problems import CLOSE, QUANTITIES, bounded, everything, keeps, option, problem_of

thorough = settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
quick = settings(thorough, max_examples=80)
objectives = st.sampled_from(["latency", "loss"])


@quick
@given(bounded(), objectives)
def test_equals_enumeration(case: tuple[Problem, Limits], objective: str) -> None:
    check_against_enumeration(case, objective)


@pytest.mark.slow
@settings(thorough, max_examples=400, derandomize=False)
@given(bounded(), objectives)
def test_equals_enumeration_on_hundreds(case: tuple[Problem, Limits], objective: str) -> None:
    check_against_enumeration(case, objective)


def check_against_enumeration(case: tuple[Problem, Limits], objective: str) -> None:
    problem, limits = case
    first, second = ("latency_ms", "loss") if objective == "latency" else ("loss", "latency_ms")
    window = 1 + (LATENCY_WINDOW if objective == "latency" else LOSS_WINDOW)
    allowed = [t for t in everything(problem) if keeps(t, limits)]
    if not allowed:
        with pytest.raises(InfeasibleError):
            solve(problem, limits, objective, gap=0)  # type: ignore[arg-type]
        return
    best = min(getattr(t, first) for t in allowed)
    solution = solve(problem, limits, objective, gap=0)  # type: ignore[arg-type]
    assert solution.totals == evaluate(problem, solution.choice, solution.kept)
    assert keeps(solution.totals, limits)
    value = getattr(solution.totals, first)
    assert value <= best * window * CLOSE
    assert value * (1 - solution.gap) <= best * CLOSE
    assert solution.search_gap <= solution.gap + 1e-12
    assert solution.search_gap < 1e-5
    inside = [getattr(t, second) for t in allowed if getattr(t, first) <= best * window / CLOSE]
    assert getattr(solution.totals, second) <= min(inside) * CLOSE


@quick
@given(bounded())
def test_nearest_is_what_enumeration_says(case: tuple[Problem, Limits]) -> None:
    problem, limits = case
    totals = everything(problem)
    assume(not any(keeps(t, limits) for t in totals))
    with pytest.raises(InfeasibleError) as caught:
        solve(problem, limits, gap=0)
    limited = {q for q in QUANTITIES if getattr(limits, q) is not None}
    assert set(caught.value.nearest) == limited
    for quantity in limited:
        others = limits.with_limit(quantity, None)  # type: ignore[arg-type]
        held = [t for t in totals if keeps(t, others)] or totals
        best = min(getattr(t, quantity) for t in held)
        assert best <= caught.value.nearest[quantity] <= best * CLOSE


def test_a_small_peak_beside_a_large_one() -> None:
    """A byte of a thousand, where another option takes a million: HiGHS's tolerance is a millionth."""
    none = ((0.0, 0.0),) * 3
    nothing = ((0, 0),) * 3

    def shape(layer: int, **given: object) -> ShapeCost:
        rest = {"latency_ms": none, "weight_bytes": nothing, "memory_bytes": nothing} | given
        return ShapeCost(layer, (0,), **rest)  # type: ignore[arg-type]

    problem = problem_of(
        tuple(option(0.0, 0, memory=size, domain="int8") for size in (999, 1_000_999, 0)),
        (option(0.0, 0, domain="int8"), option(0.0, 0), option(0.0, 0, memory=1, domain="int8")),
        groups=(PlanningGroup("group0", (GroupOption(9, 0.0), GroupOption(8, 0.0))),),
        shape_costs=(
            shape(1, weight_bytes=((1, 0), (0, 0), (0, 0))),
            shape(0, weight_bytes=((0, 0), (0, 1), (0, 0))),
            shape(0, weight_bytes=((1, 0), (0, 0), (0, 0)), memory_bytes=((0, 1), (0, 0), (0, 0))),
            shape(0, weight_bytes=((0, 0), (0, 0), (1, 0)), latency_ms=((0.0, 0.0), (0.0, 0.0), (0.0, 1.0))),
        ),
    )
    limits = Limits(latency_ms=0.0, weight_bytes=0, memory_bytes=999)
    with pytest.raises(InfeasibleError) as caught:
        solve(problem, limits, gap=0)
    assert caught.value.nearest["memory_bytes"] == 1000


@quick
@given(bounded(), st.sampled_from(QUANTITIES), st.sampled_from([1.0, 1.01, 1.5, 10.0, None]))
def test_a_looser_budget_is_never_worse(case: tuple[Problem, Limits], quantity: str, factor: float | None) -> None:
    problem, limits = case
    limit = getattr(limits, quantity)
    assume(limit is not None)
    if factor is not None:
        limit = int(limit * factor) if quantity.endswith("bytes") else limit * factor
    loose = limits.with_limit(quantity, None if factor is None else limit)  # type: ignore[arg-type]
    for objective, first in (("latency", "latency_ms"), ("loss", "loss")):
        try:
            tight_plan = solve(problem, limits, objective, gap=0)  # type: ignore[arg-type]
        except InfeasibleError:
            return
        loose_plan = solve(problem, loose, objective, gap=0)  # type: ignore[arg-type]
        optimum = getattr(loose_plan.totals, first) * (1 - loose_plan.gap)
        assert optimum <= getattr(tight_plan.totals, first) * (1 - tight_plan.gap) * CLOSE


@quick
@given(bounded())
def test_front_has_no_dominated_point_and_misses_none(case: tuple[Problem, Limits]) -> None:
    problem, limits = case
    allowed = [t for t in everything(problem) if keeps(t, limits)]
    assume(allowed)
    front = pareto(problem, limits, points=4, gap=0)
    for point in front:
        assert point.totals == evaluate(problem, point.choice, point.kept)
        assert keeps(point.totals, limits)
    least = min(t.loss for t in allowed)
    fastest = min(t.latency_ms for t in allowed)
    assert 1 <= len(front) <= 4
    assert front[0].totals.latency_ms <= fastest * (1 + LATENCY_WINDOW) * CLOSE
    assert front[-1].totals.loss <= least * (1 + LOSS_WINDOW) * CLOSE
    for faster, slower in itertools.pairwise(front):
        assert faster.totals.latency_ms < slower.totals.latency_ms
        assert faster.totals.loss > slower.totals.loss
    for point in front[1:]:
        reachable = [t.loss for t in allowed if t.latency_ms <= point.totals.latency_ms]
        assert point.totals.loss <= min(reachable) * (1 + LOSS_WINDOW) * CLOSE


@thorough
@given(bounded(), objectives, st.sampled_from([0.0, 1e-3, 0.1]))
def test_looking_near_the_relaxation_first_changes_nothing(
    case: tuple[Problem, Limits], objective: str, gap: float
) -> None:
    """Large problems are solved by reduced-cost fixing; here every problem is large."""
    problem, limits = case
    first: Quantity = "latency_ms" if objective == "latency" else "loss"
    values = [getattr(t, first) for t in everything(problem) if keeps(t, limits)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(milp, "_MANY", 0)
        found = milp.minimise(tabulate(problem, limits), limits, first, gap, time.monotonic() + 60)
    if not values:
        assert found == (None, math.inf)
        return
    assert found.picked is not None
    totals = totals_of(tabulate(problem, limits), found.picked)
    assert keeps(totals, limits)
    assert found.bound <= min(values) * CLOSE
    assert getattr(totals, first) * (1 - gap) <= found.bound * CLOSE
