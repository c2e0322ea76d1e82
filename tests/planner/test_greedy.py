from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from edgekit.planner import (
    GroupOption,
    LayerOption,
    Limits,
    PlanningGroup,
    PlanningLayer,
    Problem,
    ShapeCost,
    evaluate,
    greedy,
    solve,
)
from edgekit.types import Precision
from tests.planner.problems import CLOSE, bounded, everything, keeps


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(bounded())
def test_keeps_the_limits_or_says_none_and_is_never_better_than_the_optimum(case: tuple[Problem, Limits]) -> None:
    problem, limits = case
    found = greedy(problem, limits)
    if found is None:
        return
    totals = evaluate(problem, *found)
    assert keeps(totals, limits)
    assert totals.latency_ms * CLOSE >= min(t.latency_ms for t in everything(problem) if keeps(t, limits))


def knapsack() -> Problem:
    """Two small changes look better per loss than the one that would do."""
    pairs = ((10.0, 6.0, 0.6), (10.0, 3.0, 1.4), (10.0, 7.5, 0.5))
    layers = tuple(
        PlanningLayer(
            f"layer{i}",
            "Conv",
            (
                LayerOption(Precision.FP32, slow, 4, 4, 0.0, "float"),
                LayerOption(Precision.FP16, quick, 2, 2, loss, "float"),
            ),
        )
        for i, (slow, quick, loss) in enumerate(pairs)
    )
    return Problem(layers)


def test_takes_the_best_gain_per_loss_first_and_pays_for_it() -> None:
    found = greedy(knapsack(), Limits(loss=1.5))
    assert found == ((1, 0, 1), ())
    assert solve(knapsack(), Limits(loss=1.5)).choice == (0, 1, 0)
    assert greedy(knapsack(), Limits(latency_ms=26.0)) == ((1, 0, 0), ())
    assert greedy(knapsack(), Limits(latency_ms=10.0)) is None


def test_prunes_a_group_when_that_is_cheaper_than_bits() -> None:
    layer = PlanningLayer(
        "conv",
        "Conv",
        (
            LayerOption(Precision.FP32, 0.0, 0, 0, 0.0, "float"),
            LayerOption(Precision.INT8, 0.0, 0, 0, 1.0, "int8"),
        ),
    )
    group = PlanningGroup("conv", (GroupOption(8, 0.0), GroupOption(4, 0.1)))
    bytes_by = ((80, 40), (20, 10))
    problem = Problem(
        (layer,),
        groups=(group,),
        shape_costs=(ShapeCost(0, (0,), ((8.0, 4.0), (4.0, 2.0)), bytes_by, bytes_by),),
    )
    assert greedy(problem, Limits(weight_bytes=79)) == ((0,), (1,))
    assert greedy(problem, Limits(weight_bytes=10)) == ((1,), (1,))
    assert greedy(problem, Limits(latency_ms=5.0)) == ((0,), (1,))
