"""Runs an artifact over the evaluation samples and judges its outputs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from edgekit.backends import Artifact
from edgekit.compress.ranges import run_float
from edgekit.files import cache
from edgekit.recipes.fidelity import agreement, fidelity_row, sqnr_db
from edgekit.recipes.intervals import drop, result
from edgekit.types import Figure, MetricResult
from edgekit.workbench.stages import Workbench

# Reference outputs up to this size are kept, so that the float model does not run again for every candidate.
_KEEP_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Score:
    """How one artifact did: the metric's rows (paired with those of any other artifact) and its fidelity to float."""

    rows: np.ndarray
    metric: MetricResult
    sqnr_db: float
    noise_power: float
    agreement: float | None


@dataclass(frozen=True)
class Scorer:
    """Scores artifacts on the evaluation samples, against the float model in onnxruntime."""

    bench: Workbench

    def score(self, artifact: Artifact, title: str) -> Score:
        """Run every evaluation sample; kept in the cache by the artifact's content."""
        job = self.bench.job
        data = job.data
        key = cache.key(
            graph=self.bench.graph_key,
            artifact=[Path(file).read_bytes() for file in artifact.files],
            base=artifact.base.value,
            device=self.bench.device_key,
            data=data.evaluation.digest,
            metric=data.metric_key,
        )
        stored = cache.read_arrays("scores", key)
        if stored is None:
            names = [tensor.name for tensor in job.graph.outputs]
            run = job.device.backend.session(artifact, job.device.threads, names)
            rows, fidelity = [], []
            labels = data.evaluation.labels
            with job.progress.stage(f"{data.metric.name} of {title}", len(data.evaluation)) as advance:
                for index, reference in enumerate(self._references()):
                    outputs = run(data.evaluation.sample(index))
                    rows.append(data.metric.row(outputs, None if labels is None else labels[index], reference))
                    fidelity.append(fidelity_row(outputs, reference))
                    advance()
            stored = {"rows": np.asarray(rows, float), "fidelity": np.asarray(fidelity, float)}
            cache.write_arrays("scores", key, stored)
        rows_array, fidelity_array = stored["rows"], stored["fidelity"]
        decibel = sqnr_db(fidelity_array)
        return Score(
            rows=rows_array,
            metric=result(data.metric, rows_array),
            sqnr_db=decibel,
            noise_power=10 ** (-decibel / 10),
            agreement=agreement(fidelity_array),
        )

    def drop(self, reference: Score, other: Score) -> Figure:
        """How much worse ``other`` is than ``reference``, on the same samples (positive = worse)."""
        return drop(self.bench.job.data.metric, reference.rows, other.rows)

    @cached_property
    def _kept(self) -> list[dict[str, np.ndarray]]:
        return []

    def _references(self) -> Iterator[Mapping[str, np.ndarray]]:
        job = self.bench.job
        count = len(job.data.evaluation)
        if len(self._kept) == count:
            yield from self._kept
            return
        self._kept.clear()
        keep = True
        for index, outputs in enumerate(run_float(job.graph, job.data.evaluation, os.cpu_count() or 1)):
            if index == 0:
                keep = count * sum(array.nbytes for array in outputs.values()) <= _KEEP_BYTES
            if keep:
                self._kept.append(outputs)
            yield outputs
