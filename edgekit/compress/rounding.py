"""Rounds a layer's weights so that its results, not its weights, come out nearest to what they were.

What rounding one weight does to the results can be made up for by the weights that are not rounded yet: the closed form
of Optimal Brain Quantization (Frantar et al. 2022, https://arxiv.org/abs/2208.11580), computed with the Cholesky factor
of GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323). Afterwards single codes move where that lowers the
error further, and the scales are fitted to the codes. It needs the second moments of what the layer reads and no
labels, and the same moments always give the same codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.parameters import intercept_of, own_weight, weight_array
from edgekit.compress.products import Product, matrix_of, product_of, weight_of
from edgekit.compress.weights import WEIGHT_LIMIT, Codes, quantize_weights

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.compress.grams import Gram
    from edgekit.graph import Graph
    from edgekit.types import Layer

Bits = Literal[8, 4]
Floats = NDArray[np.float64]
# Each value's nearest code.
Nearest = Callable[[Floats], Floats]

# Columns that are rounded before what they owe is put on all later ones at once.
_AT_ONCE = 64
# Times that each code may move afterwards, by bits: on the 8-bit grid there is little left to gain.
_PASSES = {8: 1, 4: 3}
# A smaller scale would be subnormal: flushed to zero on many devices.
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Rounded:
    """A layer's weight in codes. ``shift`` is what its bias gains [blocks * outputs], so that on average over the
    samples no result moves; None where there is no bias.
    """

    weight: Codes
    shift: NDArray[np.float64] | None = None

    def to_arrays(self, name: str) -> dict[str, np.ndarray]:
        """As arrays whose names end in ``name``, which need no pickle."""
        found: dict[str, np.ndarray] = {f"codes {name}": self.weight.codes, f"scale {name}": self.weight.scale}
        return found if self.shift is None else {**found, f"shift {name}": self.shift}

    @staticmethod
    def from_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> Rounded | None:
        """The inverse; None where nothing is stored under ``name``."""
        if f"codes {name}" not in arrays:
            return None
        return Rounded(Codes(arrays[f"codes {name}"], arrays[f"scale {name}"]), arrays.get(f"shift {name}"))


def roundable(node: ir.Node, layer: Layer) -> Product | None:
    """The layer's product, where its constant weight is its own and has one scale for each output of the product."""
    product = product_of(node)
    if product is None or not own_weight(node) or layer.weights != (product.weight,) or layer.weight_axis < 0:
        return None
    outputs = product.view.blocks * product.outputs
    return product if product.weight_shape[layer.weight_axis] == outputs else None


def round_layer(graph: Graph, layer: Layer, gram: Gram, bits: Bits = 8) -> Rounded | None:
    """The layer's weight in ``bits`` bits with one scale for each output channel; None where it is not `roundable`."""
    node = next(node for node in graph.model.graph if node.name == layer.name)
    product = roundable(node, layer)
    if product is None:
        return None
    matrix = matrix_of(product, weight_array(graph.model, product.weight)) / product.scale
    has_bias = intercept_of(node, product) is not None
    codes, scale = round_matrix(matrix, gram, bits, has_bias)
    whole = np.rint(weight_of(product, codes * product.scale)).astype(np.int8)
    error = product.scale * (codes * scale.astype(np.float64) - matrix)
    shift = -np.einsum("boc,bc->bo", error, gram.second[:, :-1, -1]).reshape(-1)
    return Rounded(Codes(whole, scale.reshape(-1)), shift if has_bias else None)


def round_matrix(
    matrix: np.ndarray, gram: Gram, bits: Bits = 8, has_bias: bool = True, group: int | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of a weight [blocks, outputs, columns], and their scales [blocks, outputs, columns / ``group``]: one for
    each so many columns, by default one for all.

    For each output the mean squared error on the rows of the Gram matrix is no larger than that of rounding each weight
    to the nearest code as `quantize_weights` does: the better of the two is taken. Where the layer ``has_bias``, errors
    count without their mean, which the bias makes up for. The largest weight of each group has the largest code, so
    that runtimes that take the floats, and their scales from the largest one, come to the same codes.

    Raises:
        ValueError: ``group`` does not divide the columns.
    """
    matrix = np.asarray(matrix, np.float64)
    group = group or matrix.shape[2]
    if matrix.shape[2] % group:
        raise ValueError(f"groups of {group} do not divide {matrix.shape[2]} columns")
    limit = WEIGHT_LIMIT[bits]
    plain = _nearest(matrix, group, bits, None)
    scale = plain[1]
    if bits == 4:
        scale = _nearest(matrix, group, bits, importance_of(gram, has_bias)[:, None])[1]

    def nearest(values: Floats) -> Floats:
        return np.asarray(np.clip(np.rint(values), -limit, limit))

    pinned = largest_weights(matrix, group) * limit
    return choose_codes(matrix, gram, plain, scale, pinned, nearest, _PASSES[bits], has_bias)


def choose_codes(
    matrix: Floats,
    gram: Gram,
    plain: tuple[NDArray[np.int8], NDArray[np.float32]],
    scale: NDArray[np.float32],
    pinned: Floats,
    nearest: Nearest,
    passes: int,
    has_bias: bool = True,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes and scales as `round_matrix` gives them, on any grid: each weight over its scale goes to one of the codes
    that ``nearest`` gives. Begins with ``scale``; places where ``pinned`` is not zero keep that code. An output that
    ``plain`` codes and scales serve better gets those.
    """
    group = matrix.shape[2] // scale.shape[2]
    seen, solved, inverse = _moments(gram, has_bias)
    weights = np.diagonal(solved, axis1=1, axis2=2)
    codes = _compensated(matrix, pinned, _spread(scale, group), inverse, weights, nearest)
    for _ in range(passes):
        scale = _fitted(matrix, codes, scale, solved, group)
        codes = _descended(matrix, codes, pinned, _spread(scale, group), solved, nearest)
    scale = _fitted(matrix, codes, scale, solved, group)
    worse = _errors(matrix, codes, scale, seen, group) > _errors(matrix, *plain, seen, group)
    codes = np.where(worse[:, :, None], plain[0], codes)
    return codes, np.where(worse[:, :, None], plain[1], scale)


def importance_of(gram: Gram, has_bias: bool = True) -> Floats:
    """What an error of each column's weights costs by itself, [blocks, columns]."""
    return np.asarray(np.maximum(np.diagonal(_moments(gram, has_bias)[0], axis1=1, axis2=2), 0))


def _moments(gram: Gram, has_bias: bool) -> tuple[Floats, Floats, Floats]:
    """What weight errors are measured by, [blocks, columns, columns]: as seen on the samples; with the ridge that the
    samples call for; and the inverse of that.
    """
    seen, solved, inverse = gram.second[:, :-1, :-1], gram.covariance, gram.inverse[:, :-1, :-1]
    means = gram.second[:, :-1, -1]
    square = means[:, :, None] * means[:, None, :]
    if has_bias:
        return seen - square, solved, inverse
    last = gram.inverse[:, :-1, -1]
    inverse = inverse - last[:, :, None] * last[:, None, :] / gram.inverse[:, -1:, -1:]
    return seen, solved + square, inverse


def _nearest(
    matrix: Floats, group: int, bits: Bits, importance: Floats | None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    rows = matrix.reshape(-1, group)
    if importance is not None:
        importance = np.broadcast_to(importance, matrix.shape).reshape(rows.shape)
    codes, scale = quantize_weights(rows, 0, "max-abs" if bits == 8 else "mse", importance, bits)
    return codes.reshape(matrix.shape), scale.reshape(*matrix.shape[:2], -1)


def largest_weights(matrix: Floats, group: int) -> Floats:
    """The sign of the largest weight of each group, zero elsewhere, [blocks, outputs, columns]."""
    rows = matrix.reshape(-1, group)
    at = np.abs(rows).argmax(axis=1)[:, None]
    found = np.zeros(rows.shape)
    np.put_along_axis(found, at, np.sign(np.take_along_axis(rows, at, axis=1)), axis=1)
    return found.reshape(matrix.shape)


def _compensated(
    matrix: Floats, pinned: Floats, steps: Floats, inverse: Floats, weights: Floats, nearest: Nearest
) -> NDArray[np.int8]:
    """Codes found column by column, the one with the largest moment first; what a column is off goes to the rest."""
    blocks, _, columns = matrix.shape
    order = np.argsort(-weights, axis=1, kind="stable")
    across = np.arange(blocks)[:, None]
    left = np.take_along_axis(matrix, order[:, None], axis=2)
    steps, pinned = (np.take_along_axis(array, order[:, None], axis=2) for array in (steps, pinned))
    factor = np.linalg.cholesky(inverse[across[:, :, None], order[:, :, None], order[:, None, :]]).transpose(0, 2, 1)
    codes = np.zeros(matrix.shape, np.int8)
    for start in range(0, columns, _AT_ONCE):
        end = min(start + _AT_ONCE, columns)
        part, owed = left[:, :, start:end], np.empty((*matrix.shape[:2], end - start))
        for j in range(start, end):
            step = steps[:, :, j]
            code = nearest(part[:, :, j - start] / step)
            code = np.where(pinned[:, :, j], pinned[:, :, j], code)
            off = (part[:, :, j - start] - code * step) / factor[:, None, j, j]
            part[:, :, j + 1 - start :] -= off[:, :, None] * factor[:, None, j, j + 1 : end]
            codes[:, :, j], owed[:, :, j - start] = code, off
        left[:, :, end:] -= owed @ factor[:, start:end, end:]
    found = np.empty_like(codes)
    np.put_along_axis(found, np.broadcast_to(order[:, None], codes.shape), codes, axis=2)
    return found


def _descended(
    matrix: Floats, codes: NDArray[np.int8], pinned: Floats, steps: Floats, solved: Floats, nearest: Nearest
) -> NDArray[np.int8]:
    """Each code in turn moved to where the error is least while the others stay."""
    found = codes.astype(np.float64)
    slope = (found * steps - matrix) @ solved
    for start in range(0, matrix.shape[2], _AT_ONCE):
        end = min(start + _AT_ONCE, matrix.shape[2])
        near, moved = slope[:, :, start:end].copy(), np.empty((*matrix.shape[:2], end - start))
        for j in range(start, end):
            step = steps[:, :, j]
            best = nearest(found[:, :, j] - near[:, :, j - start] / (solved[:, None, j, j] * step))
            change = np.where(pinned[:, :, j], 0.0, best - found[:, :, j])
            found[:, :, j] += change
            moved[:, :, j - start] = change * step
            near += moved[:, :, j - start, None] * solved[:, None, j, start:end]
        slope += moved @ solved[:, start:end]
    return found.astype(np.int8)


def _fitted(
    matrix: Floats, codes: NDArray[np.int8], scale: NDArray[np.float32], solved: Floats, group: int
) -> NDArray[np.float32]:
    """The scales with the least error for these codes, one group after the other."""
    found = scale.astype(np.float64)
    for index in range(scale.shape[2]):
        place = slice(index * group, (index + 1) * group)
        rest = matrix - codes * _spread(found, group)
        own = codes[:, :, place].astype(np.float64)
        rest[:, :, place] = matrix[:, :, place]
        power = np.einsum("boc,boc->bo", own @ solved[:, place, place], own)
        wanted = np.einsum("boc,boc->bo", rest @ solved[:, :, place], own)
        fits = (power > 0) & (wanted > _SMALLEST_SCALE * power)
        found[:, :, index] = np.where(fits, wanted / np.where(power > 0, power, 1.0), found[:, :, index])
    return found.astype(np.float32)


def _errors(matrix: Floats, codes: NDArray[np.int8], scale: NDArray[np.float32], seen: Floats, group: int) -> Floats:
    """Mean squared error of each output [blocks, outputs]."""
    off = codes * _spread(scale.astype(np.float64), group) - matrix
    return np.asarray(np.einsum("boc,boc->bo", off @ seen, off))


def _spread(scale: np.ndarray, group: int) -> Floats:
    return np.repeat(scale.astype(np.float64), group, axis=2)
