"""Holds a plan that prunes against what its realisation does, and corrects the tables where they do not agree.

Losses of single groups add up only as long as they are small and their noises are strangers to each other, and the
re-solved layers of a whole plan make up for more than each group's alone did; layer times of a few pruned models are
extrapolated to all. So a plan is built, raced, profiled and scored: its profile is one more that shapes are fitted to,
and the losses of the groups that it prunes are scaled to the noise that was seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgekit.cost.shapes import ShapeProfile, fit_shapes
from edgekit.cost.table import crossing
from edgekit.formulate import Planning
from edgekit.pruning import PruningTables
from edgekit.results import Round
from edgekit.types import Plan

REFINEMENTS = 4
"""Rounds of plan, realise and correct before the best so far is taken."""

# Noise power promised and seen that differ by less than this factor (1.8 dB) lead to the same plan.
_SAME_LOSS = 1.5
# A correction is believed within these bounds: what lies beyond is not the groups' doing.
_LEAST, _MOST = 0.1, 10.0


@dataclass(frozen=True)
class Realised:
    """What a plan did: latency and layer times on the clock of the cost table, noise power at the output, metric."""

    latency_ms: float
    times_ms: Mapping[str, float]
    loss: float
    metric: float


def round_of(number: int, plan: Plan, found: Realised) -> Round:
    """A round for the report."""
    pruned = plan.kept()
    removed = sum(group.channels - group.kept for group in plan.groups)
    return Round(
        round=number,
        action=f"{removed} channels of {len(pruned)} groups removed",
        predicted_ms=plan.predicted.latency_ms.value,
        measured_ms=found.latency_ms,
        metric=found.metric,
        predicted_loss=plan.predicted.loss,
        measured_loss=found.loss,
    )


def agrees(plan: Plan, found: Realised, interval: float) -> bool:
    """Whether latency and loss came out as promised."""
    promised_ms = plan.predicted.latency_ms.value or 0.0
    ratio = found.loss / max(plan.predicted.loss, 1e-14)
    return abs(promised_ms - found.latency_ms) <= interval / 2 * found.latency_ms and ratio < _SAME_LOSS


def corrected(planning: Planning, plan: Plan, found: Realised) -> PruningTables:
    """The tables that the plan was made from, corrected by what it did."""
    pruning = planning.pruning
    assert pruning is not None
    precisions = plan.precisions()
    crossed = {name for edge in crossing(planning.graph.edges, precisions) for name in (edge.producer, edge.consumer)}
    kept = pruning.kept(plan.kept())
    # Beside a crossing a layer's time holds the conversion too.
    times_ms = {name: ms for name, ms in found.times_ms.items() if name not in crossed}
    profiles = (*pruning.profiles, ShapeProfile(kept, precisions, times_ms))
    shapes = fit_shapes(pruning.sizes, pruning.full, planning.table, profiles)

    losses = planning.losses
    bits = math.fsum(losses[name][precision] for name, precision in precisions.items())
    groups = plan.predicted.loss - bits
    scale = min(_MOST, max(_LEAST, (found.loss - bits) / groups)) if groups > 0 else 1.0
    factor = {name: pruning.factor.get(name, 1.0) * (scale if name in plan.kept() else 1.0) for name in pruning.losses}
    return replace(pruning, shapes=shapes, profiles=profiles, factor=factor)
