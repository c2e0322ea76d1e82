"""What a race on a board teaches the user's own copy of its device profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cost.anchoring import re_anchor
from edgekit.cost.profile import predict_work
from edgekit.cost.table import crossing_elements
from edgekit.cost.work import Shape, Work, work_of
from edgekit.entries import Anchor, DeviceProfile
from edgekit.errors import InputError
from edgekit.graph import Graph
from edgekit.profiles import own as own_profile
from edgekit.results import Demand, DeployResult, KernelCount
from edgekit.types import Candidate, Kind, Latency, Precision

if TYPE_CHECKING:
    from edgekit.job import Job
    from edgekit.progress import Progress

_UNIFORM = ("float", *(precision.value for precision in Precision))


def demand_of(graph: Graph) -> Demand:
    """What the model of a graph asks of a device."""
    counted = Counter(replace(one, layer="", nodes=()) for one in work_of(graph))
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
        )
        for one, count in counted.items()
    )
    int8 = {layer.name: Precision.INT8 for layer in graph.layers}
    return Demand(kernels, crossing_elements(graph.edges, int8))


def learn(job: Job, candidates: Sequence[Candidate], overlays: Sequence[str | Path] = ()) -> tuple[Anchor, ...]:
    """Store what the race of a deployment says beside the costs of the target's runtime, in the user's own profile;
    returns what was stored: nothing where the profile has no such costs. A profile that cannot be written is worth a
    note and not the deployment.
    """
    runtime, threads, model = job.target.backend, job.device.threads, job.graph.sha256
    found = anchors_of(demand_of(job.graph), model, candidates, job.profile, runtime, threads, _today())
    return _store(found, job.profile, job.progress, overlays)


def learn_from_bench(
    result: DeployResult,
    latency_ms: Latency,
    profile: DeviceProfile,
    runtime: str,
    threads: int,
    progress: Progress,
    overlays: Sequence[str | Path] = (),
) -> tuple[Anchor, ...]:
    """As `learn`, from what ships in a bundle, measured again: ``result`` is the bundle's. A plan in several precisions
    or of a pruned model teaches nothing here either, nor does a bundle that does not tell what its model asks for.
    """
    shipped = result.candidate(result.chosen)
    if shipped is None or result.demand is None:
        return ()
    again = replace(shipped, latency_ms=latency_ms, kind=Kind.MEASURED)
    found = anchors_of(result.demand, result.model.sha256, [again], profile, runtime, threads, _today())
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


def anchors_of(
    demand: Demand,
    model: str,
    candidates: Sequence[Candidate],
    profile: DeviceProfile,
    runtime: str,
    threads: int,
    day: date,
) -> tuple[Anchor, ...]:
    """The raced models that have one precision throughout and all of their channels, beside what the costs predict for
    them without any correction. Those that the costs do not reach are left out. ``model`` is its digest.
    """
    plain = replace(profile, anchors=())
    work = [one for kernel in demand.kernels for one in [_work(kernel)] * kernel.count]
    found = []
    for one in candidates:
        if one.name not in _UNIFORM or len(one.precisions) != 1 or one.kind is not Kind.MEASURED:
            continue
        precision = Precision(next(iter(one.precisions)))
        crossed = demand.int8_crossing_elements if precision is Precision.INT8 else 0
        value = predict_work(work, {"": precision}, plain, runtime, threads, "cpu", crossed).value
        if value is not None:
            ms = one.latency_ms.p50
            found.append(Anchor(runtime, "cpu", precision, model, value, ms, day.isoformat(), threads))
    return tuple(found)


def _work(kernel: KernelCount) -> Work:
    sizes = (kernel.macs, kernel.input_elements, kernel.weight_elements, kernel.output_elements)
    return Work("", kernel.kind, *sizes, kernel.op, Shape(*kernel.shape) if kernel.shape else None, kernel.functions)


def _today() -> date:
    return datetime.now(UTC).date()
