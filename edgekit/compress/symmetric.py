"""Ranges for runtimes that quantize activations around zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgekit.compress.observers import Histogram, Range, choose_range

# int8 codes reach from -128 to 127: this much further below zero than above it.
_BELOW = 128 / 127
_SMALLEST = 1e-30  # else the step is subnormal


def choose_ranges(
    seen: Mapping[str, Histogram], observer: str, percentile: float, symmetric: bool = False
) -> dict[str, Range]:
    """The range of each tensor that ``observer`` chooses (see `choose_range`); with ``symmetric``, around zero and
    with the largest magnitude that was seen.
    """
    if not symmetric:
        return {name: choose_range(histogram, observer, percentile) for name, histogram in seen.items()}
    found = {}
    for name, histogram in seen.items():
        # What is never negative uses half of the codes: it has one bit less.
        chosen = choose_range(histogram, observer, percentile, 7 if histogram.minimum >= 0 else 8)
        found[name] = replace(around_zero(chosen), peak=max(-histogram.minimum, histogram.maximum))
    return found


def around_zero(bounds: Range) -> Range:
    """The smallest range that holds ``bounds`` and whose 8-bit grid has zero in the middle: its asymmetric parameters
    are a zero point of 128 and a step of the largest value over 127.
    """
    largest = max(-bounds.low, bounds.high, _SMALLEST) if bounds.low < bounds.high else 1.0
    return Range(-largest * _BELOW, largest)
