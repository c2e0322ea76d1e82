"""The guards: what may ship, and what really runs.

Never slower: the fastest candidate that keeps the metric ships, be it the plan, a uniform precision or the unmodified
model. Conformance: what was compiled is compared with the plan, layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgekit.backends import Artifact
from edgekit.cost.measured import executed_precisions
from edgekit.cost.table import layer_times_ms
from edgekit.devices.race import Raced
from edgekit.errors import GuardError, InfeasibleError
from edgekit.planning import Planned
from edgekit.search import within
from edgekit.types import Budget, Conformance, Figure, Kind, Mask, Mismatch, Precision
from edgekit.workbench.scoring import Score
from edgekit.workbench.stages import Workbench

# What the first of the candidates is called, and one that is level with it: nothing that was not raced is fast.
_WORDS = {
    Kind.MEASURED: ("fastest", "as fast as"),
    Kind.PREDICTED: ("predicted fastest", "predicted as fast as"),
    Kind.NONE: ("least arithmetic", "level with"),
}
# Medians of one race that are closer than this do not rank two candidates.
_RESOLVED = 0.01


@dataclass(frozen=True)
class Contestant:
    """A candidate with its artifact and score; ``planned`` is None for the uniform ones. ``kept`` are the channels that
    stay in the groups that lose some, ``masks`` what layers' weights are held to.
    """

    name: str
    precisions: Mapping[str, Precision]
    artifact: Artifact
    score: Score
    drop: Figure
    memory_bytes: int
    planned: Planned | None = None
    kept: Mapping[str, int] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)

    @property
    def compressed(self) -> bool:
        """Whether the weights ship compressed."""
        return bool(self.artifact.compressed)


def choose(contestants: Sequence[Contestant], raced: Mapping[str, Raced], budget: Budget) -> tuple[Contestant, str]:
    """What ships, and why: the fastest that keeps metric and size; of those that the race cannot tell apart, the most
    faithful within the latency budget. Raises `InfeasibleError` where none is fast enough.
    """
    keeping = [c for c in contestants if _keeps(c, budget)]
    if not keeping:
        raise InfeasibleError(
            "no candidate keeps the metric and the size and memory budgets",
            "raise --max-drop, --size or --memory",
            {"weight_bytes": min(c.artifact.weight_bytes for c in contestants)},
        )
    kind = raced[keeping[0].name].kind
    best = min(raced[c.name].ratio for c in keeping)
    level = [c for c in keeping if raced[c.name].ratio <= best * (1 + _RESOLVED)]
    if budget.latency_ms is not None:
        latency_ms = min(raced[c.name].latency_ms.p50 for c in level)
        level = [c for c in level if raced[c.name].latency_ms.p50 <= budget.latency_ms]
        if not level:
            takes = f"takes {latency_ms:.3g} ms on this device"
            if kind is not Kind.MEASURED:
                takes = f"is predicted to take {latency_ms:.3g} ms"
            raise InfeasibleError(
                f"the fastest candidate that keeps the metric {takes}; the latency budget is {budget.latency_ms:g} ms",
                f"raise --latency to {latency_ms * 1.05:.3g}ms or --max-drop, or use a faster device",
                {"latency_ms": latency_ms},
            )
    chosen = max(level, key=lambda c: c.score.sqnr_db)
    refused = [c.name for c in contestants if c not in keeping]
    first, as_fast = _WORDS[kind]
    reason = f"{first} of {len(contestants)} candidates" if not refused else f"{first} that keeps the budget"
    if refused:
        reason += f" ({', '.join(refused)} {'does' if len(refused) == 1 else 'do'} not)"
    if kind is Kind.NONE:
        reason += " (no latency is known)"
    if len(level) > 1:
        equals = ", ".join(c.name for c in level if c is not chosen)
        reason += f"; {as_fast} {equals} and more faithful"
    return chosen, reason


def loses(contestant: Contestant, others: Sequence[Contestant], raced: Mapping[str, Raced], budget: Budget) -> bool:
    """Whether another candidate that keeps the budget was faster, by more than the race resolves."""
    mine = raced[contestant.name].ratio
    return any(
        _keeps(c, budget) and raced[c.name].ratio * (1 + _RESOLVED) < mine for c in others if c is not contestant
    )


def _keeps(contestant: Contestant, budget: Budget) -> bool:
    if not within(contestant.drop.value or 0.0, budget.max_drop):  # NaN keeps nothing
        return False
    if budget.memory_bytes is not None and contestant.memory_bytes > budget.memory_bytes:
        return False
    return budget.weight_bytes is None or contestant.artifact.weight_bytes <= budget.weight_bytes


def losing_layers(bench: Workbench, contestant: Contestant, raced: Raced) -> frozenset[tuple[str, Precision]]:
    """Int8 layers that, inside this plan, take longer than they do in float: conversions around them eat the gain."""
    assert contestant.planned is not None
    nodes = bench.job.device.backend.executed_nodes(bench.profile(contestant.artifact), bench.job.graph)
    times = layer_times_ms(nodes, bench.job.graph.layers)
    scale = raced.latency_ms.p50 / (sum(times.values()) or 1.0)
    table = contestant.planned.table.latency_ms
    return frozenset(
        (name, precision)
        for name, precision in contestant.precisions.items()
        if precision is Precision.INT8
        and times[name] * scale > min(ms for p, ms in table[name].items() if p is not Precision.INT8)
    )


def conformance(bench: Workbench, contestant: Contestant) -> Conformance:
    """Each layer's planned precision against the executed one."""
    backend = bench.job.device.backend
    if not bench.job.device.at_hand and backend.compiled_rows(contestant.artifact) is None:
        reason = f"no device returned what it executes: {bench.job.target.name} was not at hand"
        return Conformance(len(bench.job.graph.layers), 0, unknown=reason)
    executed = executed_precisions(backend.executed_nodes(bench.profile(contestant.artifact), bench.job.graph))
    planned = {layer.name: contestant.precisions.get(layer.name, Precision.FP32) for layer in bench.job.graph.layers}
    mismatches = tuple(
        Mismatch(name, precision, executed.get(name) or "nothing that was found in the compiled model")
        for name, precision in planned.items()
        if not backend.executes_as(precision, executed.get(name, ""))
    )
    return Conformance(len(planned), len(planned) - len(mismatches), mismatches)


def require_conformance(found: Conformance) -> None:
    """Raise `GuardError`, naming the layers, unless everything executes as planned."""
    if found.mismatches:
        shown = [f"{m.layer} (planned {m.planned.value}, executes {m.executed})" for m in found.mismatches[:5]]
        more = len(found.mismatches) - len(shown)
        listed = ", ".join(shown) + (f" and {more} more" if more else "")
        raise GuardError(
            f"{len(found.mismatches)} of {found.planned} layers do not execute as planned: {listed}",
            "--allow-mismatch ships it all the same and lists them in the report",
        )
