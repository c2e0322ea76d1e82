from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import InfeasibleError
from edgekit.planner import LATENCY_WINDOW, LayerOption, Limits, PlanningLayer, Problem, Solution, evaluate, solve
from edgekit.search import EVALUATIONS, fastest_keeping
from edgekit.types import Precision


def problem_of(rows: list[tuple[float, float, float]]) -> Problem:
    """(float ms, int8 ms, int8 loss) a layer; float loses nothing."""
    return Problem(
        tuple(
            PlanningLayer(
                f"l{i}",
                "Conv",
                (
                    LayerOption(Precision.FP32, slow, 40, 40, 0.0, "float"),
                    LayerOption(Precision.INT8, quick, 10, 10, loss, "int8"),
                ),
            )
            for i, (slow, quick, loss) in enumerate(rows)
        )
    )


problems = st.lists(
    st.tuples(st.floats(1, 10), st.floats(0.2, 8), st.floats(-8, 0).map(lambda power: 10**power)),
    min_size=2,
    max_size=7,
).map(problem_of)

TEN = problem_of([(4.0, 1.0, 10 ** (-i / 2)) for i in range(2, 12)])


class Scored:
    """A drop function that counts how often it is asked, and about what."""

    def __init__(self, drop: Callable[[Solution], float]) -> None:
        self.drop = drop
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, solution: Solution) -> float:
        self.asked.append(solution.choice)
        return self.drop(solution)


@given(problems, st.floats(-7, 0).map(lambda power: 10**power))
@settings(max_examples=40, deadline=None)
def test_a_drop_that_follows_the_loss_is_found_within_a_factor_of_two(problem: Problem, most: float) -> None:
    scored = Scored(lambda solution: solution.totals.loss)
    tried = fastest_keeping(problem, Limits(), most, scored)
    best = tried[0]
    assert best.keeps
    assert best.drop == best.solution.totals.loss <= most
    assert len(scored.asked) == len(set(scored.asked)) == len(tried) <= EVALUATIONS + 1
    fastest = solve(problem, Limits())
    if most / 2 >= fastest.totals.loss * 1e-4:  # bisection starts 40 dB below the fastest plan's loss
        known = solve(problem, Limits(loss=most / 2)).totals.latency_ms
        assert best.solution.totals.latency_ms <= known * (1 + 2 * LATENCY_WINDOW)


@given(problems, st.data())
@settings(max_examples=40, deadline=None)
def test_a_noisy_metric_still_ends_with_the_fastest_of_those_that_keep(problem: Problem, data: st.DataObject) -> None:
    drops: dict[tuple[int, ...], float] = {}

    def noisy(solution: Solution) -> float:
        drops[solution.choice] = data.draw(st.floats(-0.1, 0.1))
        return drops[solution.choice]

    try:
        tried = fastest_keeping(problem, Limits(), 0.01, noisy)
    except InfeasibleError as error:
        nearest = error.nearest
        assert min(drops.values()) > 0.01
        assert nearest == {"max_drop": drops[solve(problem, Limits(), objective="loss").choice]}
        return
    assert len(tried) == len(drops) <= EVALUATIONS
    assert tried[0].keeps
    assert tried[0].solution.totals.latency_ms == min(t.solution.totals.latency_ms for t in tried if t.keeps)
    assert [t.keeps for t in tried] == sorted((t.keeps for t in tried), reverse=True)
    assert all(t.drop == drops[t.solution.choice] and t.keeps == (t.drop <= 0.01) for t in tried)
    assert all(t.solution.totals == evaluate(problem, t.solution.choice) for t in tried)


def test_where_the_fastest_keeps_nothing_else_is_tried() -> None:
    scored = Scored(lambda _: 0.0)
    (best,) = fastest_keeping(TEN, Limits(), 0.0, scored)
    assert best.solution == solve(TEN, Limits())
    assert len(scored.asked) == 1


def test_without_a_metric_budget_nothing_is_scored() -> None:
    scored = Scored(lambda _: 1.0)
    (best,) = fastest_keeping(TEN, Limits(), None, scored)
    assert best.keeps
    assert best.solution == solve(TEN, Limits())
    assert scored.asked == []


def test_what_never_keeps_is_infeasible_and_says_how_near_it_came() -> None:
    scored = Scored(lambda solution: 0.0123 + solution.totals.loss)
    with pytest.raises(InfeasibleError, match=r"drops it by 0\.0123") as caught:
        fastest_keeping(TEN, Limits(), 0.01, scored)
    assert caught.value.nearest == {"max_drop": 0.0123}
    assert "--max-drop to 1.3%" in caught.value.hint
    assert len(scored.asked) == 2


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_metric_keeps_nothing(broken: float) -> None:
    with pytest.raises(InfeasibleError) as caught:
        fastest_keeping(TEN, Limits(), 0.01, lambda _: broken)
    assert caught.value.nearest == {}
    assert "--max-drop" not in caught.value.hint


def test_losses_of_zero_do_not_divide_by_zero() -> None:
    """Int8 looks free of loss and yet drops the metric."""
    problem = problem_of([(1.0, 1.0, 0.0), (1.0, 0.5, 0.0)])
    with pytest.raises(InfeasibleError):
        fastest_keeping(problem, Limits(), 0.01, lambda solution: 1.0 if solution.choice[1] else 0.5)


def test_hard_limits_hold_for_every_plan_that_is_tried() -> None:
    limits = Limits(latency_ms=25.0, weight_bytes=300)
    tried = fastest_keeping(TEN, limits, 0.002, lambda solution: solution.totals.loss)
    assert len(tried) > 2
    for one in tried:
        assert one.solution.totals.latency_ms <= 25.0
        assert one.solution.totals.weight_bytes <= 300


def test_a_limit_on_the_loss_is_never_loosened() -> None:
    tried = fastest_keeping(TEN, Limits(loss=1e-3), 1e-4, lambda solution: solution.totals.loss)
    assert all(one.solution.totals.loss <= 1e-3 for one in tried)
    assert tried[0].keeps


def test_limits_that_nothing_fits_are_the_planners_answer() -> None:
    with pytest.raises(InfeasibleError, match="latency") as caught:
        fastest_keeping(TEN, Limits(latency_ms=5.0), 0.01, lambda _: 0.0)
    assert caught.value.nearest["latency_ms"] == pytest.approx(10.0)


def test_a_metric_that_only_some_layers_hurt_is_served() -> None:
    """One layer ruins the metric whatever its loss says; the search still ends with a plan without it."""
    tried = fastest_keeping(TEN, Limits(), 0.01, lambda solution: 0.5 if solution.choice[3] else 0.0)
    assert tried[0].keeps
    assert tried[0].solution.choice[3] == 0
    assert len(tried) <= EVALUATIONS


def test_int8_wherever_it_can_be_is_tried_where_it_is_faster_than_what_was_found() -> None:
    """Its fastest plan leaves the last layer in float and loses the metric, as all do that mix."""
    problem = problem_of([(4.0, 1.0, 1e-3)] * 5 + [(1.0, 1.1, 1e-3)])
    everywhere = (1,) * 6
    tried = fastest_keeping(problem, Limits(), 0.01, lambda one: 0.0 if one.choice in (everywhere, (0,) * 6) else 0.02)
    assert tried[0].solution.choice == everywhere
    assert tried[0].solution.totals == evaluate(problem, everywhere)
    assert tried[0].solution.gap == pytest.approx(1 - 6.0 / 6.1)


def test_int8_wherever_it_can_be_keeps_the_limits() -> None:
    problem = problem_of([(4.0, 1.0, 1e-3)] * 5 + [(1.0, 1.1, 1e-3)])
    scored = Scored(lambda one: 0.0 if one.choice[0] == 0 else 0.02)
    tried = fastest_keeping(problem, Limits(loss=5.5e-3), 0.01, scored)
    assert tried[0].keeps
    assert (1,) * 6 not in scored.asked
    assert all(one.solution.totals.loss <= 5.5e-3 for one in tried)
