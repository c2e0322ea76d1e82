"""From a job to a plan: measure what options cost and hurt here, then find the fastest plan that keeps the metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from edgekit import releases
from edgekit.backends import Artifact
from edgekit.cost.measured import MeasuredCosts
from edgekit.cost.table import CostTable, anchored, layer_times_ms
from edgekit.errors import InfeasibleError, InputError
from edgekit.planner import Limits, Solution, pareto, solve
from edgekit.results import DroppedOption, Round
from edgekit.search import Tried, fastest_keeping, within
from edgekit.tables.channels import PruningTables
from edgekit.tables.formulate import Losses, Planning, formulate, limits_of
from edgekit.tables.refinement import (
    MOST_PLANS,
    QUIET,
    REFINEMENTS,
    NoiseBudget,
    Realised,
    corrected,
    round_of,
    same_noise,
    seen_factor,
)
from edgekit.tables.weights import MaskTables
from edgekit.types import Budget, Plan, Precision
from edgekit.workbench.offers import offer_masks, offer_pruning
from edgekit.workbench.scoring import Score, Scorer
from edgekit.workbench.stages import Workbench

_RACE_S = 4.0
# What pruning promises to gain less than this is not realised: races differ by as much.
_WORTH_A_ROUND = 0.02
# Above the noise of the most faithful plan by this much there is something to choose.
_FAITHFUL = 1.25
# Times that a plan is made anew for the bytes by which the last one's file was too large.
_FITTINGS = 3
# Besides float: what Q/DQ pairs in the hub model can say, so that its loss can be measured.
_QUANTIZED = (Precision.INT8, Precision.FP8, Precision.INT16X8, Precision.W8, Precision.W4)


@dataclass(frozen=True)
class Measured:
    """What every plan of a job is made from. ``loss_factor`` is how much of the layers' single losses is left where
    they come together, as a finished plan showed. ``base_loss`` is each layer's share of what the float precision
    loses.
    """

    table: CostTable
    losses: Losses
    float_score: Score
    dropped: tuple[DroppedOption, ...]
    loss_factor: float = 1.0
    base_loss: float = 0.0
    masks: MaskTables | None = None


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
        """What each layer costs at the channels and with the masks of the plan."""
        table, pruning, masks = self.planning.table, self.planning.pruning, self.planning.masks
        if masks is not None:
            table = masks.at(table, self.plan.masks())
        if pruning is None:
            return table
        return pruning.at(table, self.planning.graph.edges, pruning.kept(self.plan.kept()))


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
    if costs.table.unknown and job.budget.latency_ms is not None:
        raise InputError(f"--latency cannot be promised: {costs.table.unknown}", "or plan without --latency")
    # The float precision is chosen for the whole model: its loss is measured there and shared evenly by the layers.
    share = base_score.noise_power / len(job.graph.layers) if base is not Precision.FP32 else 0.0
    dropped += costs.dropped
    facts = releases.lacking(job.target, job.profile)
    dropped += tuple(DroppedOption(option, "model", reason) for option, reason in facts.items())
    losses = _losses(bench, costs, share)
    masks, refused = offer_masks(bench, costs.table, share, compressed=False)
    dropped += refused
    table = costs.table
    pruning: PruningTables | None = None
    if job.prune and job.budget.max_drop is not None:  # else nothing would say where to stop
        table, pruning, refused = offer_pruning(bench, table, sized)
        dropped += refused
    _tell(bench, dropped)
    measured = Measured(table, losses, float_score, dropped, base_loss=share, masks=masks)
    return _refined(bench, scorer, measured, pruning)


def _refined(bench: Workbench, scorer: Scorer, measured: Measured, pruning: PruningTables | None) -> Planned:
    """The best plan of bits alone; and from the noise on that it was seen to have, plans that prune as well: plan,
    realise, measure, correct the tables and plan again. The faster of the two counts.

    A plan of bits alone needs no such rounds: its tables were measured as they are used, and the race is its judge.
    Where none fits the size budget, weights are stored compressed, with zeros among them or few values for them.
    """
    bits: Planned | None = None
    try:
        bits = _bits_only(bench, scorer, measured)
    except InfeasibleError:
        masked = _compressed(bench, measured)
        if masked is None and pruning is None:
            raise
        if masked is not None:
            measured = masked
            try:
                bits = _bits_only(bench, scorer, measured)
            except InfeasibleError:
                if pruning is None:
                    raise
    if pruning is None:
        assert bits is not None
        return bits
    rival = None
    if bits is not None:
        rival = bench.artifact_of(bits.plan, bits.base)
        noise = scorer.score(rival, "the plan of bits alone").noise_power
        measured = replace(measured, loss_factor=seen_factor(bits.plan.predicted.loss, noise))
        # Where to begin, not a floor: the metric can mind what pruning leaves more than what rounding does.
        budget = NoiseBudget(max(noise, QUIET))
    else:
        budget = NoiseBudget(max(_least_noise(bench, measured, pruning) * _FAITHFUL, QUIET))
    most_ms = math.inf if bits is None else bits.tried[0].solution.totals.latency_ms
    rounds, realised = _rounds(bench, scorer, measured, pruning, budget, rival, most_ms)
    best = _fastest(bench, realised)
    if bits is not None:
        tried = (*bits.tried, *(one for planned, _ in realised for one in planned.tried))
        bits = replace(bits, rounds=rounds, pruning=pruning)
        rival_ms = best[1].rival_ms or most_ms if best is not None else math.inf
        if best is None or (best[1].latency_ms or math.inf) >= rival_ms:
            return bits
    else:
        tried = tuple(one for planned, _ in realised for one in planned.tried)
    if best is None:
        lost = min((one.drop for one in tried if math.isfinite(one.drop)), default=math.inf)
        known = math.isfinite(lost)
        raise InfeasibleError(
            "no plan within the other budgets keeps the metric, with channels removed or without"
            + (f": the most faithful drops it by {lost:.4g}" if known else ""),
            (f"raise --max-drop to {math.ceil(lost * 1000) / 10:g}% or " if known else "") + "loosen the other budgets",
            {"max_drop": lost} if known else {},
        )
    planned = best[0]
    whole = (0,) * len(planned.planning.problem.groups)
    others = (replace(one, solution=replace(one.solution, kept=one.solution.kept or whole)) for one in tried)
    with bench.job.progress.stage("plan"):
        front = pareto(planned.planning.problem, _limits(planned.planning, bench.job.budget))
    return replace(
        planned,
        front=front,
        tried=(planned.tried[0], *(one for one in others if one.solution.choice != planned.tried[0].solution.choice)),
        rounds=rounds,
        bits_only=bits,
        pruning=planned.planning.pruning,
    )


def _rounds(
    bench: Workbench,
    scorer: Scorer,
    measured: Measured,
    pruning: PruningTables,
    budget: NoiseBudget,
    rival: Artifact | None,
    most_ms: float,
) -> tuple[tuple[Round, ...], list[tuple[Planned, Realised]]]:
    """Plans that prune, each realised, with what the tables learnt from the ones before. A noise budget that no pruned
    plan comes of, none that is clearly faster than the ``most_ms`` which bits alone need, or one that is known, is
    loosened or tightened without a round. It ends where nothing would be gained on ``most_ms`` once a louder plan
    dropped the metric too far.
    """
    job = bench.job
    limits: Limits | None = None
    rounds: list[Round] = []
    realised: dict[str, tuple[Planned, Realised]] = {}
    for _ in range(MOST_PLANS):
        if len(rounds) == REFINEMENTS or budget.settled:
            break
        planning = _formulated(bench, measured, pruning)
        try:
            with job.progress.stage(f"plan, round {len(rounds) + 1}"):
                limits = limits or _limits(planning, job.budget)
                solution = solve(planning.problem, limits.with_limit("loss", budget.level))
        except InfeasibleError:
            if not rounds and rival is None:
                raise
            break
        plan = planning.plan(solution)
        if not plan.kept():
            budget = budget.wider()
        elif solution.totals.latency_ms >= most_ms * (1 - _WORTH_A_ROUND):
            if math.isfinite(budget.high):
                break
            budget = budget.louder()  # at the noise of bits alone pruning gains nothing: some more may still keep it
        elif plan.digest in realised:
            budget = budget.after(realised[plan.digest][1], as_promised=True)
        elif (tighter := _tighter(bench, plan, measured.table.base, limits)) is not None:
            limits = tighter
        else:
            found, drop = _realise(bench, scorer, measured, plan, solution.totals.latency_ms, rival)
            rounds.append(round_of(len(rounds) + 1, plan, found))
            tried = (Tried(solution, drop, found.keeps),)
            realised[plan.digest] = (
                Planned(planning, plan, tried, (), measured.dropped, measured.float_score),
                found,
            )
            pruning = corrected(planning, plan, found)
            budget = budget.after(found, same_noise(plan, found))
    return tuple(rounds), list(realised.values())


def _formulated(bench: Workbench, measured: Measured, pruning: PruningTables | None) -> Planning:
    return formulate(
        bench.job.graph,
        measured.table,
        measured.losses,
        bench.job.device.backend.runtime_weight_bits,
        pruning=pruning,
        loss_factor=measured.loss_factor,
        masks=measured.masks,
    )


def _compressed(bench: Workbench, measured: Measured) -> Measured | None:
    """The same where weights are stored compressed and may be held to masks and codebooks for it; None where the target
    knows no such weights, or size is not what makes the budget too tight.
    """
    job = bench.job
    if job.budget.weight_bytes is None or "unstructured" not in job.target.sparsity:
        return None
    try:
        _limits(_formulated(bench, measured, None), replace(job.budget, weight_bytes=None), check=True)
    except InfeasibleError:
        return None
    job.progress.note("no plan fits the size budget: weights are to be stored compressed, with zeros or few values")
    masks, dropped = offer_masks(bench, measured.table, measured.base_loss, compressed=True)
    _tell(bench, dropped)
    return replace(measured, masks=masks, dropped=measured.dropped + dropped)


def _fastest(bench: Workbench, realised: Sequence[tuple[Planned, Realised]]) -> tuple[Planned, Realised] | None:
    """The fastest plan that was seen to keep the metric, within the latency budget where one is."""
    budget_ms = bench.job.budget.latency_ms or math.inf
    keeping = [pair for pair in realised if pair[1].keeps]

    def order(pair: tuple[Planned, Realised]) -> tuple[bool, float]:
        latency_ms = pair[1].latency_ms or math.inf
        return latency_ms > budget_ms, latency_ms

    return min(keeping, key=order, default=None)


def _least_noise(bench: Workbench, measured: Measured, pruning: PruningTables) -> float:
    """The noise of the most faithful plan within the budget. Raises `InfeasibleError` where none is."""
    planning = _formulated(bench, measured, pruning)
    return solve(planning.problem, _limits(planning, bench.job.budget), objective="loss").totals.loss


def _limits(planning: Planning, budget: Budget, check: bool = False) -> Limits:
    """The budget as limits of what the planner counts. It counts the memory of a plan by rules, and what the plan takes
    is known once there is one (decision 21): where the leanest plan takes less than the rules say, they are given as
    much more, and what then does not fit is found when it is planned (`_tighter`).

    Raises `InfeasibleError`, with what the leanest plan takes, where that overruns the memory budget; and with
    ``check`` where any budget cannot be met.
    """
    limits = limits_of(budget)
    if budget.memory_bytes is None and not check:
        return limits
    try:
        solve(planning.problem, limits)
    except InfeasibleError as error:
        counted = error.nearest.get("memory_bytes")
        if budget.memory_bytes is None or counted is None or counted <= budget.memory_bytes:
            raise
        loosened = limits.with_limit("memory_bytes", int(counted))
        try:
            leanest = planning.plan(solve(planning.problem, loosened)).predicted.memory_bytes
        except InfeasibleError:
            raise error from None
        if leanest <= budget.memory_bytes:
            return loosened
        others = " within the other budgets" if limits.with_limit("memory_bytes", None) != Limits() else ""
        raise InfeasibleError(
            f"no plan fits: memory {budget.memory_bytes} bytes; the leanest plan{others} takes {leanest} bytes",
            f"raise memory to {leanest} bytes",
            error.nearest | {"memory_bytes": float(leanest)},
        ) from None
    return limits


def _bits_only(bench: Workbench, scorer: Scorer, measured: Measured) -> Planned:
    job = bench.job
    planning = _formulated(bench, measured, None)
    with job.progress.stage("plan"):
        limits = _limits(planning, job.budget)
        front = pareto(planning.problem, limits)
    drop_of = _drop_of(bench, scorer, planning, measured.float_score)
    tried = _fitting(bench, planning, limits, drop_of)
    return Planned(planning, planning.plan(tried[0].solution), tried, front, measured.dropped, measured.float_score)


def _fitting(
    bench: Workbench, planning: Planning, limits: Limits, drop_of: Callable[[Solution], float]
) -> tuple[Tried, ...]:
    """Scored plans, the best first, whose file is no larger than the size budget. Raises `InfeasibleError`."""
    for number in range(_FITTINGS + 1):
        try:
            tried = fastest_keeping(planning.problem, limits, bench.job.budget.max_drop, drop_of)
        except InfeasibleError:
            if not number:
                raise
            break  # what is wrong is the file, not the limit that it led to
        tighter = _tighter(bench, planning.plan(tried[0].solution), planning.table.base, limits)
        if tighter is None:
            return tried
        limits = tighter
    if limits.weight_bytes == bench.job.budget.weight_bytes:
        raise InfeasibleError(
            "no plan was found that fits the memory budget: a runtime leaves holes between the tensors that it packs",
            "raise --memory",
        )
    raise InfeasibleError(
        "no plan was found whose file fits the size budget: files hold more than the layers that a plan counts",
        "raise --size",
    )


def _tighter(bench: Workbench, plan: Plan, base: Precision, limits: Limits) -> Limits | None:
    """The limits for the next plan, where this one's file is larger than the size budget: it holds more than the
    layers, and they compress a little otherwise together than one by one. Or where packing its tensors leaves holes
    that overrun the memory budget. None where it is neither.
    """
    budget = bench.job.budget
    tighter = limits
    if budget.memory_bytes is not None and limits.memory_bytes is not None:
        excess = plan.predicted.memory_bytes - budget.memory_bytes
        tighter = tighter.with_limit("memory_bytes", max(0, limits.memory_bytes - max(0, excess)))
    if budget.weight_bytes is not None and limits.weight_bytes is not None:
        excess = bench.artifact_of(plan, base).weight_bytes - budget.weight_bytes
        # Less than this plan's layers hold: the limit may be slack, where a file holds tables of embeddings besides.
        held = min(limits.weight_bytes, plan.predicted.weight_bytes) if excess > 0 else limits.weight_bytes
        tighter = tighter.with_limit("weight_bytes", max(0, held - max(0, excess)))
    return tighter if tighter != limits else None


def _realise(
    bench: Workbench, scorer: Scorer, measured: Measured, plan: Plan, promised_ms: float, rival: Artifact | None
) -> tuple[Realised, float]:
    """What the plan does, and how far the metric drops. What keeps the metric is also profiled, and raced beside the
    uniform model of its base and the ``rival`` that prunes nothing; where the device is not at hand it is taken to keep
    its promise.
    """
    table, most = measured.table, bench.job.budget.max_drop
    artifact = bench.artifact_of(plan, table.base)
    score = scorer.score(artifact, _title(table, promised_ms))
    drop = scorer.drop(measured.float_score, score).value or 0.0
    if not within(drop, most):
        return Realised(None, {}, score.noise_power, score.metric.value, keeps=False), drop
    if not bench.job.device.at_hand:
        return Realised(promised_ms, {}, score.noise_power, score.metric.value, keeps=True), drop
    contestants = {"whole": bench.artifact(table.floats, table.base), "plan": artifact}
    if rival is not None:
        contestants["rival"] = rival
    raced = bench.race(contestants, _RACE_S, "race the plan beside what it was made from")
    latency_ms = table.anchors_ms[table.base] * raced["plan"].ratio
    nodes = bench.job.device.backend.executed_nodes(bench.profile(artifact), bench.job.graph)
    times_ms = anchored(layer_times_ms(nodes, bench.job.graph.layers), latency_ms)
    rival_ms = table.anchors_ms[table.base] * raced["rival"].ratio if rival is not None else None
    found = Realised(latency_ms, times_ms, score.noise_power, score.metric.value, keeps=True, rival_ms=rival_ms)
    return found, drop


def _title(table: CostTable, latency_ms: float) -> str:
    return "a plan" if table.unknown else f"a plan of {latency_ms:.3g} ms"


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
    before = planned.planning
    planning = formulate(job.graph, table, losses, bits, forbidden, before.pruning, before.loss_factor, before.masks)
    drop_of = _drop_of(bench, scorer, planning, planned.float_score)
    try:
        limits = _limits(planning, job.budget).with_limit("loss", planned.plan.predicted.loss)
        tried = _fitting(bench, planning, limits, drop_of)
    except InfeasibleError:
        return None
    front = pareto(planning.problem, limits)
    return replace(planned, planning=planning, plan=planning.plan(tried[0].solution), tried=tried, front=front)


def _drop_of(bench: Workbench, scorer: Scorer, planning: Planning, float_score: Score) -> Callable[[Solution], float]:
    """Realises a solution and says how far the metric drops."""

    def drop_of(solution: Solution) -> float:
        artifact = bench.artifact_of(planning.plan(solution), planning.table.base)
        score = scorer.score(artifact, _title(planning.table, solution.totals.latency_ms))
        return scorer.drop(float_score, score).value or 0.0

    return drop_of


def _choose_base(
    bench: Workbench, scorer: Scorer, float_score: Score
) -> tuple[Precision, Score, tuple[DroppedOption, ...]]:
    """The fastest float precision that keeps the metric for the whole model; fp32 always does.

    Raises `InfeasibleError` where nothing but fp32 does and the target's accelerator has none.
    """
    ratios, dropped = bench.float_precisions()
    most = bench.job.budget.max_drop
    least = math.inf
    for precision in ratios:
        if precision is Precision.FP32:
            break
        score = scorer.score(bench.artifact({}, precision), precision.value)
        lost = scorer.drop(float_score, score).value or 0.0
        least = min(least, lost)
        if within(lost, most):
            return precision, score, dropped
        reason = f"drops the metric by {lost:.4f}; the budget is {most:g}"
        dropped += (DroppedOption(precision.value, "model", reason),)
    if accelerator := bench.job.target.accelerator:
        known = math.isfinite(least)
        raise InfeasibleError(
            f"nothing would run on the {accelerator}, which has no fp32: "
            + "; ".join(f"{row.option} {row.reason}" for row in dropped),
            (f"raise --max-drop to {math.ceil(least * 1000) / 10:g}%, or " if known else "")
            + "take the target that runs on the board's GPU",
            {"max_drop": least} if known else {},
        )
    return Precision.FP32, float_score, dropped


def _losses(bench: Workbench, costs: MeasuredCosts, share: float) -> dict[str, dict[Precision, float]]:
    """Loss of each option in the cost table, on top of the base's own."""
    times = costs.table.latency_ms
    losses = {name: dict.fromkeys(row, share) for name, row in times.items()}
    for precision in _QUANTIZED:
        offered = [name for name, row in times.items() if precision in row]
        for name, loss in bench.losses(precision, offered).items():
            losses[name][precision] += loss
    return losses
