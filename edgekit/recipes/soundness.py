"""Whether samples are fit to calibrate on, as far as the samples themselves tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekit.graph import Tensor
    from edgekit.recipes.samples import Dataset

FEW_SAMPLES = 8
"""Fewer than this say little about ranges, whatever they hold."""

# Two data sets of one source may differ in their extremes, not by such a factor in their typical size.
_OTHER_SCALE = 4.0
_PIXELS = 255


@dataclass(frozen=True)
class Finding:
    """Something wrong with the samples: ``kind`` is a word for programs, ``detail`` what was seen, ``advice`` what to
    do about it.
    """

    kind: str
    detail: str
    advice: str


@dataclass(frozen=True)
class _Seen:
    """One input over all samples. ``still``: no sample differs from the first."""

    low: float
    high: float
    rms: float
    whole: bool
    still: bool

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


def examine(calibration: Dataset, evaluation: Dataset, inputs: Sequence[Tensor]) -> tuple[Finding, ...]:
    """What is odd about the samples, the gravest first; both data sets are read once."""
    found: list[Finding] = []
    first, second = _observe(calibration, inputs), _observe(evaluation, inputs)
    for tensor in inputs:
        one, other = first[tensor.name], second[tensor.name]
        if one.low == one.high:
            found.append(
                Finding(
                    "constant-input",
                    f"input {tensor.name} holds nothing but {one.low:.4g} in all {len(calibration)} samples",
                    "calibrate on real samples: ranges of a constant input fit no other",
                )
            )
        elif one.still and len(calibration) > 1:
            found.append(
                Finding(
                    "same-samples",
                    f"input {tensor.name} is the same in all {len(calibration)} samples",
                    "calibrate on samples that differ as those in the field do",
                )
            )
        found += _scale(tensor, one, other)
    if len(calibration) < FEW_SAMPLES:
        plural = "" if len(calibration) == 1 else "s"
        found.append(
            Finding(
                "few-samples",
                f"{len(calibration)} sample{plural} to calibrate on",
                f"pass more with --data: fewer than {FEW_SAMPLES} say little about ranges",
            )
        )
    return tuple(found)


def _scale(tensor: Tensor, one: _Seen, other: _Seen) -> list[Finding]:
    if np.dtype(tensor.dtype).kind != "f":
        return []
    if one.rms and other.rms and not 1 / _OTHER_SCALE < one.rms / other.rms < _OTHER_SCALE:
        return [
            Finding(
                "other-scale",
                f"input {tensor.name} spans {one} where it is calibrated, {other} where it is judged",
                "preprocess both alike: quantized to the one scale, the model is blind in the other",
            )
        ]
    if one.whole and one.high > 1 and one.low >= 0 and one.high <= _PIXELS and len(tensor.shape) >= 3:
        return [
            Finding(
                "pixels",
                f"input {tensor.name} holds whole numbers from {one}, as pixels do before they are normalised",
                "divide by 255, or by what the model was trained with, unless the model does that itself",
            )
        ]
    return []


def _observe(dataset: Dataset, inputs: Sequence[Tensor]) -> dict[str, _Seen]:
    first: dict[str, np.ndarray] = {}
    found: dict[str, _Seen] = {}
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        for tensor in inputs:
            values = np.asarray(sample[tensor.name])
            first.setdefault(tensor.name, values)
            low, high = float(values.min()), float(values.max())
            power = float(np.mean(np.square(values, dtype=np.float64)))
            whole = bool(np.all(values == np.round(values)))
            before = found.get(tensor.name, _Seen(low, high, 0.0, True, True))
            found[tensor.name] = _Seen(
                min(low, before.low),
                max(high, before.high),
                float(np.sqrt((before.rms**2 * index + power) / (index + 1))),
                whole and before.whole,
                before.still and np.array_equal(values, first[tensor.name]),
            )
    return found
