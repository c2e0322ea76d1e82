"""From a job to a plan: measure what options cost and hurt here, then find the fastest plan that keeps the metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from edgekit.cost.measured import MeasuredCosts
from edgekit.cost.table import CostTable, anchored, layer_times_ms
from edgekit.errors import InfeasibleError
from edgekit.formulate import Losses, Planning, formulate, limits_of
from edgekit.offers import offer_pruning
from edgekit.planner import Solution, pareto
from edgekit.pruning import PruningTables
from edgekit.refinement import REFINEMENTS, Realised, agrees, corrected, round_of
from edgekit.results import DroppedOption, Round
from edgekit.scoring import Score, Scorer
from edgekit.search import Tried, fastest_keeping, keeping_near, within
from edgekit.stages import Workbench
from edgekit.types import Plan, Precision

_RACE_S = 4.0


@dataclass(frozen=True)
class Measured:
    """What every plan of a job is made from."""

    table: CostTable
    losses: Losses
    float_score: Score
    dropped: tuple[DroppedOption, ...]


@dataclass(frozen=True)
class Planned:
    """A plan that keeps the metric, with everything that it was chosen from. ``rounds`` are those in which the tables
    were corrected by realised plans; ``bits_only`` is the best plan that prunes nothing, where this one prunes;
    ``pruning`` is what pruning offered, also where the plan takes none of it.
    """

    planning: Planning
    plan: Plan
    tried: tuple[Tried, ...]
    front: tuple[Solution, ...]
    dropped: tuple[DroppedOption, ...]
    float_score: Score
    rounds: tuple[Round, ...] = ()
    bits_only: Planned | None = None
    pruning: PruningTables | None = None

    @property
    def base(self) -> Precision:
        """The float precision of what is not quantized."""
        return self.planning.table.base

    @cached_property
    def table(self) -> CostTable:
        """What each layer costs at the channels that the plan keeps."""
        pruning = self.planning.pruning
        if pruning is None:
            return self.planning.table
        return pruning.at(self.planning.table, self.planning.graph.edges, pruning.kept(self.plan.kept()))


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
    losses = _losses(bench, costs, share)
    pruning: PruningTables | None = None
    if job.prune:
        pruning, refused = offer_pruning(bench, costs, sized)
        dropped += refused
    _tell(bench, dropped)
    return _refined(bench, scorer, Measured(costs.table, losses, float_score, dropped), pruning)


def _refined(bench: Workbench, scorer: Scorer, measured: Measured, pruning: PruningTables | None) -> Planned:
    """The best plan of bits alone, and from its loss on the best one that prunes as well: plan, realise, measure,
    correct the tables and plan again, until what it promises is what it does. The faster of the two counts.

    A plan of bits alone needs no such rounds: its tables were measured as they are used, and the race is its judge.
    """
    try:
        bits = _bits_only(bench, scorer, measured)
    except InfeasibleError:
        if pruning is None:
            raise
        bits = None
    if pruning is None:
        assert bits is not None
        return bits
    offered = pruning
    rounds: list[Round] = []
    realised: list[tuple[Planned, Realised]] = []
    for number in range(1, REFINEMENTS + 1):
        try:
            planned = _joint(bench, scorer, measured, pruning, bits)
        except InfeasibleError:
            if bits is None and not realised:
                raise
            break
        if planned is None:
            break
        if not planned.plan.kept():
            bits = bits or planned
            break
        if any(planned.plan.digest == earlier.plan.digest for earlier, _ in realised):
            break
        found = _realise(bench, scorer, planned)
        rounds.append(round_of(number, planned.plan, found))
        realised.append((planned, found))
        if agrees(planned.plan, found, measured.table.interval):
            break
        pruning = corrected(planned.planning, planned.plan, found)
    budget_ms = bench.job.budget.latency_ms or math.inf
    by_speed = sorted(realised, key=lambda pair: (pair[1].latency_ms > budget_ms, pair[1].latency_ms))
    if bits is not None:
        bits = replace(bits, rounds=tuple(rounds), pruning=offered)
        if not by_speed or (bits.plan.predicted.latency_ms.value or 0.0) <= by_speed[0][1].latency_ms:
            return bits
    best = by_speed[0][0]
    return replace(best, rounds=tuple(rounds), bits_only=bits, pruning=best.planning.pruning)


def _bits_only(bench: Workbench, scorer: Scorer, measured: Measured) -> Planned:
    planning, front = _formulated(bench, measured, None)
    job = bench.job
    drop_of = _drop_of(bench, scorer, planning, measured.float_score)
    tried = fastest_keeping(planning.problem, limits_of(job.budget), job.budget.max_drop, drop_of)
    plan = planning.plan(tried[0].solution)
    return Planned(planning, plan, tried, front, measured.dropped, measured.float_score)


def _joint(
    bench: Workbench, scorer: Scorer, measured: Measured, pruning: PruningTables, bits: Planned | None
) -> Planned | None:
    """The best plan of bits and channels, from the loss on with which bits alone keep the metric; None where none of
    those that were tried from there keeps it. Raises `InfeasibleError` when none fits the budget.
    """
    job = bench.job
    limits, most = limits_of(job.budget), job.budget.max_drop
    planning, front = _formulated(bench, measured, pruning)
    drop_of = _drop_of(bench, scorer, planning, measured.float_score)
    if bits is None:
        tried = fastest_keeping(planning.problem, limits, most, drop_of)
    else:
        tried = keeping_near(planning.problem, limits, most, drop_of, bits.plan.predicted.loss)
    if not tried or not tried[0].keeps:
        return None
    plan = planning.plan(tried[0].solution)
    return Planned(planning, plan, tried, front, measured.dropped, measured.float_score)


def _formulated(
    bench: Workbench, measured: Measured, pruning: PruningTables | None
) -> tuple[Planning, tuple[Solution, ...]]:
    """The problem, and the front of its solutions. Raises `InfeasibleError` when no plan fits the budget."""
    job = bench.job
    bits = job.device.backend.runtime_weight_bits
    planning = formulate(job.graph, measured.table, measured.losses, bits, pruning=pruning)
    with job.progress.stage("plan"):
        return planning, pareto(planning.problem, limits_of(job.budget))


def _realise(bench: Workbench, scorer: Scorer, planned: Planned) -> Realised:
    """What the plan does: raced beside the uniform model of its base, profiled, and scored."""
    plan, table = planned.plan, planned.planning.table
    artifact = bench.artifact(plan.precisions(), planned.base, plan.kept())
    whole = bench.artifact(table.floats, planned.base)
    ratio = bench.race({"whole": whole, "plan": artifact}, _RACE_S, "race the plan with what it was made from")[
        "plan"
    ].ratio
    latency_ms = table.anchors_ms[table.base] * ratio
    nodes = bench.job.device.backend.executed_nodes(bench.profile(artifact), bench.job.graph)
    times_ms = anchored(layer_times_ms(nodes, bench.job.graph.layers), latency_ms)
    score = scorer.score(artifact, "the plan")
    return Realised(latency_ms, times_ms, score.noise_power, score.metric.value)


def _tell(bench: Workbench, dropped: Sequence[DroppedOption]) -> None:
    """A line for each option that the whole model lost, and one for those that single layers lost."""
    for option in dropped:
        if option.scope == "model":
            bench.job.progress.note(f"{option.option} dropped: {option.reason}")
    layers = [option for option in dropped if option.scope != "model"]
    if layers:
        first = layers[0]
        more = f" (and {len(layers) - 1} more)" if len(layers) > 1 else ""
        bench.job.progress.note(f"{first.option} not offered for {first.scope}{more}: {first.reason}")


def plan_again(
    bench: Workbench, scorer: Scorer, planned: Planned, forbidden: frozenset[tuple[str, Precision]]
) -> Planned | None:
    """The best plan without the forbidden options, no lossier than ``planned``; None where there is none."""
    table, losses = planned.planning.table, planned.planning.losses
    job = bench.job
    bits = job.device.backend.runtime_weight_bits
    planning = formulate(job.graph, table, losses, bits, forbidden, planned.planning.pruning)
    limits = limits_of(job.budget, planned.plan.predicted.loss)
    drop_of = _drop_of(bench, scorer, planning, planned.float_score)
    try:
        tried = fastest_keeping(planning.problem, limits, job.budget.max_drop, drop_of)
    except InfeasibleError:
        return None
    return replace(planned, planning=planning, plan=planning.plan(tried[0].solution), tried=tried)


def _drop_of(bench: Workbench, scorer: Scorer, planning: Planning, float_score: Score) -> Callable[[Solution], float]:
    """Realises a solution and says how far the metric drops."""

    def drop_of(solution: Solution) -> float:
        plan = planning.plan(solution)
        artifact = bench.artifact(plan.precisions(), planning.table.base, plan.kept())
        score = scorer.score(artifact, f"a plan of {solution.totals.latency_ms:.3g} ms")
        return scorer.drop(float_score, score).value or 0.0

    return drop_of


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
