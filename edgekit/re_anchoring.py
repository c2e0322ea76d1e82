"""What a race on a board teaches the user's own copy of its device profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

from edgekit import own_profile
from edgekit.cost.anchoring import re_anchor
from edgekit.cost.profile import predict_from_profile
from edgekit.entries import Anchor, DeviceProfile
from edgekit.errors import InputError
from edgekit.graph import Graph
from edgekit.job import Job
from edgekit.types import Candidate, Kind, Precision

_UNIFORM = ("float", *(precision.value for precision in Precision))


def learn(job: Job, candidates: Sequence[Candidate], overlays: Sequence[str | Path] = ()) -> tuple[Anchor, ...]:
    """Store what the race of a deployment says beside the costs of the target's runtime, in the user's own profile;
    returns what was stored: nothing where the profile has no such costs. A profile that cannot be written is worth a
    note and not the deployment.
    """
    today = datetime.now(UTC).date()
    threads, runtime = job.device.threads, job.target.backend
    found = anchors_of(job.graph, candidates, job.profile, runtime, threads, today)
    if not found:
        return ()
    try:
        own_profile.change(job.profile.name, lambda profile: re_anchor(profile, found), overlays)
    except InputError as error:
        job.progress.note(f"the device profile {job.profile.name} does not learn from this race: {error}")
        return ()
    job.progress.note(f"{len(found)} raced latencies now correct the costs of {job.profile.name} ({runtime})")
    return found


def anchors_of(
    graph: Graph, candidates: Sequence[Candidate], profile: DeviceProfile, runtime: str, threads: int, day: date
) -> tuple[Anchor, ...]:
    """The raced models that have one precision throughout and all of their channels, beside what the costs predict for
    them without any correction. Those that the costs do not reach are left out.
    """
    plain = replace(profile, anchors=())
    found = []
    for one in candidates:
        if one.name not in _UNIFORM or len(one.precisions) != 1 or one.kind is not Kind.MEASURED:
            continue
        precision = Precision(next(iter(one.precisions)))
        plan = {layer.name: precision for layer in graph.layers}
        value = predict_from_profile(graph, plan, plain, runtime, threads, "cpu").value
        if value is not None:
            ms = one.latency_ms.p50
            found.append(Anchor(runtime, "cpu", precision, graph.sha256, value, ms, day.isoformat(), threads))
    return tuple(found)
