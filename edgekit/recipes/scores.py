"""Metrics: each sample's outputs become a small row of numbers, all rows together one value.

Rows keep memory independent of the outputs' size, and make intervals possible: see ``edgekit.recipes.intervals``. A
metric looks at the model's first output; fidelity metrics (``cosine``, ``sqnr``) look at all float outputs. Broken
outputs (NaN) score as badly as they can: a ruined candidate loses the race, it does not stop it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edgekit.errors import InputError
from edgekit.recipes import ctc, fidelity

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Array]


class Metric(Protocol):
    """What scores outputs."""

    @property
    def name(self) -> str:
        """As it is printed and asked for."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is a better model."""

    def row(self, outputs: Outputs, label: object, reference: Outputs, /) -> tuple[float, ...]:
        """One sample: the outputs, its label, and the unmodified model's outputs, in the model's order of outputs."""

    def aggregate(self, rows: Array) -> float:
        """The value over rows [n, k]."""


@runtime_checkable
class Weighted(Protocol):
    """A metric that can be resampled as one matrix operation, which all of edgekit's own can."""

    def weighted(self, rows: Array, weights: Array) -> Array:
        """The value [b] for each of b weightings [b, n] of rows [n, k]."""

    def strata(self, rows: Array) -> Array:
        """Group [n] of each row: resampling keeps the size of each group."""


@dataclass(frozen=True)
class Mean:
    """The mean of one number a sample."""

    name: str
    score: Callable[[Outputs, object, Outputs], float]
    higher_is_better: bool = True

    def row(self, outputs: Outputs, label: object, reference: Outputs) -> tuple[float, ...]:
        """(score,)."""
        return (float(self.score(outputs, label, reference)),)

    def aggregate(self, rows: Array) -> float:
        """Mean score."""
        return float(rows[:, 0].mean())

    def weighted(self, rows: Array, weights: Array) -> Array:
        """Weighted means."""
        return np.asarray(weights @ rows[:, 0] / weights.sum(axis=1))

    def strata(self, rows: Array) -> Array:
        """One group."""
        return np.zeros(len(rows), int)


@dataclass(frozen=True)
class CharacterErrorRate:
    """Edit distance over label length, summed before dividing, so that a long line counts more than a short one."""

    metadata: Mapping[str, str] = field(repr=False)
    name: str = "cer"
    higher_is_better: bool = False

    def row(self, outputs: Outputs, label: object, _: Outputs) -> tuple[float, ...]:
        """(Levenshtein distance, label length)."""
        from rapidfuzz.distance import Levenshtein

        text = text_label(label, self.name)
        return float(Levenshtein.distance(decode(outputs, self.metadata), text)), float(len(text))

    def aggregate(self, rows: Array) -> float:
        """Sum of distances over sum of lengths."""
        return float(self.weighted(rows, np.ones((1, len(rows))))[0])

    def weighted(self, rows: Array, weights: Array) -> Array:
        """Weighted ratios; raises ``InputError`` when all labels are empty."""
        if not rows[:, 1].any():
            raise InputError("metric cer: every label is empty text", hint="check the label file")
        distance, length = (weights @ rows).T
        return np.asarray(distance / np.maximum(length, 1))

    def strata(self, rows: Array) -> Array:
        """One group."""
        return np.zeros(len(rows), int)


@dataclass(frozen=True)
class AreaUnderCurve:
    """Area under the ROC curve: the chance that a positive sample scores above a negative one, ties counting half.

    Mann-Whitney's U over the number of pairs (Hanley & McNeil, Radiology 143, 1982). The score is the largest value of
    the first output: of a sequence, its maximum; of two class scores ([1, 2]), the second.
    """

    name: str = "auc"
    higher_is_better: bool = True

    def row(self, outputs: Outputs, label: object, _: Outputs) -> tuple[float, ...]:
        """(score, label)."""
        output = _first(outputs)
        scores = output.reshape(-1)[1:] if output.ndim > 1 and output.shape[-1] == output.size == 2 else output
        score = float(scores.max()) if scores.size else math.nan
        if label not in (0, 1):
            raise InputError(f"metric auc: label {label!r} is neither 0 nor 1", hint="label samples 0 (no) or 1 (yes)")
        return (score if not math.isnan(score) else -math.inf), float(label)

    def aggregate(self, rows: Array) -> float:
        """The area; raises ``InputError`` when only one of the labels occurs."""
        return float(self.weighted(rows, np.ones((1, len(rows))))[0])

    def weighted(self, rows: Array, weights: Array) -> Array:
        """Areas where row i counts ``weights[:, i]`` times: one sort for all of them."""
        positive = rows[:, 1] == 1
        if positive.all() or not positive.any():
            raise InputError(
                f"metric auc: all {len(rows)} labels are {int(positive[0])}", hint="it needs samples of both kinds"
            )
        order = np.argsort(rows[:, 0], kind="stable")
        scores, positive, weights = rows[order, 0], positive[order], weights[:, order]
        starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))  # one group for each distinct score
        won = np.add.reduceat(weights * positive, starts, axis=1)
        lost = np.add.reduceat(weights * ~positive, starts, axis=1)
        below = np.cumsum(lost, axis=1) - lost / 2
        return np.asarray((won * below).sum(axis=1) / (won.sum(axis=1) * lost.sum(axis=1)))

    def strata(self, rows: Array) -> Array:
        """Positives and negatives: both must occur in every resample."""
        return np.asarray(rows[:, 1].astype(int))


@dataclass(frozen=True)
class Sqnr:
    """Signal to quantisation noise against the unmodified model, dB (see ``fidelity``)."""

    name: str = "sqnr"
    higher_is_better: bool = True

    def row(self, outputs: Outputs, _: object, reference: Outputs) -> tuple[float, ...]:
        """Signal and noise power of each float output in turn."""
        return fidelity.powers(outputs, reference)

    def aggregate(self, rows: Array) -> float:
        """Over all samples."""
        return float(self.weighted(rows, np.ones((1, len(rows))))[0])

    def weighted(self, rows: Array, weights: Array) -> Array:
        """Of weighted sums of powers."""
        return fidelity.decibels(weights @ rows)

    def strata(self, rows: Array) -> Array:
        """One group."""
        return np.zeros(len(rows), int)


def _first(outputs: Outputs) -> Array:
    return np.asarray(next(iter(outputs.values())))


def top_1(outputs: Outputs, label: object, _: Outputs) -> float:
    """1 when the largest number of the first output stands at index ``label``, else 0."""
    scores = _first(outputs).reshape(-1)
    if not isinstance(label, int):
        raise InputError(f"metric top-1: label {label!r} is not an integer", hint="say another metric with --metric")
    if scores.size < 2:
        raise InputError(
            "metric top-1: the model's first output holds one number, not classes", hint="try --metric auc"
        )
    if not 0 <= label < scores.size:
        raise InputError(
            f"metric top-1: label {label} is not one of the model's classes 0..{scores.size - 1}",
            hint="labels count from 0 in the order of the model's output",
        )
    return float(np.isfinite(scores).all() and scores.argmax() == label)


def decode(outputs: Outputs, metadata: Mapping[str, str]) -> str:
    """The first output [..., T, C] as text."""
    scores = _first(outputs)
    return ctc.greedy(scores, ctc.alphabet(metadata, scores.shape[-1] if scores.ndim else 1))


def text_label(label: object, name: str) -> str:
    """``label`` where it is text; ``InputError`` where not."""
    if not isinstance(label, str):
        raise InputError(f"metric {name}: label {label!r} is not text", hint="label samples with the text they show")
    return label
