"""What values a tensor takes, in bounded memory, and which of them an 8-bit grid should cover.

The histogram's bins are ``2**exponent`` wide and lie at whole multiples of their width. A wider range is reached by
merging neighbours in pairs, which is exact, and the width follows from the minimum and maximum alone: the state is a
function of the values seen, whatever their order and however they were cut into updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Observer = Literal["min-max", "percentile", "mse", "entropy"]
OBSERVERS: tuple[Observer, ...] = get_args(Observer)

BINS = 2048
# Below one part in 2**24 of the largest magnitude, float32 values cannot be told apart.
_MANTISSA_BITS = 24
_SMALLEST_EXPONENT = -149  # of float32's subnormals
_CHUNK = 1 << 18  # elements taken to float64 at a time


@dataclass(frozen=True)
class Range:
    """The interval that the quantized grid covers. It always holds zero: ``low <= 0 <= high``, both finite. ``peak`` is
    the largest magnitude that was seen, for grids that reach it at no cost; 0 where nobody asked.
    """

    low: float
    high: float
    peak: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= 0 <= self.high):
            raise ValueError(f"a range must be finite and hold zero, not [{self.low}, {self.high}]")


class Histogram:
    """Counts of the values of one tensor, in a fixed number of bins, with exact minimum, maximum and zeros.

    Zeros are counted apart: padding and ReLU make many of them, and every grid represents zero exactly.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.minimum = math.inf
        self.maximum = -math.inf
        self.zeros = 0
        self.exponent = _SMALLEST_EXPONENT
        self.first = 0  # index of counts[0]: that bin begins at first * width
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)

    @property
    def width(self) -> float:
        """Width of a bin, a power of two."""
        return math.ldexp(1.0, self.exponent)

    @property
    def count(self) -> int:
        """Number of values seen, zeros included."""
        return self.zeros + int(self.counts.sum())

    def update(self, values: np.ndarray) -> None:
        """Add the values of one more array (any shape; taken as float32).

        Raises:
            ValueError: names the tensor; a value is NaN or infinite. The histogram is then unchanged.
        """
        with np.errstate(over="ignore"):
            flat = np.asarray(values, np.float32).reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            kind = "NaN" if math.isnan(low) or math.isnan(high) else "infinite"
            raise ValueError(f"tensor {self.name!r} holds {kind} values")
        self._cover(min(low, self.minimum), max(high, self.maximum))
        for begin in range(0, flat.size, _CHUNK):
            chunk = flat[begin : begin + _CHUNK].astype(np.float64)
            nonzero = chunk[chunk != 0]
            self.zeros += chunk.size - nonzero.size
            index = np.floor(np.ldexp(nonzero, -self.exponent)).astype(np.int64) - self.first
            self.counts += np.bincount(index, minlength=BINS)

    def edges(self) -> NDArray[np.float64]:
        """The bins' edges [BINS + 1], cut to the minimum and maximum seen."""
        edges = np.ldexp(self.first + np.arange(BINS + 1, dtype=np.float64), self.exponent)
        return np.clip(edges, self.minimum, self.maximum)

    def _cover(self, minimum: float, maximum: float) -> None:
        exponent = _exponent(minimum, maximum)
        first = math.floor(math.ldexp(minimum, -exponent))
        if exponent != self.exponent or first != self.first:
            index = self.first + np.flatnonzero(self.counts)
            merged = np.zeros(BINS, np.int64)
            np.add.at(merged, (index >> (exponent - self.exponent)) - first, self.counts[index - self.first])
            self.counts, self.exponent, self.first = merged, exponent, first
        self.minimum, self.maximum = minimum, maximum


def _exponent(minimum: float, maximum: float) -> int:
    """The finest bin width that spans the range in ``BINS`` bins and that float32 still resolves. It never shrinks when
    the range grows.
    """
    largest = max(abs(minimum), abs(maximum))
    exponent = _SMALLEST_EXPONENT
    if largest > 0:
        exponent = max(exponent, math.frexp(largest)[1] - _MANTISSA_BITS)
    while math.floor(math.ldexp(maximum, -exponent)) - math.floor(math.ldexp(minimum, -exponent)) >= BINS:
        exponent += 1
    return exponent


def choose_range(histogram: Histogram, observer: str, percentile: float = 99.99, bits: int = 8) -> Range:
    """The interval that ``observer`` would have the grid of ``2**bits`` levels cover.

    - ``min-max``: every value seen.
    - ``percentile``: the middle ``percentile`` percent of the values; what is cut is shared by the two ends.
    - ``mse``: least expected squared error of the asymmetric grid (Nagel et al. 2021, A White Paper on Neural Network
      Quantization, https://arxiv.org/abs/2106.08295, section 3.1).
    - ``entropy``: least Kullback-Leibler divergence between the values and their quantized image (S. Migacz, 8-bit
      Inference with TensorRT, GTC 2017), searched over one threshold for both signs.

    Raises:
        ValueError: the histogram is empty, or the observer is unknown.
    """
    if histogram.count == 0:
        raise ValueError(f"tensor {histogram.name!r} was never observed")
    low, high = min(0.0, histogram.minimum), max(0.0, histogram.maximum)
    match observer:
        case "min-max":
            return Range(low, high)
        case "percentile":
            return _percentile_range(histogram, percentile)
        case "mse":
            return _least_error_range(histogram, low, high, 2**bits)
        case "entropy":
            threshold = _least_divergence(histogram, 2**bits)
            return Range(max(low, -threshold), min(high, threshold))
    raise ValueError(f"unknown observer {observer!r}: choose one of {', '.join(OBSERVERS)}")


def _percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Ends of the bins in which the two order statistics lie: at most one bin wider than the exact quantiles."""
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must be above 0 and at most 100, not {percentile}")
    counts = histogram.counts.copy()
    if histogram.zeros:
        counts[-histogram.first] += histogram.zeros
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1])
    cut = (1 - percentile / 100) / 2
    below, above = (int(np.searchsorted(cumulative, max(1, math.ceil(total * q)))) for q in (cut, 1 - cut))
    edges = histogram.edges()
    return Range(min(0.0, float(edges[below])), max(0.0, float(edges[above + 1])))


def grid_error(histogram: Histogram, low: np.ndarray, high: np.ndarray, levels: int = 256) -> NDArray[np.float64]:
    """Mean squared error of the asymmetric grid over each candidate ``[low, high]`` (arrays of one length, each holding
    zero), with the values spread evenly within their bin. Zeros cost nothing.
    """
    edges = histogram.edges()
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    span = high - low
    step = np.where(span > 0, span, 1.0) / (levels - 1)
    bottom = np.rint(low / step)[:, None]
    top = bottom + np.where(span > 0, levels - 1, 0)[:, None]
    # In steps from zero, the error to the nearest level n is u - n. Its squared integral from the lowest level up is
    # (n - bottom) / 12 + (u - n)^3 / 3, also beyond the ends, where n stays at the end.
    u = edges[None, :] / step[:, None]
    nearest = np.clip(np.rint(u), bottom, top)
    integral = (nearest - bottom) / 12 + (u - nearest) ** 3 / 3
    length = np.diff(u, axis=1)
    middle = (u[:, 1:] + u[:, :-1]) / 2
    at_middle = np.square(middle - np.clip(np.rint(middle), bottom, top))
    # A bin far narrower than a step (or cut to a point, as the ceiling of ReLU6) is a point: no division by nothing.
    mean = np.where(length > 1e-4, np.diff(integral, axis=1) / np.maximum(length, 1e-4), at_middle)
    error: NDArray[np.float64] = (mean @ histogram.counts) * np.square(step) / histogram.count
    return error


def _least_error_range(histogram: Histogram, low: float, high: float, levels: int) -> Range:
    """Shrink both ends together over a coarse grid of factors, then refine around the best. No shrinking is among the
    candidates, so the result is never worse than min-max.
    """
    if histogram.minimum == histogram.maximum:
        return Range(low, high)
    one_sided = low == 0 or high == 0
    factors = 0.03 ** np.linspace(0, 1, 64 if one_sided else 12)
    lows, highs = (factors if end != 0 else np.zeros(1) for end in (low, high))
    ratio = factors[1] / factors[0]
    best, error = (1.0, 1.0), math.inf
    for _ in range(4):
        grid = np.stack(np.meshgrid(lows, highs, indexing="ij"), -1).reshape(-1, 2)
        errors = grid_error(histogram, low * grid[:, 0], high * grid[:, 1], levels)
        at = int(errors.argmin())
        if errors[at] < error:
            best, error = (float(grid[at, 0]), float(grid[at, 1])), float(errors[at])
        around = ratio ** np.linspace(-0.7, 0.7, 5)
        lows, highs = (np.minimum(1.0, middle * around) if middle else np.zeros(1) for middle in best)
        ratio **= 0.35
    return Range(low * best[0], high * best[1])


def _least_divergence(histogram: Histogram, levels: int) -> float:
    """The threshold on magnitudes whose quantized distribution diverges least from the clipped one.

    Levels are those that one sign gets: half of them for signed values. Zeros stay out, as in TensorRT, whose bin of
    zeros would otherwise decide alone.
    """
    largest = max(abs(histogram.minimum), abs(histogram.maximum))
    magnitudes, width = _magnitudes(histogram)
    if histogram.minimum < 0 < histogram.maximum:
        levels //= 2
    if magnitudes.size <= levels:
        return largest
    total = magnitudes.sum()
    used = magnitudes > 0
    lengths = np.unique(np.append(np.arange(levels, magnitudes.size, 8), magnitudes.size))
    best, least = magnitudes.size, math.inf
    for length in map(int, lengths):
        inside = magnitudes[:length]
        if not inside.any():
            continue
        clipped = inside.copy()
        clipped[-1] += total - inside.sum()
        starts = np.arange(levels) * length // levels
        shares = np.add.reduceat(inside, starts) / np.maximum(
            1, np.add.reduceat(used[:length].astype(np.int64), starts)
        )
        quantized = np.repeat(shares, np.diff(np.append(starts, length))) * used[:length]
        p, q = clipped / total, quantized / quantized.sum()
        seen = p > 0
        # Where clipping put values on an empty bin q is zero: a floor keeps the divergence finite, and it high.
        divergence = float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-4 / BINS))))
        if divergence < least:
            best, least = length, divergence
    return min(largest, best * width)


def _magnitudes(histogram: Histogram) -> tuple[NDArray[np.int64], float]:
    """Counts of |value| from zero up in at most ``BINS`` bins, and their width. Exact: the bins of either sign meet."""
    index = histogram.first + np.flatnonzero(histogram.counts)
    if index.size == 0:
        return np.zeros(0, np.int64), histogram.width
    magnitude = np.where(index >= 0, index, -index - 1)
    shift = max(0, int(magnitude.max()).bit_length() - (BINS - 1).bit_length())
    return np.bincount(magnitude >> shift, histogram.counts[index - histogram.first]).astype(np.int64), math.ldexp(
        histogram.width, shift
    )


def to_arrays(histograms: Iterable[Histogram]) -> dict[str, np.ndarray]:
    """The histograms as a few arrays that ``np.savez`` stores without pickle."""
    every = list(histograms)
    return {
        "names": np.array([h.name for h in every], dtype=np.str_),
        "limits": np.array([(h.minimum, h.maximum) for h in every], np.float64).reshape(-1, 2),
        "layout": np.array([(h.zeros, h.exponent, h.first) for h in every], np.int64).reshape(-1, 3),
        "counts": np.array([h.counts for h in every], np.int64).reshape(-1, BINS),
    }


def from_arrays(arrays: Mapping[str, Any]) -> dict[str, Histogram]:
    """Tensor name -> histogram, from what `to_arrays` gave.

    Raises:
        ValueError: the arrays are not those of `to_arrays`.
    """
    histograms = {}
    try:
        rows = zip(arrays["names"], arrays["limits"], arrays["layout"], arrays["counts"], strict=True)
        for name, (minimum, maximum), (zeros, exponent, first), counts in rows:
            histogram = Histogram(str(name))
            histogram.minimum, histogram.maximum = float(minimum), float(maximum)
            histogram.zeros, histogram.exponent, histogram.first = int(zeros), int(exponent), int(first)
            histogram.counts = np.array(counts, np.int64)
            if histogram.counts.shape != (BINS,):
                raise ValueError(f"{BINS} bins expected")
            histograms[histogram.name] = histogram
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a set of histograms: {error}") from None
    return histograms
