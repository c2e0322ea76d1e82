"""A job's samples as files that any tool can read.

calibration.npz       the model's inputs by name, the first axis counting samples
evaluation.json       labels, metric and the model's metadata, and which of these files holds what:
input-N.npy, output-N.npy      the evaluation samples and the float model's outputs, to be mapped, not loaded
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from edgekit.job import Job

CALIBRATION = "calibration.npz"
_EVALUATION = "evaluation.json"

Sample = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Evaluation:
    """The evaluation samples: what to judge a model by. ``metric`` is what ``--metric`` takes."""

    inputs: Mapping[str, np.ndarray[Any, Any]]
    references: Mapping[str, np.ndarray[Any, Any]]
    labels: Sequence[object] | None
    metric: str
    metadata: dict[str, str]

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def sample(self, index: int) -> Sample:
        """Model inputs."""
        return {name: np.asarray(array[index]) for name, array in self.inputs.items()}

    def reference(self, index: int) -> Sample:
        """The float model's outputs."""
        return {name: np.asarray(array[index]) for name, array in self.references.items()}

    def label(self, index: int) -> object:
        """What it should come out as, or None."""
        return None if self.labels is None else self.labels[index]


def write_calibration(job: Job, folder: Path) -> Path:
    """Write what edgekit calibrates on into ``folder``; returns the file."""
    data = job.data.calibration
    samples = [data.sample(index) for index in range(len(data))]
    arrays: dict[str, Any] = {tensor.name: np.stack([s[tensor.name] for s in samples]) for tensor in job.graph.inputs}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / CALIBRATION, **arrays)
    return folder / CALIBRATION


def write_evaluation(job: Job, metric: str, folder: Path) -> None:
    """Write what edgekit judges by into ``folder``."""
    from edgekit.compress.ranges import run_float

    data = job.data.evaluation
    folder.mkdir(parents=True, exist_ok=True)
    samples = (data.sample(index) for index in range(len(data)))
    document = {
        "inputs": _write_stacked(samples, len(data), folder, "input"),
        "outputs": _write_stacked(run_float(job.graph, data, 1), len(data), folder, "output"),
        "labels": None if data.labels is None else list(data.labels),
        "metric": metric,
        "metadata": dict(job.graph.model.metadata_props),
    }
    (folder / _EVALUATION).write_text(json.dumps(document), encoding="utf-8")


def _write_stacked(
    samples: Iterator[Mapping[str, np.ndarray[Any, Any]]], count: int, folder: Path, prefix: str
) -> dict[str, str]:
    files: dict[str, str] = {}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for index, sample in enumerate(samples):
        for name, array in sample.items():
            if name not in files:
                files[name] = f"{prefix}-{len(files)}.npy"
                shape = (count, *array.shape)
                arrays[name] = np.lib.format.open_memmap(folder / files[name], "w+", array.dtype, shape)
            arrays[name][index] = array
    return files


def read_evaluation(folder: Path) -> Evaluation:
    """What `write_evaluation` wrote."""
    document = json.loads((folder / _EVALUATION).read_text(encoding="utf-8"))
    inputs, references = (
        {name: np.load(folder / file, mmap_mode="r", allow_pickle=False) for name, file in document[key].items()}
        for key in ("inputs", "outputs")
    )
    return Evaluation(inputs, references, document["labels"], document["metric"], document["metadata"])
