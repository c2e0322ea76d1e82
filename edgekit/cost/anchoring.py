"""Corrects the costs of a profile by whole networks that were raced on the user's own device.

All costs of one runtime, processor, precision and thread count share a factor whose logarithm is normal around 0. Each
anchor says what it is, with the noise of its race and of what the costs do not know of its network; anchors that
disagree by far count like those at a bounded distance (Huber, Robust Estimation of a Location Parameter, 1964), so that
one wild race moves the factor by no more than `most_moved` allows. The costs in the file stay as they were fitted:
anchors are facts beside them, applied when costs are read, in any order with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from edgekit.cost.work import FEATURES, MAC_KINDS
from edgekit.entries import Anchor, Costs, DeviceProfile

# Of the variance of a prediction that comes from the costs, the part that all networks have in common.
_COMMON = 0.5
_RACE = 0.03  # standard deviation of the logarithm of a raced latency
_HUBER = 1.345  # standard deviations from which on an anchor pulls no harder
_SPREAD_ROWS = 8.0  # what the spread of the fit is worth beside that of anchors, in networks
# What networks spend their time on, roughly: multiplying, moving bytes, starting kernels.
_MACS, _BYTES = 0.5, 0.4

Key = tuple[str, str, str, int]


def key(row: Costs | Anchor) -> Key:
    """What costs and the anchors that correct them have in common."""
    return row.runtime, row.processor, row.precision.value, row.threads


def re_anchor(profile: DeviceProfile, rows: Iterable[Anchor]) -> DeviceProfile:
    """The profile with these anchors beside those that it has. A network counts once for each of its precisions: by its
    newest race, and of several on one day by the fastest, which was disturbed least. Rows without costs to correct are
    left out.
    """
    priced = {key(cost) for cost in profile.costs}
    found: dict[tuple[Key, str], Anchor] = {}
    for row in (*profile.anchors, *rows):
        if key(row) in priced:
            place = (key(row), row.model)
            found[place] = max(found.get(place, row), row, key=lambda one: (one.date, -one.measured_ms))
    return replace(profile, anchors=tuple(found[place] for place in sorted(found)))


def corrected(cost: Costs, anchors: Sequence[Anchor]) -> Costs:
    """The costs with what the anchors of the same key say: factors times the common factor, and the surer the more of
    them agree. Without such anchors, the costs as they are.
    """
    mine = [row for row in anchors if key(row) == key(cost)]
    if not mine:
        return cost
    said = sorted(math.log(row.measured_ms / row.predicted_ms) for row in mine)
    prior, noise = _prior(cost), _noise(cost)
    middle = _mode(said, prior, noise)
    weights = [min(1.0, _HUBER * noise / max(abs(one - middle), 1e-12)) for one in said]
    left = 1 / (1 + prior**2 * math.fsum(weights) / noise**2)  # of the common factor's variance
    off = [weight * (one - middle) ** 2 for one, weight in zip(said, weights, strict=True)]
    spread = math.sqrt((_SPREAD_ROWS * cost.spread**2 + math.fsum(off)) / (_SPREAD_ROWS + len(off)))
    shrunk = 1 - _COMMON * (1 - left)
    factor = math.exp(middle)
    networks = f"{len(mine)} network{'s' if len(mine) > 1 else ''}"
    return replace(
        cost,
        factors={name: value * factor for name, value in cost.factors.items()},
        covariance=tuple(" ".join(f"{v * shrunk:.6g}" for v in row) for row in cost.covariance_rows()),
        spread=spread,
        evidence=f"times {factor:.3g} by {networks} raced on this device, upon: {cost.evidence}",
    )


def most_moved(cost: Costs) -> float:
    """The most that one more anchor can move the logarithm of the common factor, however wild it is."""
    return _HUBER * _prior(cost) ** 2 / _noise(cost)


def typical_deviation(cost: Costs) -> float:
    """Standard deviation of the logarithm of the prediction for a network that spends its time as most do."""
    return math.sqrt(_typical_variance(cost) + cost.spread**2)


def typical_shares(cost: Costs) -> dict[str, float]:
    """Feature -> its share of the latency of such a network, over the kinds of kernels that were measured."""
    kinds = [kind for kind in MAC_KINDS if kind in cost.kinds] or list(MAC_KINDS)
    starts = [name for name in FEATURES if name not in MAC_KINDS and not name.endswith("bytes")]
    moved = [name for name in FEATURES if name.endswith("bytes")]
    groups = ((kinds, _MACS), (moved, _BYTES), (starts, 1 - _MACS - _BYTES))
    return {name: whole / len(names) for names, whole in groups for name in names}


def _typical_variance(cost: Costs) -> float:
    shares = typical_shares(cost)
    names = list(cost.factors)
    total = 0.0
    for i, row in enumerate(cost.covariance_rows()):
        for j, value in enumerate(row):
            total += (1 if i == j else 2) * value * shares.get(names[i], 0.0) * shares.get(names[j], 0.0)
    return max(total, 0.0)


def _prior(cost: Costs) -> float:
    """Never nothing: the most certain costs may be wrong by the spread of the networks they were fitted on."""
    return math.sqrt(_COMMON * _typical_variance(cost) + cost.spread**2 / 4)


def _noise(cost: Costs) -> float:
    return math.sqrt((1 - _COMMON) * _typical_variance(cost) + cost.spread**2 + _RACE**2)


def _mode(said: Sequence[float], prior: float, noise: float) -> float:
    """Where the posterior is highest. Its slope falls all the way, so the root is found by halving."""

    def slope(middle: float) -> float:
        pulls = (max(-_HUBER, min(_HUBER, (one - middle) / noise)) / noise for one in said)
        return math.fsum(pulls) - middle / prior**2

    low, high = min(0.0, *said), max(0.0, *said)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (low + high) / 2
