"""A narrow ResNet-18, trained from scratch on printed characters on photographs; metric: top-1."""

from __future__ import annotations

from pathlib import Path

from benchmarks.zoo import ZooEntry, characters
from benchmarks.zoo.training import Schedule, trained_entry
from examples.ocr import lines

# All steps at one size: a net from scratch has no time to learn another one while the rate falls.
SCHEDULE = Schedule(batch=64, phases=((700, 1),), peak_rate=3e-3)


def prepare(out: Path) -> ZooEntry:
    """128 pictures to calibrate, 1,000 to score, labelled (needs torch; trains for some minutes)."""
    files = (__file__, characters.__file__, lines.__file__)
    return trained_entry("resnet18-like", out, SCHEDULE, characters.make, *files)
