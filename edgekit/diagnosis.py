"""Which layers int8 hurts, what would cure each, and whether the samples are to blame: what ``edgekit diagnose``
answers, from trials on samples that calibration did not see. No device is needed: the plan's numerics are simulated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.backends import able
from edgekit.compress.cures import NO_CURES, Cures
from edgekit.compress.observers import OBSERVERS, Histogram, Range
from edgekit.compress.qdq import apply_precisions, quantization_points
from edgekit.compress.ranges import collect_ranges
from edgekit.compress.symmetric import choose_ranges
from edgekit.errors import InputError
from edgekit.recipes.samples import Subset, spread
from edgekit.recipes.soundness import FEW_SAMPLES, Finding, examine
from edgekit.sensitivity import SENSITIVITY_SAMPLES, losses_of
from edgekit.types import Precision
from edgekit.workbench.stages import Workbench

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.job import Job

WORST_LAYERS = 5
# Less than this is within what other samples would change.
_CURES_DB = 1.0
# Ranges of half of the samples that lose so much more than those of all were not settled.
_UNSETTLED_DB = 1.0
# Of the values of a tensor, on samples that calibration did not see; the extremes of any sample are a few.
_UNCOVERED = 0.001


@dataclass(frozen=True)
class Trial:
    """A cure that was tried on one layer: what is left of its loss, and what that gains, in decibel."""

    action: str
    loss: float
    gain_db: float


@dataclass(frozen=True)
class LayerDiagnosis:
    """A layer alone in int8. ``loss`` is relative noise power at the model's outputs, ``share`` its part of the sum
    over all layers; ``weights_share`` is what its weights alone would lose, relative to ``loss``: the rest is its
    activations. ``trials`` are ordered by what they gain.
    """

    layer: str
    op_type: str
    loss: float
    share: float
    weights_share: float | None
    trials: tuple[Trial, ...]

    @property
    def alone_db(self) -> float:
        """Signal over noise at the outputs with this layer alone in int8."""
        return _decibel(self.loss)


@dataclass(frozen=True)
class Diagnosis:
    """``int8_db`` is the ratio of signal to noise at the outputs with every layer in int8 that can be; ``without_db``
    the same with the layers listed here in float.
    """

    model: str
    target: str
    samples: int
    judged_by: int
    observer: str
    int8_db: float
    without_db: float
    layers: tuple[LayerDiagnosis, ...]
    findings: tuple[Finding, ...]
    schema: str = "edgekit/diagnose/1"


def diagnose(job: Job) -> Diagnosis:
    """Try int8 layer by layer, and cures on the worst. Raises `InputError` where the target or its runtime has no int8
    for this model.
    """
    bench = Workbench(job)
    names = able(job.graph, job.device.backend, Precision.INT8)
    if Precision.INT8 not in job.target.precisions or not names:
        raise InputError(
            f"{job.target.name} offers int8 for no layer of {job.model_path.name}: there is nothing to diagnose",
            f"see its options: edgekit inspect {job.model_path.name} --target {job.target.name}",
        )
    trials = _Trials(bench)
    alone = trials.losses([(name, "int8") for name in names], "int8 layer by layer")
    losses = {name: alone[name, "int8"] for name in names}
    worst = sorted(names, key=lambda name: -losses[name])[:WORST_LAYERS]
    total = math.fsum(losses.values())
    weighted = set(able(job.graph, job.device.backend, Precision.W8))
    trials.cure(worst)
    tried = trials.losses(
        [(name, way) for name in worst for way in trials.ways(name) if way != "weights alone" or name in weighted],
        "look for cures",
    )
    everything, without, half = trials.together(names, worst)
    kinds = {layer.name: layer.op_type for layer in job.graph.layers}
    return Diagnosis(
        model=job.model_path.name,
        target=job.target.name,
        samples=len(job.data.calibration),
        judged_by=len(trials.samples),
        observer=job.data.recipe.observer,
        int8_db=_decibel(everything),
        without_db=_decibel(without),
        layers=tuple(
            LayerDiagnosis(
                name,
                kinds[name],
                losses[name],
                losses[name] / total if total else 0.0,
                _relative(tried.get((name, "weights alone")), losses[name]),
                _ranked(
                    losses[name],
                    {way: loss for (one, way), loss in tried.items() if one == name and way != "weights alone"},
                ),
            )
            for name in worst
        ),
        findings=(
            *examine(job.data.calibration, job.data.evaluation, job.graph.inputs),
            *trials.uncovered(half, everything),
        ),
    )


class _Trials:
    """Simulates layers in int8, in one way or another, on samples that calibration did not see."""

    def __init__(self, bench: Workbench) -> None:
        job = bench.job
        self.bench = bench
        self.samples = spread(job.data.evaluation, SENSITIVITY_SAMPLES)
        used = job.data.recipe.observer
        self.observers = {f"observer {one}": bench.observed_by(one) for one in OBSERVERS if one != used}
        self._cures: dict[str, Cures] = {}

    def cure(self, worst: Sequence[str]) -> None:
        """Make ready what a plan may do to each of these layers (`edgekit.workbench.trials`), one kind at a time."""
        remedies, names = self.bench.curer.remedies, tuple(worst)
        biases = NO_CURES
        for name in names:  # alone in int8, as it is judged
            biases = remedies.corrected(biases, (name,), (name,))
        found = {
            "scaled channels": remedies.equalised(NO_CURES, names),
            "chosen codes": remedies.rounded(NO_CURES, names),
            "corrected bias": biases,
        }
        self._cures = {way: cures for way, cures in found.items() if cures is not NO_CURES}
        for cures in self._cures.values():
            remedies.ranges(cures)  # observed once here, not in every thread that tries a layer

    def ways(self, name: str) -> list[str]:
        """What is tried on a layer."""
        finer = ["activations in 16 bit"] if Precision.INT16X8 in self.bench.job.target.precisions else []
        applied = self.bench.curer.remedies.applied
        cured = [way for way, cures in self._cures.items() if applied(cures, name, Precision.INT8)]
        return ["weights alone", *self.observers, *finer, *cured]

    def losses(self, variants: list[tuple[str, str]], title: str) -> dict[tuple[str, str], float]:
        """(layer, way) -> the loss of that layer alone."""
        job = self.bench.job

        def model_of(variant: tuple[str, str]) -> ir.Model:
            name, way = variant
            if way in self._cures:
                return self.bench.curer.remedies.written(self._cures[way], {name: Precision.INT8})
            return self._model({name: _PRECISIONS.get(way, Precision.INT8)}, self.observers.get(way, self.bench.ranges))

        with job.progress.stage(title, len(variants)) as advance:
            workers = os.cpu_count() or 1
            return losses_of(job.graph, model_of, variants, self.samples, workers, lambda _variant, _loss: advance())

    def together(self, names: tuple[str, ...], worst: list[str]) -> tuple[float, float, float]:
        """The loss of all layers in int8; of all but the worst; and of all, with the ranges of half of the samples."""
        everything = dict.fromkeys(names, Precision.INT8)
        rest = {name: precision for name, precision in everything.items() if name not in worst}
        models = {
            "all": self._model(everything, self.bench.ranges),
            "rest": self._model(rest, self.bench.ranges),
            "half": self._model(everything, self._ranges_of_half()),
        }
        found = losses_of(self.bench.job.graph, models.__getitem__, list(models), self.samples)
        return found["all"], found["rest"], found["half"]

    def uncovered(self, half: float, everything: float) -> list[Finding]:
        """What the ranges of the calibration samples miss."""
        job, found = self.bench.job, []
        gain_db = _decibel(everything) - _decibel(half)
        if len(job.data.calibration) >= FEW_SAMPLES and gain_db > _UNSETTLED_DB:
            found.append(
                Finding(
                    "unsettled-ranges",
                    f"the {len(job.data.calibration)} samples gain {gain_db:.1f} dB over every second one of them",
                    "pass more samples with --data: ranges have not settled",
                )
            )
        seen = self.bench.histograms(job.graph)
        with job.progress.stage("observe ranges of other samples"):
            others = collect_ranges(job.graph, list(seen), self.samples)
        outside = {name: _outside(others[name], seen[name]) for name in seen if name in others}
        missed = sorted((name for name in outside if outside[name] > _UNCOVERED), key=lambda name: -outside[name])
        if missed:
            name = missed[0]
            found.append(
                Finding(
                    "uncovered-ranges",
                    f"{len(missed)} of {len(seen)} tensors leave the range of the calibration samples on the others: "
                    f"{name} with {outside[name]:.1%} of its values ({_span(seen[name])} calibrated, "
                    f"{_span(others[name])} seen)",
                    "calibrate on samples of every kind that the model meets",
                )
            )
        return found

    def _ranges_of_half(self) -> Mapping[str, Range]:
        job = self.bench.job
        half = Subset(job.data.calibration, tuple(range(0, len(job.data.calibration), 2)))
        results = {"results": True} if job.device.backend.quantizes_results else {}
        points = quantization_points(job.graph, **results)
        with job.progress.stage("observe ranges of half of the samples"):
            seen = collect_ranges(job.graph, points, half)
        recipe = job.data.recipe
        return choose_ranges(seen, recipe.observer, recipe.percentile, job.device.backend.symmetric)

    def _model(self, precisions: Mapping[str, Precision], ranges: Mapping[str, Range]) -> ir.Model:
        job = self.bench.job
        return apply_precisions(job.graph, precisions, ranges, job.device.backend.quantizes_results)


_PRECISIONS = {"weights alone": Precision.W8, "activations in 16 bit": Precision.INT16X8}


def _ranked(loss: float, tried: Mapping[str, float]) -> tuple[Trial, ...]:
    trials = [Trial(action, left, _decibel(left) - _decibel(loss)) for action, left in tried.items()]
    return tuple(sorted((t for t in trials if t.gain_db > _CURES_DB), key=lambda trial: -trial.gain_db))


def _relative(part: float | None, whole: float) -> float | None:
    return None if part is None or not whole else min(1.0, part / whole)


def _decibel(loss: float) -> float:
    return -10 * math.log10(max(loss, 1e-14))


def _outside(values: Histogram, covered: Histogram) -> float:
    """The share of the values that lie beyond what was seen, as far as the bins tell."""
    edges = values.edges()
    low, high = edges[:-1] >= covered.maximum, edges[1:] <= covered.minimum
    return float(values.counts[low | high].sum()) / max(1, values.count)


def _span(histogram: Histogram) -> str:
    return f"{histogram.minimum:.3g} to {histogram.maximum:.3g}"
