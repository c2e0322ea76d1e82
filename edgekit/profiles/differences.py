"""What two device profiles say differently: what ``edgekit profile --diff`` answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from edgekit import catalog
from edgekit.cost.anchoring import corrected, key, typical_deviation, typical_shares
from edgekit.cost.kernels import parse
from edgekit.cost.profile import units
from edgekit.entries import Costs, DeviceProfile
from edgekit.errors import InputError
from edgekit.types import Precision

SCHEMA = "edgekit/profile-diff/1"


@dataclass(frozen=True)
class Fact:
    """A number of the profile by its key. None: the profile does not have it."""

    name: str
    a: float | None
    b: float | None


@dataclass(frozen=True)
class CostSide:
    """One profile's costs of a runtime in a precision, corrected by ``anchors`` races: a prediction's 90 % interval is
    its value divided and multiplied by ``reach``, for a network that spends its time as most do. ``kernels`` were
    timed on the board itself.
    """

    rows: int
    anchors: int
    reach: float
    evidence: str
    kernels: int = 0


@dataclass(frozen=True)
class CostDifference:
    """Costs that differ. ``factor`` is the latency that B predicts over that of A, for such a network;
    ``most_changed`` the feature whose cost changed most, by ``most_factor``. None where one of them has no such costs.
    ``kernel_factor`` is the median of the latencies of those kernels that both timed, B's over A's; None without any.
    """

    runtime: str
    processor: str
    precision: Precision
    threads: int
    a: CostSide | None
    b: CostSide | None
    factor: float | None = None
    most_changed: str = ""
    most_factor: float | None = None
    kernel_factor: float | None = None


@dataclass(frozen=True)
class ProfileDifference:
    """Two profiles side by side; ``facts`` and ``costs`` hold what differs."""

    name: str
    a: str
    b: str
    same: bool
    facts: tuple[Fact, ...]
    costs: tuple[CostDifference, ...]
    schema: str = SCHEMA


def between_files(a: Path, b: Path, overlays: Sequence[str | Path] = ()) -> ProfileDifference:
    """What differs from one file to the other. Raises `InputError` where one is no device profile."""
    ours, theirs = (catalog.read_profile(path, overlays) for path in (a, b))
    return compare(ours, theirs, str(a), str(b))


def since_shipped(target: str, overlays: Sequence[str | Path] = ()) -> ProfileDifference:
    """What the user's own profile of a target says otherwise than the one it stands in place of.

    Raises `InputError` where there is no own one.
    """
    name = catalog.target(target, overlays).device_profile
    path = catalog.profile_file(name, overlays)
    if path.parent != catalog.own_profiles():
        raise InputError(
            f"there is no device profile {name!r} of your own: {path} is as it was shipped",
            f"edgekit profile --target {target} measures one; deploy corrects one where it has costs",
        )
    try:
        before = catalog.device_profile(name, overlays, own=False)
    except InputError as error:
        raise InputError(f"{path} stands in place of no other profile: {error}", error.hint) from None
    return compare(before, catalog.device_profile(name, overlays), "shipped", str(path))


def compare(a: DeviceProfile, b: DeviceProfile, a_file: str, b_file: str) -> ProfileDifference:
    """What differs from ``a`` to ``b``."""
    ours, theirs = _facts(a), _facts(b)
    names = dict.fromkeys([*ours, *theirs])
    facts = tuple(Fact(n, ours.get(n), theirs.get(n)) for n in names if ours.get(n) != theirs.get(n))
    costs = _costs(a, b)
    return ProfileDifference(b.name, a_file, b_file, not (facts or costs), facts, costs)


def _facts(profile: DeviceProfile) -> dict[str, float]:
    found: dict[str, float] = {
        "channel_step": profile.channel_step,
        "prediction_error": profile.prediction_error,
        "sparse_speedup": profile.sparse_speedup,
    }
    if profile.memory is not None:
        found["memory.bandwidth_gbs"] = profile.memory.bandwidth_gbs
    for part in profile.processors:
        found |= {f"{part.kind}.peak_gmacs.{p.value}": gmacs for p, gmacs in part.peak_gmacs.items()}
    return found


def _costs(a: DeviceProfile, b: DeviceProfile) -> tuple[CostDifference, ...]:
    ours, theirs = ({key(cost): corrected(cost, one.anchors) for cost in one.costs} for one in (a, b))
    rows = []
    for place in sorted({*ours, *theirs}):
        one, other = ours.get(place), theirs.get(place)
        change = (None, "", None, None) if one is None or other is None else _change(a, one, b, other)
        sides = (_side(a, one), _side(b, other))
        if one != other or change[0] != 1:
            known = one or other
            assert known is not None
            rows.append(CostDifference(known.runtime, known.processor, known.precision, known.threads, *sides, *change))
    return tuple(rows)


def _side(profile: DeviceProfile, cost: Costs | None) -> CostSide | None:
    if cost is None:
        return None
    anchors = sum(key(row) == key(cost) for row in profile.anchors)
    return CostSide(
        cost.rows, anchors, math.exp(cost.interval * typical_deviation(cost)), cost.evidence, len(cost.kernels)
    )


def _kernel_factor(one: Costs, other: Costs) -> float | None:
    ours, theirs = ({kernel.what: kernel.latency_ms for kernel in map(parse, cost.kernels)} for cost in (one, other))
    ratios = [theirs[what] / ours[what] for what in ours if what in theirs]
    return median(ratios) if ratios else None


def _change(a: DeviceProfile, one: Costs, b: DeviceProfile, other: Costs) -> tuple[float, str, float, float | None]:
    """(The whole's factor, the feature that changed most, its factor, that of kernels)."""
    ours, theirs = _per_unit(a, one), _per_unit(b, other)
    ratios = {name: theirs[name] / ours[name] for name in ours if name in theirs}
    shares = typical_shares(other)
    whole = math.exp(math.fsum(shares.get(name, 0.0) * math.log(ratio) for name, ratio in ratios.items()))
    most = max(ratios, key=lambda name: abs(math.log(ratios[name])))
    return whole, most, ratios[most], _kernel_factor(one, other)


def _per_unit(profile: DeviceProfile, cost: Costs) -> dict[str, float]:
    """Milliseconds for a start, a MAC or a byte: factors alone depend on what each profile takes for the peak."""
    part = profile.part(cost.processor)
    assert part is not None  # the profile was checked
    given = units(profile, part, cost.precision, cost.threads)
    starts = ("call", "layer", "operator")

    def unit(name: str) -> float:
        return 1.0 if name in starts else given.bytes_per_ms if name.endswith("bytes") else given.macs_per_ms

    return {name: factor / unit(name) for name, factor in cost.factors.items()}
