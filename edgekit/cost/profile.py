"""Predicts the latency of a network on a device that nobody has at hand, from the costs in the device's profile.

A latency is the sum over the network's kernels of starts, MACs by kind and bytes, each times a factor of the profile
(`edgekit.cost.work`, `edgekit.cost.fit`): additive, so that every layer has its own share and more work never costs
less. The interval comes from the covariance of the factors and from what held-out networks and devices showed
(`edgekit.cost.interval`). What is far from everything that was measured gets no number but the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.cost.anchoring import corrected
from edgekit.cost.kernels import Surface, kernel_of, parse
from edgekit.cost.table import CostTable, anchored, crossing_elements
from edgekit.cost.work import FEATURES, Units, Work, element_bytes, features, macs_by_kind, work_of
from edgekit.errors import InputError
from edgekit.types import EIGHT_BITS, Figure, Kind, Precision

if TYPE_CHECKING:
    from edgekit.entries import Costs, DeviceProfile, Processor
    from edgekit.graph import Graph

Array = NDArray[np.float64]

# A network may hold this share of its MACs in kinds of kernels that no row had, and be this many times smaller or
# larger than the measured ones, before there is no number. Standard deviation of the logarithm for each doubling.
UNSEEN_SHARE = 0.10
REACH = 8.0
_A_DOUBLING = 0.15
# Kernels that are matrix products inside: one of them measured says something of the others, less surely. How much
# less is in the covariance: their factors differ by a normal prior (`Priors.kind`).
_ALIKE = frozenset({"conv3x3", "conv", "pointwise", "grouped", "matmul"})
_FLOATS = (Precision.FP32, Precision.BF16, Precision.FP16)
# Nobody has published rows of fp8: where a profile names its peak, it is taken to come as near to it as int8 does.
# On a Jetson Thor one network took 22 ms in fp16, about 20 in each of the two (github.com/roboflow/rf-detr/issues/955).
_LIKE = {Precision.FP8: Precision.INT8}


def units(profile: DeviceProfile, part: Processor, precision: Precision, threads: int) -> Units:
    """The theoretical best of that part of the device with ``threads`` of its cores (0: all of it)."""
    if profile.memory is None or precision not in part.peak_gmacs:
        raise InputError(
            f"device profile {profile.name}: no peak of the {part.kind} in {precision.value}",
            hint="add it to peak_gmacs, and a block [memory]",
        )
    share = min(threads, part.cores) / part.cores if threads else 1.0
    return Units(part.peak_gmacs[precision] * share * 1e6, profile.memory.bandwidth_gbs * 1e6, element_bytes(precision))


def predict_from_profile(
    graph: Graph,
    precisions: Mapping[str, Precision],
    profile: DeviceProfile,
    runtime: str,
    threads: int = 0,
    processor: str = "",
) -> Figure:
    """Latency of a plan (layer -> precision) in milliseconds with its 90 % interval, predicted; or `Kind.NONE` with the
    reason in ``source``.

    ``runtime`` is a name that the profile's costs use. ``threads`` matters on a CPU alone; ``processor`` ("cpu", "gpu",
    "npu", "dla") is the first that the runtime has costs for unless given.
    """
    crossed = crossing_elements(graph.edges, precisions)
    return predict_work(work_of(graph), precisions, profile, runtime, threads, processor, crossed)


def predict_work(
    work: Sequence[Work],
    precisions: Mapping[str, Precision],
    profile: DeviceProfile,
    runtime: str,
    threads: int = 0,
    processor: str = "",
    crossed_elements: int = 0,
) -> Figure:
    """As `predict_from_profile` from the kernels alone. What precedes the first layer counts to it; elements that pass
    between int8 and float layers are read in one and written in the other.
    """
    wanted = tuple(dict.fromkeys(precisions.values()))
    if not wanted:
        return Figure(Kind.NONE, source="outside what was measured: a network without layers")
    of_kernel = _kernel_precisions(work, precisions)
    found = _priced(work, wanted, profile, runtime, threads, processor, of_kernel)
    if isinstance(found, str):
        return Figure(Kind.NONE, source=found)
    value, deviation = 0.0, 0.0
    converting = next((precision for precision in found if precision in EIGHT_BITS), None)
    for precision, one in found.items():
        mine = [kernel for kernel, p in zip(work, of_kernel, strict=True) if p is precision]
        call = sum(kernel.macs for kernel in mine) / max(1, sum(kernel.macs for kernel in work))
        moved = 0
        if precision is converting:
            moved = crossed_elements * sum(element_bytes(p) for p in (precision, max(wanted, key=element_bytes)))
        milliseconds, spread = one.predict(mine, call, moved)
        value += milliseconds
        deviation += milliseconds * spread  # errors of one device in two precisions are taken to go together
    deviation = float(np.hypot(deviation / value, max(one.beyond for one in found.values())))
    reach = float(np.exp(deviation * max(one.costs.interval for one in found.values())))
    evidence = "; ".join(dict.fromkeys(f"{p.value}: {one.costs.evidence}" for p, one in found.items()))
    pairs = zip(work, of_kernel, strict=True)
    strange = sorted({one.kind for one, p in pairs if one.macs and one.kind not in found[p].costs.kinds})
    if strange:
        evidence += f"; no row has {', '.join(strange)}: the interval is wider for it"
    return Figure(Kind.PREDICTED, value, value / reach, value * reach, f"{profile.name}, {runtime}, {evidence}")


def cost_table(
    graph: Graph,
    profile: DeviceProfile,
    runtime: str,
    threads: int = 0,
    processor: str = "",
    floats: Sequence[Precision] = _FLOATS,
) -> CostTable | None:
    """What each layer costs in the fastest of the ``floats`` and, where there are costs, in int8 and fp8; None where
    the profile has no float costs that reach this network.

    A layer's entry holds the operators that follow it and its share of the call; ``interval`` is the widest of the
    uniform models, as in `predict_from_profile`.
    """
    work = work_of(graph)
    base, priced = _fastest_float(work, floats, profile, runtime, threads, processor)
    if base is None or not graph.layers:
        return None
    for precision in (Precision.INT8, Precision.FP8):
        eight_bits = _priced(work, (precision,), profile, runtime, threads, processor)
        if not isinstance(eight_bits, str):
            priced |= eight_bits
    latency: dict[str, dict[Precision, float]] = {layer.name: {} for layer in graph.layers}
    first = graph.layers[0].name
    anchors: dict[Precision, float] = {}
    upper = 0.0
    for precision, one in priced.items():
        raw = dict.fromkeys(latency, 0.0)
        for kernel, milliseconds in zip(work, one.kernels(work)[0], strict=True):
            raw[kernel.layer or first] += float(milliseconds)
        total, _ = one.predict(work)
        anchors[precision] = total
        for name, milliseconds in anchored(raw, total).items():
            latency[name][precision] = milliseconds
        figure = predict_work(work, dict.fromkeys(latency, precision), profile, runtime, threads, processor)
        upper = max(upper, (figure.high or total) / total - 1)
    boundary = 0.0
    if Precision.INT8 in priced:
        one = priced[Precision.INT8]
        moved = element_bytes(Precision.INT8) + element_bytes(base)
        boundary = float(one.factors[FEATURES.index("activation_bytes")]) * moved / one.units.bytes_per_ms
    evidence = "; ".join(f"{p.value}: {one.costs.evidence}" for p, one in priced.items())
    same = dict.fromkeys(latency, base)
    return CostTable(base, same, latency, anchors, boundary, upper, f"{profile.name}, {runtime}, {evidence}")


@dataclass(frozen=True)
class _Priced:
    """Costs that reach a network: ``beyond`` is the deviation for its size outside the measured ones."""

    costs: Costs
    units: Units
    factors: Array
    covariance: Array
    beyond: float

    def predict(self, work: Sequence[Work], call: float = 1.0, moved_bytes: int = 0) -> tuple[float, float]:
        """(milliseconds, standard deviation of the logarithm) of these kernels, of that part of the call, and of the
        bytes that are converted between them.
        """
        more = np.zeros(len(FEATURES))
        more[0] = call
        more[FEATURES.index("activation_bytes")] = moved_bytes / self.units.bytes_per_ms
        milliseconds, covariance = self.kernels(work)
        if covariance is None:
            parts = (features(work, self.units).sum(axis=0) + more) * self.factors
            covariance = self.covariance
        else:
            parts = np.append(milliseconds, more @ self.factors)
            covariance = np.pad(covariance, (0, 1))
        value = float(parts.sum())
        shares = parts / value if value > 0 else parts
        return value, float(np.sqrt(shares @ covariance @ shares + self.costs.spread**2))

    def kernels(self, work: Sequence[Work]) -> tuple[Array, Array | None]:
        """Milliseconds of each kernel; where kernels were timed on the board, with the covariance of their logarithms,
        else that of the factors counts.
        """
        expected = features(work, self.units) @ self.factors
        if not self.costs.kernels or not work or any(one.shape is None for one in work):
            return expected, None
        logs, covariance = surface(self.costs.kernels).log_factors([kernel_of(one) for one in work])
        return expected * np.exp(logs), covariance


@lru_cache(maxsize=16)
def surface(lines: tuple[str, ...]) -> Surface:
    """What the timed kernels of some costs say of others."""
    return Surface([parse(line) for line in lines])


def _priced(
    work: Sequence[Work],
    wanted: Sequence[Precision],
    profile: DeviceProfile,
    runtime: str,
    threads: int,
    processor: str,
    of_kernel: Sequence[Precision] = (),
) -> dict[Precision, _Priced] | str:
    """The costs of each wanted precision, or why there are none. ``of_kernel``: which of them each kernel takes."""
    mine = [cost for cost in profile.costs if cost.runtime == runtime]
    if not mine:
        known = ", ".join(dict.fromkeys(cost.runtime for cost in profile.costs)) or "none"
        return f"nothing was measured on {profile.name} or its like with {runtime} (runtimes with costs: {known})"
    kind = processor or next(k for k in ("cpu", "gpu", "npu", "dla") if any(cost.processor == k for cost in mine))
    mine = [cost for cost in mine if cost.processor == kind]
    if not mine:
        return f"outside what was measured: {runtime} on the {kind} of {profile.name}"
    found: dict[Precision, _Priced] = {}
    part = profile.part(kind)
    assert part is not None  # the profile was checked
    for precision in wanted:
        same = [cost for cost in mine if cost.precision is precision]
        if not same and precision in part.peak_gmacs:
            same = [
                replace(cost, evidence=f"taken to come as near its peak as {cost.precision.value}: {cost.evidence}")
                for cost in mine
                if cost.precision is _LIKE.get(precision)
            ]
        if not same:
            seen = ", ".join(dict.fromkeys(cost.precision.value for cost in mine))
            return f"outside what was measured: {precision.value} with {runtime} on the {kind} (measured: {seen})"
        cost = next((cost for cost in same if cost.threads == (threads if kind == "cpu" else 0)), None)
        if cost is None:
            counts = ", ".join(str(cost.threads) for cost in same)
            return f"outside what was measured: {threads} threads with {runtime} (there are costs for: {counts})"
        priced = [one for one, p in zip(work, of_kernel, strict=True) if p is precision] if of_kernel else work
        beyond = _beyond(work, priced, cost)
        if isinstance(beyond, str):
            return f"outside what was measured with {runtime} in {precision.value}: {beyond}"
        cost = corrected(cost, profile.anchors)
        factors, covariance = _vectors(cost, profile.name)
        found[precision] = _Priced(cost, units(profile, part, precision, cost.threads), factors, covariance, beyond)
    return found


def _beyond(work: Sequence[Work], priced: Sequence[Work], cost: Costs) -> float | str:
    """What the size of a network adds to the deviation, or why it, or the kernels of it that these costs price, are too
    far from what was measured.
    """
    total = sum(one.macs for one in work)
    macs = macs_by_kind(priced)
    known = {*cost.kinds, *(_ALIKE if _ALIKE & set(cost.kinds) else ())}
    unseen = {kind: count for kind, count in macs.items() if kind not in known}
    if not total or sum(unseen.values()) > UNSEEN_SHARE * total:
        share = 100 * sum(unseen.values()) / max(1, total)
        kinds = ", ".join(sorted(unseen, key=unseen.__getitem__, reverse=True)) or "none at all"
        return f"{share:.0f} % of the MACs are in kinds of kernels that no row has ({kinds})"
    doublings = 0.0
    elements = sum(one.input_elements + one.output_elements for one in work)
    for what, size, (low, high) in (("MACs", total, cost.macs), ("activation elements", elements, cost.elements)):
        excess = max(low / max(size, 1), size / high, 1.0)
        if excess > REACH:
            return f"{size:.3g} {what}; the rows have {low:.3g} to {high:.3g}"
        doublings = max(doublings, float(np.log2(excess)))
    return _A_DOUBLING * doublings


def _vectors(cost: Costs, name: str) -> tuple[Array, Array]:
    """Factors and covariance in the order of `FEATURES`."""
    if tuple(cost.factors) != FEATURES:
        raise InputError(
            f"device profile {name}: costs of {cost.runtime}: factors: must be {', '.join(FEATURES)}, in this order",
            hint="costs are written by `edgekit profile` and by edgekit's own fit, not by hand",
        )
    lower = np.zeros((len(FEATURES), len(FEATURES)))
    for place, row in enumerate(cost.covariance_rows()):
        lower[place, : len(row)] = row
    return np.array([cost.factors[key] for key in FEATURES]), lower + np.tril(lower, -1).T


def _kernel_precisions(work: Sequence[Work], precisions: Mapping[str, Precision]) -> list[Precision]:
    first = next(iter(precisions.values()))
    return [precisions.get(one.layer, first) for one in work]


def _fastest_float(
    work: Sequence[Work],
    floats: Sequence[Precision],
    profile: DeviceProfile,
    runtime: str,
    threads: int,
    processor: str,
) -> tuple[Precision | None, dict[Precision, _Priced]]:
    best: tuple[float, Precision, dict[Precision, _Priced]] | None = None
    for precision in floats:
        priced = _priced(work, (precision,), profile, runtime, threads, processor)
        if isinstance(priced, str):
            continue
        value, _ = priced[precision].predict(work)
        if best is None or value < best[0]:
            best = (value, precision, priced)
    return (best[1], best[2]) if best else (None, {})
