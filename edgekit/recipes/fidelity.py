"""How close outputs are to the unmodified model's, with no labels: signal to noise, cosine, agreement.

Each sample leaves a short row (``fidelity_row``), so nothing grows with the outputs; ``sqnr_db`` and ``agreement`` sum
the rows up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Array]

# Noise of broken outputs: beyond every bound, yet finite, so that 0 times it is 0 when samples are weighted.
_BROKEN = 1e200

# float32 carries 24 bits: equal outputs are 24 * 6.02 dB above noise that nobody could see.
CEILING_DB = 144.0


def fidelity_row(outputs: Outputs, reference: Outputs) -> tuple[float, ...]:
    """One sample: (signal power, noise power) of each float output in turn, then its agreement (NaN where undefined).

    Agreement looks at the first output and is the share of its positions (rows of the last axis: classes) whose best
    class is the reference's: 0 or 1 for a classifier, a share of the steps for a sequence.
    """
    return *powers(outputs, reference), _agreement(outputs, reference)


def sqnr_db(rows: Array) -> float:
    """Signal to noise over all rows [n, 2 * outputs + 1] of ``fidelity_row``, dB, at most +-``CEILING_DB``.

    Powers are summed over samples; with several outputs their noise-to-signal ratios are averaged, so that an output of
    large numbers does not hide a ruined one of small numbers.
    """
    return float(decibels(rows[:, :-1].sum(axis=0, keepdims=True))[0])


def agreement(rows: Array) -> float | None:
    """Mean agreement over all rows of ``fidelity_row``, 0..1; ``None`` where the model has no classes to compare."""
    return None if np.isnan(rows[:, -1]).any() else float(rows[:, -1].mean())


def powers(outputs: Outputs, reference: Outputs) -> tuple[float, ...]:
    """(sum of squares, sum of squared differences) of each float output; broken values count as infinite noise."""
    sums: list[float] = []
    for ours, theirs in _pairs(outputs, reference):
        with np.errstate(over="ignore", invalid="ignore"):
            noise = float(((ours - theirs) ** 2).sum())
        sums += [float((theirs**2).sum()), min(noise, _BROKEN) if np.isfinite(noise) else _BROKEN]
    return tuple(sums)


def decibels(sums: Array) -> Array:
    """dB [b] of summed powers [b, 2 * outputs] as ``powers`` orders them."""
    signal, noise = sums[:, 0::2], sums[:, 1::2]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(noise == 0, 0.0, noise / signal)  # of a silent output: 0 when silent, infinite when not
        return np.asarray(np.clip(-10 * np.log10(ratio.mean(axis=1)), -CEILING_DB, CEILING_DB))


def cosine(outputs: Outputs, reference: Outputs) -> float:
    """Cosine of the angle between outputs and reference, of the float output where it is smallest; 0 when broken.

    Two silent outputs agree (1); a silent one and another do not (0).
    """
    smallest = 1.0
    for ours, theirs in _pairs(outputs, reference):
        lengths = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
        if not any(lengths):
            continue
        value = 0.0
        if all(lengths) and np.isfinite(lengths).all():
            value = float((ours / lengths[0]).ravel() @ (theirs / lengths[1]).ravel())
        smallest = min(smallest, value)
    return smallest


def _pairs(outputs: Outputs, reference: Outputs) -> Iterator[tuple[Array, Array]]:
    """(ours, reference) as float64 for each float output; for each output when none is float."""
    names = [name for name in reference if np.asarray(reference[name]).dtype.kind == "f"] or list(reference)
    for name in names:
        yield np.asarray(outputs[name], np.float64), np.asarray(reference[name], np.float64)


def _agreement(outputs: Outputs, reference: Outputs) -> float:
    name = next(iter(reference))
    ours, theirs = np.asarray(outputs[name]), np.asarray(reference[name])
    if theirs.ndim < 2 or theirs.shape[-1] < 2:
        return float("nan")
    whole = np.isfinite(ours).all(axis=-1) if ours.dtype.kind == "f" else np.True_
    return float(np.mean(whole & (ours.argmax(axis=-1) == theirs.argmax(axis=-1))))
