"""Puts everything that a deployment found out into the one document that the report and the bundle are made of."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit import conditions as race_conditions
from edgekit.cost.table import at_pace, mac_baseline_ms, pace, predict_ms
from edgekit.devices.race import Raced
from edgekit.graph import Graph
from edgekit.graph.liveness import peak_activation_bytes
from edgekit.guards import Contestant
from edgekit.job import Job
from edgekit.planner import Solution, evaluate
from edgekit.planning import Planned
from edgekit.pricing import price_budgets
from edgekit.profiles.re_anchoring import demand_of
from edgekit.results import (
    Blame,
    DataInfo,
    Demand,
    DeployResult,
    DeviceInfo,
    DroppedOption,
    FixedDetail,
    GroupDetail,
    GroupOptionDetail,
    LayerDetail,
    ModelInfo,
    ParetoPoint,
    Prediction,
    Price,
    RecipeInfo,
    Round,
)
from edgekit.tables.formulate import weight_bytes
from edgekit.types import (
    EIGHT_BITS,
    Budget,
    Candidate,
    Conformance,
    Figure,
    Kind,
    Mask,
    MetricResult,
    Plan,
    Precision,
    Predicted,
)
from edgekit.versions import versions
from edgekit.workbench.offers import saved_ms
from edgekit.workbench.stages import Workbench


@dataclass(frozen=True)
class PlanResult:
    """A plan that was not raced: what ``edgekit plan --json`` prints. ``metric`` is the float model's, ``drop`` what
    the plan loses of it (both scored on the evaluation samples); the plan's latency is predicted.
    """

    target: str
    device: DeviceInfo
    model: ModelInfo
    data: DataInfo
    recipe: RecipeInfo
    budget: Budget
    plan: Plan
    metric: MetricResult
    drop: float
    layers: tuple[LayerDetail, ...]
    options_dropped: tuple[DroppedOption, ...]
    pareto: tuple[ParetoPoint, ...]
    warnings: tuple[str, ...] = ()
    groups: tuple[GroupDetail, ...] = ()
    fixed: tuple[FixedDetail, ...] = ()
    rounds: tuple[Round, ...] = ()
    prices: tuple[Price, ...] = ()
    schema: str = "edgekit/plan/1"


def plan_result(bench: Workbench, planned: Planned) -> PlanResult:
    """The result of planning alone."""
    job = bench.job
    graph = bench.graph_of(planned.plan.kept())
    return PlanResult(
        target=job.target.name,
        device=bench.device_info,
        model=ModelInfo(job.model_path.name, job.graph.sha256),
        data=_data_info(job),
        recipe=_recipe_info(job),
        budget=job.budget,
        plan=planned.plan,
        metric=planned.float_score.metric,
        drop=planned.tried[0].drop,
        layers=_layer_details(bench, planned, planned.plan, graph),
        options_dropped=planned.dropped,
        pareto=_considered(planned),
        warnings=_warnings(job),
        groups=_group_details(bench, planned, planned.plan.kept()),
        fixed=_fixed_details(bench),
        rounds=planned.rounds,
        prices=()
        if planned.planning.table.unknown
        else price_budgets(planned.planning, planned.tried[0].solution, job.budget),
    )


def assemble(
    bench: Workbench,
    planned: Planned,
    contestants: Sequence[Contestant],
    raced: Mapping[str, Raced],
    chosen: Contestant,
    reason: str,
    conformance: Conformance,
    rounds: Sequence[Round],
    blamed: Sequence[Blame],
    out: Path,
) -> DeployResult:
    """The result of a deployment that passed its guards; ``planned`` is the plan that `chosen` realises, or the last
    one that was raced.
    """
    job = bench.job
    held = raced["float"].conditions
    taken = {layer.name: chosen.precisions.get(layer.name, Precision.FP32) for layer in job.graph.layers}
    shipped = _shipped_plan(planned, chosen, taken)
    raced_plan = next(c for c in reversed(contestants) if c.planned is planned)
    return DeployResult(
        target=job.target.name,
        device=bench.device_info,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=ModelInfo(job.model_path.name, job.graph.sha256),
        data=_data_info(job),
        recipe=_recipe_info(job),
        budget=job.budget,
        plan=shipped,
        layers=_layer_details(bench, planned, shipped, bench.graph_of(chosen.kept)),
        options_dropped=planned.dropped,
        candidates=tuple(_candidate(c, raced[c.name]) for c in contestants),
        chosen=chosen.name,
        chosen_reason=reason,
        conformance=conformance,
        pareto=_considered(planned),
        blame=tuple(blamed),
        rounds=tuple(rounds),
        prediction=_prediction(bench, raced_plan, raced) if job.device.at_hand else None,
        bundle=str(out),
        versions=versions(),
        warnings=_warnings(job) + (race_conditions.warnings(held) if held is not None else ()),
        groups=_group_details(bench, planned, chosen.kept),
        fixed=_fixed_details(bench),
        prices=_prices(job, chosen),
        conditions=held,
        demand=demand_of(job.graph),
        plan_demand=_plan_demand(bench, chosen, taken),
    )


def _plan_demand(bench: Workbench, chosen: Contestant, taken: Mapping[str, Precision]) -> Demand | None:
    """What the plan that ships asks of a device; None of another candidate, and where zeros make it faster."""
    if chosen.planned is None or chosen.masks:
        return None
    return demand_of(bench.graph_of(chosen.kept), taken)


def _data_info(job: Job) -> DataInfo:
    data = job.data
    return DataInfo(data.name, data.digest, len(data.calibration), len(data.evaluation), data.synthetic)


def _recipe_info(job: Job) -> RecipeInfo:
    recipe = job.data.recipe
    return RecipeInfo(recipe.name, recipe.digest, recipe.observer, job.data.metric.name)


def _candidate(contestant: Contestant, raced: Raced) -> Candidate:
    score = contestant.score
    return Candidate(
        name=contestant.name,
        latency_ms=raced.latency_ms,
        metric=score.metric,
        sqnr_db=score.sqnr_db,
        agreement=score.agreement,
        weight_bytes=contestant.artifact.weight_bytes,
        kind=raced.kind,
        precisions=dict(sorted(Counter(p.value for p in contestant.precisions.values()).items())),
        drop=contestant.drop,
        speedup=_speedup(raced),
        note="" if raced.kind is Kind.MEASURED else f"{raced.kind.value}: {raced.source}",
        speedup_ci=_speedup_ci(raced),
        energy_mj=raced.energy_mj,
        peak_memory_bytes=raced.peak_memory_bytes,
    )


def _speedup(raced: Raced) -> Figure:
    if raced.kind is Kind.NONE:
        return Figure(Kind.NONE, source=raced.source)
    if raced.kind is Kind.PREDICTED:
        return Figure(Kind.PREDICTED, 1 / raced.ratio, 1 / raced.ratio_high, 1 / raced.ratio_low, raced.source)
    source = "interleaved rounds, p10..p90"
    return Figure(Kind.MEASURED, 1 / raced.ratio, 1 / raced.ratio_high, 1 / raced.ratio_low, source)


def _speedup_ci(raced: Raced) -> Figure | None:
    if raced.ratio_ci_low is None or raced.ratio_ci_high is None:
        return None
    source = "interleaved rounds, 95 % confidence interval of their median"
    return Figure(Kind.MEASURED, 1 / raced.ratio, 1 / raced.ratio_ci_high, 1 / raced.ratio_ci_low, source)


def _shipped_plan(planned: Planned, chosen: Contestant, taken: Mapping[str, Precision]) -> Plan:
    """The plan of what ships. A uniform candidate is a plan too: with the totals of its options, and no optimality."""
    decided = (planned.plan.precisions(), planned.plan.kept(), planned.plan.masks(), planned.plan.compressed)
    if decided == (taken, chosen.kept, chosen.masks, chosen.compressed):
        return planned.plan
    layers = planned.planning.problem.layers
    offered = [[option.precision for option in layer.options] for layer in layers]
    known = all(taken[layer.name] in options for layer, options in zip(layers, offered, strict=True))
    choice = tuple(
        options.index(taken[layer.name]) if known else 0 for layer, options in zip(layers, offered, strict=True)
    )
    whole = (0,) * len(planned.planning.problem.groups)  # no uniform candidate prunes
    totals = evaluate(planned.planning.problem, choice, whole)
    plan = planned.planning.plan(Solution(choice, totals, 0.0, 0.0, (), 0.0, whole))
    # No uniform candidate is stored compressed, whatever the plans were.
    graph = planned.planning.graph
    stored = sum(weight_bytes(layer.weight_elements, layer.bias_elements, taken[layer.name]) for layer in graph.layers)
    plan = replace(plan, gap=None, compressed=False, predicted=replace(plan.predicted, weight_bytes=stored))
    if known:
        return plan
    # The unmodified model, where the float options were of another precision.
    predicted = Predicted(
        latency_ms=Figure(Kind.NONE, source="the unmodified model was raced, not planned"),
        weight_bytes=stored,
        peak_activation_bytes=peak_activation_bytes(graph, taken, chosen.artifact.base),
        memory_bytes=chosen.memory_bytes,
        loss=0.0,
    )
    return replace(plan, layers=tuple(replace(c, precision=taken[c.name]) for c in plan.layers), predicted=predicted)


def _layer_details(bench: Workbench, planned: Planned, plan: Plan, graph: Graph) -> tuple[LayerDetail, ...]:
    """The layers of the plan that ships. ``graph`` is the pruned one, and the latencies are those at its channels."""
    taken, kept, masks = plan.precisions(), plan.kept(), plan.masks()
    table = planned.table if kept or masks else planned.planning.table
    losses = planned.planning.losses
    dropped = {option.scope: option.reason for option in planned.dropped if option.option == Precision.INT8.value}
    kind = Kind.NONE if table.unknown else Kind.MEASURED if bench.job.device.at_hand else Kind.PREDICTED
    whole = not kept and not masks
    details = []
    for layer in graph.layers:
        times = table.latency_ms[layer.name]
        mask = masks.get(layer.name, Mask.NONE)
        details.append(
            LayerDetail(
                name=layer.name,
                op_type=layer.op_type,
                precision=taken[layer.name],
                keep=planned.planning.keep_ratio(layer.name, kept),
                macs=layer.macs,
                weight_bytes=planned.planning.weight_bytes(layer, taken[layer.name], mask, plan.compressed),
                latency_ms={} if table.unknown else dict(times),
                loss=dict(losses[layer.name]),
                reason=_reason(times, taken[layer.name], dropped.get(layer.name, "")),
                latency_kind=kind,
                mask=mask,
                cures=bench.curer.applied(layer.name, taken[layer.name]) if whole else (),
            )
        )
    return tuple(details)


def _reason(times_ms: Mapping[Precision, float], taken: Precision, dropped: str) -> str:
    if taken in EIGHT_BITS:
        return ""
    if dropped:
        return f"no int8: {dropped}"
    if Precision.INT8 not in times_ms:
        return ""
    if times_ms[Precision.INT8] >= min(ms for p, ms in times_ms.items() if p is not Precision.INT8):
        return "int8 not faster"
    return "int8 costs accuracy"


def _considered(planned: Planned) -> tuple[ParetoPoint, ...]:
    if planned.planning.table.unknown:
        return ()
    reference = planned.float_score.metric
    sign = 1 if reference.higher_is_better else -1
    drops = {(one.solution.choice, one.solution.kept): one.drop for one in planned.tried}
    solutions = {(s.choice, s.kept): s for s in (*(one.solution for one in planned.tried), *planned.front)}
    points = []
    for key, solution in solutions.items():
        layers = planned.planning.problem.layers
        if any(index >= len(layer.options) for index, layer in zip(solution.choice, layers, strict=True)):
            continue  # of the first round, when a layer had options that are gone
        plan = planned.planning.plan(solution)
        precisions = plan.precisions().values()
        drop = drops.get(key)
        points.append(
            ParetoPoint(
                latency_ms=solution.totals.latency_ms,
                loss=solution.totals.loss,
                weight_bytes=solution.totals.weight_bytes,
                int8_layers=sum(precision is Precision.INT8 for precision in precisions),
                metric=None if drop is None else reference.value - sign * drop,
                kind=Kind.PREDICTED,
                pruned_channels=sum(group.channels - group.kept for group in plan.groups),
            )
        )
    return tuple(sorted(points, key=lambda point: (point.latency_ms, point.loss)))


def _prediction(bench: Workbench, contestant: Contestant, raced: Mapping[str, Raced]) -> Prediction:
    """Predicted and measured, both at the pace of the uniform models of the same race."""
    assert contestant.planned is not None
    graph = bench.graph_of(contestant.kept)
    table = contestant.planned.planning.table
    float_ms = raced["float"].latency_ms.p50
    names = {table.base: "float" if table.base is Precision.FP32 else table.base.value, Precision.INT8: "int8"}
    anchors = {precision: float_ms * raced[name].ratio for precision, name in names.items() if name in raced}
    measured = float_ms * raced[contestant.name].ratio
    whole_macs = sum(layer.macs for layer in bench.job.graph.layers)
    baseline = mac_baseline_ms(replace(table, anchors_ms=anchors), graph.layers, contestant.precisions)
    table = at_pace(table, pace((table.anchors_ms[precision], ms) for precision, ms in anchors.items()))
    baseline *= sum(layer.macs for layer in graph.layers) / max(1, whole_macs)
    pruning = contestant.planned.planning.pruning
    masks = contestant.planned.planning.masks
    if masks is not None:
        table = masks.at(table, contestant.masks)
    if pruning is not None and contestant.kept:
        table = pruning.at(table, bench.job.graph.edges, pruning.kept(contestant.kept))
    predicted = predict_ms(table, graph.edges, contestant.precisions).value or 0.0
    return Prediction(predicted, measured, predicted / measured - 1, baseline, baseline / measured - 1)


def _group_details(bench: Workbench, planned: Planned, kept: Mapping[str, int]) -> tuple[GroupDetail, ...]:
    """Every channel group, also those that had no choice; nothing where pruning was not asked for."""
    if not bench.job.prune:
        return ()
    tables = planned.pruning
    saved = saved_ms(tables, planned.planning.table) if tables is not None else {}
    unknown = bool(planned.planning.table.unknown)
    # The mildest of a group's options that was refused says why there were no more.
    reasons = {
        option.scope: f"{option.option}: {option.reason}"
        for option in reversed(planned.dropped)
        if option.option.startswith(("keep ", "pruning"))
    }
    details = []
    for group in bench.pruner.channels.groups:
        losses = tables.losses.get(group.name, {}) if tables is not None else {}
        options = tuple(
            GroupOptionDetail(count, loss, math.nan if unknown else saved[group.name][count])
            for count, loss in losses.items()
            if count < group.channels
        )
        left = kept.get(group.name, group.channels)
        refused = reasons.get(group.name, "") if not options else "offered; others save more for their noise"
        reason = "" if left < group.channels else refused
        details.append(GroupDetail(group.name, group.channels, left, group.producers, group.consumers, options, reason))
    return tuple(details)


def _prices(job: Job, chosen: Contestant) -> tuple[Price, ...]:
    """Of the plan that ships; a uniform candidate was not chosen by budgets."""
    if chosen.planned is None or chosen.planned.planning.table.unknown:
        return ()
    return price_budgets(chosen.planned.planning, chosen.planned.tried[0].solution, job.budget)


def _fixed_details(bench: Workbench) -> tuple[FixedDetail, ...]:
    if not bench.job.prune:
        return ()
    return tuple(FixedDetail(fixed.layer, fixed.reason) for fixed in bench.pruner.channels.fixed)


def _warnings(job: Job) -> tuple[str, ...]:
    found = []
    if job.data.synthetic:
        found.append(
            "planned on random inputs: latencies hold, accuracy figures say nothing of your data; nothing was pruned"
        )
    if job.device.emulated:
        found.append(
            f"{job.target.name} is emulated: its results were checked, and nothing was timed on it; measure the bundle "
            "on a real board: edgekit bench BUNDLE --host user@address"
        )
    elif not job.device.at_hand:
        found.append(
            f"{job.target.name} was not at hand: nothing was measured on it, and outputs were scored on this machine; "
            "deploy with --host user@address, or measure the bundle there: edgekit bench BUNDLE --host user@address"
        )
    return tuple(found)
