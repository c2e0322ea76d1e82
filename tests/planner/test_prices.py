from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgekit.errors import InfeasibleError
from edgekit.planner import LayerOption, Limits, PlanningLayer, Problem, prices, solve
from edgekit.types import Precision
from tests.planner.problems import CLOSE, QUANTITIES, bounded, everything, keeps


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(bounded(), st.sampled_from(["latency", "loss"]), st.sampled_from([0.01, 0.5]))
def test_prices_are_what_enumeration_says(case: tuple[Problem, Limits], objective: str, share: float) -> None:
    problem, limits = case
    first, second = ("latency_ms", "loss") if objective == "latency" else ("loss", "latency_ms")
    try:
        solution = solve(problem, limits, objective, gap=0)  # type: ignore[arg-type]
    except InfeasibleError:
        assume(False)
    steps = {q: max(1, int(share * getattr(solution.totals, q))) for q in QUANTITIES}
    found = prices(problem, limits, solution, objective, steps, gap=0)  # type: ignore[arg-type]
    expected = [q for q in QUANTITIES if q == first or getattr(limits, q) is not None]
    assert [price.quantity for price in found] == expected
    totals = everything(problem)
    for price in found:
        start = limits
        if price.quantity == first:
            start = limits.with_limit(first, getattr(solution.totals, first))  # type: ignore[arg-type]
        looser = start.with_limit(price.quantity, getattr(start, price.quantity) + price.step)
        assert price.bought == (second if price.quantity == first else first)
        for value, budgets in ((price.now, start), (price.then, looser)):
            best = min(getattr(t, price.bought) for t in totals if keeps(t, budgets))
            assert best / CLOSE <= value <= best * CLOSE
        assert price.then <= price.now


def coarse(losses: tuple[float, ...]) -> Problem:
    """Layers that take 4 ms, or 1 ms at a loss."""
    return Problem(
        tuple(
            PlanningLayer(
                f"layer{i}",
                "Conv",
                (
                    LayerOption(Precision.FP32, 4.0, 10, 10, 0.0, "float"),
                    LayerOption(Precision.FP16, 1.0, 10, 10, loss, "float"),
                ),
            )
            for i, loss in enumerate(losses)
        )
    )


def test_a_step_that_reaches_the_next_option_buys_it_and_a_smaller_one_nothing() -> None:
    problem, limits = coarse((0.4, 0.4, 0.4)), Limits(loss=1.0, weight_bytes=1000)
    solution = solve(problem, limits)
    (weights, loss) = prices(problem, limits, solution, "latency", {"loss": 0.1, "weight_bytes": 100})
    assert (weights.quantity, weights.now, weights.then) == ("weight_bytes", 6.0, 6.0)
    assert (loss.quantity, loss.bought, loss.now, loss.then) == ("loss", "latency_ms", 6.0, 6.0)
    (loss,) = prices(problem, limits, solution, "latency", {"loss": 0.2000001})
    assert (loss.now, loss.then) == (6.0, 3.0)
    (latency,) = prices(problem, limits, solution, "latency", {"latency_ms": 3.0})
    assert (latency.bought, latency.now, latency.then) == ("loss", 0.8, 0.4)


def test_no_time_left_buys_nothing() -> None:
    problem, limits = coarse((0.4, 0.4, 0.4)), Limits(loss=1.0)
    solution = solve(problem, limits)
    (price,) = prices(problem, limits, solution, "latency", {"loss": 1.0}, time_limit_s=0.0)
    assert price.then == price.now == solution.totals.latency_ms


def test_a_solution_over_its_limits_has_no_prices() -> None:
    problem = coarse((0.4,))
    solution = replace(solve(problem, Limits()), choice=(1,))
    with pytest.raises(ValueError, match=r"loss is 0\.4, over its limit 0\.1"):
        prices(problem, Limits(loss=0.1), solution, "latency", {"loss": 0.1})
