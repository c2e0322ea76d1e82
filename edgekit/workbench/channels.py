"""A job's channel groups at work: which channels go first, what that loses, and the smaller graphs, each kept in the
cache under the digest of what it depends on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from edgekit.compress.grams import collect_grams
from edgekit.compress.importance import Method, kept_units, ranking
from edgekit.compress.prune import prune
from edgekit.compress.reconstruct import reconstruct, reconstruct_alone
from edgekit.files import cache
from edgekit.graph import Graph, to_bytes
from edgekit.graph.channels import Channels, find_channels
from edgekit.graph.load import reread
from edgekit.graph.sizes import Sizes, sizes_of
from edgekit.recipes.samples import Dataset, Subset, spread
from edgekit.sensitivity import METHOD, SENSITIVITY_SAMPLES, losses_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.compress.grams import Gram
    from edgekit.job import Job

IMPORTANCE: Method = "activation"
# Layers are solved on so many samples at most. Fewer overfit: 96 instead of 32 took a sixth of the noise off a MiniLM.
SOLVING_SAMPLES = 96
# Every so-many-th calibration sample judges what was solved on the others.
_JUDGING = 4
# Raised when the meaning of a cached entry changes.
_VERSION = 3


def one_blas_thread() -> threadpool_limits:
    """A BLAS that waits for a second core in a busy loop takes many times as long where that core has other work."""
    return threadpool_limits(1, user_api="blas")


# A channel group's name and how many of its channels stay.
Kept = tuple[str, int]


@dataclass(frozen=True)
class Pruner:
    """Prunes the graph of one job. ``graph_key`` is the digest of that graph."""

    job: Job
    graph_key: str

    @cached_property
    def channels(self) -> Channels:
        """The channel groups of the graph."""
        with self.job.progress.stage("find channel groups"):
            return find_channels(self.job.graph)

    @cached_property
    def sizes(self) -> Sizes:
        """The graph's sizes as polynomials in the kept counts."""
        return sizes_of(self.job.graph, self.channels)

    @cached_property
    def samples(self) -> Dataset:
        """What layers are solved on."""
        return spread(self._dealt[0], SOLVING_SAMPLES)

    @property
    def judging(self) -> Dataset:
        """What solutions are judged by."""
        return self._dealt[1]

    @cached_property
    def _dealt(self) -> tuple[Dataset, Dataset]:
        """Calibration samples to solve on, and others to judge the solutions by; all for both where there are few."""
        whole = self.job.data.calibration
        if len(whole) < 2 * _JUDGING:
            return whole, whole
        judging = range(_JUDGING - 1, len(whole), _JUDGING)
        return Subset(whole, tuple(i for i in range(len(whole)) if i not in judging)), Subset(whole, tuple(judging))

    @cached_property
    def grams(self) -> dict[str, Gram]:
        """The second moments of what each layer reads, on these samples."""
        names = [layer.name for layer in self.job.graph.layers]
        with self.job.progress.stage("observe moments"), one_blas_thread():
            return collect_grams(self.job.graph, names, self.samples)

    def key(self, **parts: object) -> str:
        """The digest of the parts and of what every entry of this job's samples depends on."""
        data = self.job.data.calibration.digest
        solved = [samples.digest for samples in (self.samples, self._dealt[1])]
        return cache.key(
            version=_VERSION, graph=self.graph_key, data=data, solved=solved, importance=IMPORTANCE, **parts
        )

    @cached_property
    def _order(self) -> dict[str, np.ndarray]:
        """Group -> its units, the least important first."""
        key = self.key()
        stored = cache.read_arrays("removal-order", key)
        if stored is None:
            grams = self.grams
            with self.job.progress.stage("rank channels"), one_blas_thread():
                stored = dict(ranking(IMPORTANCE, self.job.graph, self.channels, grams))
            cache.write_arrays("removal-order", key, stored)
        return stored

    def units(self, kept: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Group -> the units that stay, for groups that keep only so many."""
        return kept_units(self._order, kept)

    def cut(self, kept: Mapping[str, int]) -> Graph:
        """The smaller graph with its weights as they were: enough to measure how long it takes."""
        return prune(self.job.graph, self.channels, self.units(kept))

    def pruned(self, kept: Mapping[str, int]) -> Graph:
        """The smaller graph, its layers re-solved: in execution order, each on what the ones before it now put out, or
        each alone on what it read before; whichever of the two other samples prefer. Where there are no others, alone:
        it is pulled towards the weights that were.
        """
        if not kept:
            return self.job.graph
        key = self.key(kept=dict(kept))

        def write(folder: Path) -> None:
            job, units = self.job, self.units(kept)
            removed = sum(group.channels - kept.get(group.name, group.channels) for group in self.channels.groups)
            grams = self.grams
            with job.progress.stage(f"remove {removed} channels and re-solve"), one_blas_thread():
                smaller = reconstruct_alone(job.graph, self.channels, units, grams)
                if self._dealt[1] is not self._dealt[0]:
                    in_order = reconstruct(job.graph, self.channels, units, self.samples)
                    ways = (smaller, in_order)
                    noise = losses_of(job.graph, lambda way: ways[way].model, range(2), self._dealt[1])
                    smaller = ways[noise[1] < noise[0]]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.onnx").write_bytes(to_bytes(smaller.model))

        folder = cache.folder("pruned", key, write)
        return reread((folder / "model.onnx").read_bytes(), self.job.graph)

    def losses(self, options: Sequence[Kept]) -> dict[Kept, float]:
        """The noise power at the model's output when one group alone keeps so many channels and what reads it is
        re-solved; each is kept as soon as it is known.
        """
        samples = spread(self._dealt[1], SENSITIVITY_SAMPLES)
        keys = {o: self.key(method=METHOD, group=o[0], kept=o[1], samples=samples.digest) for o in options}
        known = {o: float(found) for o in options if (found := cache.read_json("losses", keys[o])) is not None}
        missing = [option for option in options if option not in known]
        if missing:
            grams, units = self.grams, {option: self.units(dict([option])) for option in missing}

            def model_of(option: Kept) -> ir.Model:
                return reconstruct_alone(self.job.graph, self.channels, units[option], grams).model

            with self.job.progress.stage("sensitivity of channel groups", len(missing)) as advance, one_blas_thread():

                def keep(option: Kept, loss: float) -> None:
                    cache.write_json("losses", keys[option], loss)
                    advance()

                known |= losses_of(self.job.graph, model_of, missing, samples, os.cpu_count() or 1, keep)
        return {option: known[option] for option in options}
