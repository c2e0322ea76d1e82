"""Holds a plan that prunes against what its realisation does, and corrects the tables where they do not agree.

Losses of single groups add up only as long as they are small and their noises are strangers to each other, and the
re-solved layers of a whole plan make up for more than each group's alone did; layer times of a few pruned models are
extrapolated to all. So a plan is built and scored, and the losses of the groups that it prunes are scaled to the noise
that was seen; if it keeps the metric it is raced and profiled too, and shapes are fitted to its profile as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgekit.cost.shapes import ShapeProfile, fit_shapes
from edgekit.cost.table import crossing
from edgekit.results import Round
from edgekit.tables.channels import PruningTables
from edgekit.tables.formulate import Planning
from edgekit.types import Plan

REFINEMENTS = 6
"""Rounds of plan, realise and correct before the best so far is taken."""
MOST_PLANS = 24
"""Plans that are made for these rounds; not each is worth one."""
QUIET = 1e-6
"""Noise power (60 dB below the signal) that no metric notices: no budget needs to start below it."""

LOUDEST = 0.1
"""Noise power (10 dB below the signal) beyond which a plan is another model: where a metric over some hundred samples
still holds then, it is luck."""

# Noise power promised and seen that differ by less than this factor (1.8 dB) lead to the same plan.
_SAME_LOSS = 1.5
# Two noise budgets closer than this give plans that no evaluation could tell apart.
_CLOSE = 1.25
# How fast a budget grows that leaves no room for pruning.
_WIDER = 4.0
# A correction is believed within these bounds: what lies beyond is not the groups' doing.
_LEAST, _MOST = 0.1, 10.0


@dataclass(frozen=True)
class Realised:
    """What a plan did: noise power at the output, and metric. Latency and layer times (on the cost table's clock) are
    those of plans that keep the metric; ``rival_ms`` is what the best plan of bits alone took in the same race.
    """

    latency_ms: float | None
    times_ms: Mapping[str, float]
    loss: float
    metric: float
    keeps: bool
    rival_ms: float | None = None


@dataclass(frozen=True)
class NoiseBudget:
    """The noise power that the next plan may have: between what was seen to keep the metric and what was not."""

    level: float
    low: float = 0.0
    high: float = math.inf

    @property
    def settled(self) -> bool:
        """Whether another level would not make another plan, or one that could be trusted."""
        return min(self.high, LOUDEST) <= self.low * _CLOSE

    def after(self, found: Realised, as_promised: bool) -> NoiseBudget:
        """The budget of the next plan: where the noise came out ``as_promised``, wider or narrower as the metric says;
        else the same one again, for corrected tables.
        """
        low, high = self.low, self.high
        if found.keeps:
            low = max(low, self.level if as_promised else found.loss)
        else:
            high = min(high, self.level if as_promised else found.loss)
        if not as_promised and low < self.level < high:
            return NoiseBudget(self.level, low, high)
        return NoiseBudget(_between(low, high), low, high)

    def louder(self) -> NoiseBudget:
        """The next budget where a pruned plan of this one is hardly faster than one of bits alone."""
        low = max(self.low, self.level)
        return NoiseBudget(_between(low, self.high, step=_CLOSE), low, self.high)

    def wider(self) -> NoiseBudget:
        """The next budget where this one leaves no room for pruning."""
        low = max(self.low, self.level)
        return NoiseBudget(_between(low, self.high, step=_WIDER), low, self.high)


def _between(low: float, high: float, step: float = 2.0) -> float:
    if math.isinf(high):
        return min(step * low, LOUDEST)
    return min(math.sqrt(low * high) if low else high / step, LOUDEST)


def round_of(number: int, plan: Plan, found: Realised) -> Round:
    """A round for the report."""
    pruned = plan.kept()
    removed = sum(group.channels - group.kept for group in plan.groups)
    return Round(
        round=number,
        action=f"{removed} channels of {len(pruned)} group{'' if len(pruned) == 1 else 's'} removed: "
        + ("keeps the metric" if found.keeps else "drops it too far"),
        predicted_ms=plan.predicted.latency_ms.value,
        measured_ms=found.latency_ms,
        metric=found.metric,
        predicted_loss=plan.predicted.loss,
        measured_loss=found.loss,
    )


def same_noise(plan: Plan, found: Realised) -> bool:
    """Whether the noise came out as promised."""
    ratio = found.loss / max(plan.predicted.loss, 1e-14)
    return 1 / _SAME_LOSS < ratio < _SAME_LOSS


def seen_factor(promised: float, seen: float) -> float:
    """By how much losses are scaled to the noise that was seen; 1 where nothing worth scaling was promised."""
    return min(_MOST, max(_LEAST, seen / promised)) if promised > QUIET else 1.0


def corrected(planning: Planning, plan: Plan, found: Realised) -> PruningTables:
    """The tables that the plan was made from, corrected by what it did."""
    pruning = planning.pruning
    assert pruning is not None
    precisions = plan.precisions()
    crossed = {name for edge in crossing(planning.graph.edges, precisions) for name in (edge.producer, edge.consumer)}
    kept = pruning.kept(plan.kept())
    # Beside a crossing a layer's time holds the conversion too.
    times_ms = {name: ms for name, ms in found.times_ms.items() if name not in crossed}
    profiles = pruning.profiles
    if times_ms:
        profiles += (ShapeProfile(kept, precisions, times_ms),)
    shapes = fit_shapes(pruning.sizes, pruning.full, planning.table, profiles)

    bits = planning.loss_factor * math.fsum(planning.loss(c.name, c.precision, c.mask) for c in plan.layers)
    groups = plan.predicted.loss - bits
    scale = min(_MOST, max(_LEAST, (found.loss - bits) / groups)) if groups > 0 else 1.0
    factor = {name: pruning.factor.get(name, 1.0) * (scale if name in plan.kept() else 1.0) for name in pruning.losses}
    return replace(pruning, shapes=shapes, profiles=profiles, factor=factor)
