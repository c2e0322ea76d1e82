"""Scales and zero points, and weights brought to 8 or 4 bits: numpy only, bit for bit what ONNX runtimes compute.

``real = scale * (code - zero_point)``, codes by rounding half to even and saturating, as the operators QuantizeLinear
and DequantizeLinear define (https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html). The scheme is that of Jacob et
al. 2018 (https://arxiv.org/abs/1712.05877): asymmetric activations, zero exact; weights symmetric, one scale an output
channel, as Nagel et al. 2021 (https://arxiv.org/abs/2106.08295, section 2.4) recommend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.observers import Range

WEIGHT_LIMIT = {8: 127, 4: 7}  # by bits; the lowest code stays unused, so that the grid is symmetric
# A smaller scale would be subnormal: flushed to zero on many devices.
_SMALLEST_SCALE = np.finfo(np.float32).tiny
_CLIP_FACTORS = np.linspace(1.0, 0.4, 31)

WeightObserver = Literal["max-abs", "mse"]


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight in whole numbers, with one float32 scale for each of its output channels; or in 8-bit floats, with
    one for all (`edgekit.compress.float8`).
    """

    codes: NDArray[Any]
    scale: NDArray[np.float32]


def affine_parameters(bounds: Range, bits: int = 8) -> tuple[np.float32, int]:
    """Scale and zero point of the unsigned asymmetric grid over ``bounds``: codes 0 .. 2**bits - 1.

    The zero point is whole, so zero is exact, and every value within ``bounds`` is at most half a step off (plus
    float32 rounding). An empty range gets scale 1.
    """
    levels = 2**bits - 1
    if bounds.low == bounds.high:
        return np.float32(1), 0
    scale = max(np.float32((bounds.high - bounds.low) / levels), _SMALLEST_SCALE)
    return scale, int(np.clip(np.rint(-bounds.low / float(scale)), 0, levels))


def symmetric_parameters(bounds: Range, bits: int = 8) -> tuple[np.float32, int]:
    """Scale and zero point (always 0) of the signed symmetric grid: codes within +-(2**(bits-1) - 1)."""
    largest = max(-bounds.low, bounds.high)
    if largest == 0:
        return np.float32(1), 0
    return max(np.float32(largest / (2 ** (bits - 1) - 1)), _SMALLEST_SCALE), 0


def quantize_weights(
    weights: np.ndarray,
    axis: int,
    observer: WeightObserver = "max-abs",
    importance: np.ndarray | None = None,
    bits: Literal[8, 4] = 8,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes in -127 .. 127 (-7 .. 7 in 4 bits) of the same shape as ``weights``, and one float32 scale for each index
    along ``axis``.

    ``max-abs`` clips nothing. ``mse`` tries for each channel how far clipping lowers the squared error, weighted by
    ``importance`` (broadcast against ``weights``; say the mean square of each input), and so is never worse by it.
    A channel of zeros gets scale 1.

    Raises:
        ValueError: a weight is NaN or infinite as float32, or there is no such axis.
    """
    if not -weights.ndim <= axis < weights.ndim:
        raise ValueError(f"weights of shape {weights.shape} have no axis {axis}")
    with np.errstate(over="ignore"):
        weights = np.asarray(weights, np.float32)
    if not np.isfinite(weights).all():
        raise ValueError("weights hold NaN or infinite values")
    rest = tuple(i for i in range(weights.ndim) if i != axis % weights.ndim)
    largest = np.abs(weights).max(axis=rest, initial=0).astype(np.float64)
    limit = WEIGHT_LIMIT[bits]
    scale = _scale(largest, limit)
    if observer == "mse":
        scale = _least_error_scale(weights, largest, scale, axis, rest, importance, limit)
    return _codes(weights, scale, axis, limit), scale


def dequantize_weights(codes: np.ndarray, scale: np.ndarray, axis: int) -> NDArray[np.float32]:
    """The float32 weights that ``codes`` stand for, as DequantizeLinear computes them."""
    return codes.astype(np.float32) * _along(scale.astype(np.float32), axis, codes.ndim)


def _scale(largest: NDArray[np.float64], limit: int) -> NDArray[np.float32]:
    scale = np.maximum((largest / limit).astype(np.float32), _SMALLEST_SCALE)
    return np.where(largest > 0, scale, np.float32(1))


def _codes(weights: NDArray[np.float32], scale: NDArray[np.float32], axis: int, limit: int) -> NDArray[np.int8]:
    nearest = np.rint(weights / _along(scale, axis, weights.ndim))
    codes: NDArray[np.int8] = np.clip(nearest, -limit, limit).astype(np.int8)
    return codes


def _least_error_scale(
    weights: NDArray[np.float32],
    largest: NDArray[np.float64],
    scale: NDArray[np.float32],
    axis: int,
    rest: tuple[int, ...],
    importance: np.ndarray | None,
    limit: int,
) -> NDArray[np.float32]:
    best, least = scale, np.full(scale.shape, np.inf)
    for factor in _CLIP_FACTORS:
        candidate = _scale(largest * factor, limit)
        codes = _codes(weights, candidate, axis, limit)
        error = np.square(weights - dequantize_weights(codes, candidate, axis), dtype=np.float64)
        if importance is not None:
            error *= importance
        total = error.sum(axis=rest)
        better = total < least
        best, least = np.where(better, candidate, best), np.where(better, total, least)
    return best


def _along(scale: NDArray[np.float32], axis: int, ndim: int) -> NDArray[np.float32]:
    shape = [1] * ndim
    shape[axis] = scale.size
    return scale.reshape(shape)
