"""From a job to a plan: measure what options cost and hurt here, then find the fastest plan that keeps the metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekit.cost.measured import MeasuredCosts
from edgekit.errors import InfeasibleError
from edgekit.formulate import Planning, formulate, limits_of
from edgekit.planner import Solution, pareto
from edgekit.results import DroppedOption
from edgekit.scoring import Score, Scorer
from edgekit.search import Tried, fastest_keeping, within
from edgekit.stages import Workbench
from edgekit.types import Plan, Precision


@dataclass(frozen=True)
class Planned:
    """A plan that keeps the metric, with everything that it was chosen from."""

    planning: Planning
    plan: Plan
    tried: tuple[Tried, ...]
    front: tuple[Solution, ...]
    dropped: tuple[DroppedOption, ...]
    float_score: Score

    @property
    def base(self) -> Precision:
        """The float precision of what is not quantized."""
        return self.planning.table.base


def make_plan(bench: Workbench, scorer: Scorer) -> Planned:
    """Measure costs on the device and losses on the calibration samples, and plan. The metric drop of the plan is not
    predicted: it was scored on the evaluation samples.

    Raises `InfeasibleError` when no plan fits the budget.
    """
    job = bench.job
    float_score = scorer.score(bench.artifact({}, Precision.FP32), "float")
    base, base_score, dropped = _choose_base(bench, scorer, float_score)
    sized = job.budget.weight_bytes is not None or job.budget.memory_bytes is not None
    costs = bench.costs(base, weight_only=sized)
    # The float precision is chosen for the whole model: its loss is measured there and shared evenly by the layers.
    share = base_score.noise_power / len(job.graph.layers) if base is not Precision.FP32 else 0.0
    dropped += costs.dropped
    _tell(bench, dropped)
    losses = _losses(bench, costs, share)
    planning = formulate(job.graph, costs.table, losses, job.device.backend.runtime_weight_bits)
    with job.progress.stage("plan"):
        front = pareto(planning.problem, limits_of(job.budget))
    tried = _search(bench, scorer, planning, float_score)
    plan = planning.plan(tried[0].solution)
    return Planned(planning, plan, tried, front, dropped, float_score)


def _tell(bench: Workbench, dropped: Sequence[DroppedOption]) -> None:
    """A line for each option that the whole model lost, and one for those that single layers lost."""
    for option in dropped:
        if option.scope == "model":
            bench.job.progress.note(f"{option.option} dropped: {option.reason}")
    layers = [option for option in dropped if option.scope != "model"]
    if layers:
        first = layers[0]
        more = f" (and {len(layers) - 1} more layers)" if len(layers) > 1 else ""
        bench.job.progress.note(f"{first.option} not offered for {first.scope}{more}: {first.reason}")


def plan_again(
    bench: Workbench, scorer: Scorer, planned: Planned, forbidden: frozenset[tuple[str, Precision]]
) -> Planned | None:
    """The best plan without the forbidden options, no lossier than ``planned``; None where there is none."""
    table, losses = planned.planning.table, planned.planning.losses
    bits = bench.job.device.backend.runtime_weight_bits
    planning = formulate(bench.job.graph, table, losses, bits, forbidden)
    try:
        tried = _search(bench, scorer, planning, planned.float_score, most_loss=planned.plan.predicted.loss)
    except InfeasibleError:
        return None
    return replace(planned, planning=planning, plan=planning.plan(tried[0].solution), tried=tried)


def _search(
    bench: Workbench, scorer: Scorer, planning: Planning, float_score: Score, most_loss: float | None = None
) -> tuple[Tried, ...]:
    def drop_of(solution: Solution) -> float:
        artifact = bench.artifact(planning.plan(solution).precisions(), planning.table.base)
        score = scorer.score(artifact, f"a plan of {solution.totals.latency_ms:.3g} ms")
        return scorer.drop(float_score, score).value or 0.0

    limits = limits_of(bench.job.budget, most_loss)
    return fastest_keeping(planning.problem, limits, bench.job.budget.max_drop, drop_of)


def _choose_base(
    bench: Workbench, scorer: Scorer, float_score: Score
) -> tuple[Precision, Score, tuple[DroppedOption, ...]]:
    """The fastest float precision that keeps the metric for the whole model; fp32 always does."""
    ratios, dropped = bench.float_precisions()
    most = bench.job.budget.max_drop
    for precision in ratios:
        if precision is Precision.FP32:
            break
        score = scorer.score(bench.artifact({}, precision), precision.value)
        lost = scorer.drop(float_score, score).value or 0.0
        if within(lost, most):
            return precision, score, dropped
        reason = f"drops the metric by {lost:.4f}; the budget is {most:g}"
        dropped += (DroppedOption(precision.value, "model", reason),)
    return Precision.FP32, float_score, dropped


def _losses(bench: Workbench, costs: MeasuredCosts, share: float) -> dict[str, dict[Precision, float]]:
    """Loss of each option in the cost table, on top of the base's own."""
    times = costs.table.latency_ms
    losses = {name: dict.fromkeys(row, share) for name, row in times.items()}
    for precision in (Precision.INT8, Precision.W8):
        offered = [name for name, row in times.items() if precision in row]
        for name, loss in bench.losses(precision, offered).items():
            losses[name][precision] += loss
    return losses
