"""A 1-D CNN on a smartwatch's inertial sensors: which of seven shoulder exercises; metric: top-1 on unseen people.

The data are the 140 recordings of 10 people that seglearn ships (Burns et al. 2018, arXiv:1802.01489; 6 axes, 50 Hz).
The multivariate sets that aeon ships are too small for an interval: BasicMotions has 40 test series.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.zoo import ZooEntry, sources
from benchmarks.zoo.training import Draw, Samples, Schedule, trained_entry
from examples.packages import Package

SCHEDULE = Schedule(batch=64, phases=((600, 1),), peak_rate=3e-3)
WINDOW = 128  # 2.56 s
STEP = 64
UNSEEN = (8, 9, 10)  # the people that only the evaluation sees
# Not in the list of sources.py: whatever changes there makes every other entry anew.
SEGLEARN = Package(
    "pip", "seglearn", "1.2.5", "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd", "BSD-3-Clause"
)
_DATA = "seglearn/data/watch_dataset.npy"


def prepare(out: Path) -> ZooEntry:
    """128 windows of 7 people to calibrate, all windows of the 3 other people to score (needs torch)."""
    return trained_entry("imu-cnn", out, SCHEDULE, make, __file__)


def make() -> tuple[Draw, Samples]:
    """How to draw training windows, and the windows to calibrate and score with: float32 [n, 6, 128], 0 to 6."""
    recordings, labels, people = _recordings(sources.member(SEGLEARN, _DATA))
    seen = [index for index, person in enumerate(people) if person not in UNSEEN]
    unseen = [index for index, person in enumerate(people) if person in UNSEEN]
    joined = np.concatenate([recordings[index] for index in seen])
    mean, spread = joined.mean(0), joined.std(0)
    scaled = [((recording - mean) / spread).astype(np.float32).T.copy() for recording in recordings]

    def fresh(rng: np.random.Generator, count: int, _progress: float) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.choice(seen, count)
        windows = np.stack([_anywhere(scaled[index], rng) for index in chosen])
        return windows * rng.uniform(0.9, 1.1, (count, 1, 1)).astype(np.float32), labels[chosen]

    held = [(window, labels[index]) for index in unseen for window in _windows(scaled[index])]
    calibration = fresh(np.random.default_rng([0, 2]), 128, 1.0)
    return fresh, Samples(calibration, (np.stack([window for window, _ in held]), np.array([y for _, y in held])))


def _windows(recording: np.ndarray) -> list[np.ndarray]:
    return [recording[:, start : start + WINDOW] for start in range(0, recording.shape[1] - WINDOW + 1, STEP)]


def _anywhere(recording: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    start = int(rng.integers(0, recording.shape[1] - WINDOW + 1))
    return recording[:, start : start + WINDOW]


def _recordings(content: bytes) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Recordings [samples, 6], the exercise of each, the person of each, out of the package's pickled .npy file."""
    stream = io.BytesIO(content)
    np.lib.format.read_magic(stream)
    np.lib.format.read_array_header_1_0(stream)
    stored = _ArraysOnly(stream).load().item()
    return stored["X"], stored["y"].astype(np.int64), stored["subject"]


# numpy's module got an underscore in version 2; the file names the old one.
_NEEDED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays and plain containers; anything else that the file names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NEEDED:
            raise pickle.UnpicklingError(f"{_DATA}: names {module}.{name}, which no array needs")
        return super().find_class(module, name)
