"""Which operators of a job's model must not compute in half precision, found once for its calibration samples."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.compress.half import magnitudes, shrinks, unsafe_in_half
from edgekit.files import cache
from edgekit.job import Job

# Raised when the meaning of a cached entry changes.
_VERSION = 2


@dataclass(frozen=True)
class HalfSafety:
    """Node -> why it must compute in single precision; normalisation -> what its input may be multiplied by instead
    (`edgekit.compress.half`).
    """

    unsafe: dict[str, str]
    shrink: dict[str, float]


def half_safety(job: Job) -> HalfSafety:
    """What the calibration samples say of halves."""
    key = cache.key(version=_VERSION, graph=job.graph_key, data=job.data.calibration.digest)
    stored = cache.read_json("magnitudes", key)
    if stored is None:
        samples = job.data.calibration
        with job.progress.stage("observe magnitudes", len(samples)) as advance:
            found = magnitudes(job.graph, samples, lambda _done, _total: advance())
        stored = {name: repr(largest) for name, largest in found.items()}  # JSON has no infinity
        cache.write_json("magnitudes", key, stored)
    largest = {name: float(value) for name, value in stored.items()}
    return HalfSafety(unsafe_in_half(job.graph, largest), shrinks(job.graph, largest))
