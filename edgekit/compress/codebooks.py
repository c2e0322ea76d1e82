"""Weights that take few values, so that int8 codes shrink where they are stored compressed: a codebook is the set of
int8 codes that a layer may use. Runtimes see int8 as ever, and are no faster by it.

Sixteen or four values found by k-means (weight sharing: Deep Compression, Han et al. 2016,
https://arxiv.org/abs/1510.00149) weighted with what an error costs, or fifteen even steps, which Huffman codes favour
(both Choi et al. 2017, https://arxiv.org/abs/1612.01543); powers of two (INQ, Zhou et al. 2017,
https://arxiv.org/abs/1702.03044); {-1, 0, 1} (TWN, Li et al. 2016,
https://arxiv.org/abs/1605.04711); {-1, 1} (XNOR-Net, Rastegari et al. 2016, https://arxiv.org/abs/1603.05279). Each
output channel has a scale of its own, so one codebook serves all channels of a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.masks import Masked
from edgekit.compress.parameters import intercept_of, weight_array
from edgekit.compress.products import matrix_of, weight_of
from edgekit.compress.rounding import Floats, Nearest, choose_codes, importance_of, largest_weights, roundable
from edgekit.compress.weights import WEIGHT_LIMIT

if TYPE_CHECKING:
    from edgekit.compress.grams import Gram
    from edgekit.graph import Graph

Book = Literal["16 values", "15 steps", "4 values", "powers of two", "ternary", "binary"]

_LIMIT = WEIGHT_LIMIT[8]
_VALUES = {"16 values": 16, "4 values": 4}
_FIXED: dict[str, tuple[int, ...]] = {
    # Of 127, in whole codes: 127, 64, 32 ... 2, and none.
    "powers of two": (0, *(sign * round(_LIMIT / 2**i) for sign in (-1, 1) for i in range(7))),
    "15 steps": tuple(round(_LIMIT * i / 7) for i in range(-7, 8)),
    "ternary": (-_LIMIT, 0, _LIMIT),
    "binary": (-_LIMIT, _LIMIT),
}
# Largest codes to begin with, as shares of the largest weight: few values serve best where outliers are cut.
_FACTORS = np.geomspace(1.0, 0.1, 16)
# Times that values and the means of what is nearest to them are found in turn.
_ROUNDS = 40
_FITS = 4
_BINS = 4096
# Times that each code may move after the first choice.
_PASSES = 3
# A smaller scale would be subnormal: flushed to zero on many devices.
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


def can_take_codebook(graph: Graph) -> tuple[str, ...]:
    """The layers whose weights are all theirs, with one scale for each output channel."""
    nodes = {node.name or "": node for node in graph.model.graph}
    return tuple(layer.name for layer in graph.layers if roundable(nodes[layer.name], layer) is not None)


def hold_to_codebook(graph: Graph, name: str, book: Book, gram: Gram | None) -> Masked:
    """The layer's weights, of few values for each output channel: quantized to int8 they take the codes of one codebook
    (and 0 in channels that were all zero). With the Gram matrix, codes are chosen so that the results come out nearest
    to what they were (see `choose_codes`), and the bias takes the mean of what is left; without, each weight goes to
    its nearest value.

    Raises:
        ValueError: the layer is not among `can_take_codebook`.
    """
    node = next(node for node in graph.model.graph if node.name == name)
    layer = next(layer for layer in graph.layers if layer.name == name)
    product = roundable(node, layer)
    if product is None:
        raise ValueError(f"layer {name!r} has no weight of its own with a scale for each output channel")
    matrix = np.asarray(matrix_of(product, weight_array(graph.model, product.weight)), np.float64)
    has_bias = intercept_of(node, product) is not None
    codes, scale = round_to_codebook(matrix, book, gram, has_bias)
    found = codes * scale.astype(np.float64)
    shift = None
    if gram is not None and has_bias:
        shift = -np.einsum("boc,bc->bo", found - matrix, gram.second[:, :-1, -1]).reshape(-1)
    return Masked(weight_of(product, found).astype(np.float32), shift)


def round_to_codebook(
    matrix: np.ndarray, book: Book, gram: Gram | None = None, has_bias: bool = True
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of a weight [blocks, outputs, columns], and a scale for each output [blocks, outputs, 1]. The largest
    weight of each output has the code 127 or -127, so that quantizing the floats anew gives the same codes.

    With a Gram matrix the mean squared error of each output on its rows is no larger than that of the nearest values.
    """
    matrix = np.asarray(matrix, np.float64)
    importance = np.ones((matrix.shape[0], 1, matrix.shape[2]))
    if gram is not None:
        own = importance_of(gram, has_bias)[:, None]
        importance = own + 1e-3 * own.mean() if own.any() else importance
    values = codebook(matrix, book, importance)
    nearest = _nearest_of(values)
    pinned = largest_weights(matrix, matrix.shape[2]) * _LIMIT
    plain = _nearest_values(matrix, importance, pinned, nearest)
    codes, scale = plain
    if gram is not None:
        codes, scale = choose_codes(matrix, gram, plain, plain[1], pinned, nearest, _PASSES, has_bias)
    return np.where(np.any(matrix, axis=2, keepdims=True), codes, np.int8(0)), scale


def codebook(matrix: Floats, book: Book, importance: Floats) -> Floats:
    """The int8 codes that a weight [blocks, outputs, columns] may take, sorted and symmetric about zero: the one of
    largest magnitude must be there for every output, whatever the sign of its largest weight. ``importance`` broadcasts
    against the weight.
    """
    if book in _FIXED:
        return np.array(sorted(_FIXED[book]), float)
    size = np.sqrt(np.square(matrix).mean(axis=2, keepdims=True))
    relative = np.abs(matrix) / np.where(size > 0, size, 1.0)
    means = _k_means(relative, np.square(size) * importance, _VALUES[book] // 2)
    codes = np.rint(_LIMIT * means / means[-1]) if means[-1] > 0 else np.array([_LIMIT])
    return np.unique(np.concatenate([-codes, codes]))


def _k_means(values: Floats, importance: Floats, count: int) -> Floats:
    """The ``count`` values that positive ``values`` are nearest to, by their squared distance times ``importance``."""
    weights = np.broadcast_to(importance, values.shape).reshape(-1)
    mass, edges = np.histogram(values.reshape(-1), _BINS, (0.0, float(values.max(initial=0)) or 1.0), weights=weights)
    places = (edges[1:] + edges[:-1]) / 2
    share = np.cumsum(np.cbrt(mass))  # dense where the best quantizer of many values is (Panter and Dite 1951)
    means = np.interp((np.arange(count) + 0.5) / count * share[-1], share, places)
    first = np.cumsum(mass * places)
    whole = np.cumsum(mass)
    for _ in range(_ROUNDS):
        ends = np.searchsorted(places, (means[1:] + means[:-1]) / 2)
        ends = np.concatenate([ends, [_BINS]]) - 1
        sums, amounts = (np.diff(np.where(ends >= 0, total[ends], 0), prepend=0) for total in (first, whole))
        means = np.where(amounts > 0, sums / np.where(amounts > 0, amounts, 1), means)
    return np.asarray(means)


def _nearest_of(values: Floats) -> Nearest:
    """Each number's nearest value. Values are whole, so the middles between them are whole halves: a table tells."""
    halves = np.arange(-2 * _LIMIT, 2 * _LIMIT) / 2 + 0.25
    table = values[np.searchsorted((values[1:] + values[:-1]) / 2, halves)]

    def nearest(wanted: Floats) -> Floats:
        at = np.clip(np.floor(2 * wanted), -2 * _LIMIT, 2 * _LIMIT - 1).astype(np.intp)
        return np.asarray(table[at + 2 * _LIMIT])

    return nearest


def _nearest_values(
    matrix: Floats, importance: Floats, pinned: Floats, nearest: Nearest
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Each weight's nearest code, under the scale that serves each output best by weighted squared error."""
    largest = np.abs(matrix).max(axis=2, keepdims=True)
    best, least = np.ones(largest.shape), np.full(largest.shape, np.inf)
    for factor in _FACTORS:
        scale = np.maximum(factor * largest / _LIMIT, _SMALLEST_SCALE)
        error = (importance * np.square(nearest(matrix / scale) * scale - matrix)).sum(axis=2, keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    for _ in range(_FITS):
        codes = np.where(pinned, pinned, nearest(matrix / best))
        power = (importance * np.square(codes)).sum(axis=2, keepdims=True)
        wanted = (importance * matrix * codes).sum(axis=2, keepdims=True)
        best = np.maximum(wanted / np.where(power > 0, power, 1.0), _SMALLEST_SCALE)
    return codes.astype(np.int8), best.astype(np.float32)
