"""What a race on a board teaches the user's own copy of its device profile."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cost.anchoring import re_anchor
from edgekit.cost.profile import predict_work
from edgekit.cost.table import crossing_elements
from edgekit.cost.work import Shape, Work, work_of
from edgekit.entries import Anchor, DeviceProfile, Target
from edgekit.errors import InputError
from edgekit.graph import Graph
from edgekit.profiles import own as own_profile
from edgekit.profiles.forecast import kind_of
from edgekit.results import Demand, DeployResult, KernelCount
from edgekit.types import EIGHT_BITS, Candidate, Kind, Latency, Precision

if TYPE_CHECKING:
    from edgekit.job import Job
    from edgekit.progress import Progress

_UNIFORM = ("float", *(precision.value for precision in Precision))


def demand_of(graph: Graph, precisions: Mapping[str, Precision] | None = None) -> Demand:
    """What the model of a graph asks of a device: as it is, or with these precisions of its layers."""
    told = precisions or {}
    first = next(iter(told.values()), "")  # of what precedes the first layer
    counted = Counter(replace(one, layer=str(told.get(one.layer, first)), nodes=()) for one in work_of(graph))
    kernels = tuple(
        KernelCount(
            kind=one.kind,
            count=count,
            macs=one.macs,
            input_elements=one.input_elements,
            weight_elements=one.weight_elements,
            output_elements=one.output_elements,
            op=one.op,
            shape=tuple(one.shape or ()),
            functions=one.functions,
            precision=Precision(one.layer) if one.layer else None,
        )
        for one, count in counted.items()
    )
    int8 = {layer.name: Precision.INT8 for layer in graph.layers}
    return Demand(kernels, crossing_elements(graph.edges, told or int8))


def learn(job: Job, candidates: Sequence[Candidate], overlays: Sequence[str | Path] = ()) -> tuple[Anchor, ...]:
    """Store what the race of a deployment says beside the costs of the target's runtime, in the user's own profile;
    returns what was stored: nothing where the profile has no such costs. A profile that cannot be written is worth a
    note and not the deployment.
    """
    measured = Measured(job.profile, job.target, job.device.threads, _today())
    found = anchors_of(demand_of(job.graph), job.graph.sha256, candidates, measured)
    return _store(found, job.profile, job.progress, overlays)


def learn_from_bench(
    result: DeployResult,
    latency_ms: Latency,
    profile: DeviceProfile,
    target: Target,
    threads: int,
    progress: Progress,
    overlays: Sequence[str | Path] = (),
) -> tuple[Anchor, ...]:
    """As `learn`, from what ships in a bundle, measured again: ``result`` is the bundle's. A bundle that does not tell
    what its model or plan asks for teaches nothing.
    """
    shipped = result.candidate(result.chosen)
    if shipped is None:
        return ()
    measured = Measured(profile, target, threads, _today())
    again = replace(shipped, latency_ms=latency_ms, kind=Kind.MEASURED)
    found: tuple[Anchor, ...] = ()
    if result.plan_demand is not None:
        found = anchors_of_plan(result.plan_demand, latency_ms.p50, measured)
    elif result.demand is not None:
        found = anchors_of(result.demand, result.model.sha256, [again], measured)
    return _store(found, profile, progress, overlays)


def _store(
    found: tuple[Anchor, ...], profile: DeviceProfile, progress: Progress, overlays: Sequence[str | Path]
) -> tuple[Anchor, ...]:
    if not found:
        return ()
    runtime = found[0].runtime
    try:
        own_profile.change(profile.name, lambda before: re_anchor(before, found), overlays)
    except InputError as error:
        progress.note(f"the device profile {profile.name} does not learn from this race: {error}")
        return ()
    counted = f"{len(found)} raced latenc{'ies now correct' if len(found) > 1 else 'y now corrects'}"
    progress.note(f"{counted} the costs of {profile.name} ({runtime})")
    return found


@dataclass(frozen=True)
class Measured:
    """Where and when latencies were measured."""

    profile: DeviceProfile
    target: Target
    threads: int
    day: date

    def anchor(self, demand: Demand, taken: Mapping[str, Precision], model: str, ms: float) -> Anchor | None:
        """``ms`` of a network beside what the costs predict without any correction: None where they do not reach it.
        ``taken``: the precisions of its kernels, that which counts first.
        """
        kind, precision = kind_of(self.target), next(iter(taken.values()))
        threads = self.threads if kind == "cpu" else 0
        work = [one for kernel in demand.kernels for one in [_work(kernel)] * kernel.count]
        crossed = demand.int8_crossing_elements if len(taken) > 1 or precision in EIGHT_BITS else 0
        plain = replace(self.profile, anchors=())
        value = predict_work(work, taken, plain, self.target.backend, threads, kind, crossed).value
        if value is None:
            return None
        return Anchor(self.target.backend, kind, precision, model, value, ms, self.day.isoformat(), threads)


def anchors_of(demand: Demand, model: str, candidates: Sequence[Candidate], measured: Measured) -> tuple[Anchor, ...]:
    """The raced models that have one precision throughout and all of their channels. Those that the costs do not reach
    are left out. ``model`` is its digest.
    """
    found = []
    for one in candidates:
        if one.name not in _UNIFORM or len(one.precisions) != 1 or one.kind is not Kind.MEASURED:
            continue
        found.append(measured.anchor(demand, {"": Precision(next(iter(one.precisions)))}, model, one.latency_ms.p50))
    return tuple(one for one in found if one is not None)


def anchors_of_plan(demand: Demand, measured_ms: float, measured: Measured) -> tuple[Anchor, ...]:
    """A plan that was measured, for the costs of the precision that most of its arithmetic is in. It stands for a
    network of its own, with a digest of what it asks for.
    """
    macs = Counter[Precision]()
    for kernel in demand.kernels:
        if kernel.precision is not None:
            macs[kernel.precision] += kernel.macs * kernel.count
    if not macs:
        return ()
    taken = {precision.value: precision for precision, _ in macs.most_common()}
    digest = hashlib.sha256(repr(demand).encode()).hexdigest()
    found = measured.anchor(demand, taken, digest, measured_ms)
    return () if found is None else (found,)


def _work(kernel: KernelCount) -> Work:
    sizes = (kernel.macs, kernel.input_elements, kernel.weight_elements, kernel.output_elements)
    return Work(
        kernel.precision.value if kernel.precision is not None else "",
        kernel.kind,
        *sizes,
        kernel.op,
        Shape(*kernel.shape) if kernel.shape else None,
        kernel.functions,
    )


def _today() -> date:
    return datetime.now(UTC).date()
