"""Corrects biases for what int8 does where a layer reads the same row again and again: padding, blank paper, silence.

Elsewhere the errors of rounding differ from row to row and average out. Over a flat part of a sample they are all the
same, add up in amplitude, and hardly anything of the signal hides them. Bias correction (Nagel et al. 2019,
https://arxiv.org/abs/1906.04721, section 4.2) takes the mean error of all rows away; here it is that of the rows that
repeat, each layer on float inputs: what a layer's bias gains depends on that layer alone, whatever else is in int8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.compress.parameters import intercept_of, weight_array
from edgekit.compress.products import Product, View, matrix_of, product_of, rows_of
from edgekit.compress.qdq import nearest_codes, quantization_point
from edgekit.compress.ranges import observe
from edgekit.compress.weights import affine_parameters, dequantize_weights
from edgekit.types import Precision

if TYPE_CHECKING:
    from edgekit.compress.observers import Range
    from edgekit.compress.weights import Codes
    from edgekit.graph import Graph
    from edgekit.recipes.samples import Dataset

# Rows drawn of each sample, and how many of them must have the same codes to be flat.
_ROWS = 256
_SAME = 3
# Groups of equal rows kept of each sample, the largest ones.
_GROUPS = 32
# Less than this share of all rows is no flat part worth a bias.
_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Flats:
    """What repeats among the rows that a layer reads: ``rows`` float64 [blocks, groups, columns], each group's mean,
    and the ``counts`` [groups] of its members. ``point`` is the tensor whose range their codes follow.
    """

    product: Product
    point: str
    rows: np.ndarray
    counts: np.ndarray


def find_flats(graph: Graph, layers: Sequence[str], ranges: Mapping[str, Range], dataset: Dataset) -> dict[str, Flats]:
    """What repeats in each layer, for the layers that have a bias and of whose rows at least a tenth repeat within a
    sample: at least 3 of 256 drawn rows lie on the same steps of the 8-bit grid.

    Raises:
        InputError: a sample does not fit the model's inputs.
    """
    products = _products(graph, layers)
    at = {(product.view, point) for product, point in products.values()}
    groups: dict[tuple[View, str], list[tuple[np.ndarray, int]]] = {one: [] for one in at}
    drawn = dict.fromkeys(at, 0)
    for _, _, index, values in observe(graph, sorted({view.source for view, _ in at}), dataset):
        for view, point in at:
            if view.source in values:
                rows = rows_of(view, values[view.source], _drawn(view, index))
                drawn[view, point] += rows.shape[1]
                groups[view, point] += _repeated(rows, ranges[point])
    found = {}
    for name, (product, point) in products.items():
        one = groups[product.view, point]
        if sum(count for _, count in one) >= _SHARE * drawn[product.view, point]:
            rows, counts = (np.stack(part, axis) for part, axis in zip(zip(*one, strict=True), (1, 0), strict=True))
            found[name] = Flats(product, point, rows, counts)
    return found


def flat_shifts(
    graph: Graph, flats: Mapping[str, Flats], ranges: Mapping[str, Range], chosen: Mapping[str, Codes] | None = None
) -> dict[str, np.ndarray]:
    """Layer -> what its bias must gain in int8 [blocks * outputs], so that over the rows that repeat the means of its
    results are those of ``graph``. ``chosen`` are the codes of the weights of some layers; those of all others are the
    nearest.
    """
    layers = {layer.name: layer for layer in graph.layers}
    shifts = {}
    for name, flat in flats.items():
        product, axis = flat.product, layers[name].weight_axis
        weight = weight_array(graph.model, product.weight)
        codes = (chosen or {}).get(name) or nearest_codes(graph.model.graph, product.weight, axis, Precision.INT8)
        rounded = dequantize_weights(codes.codes, codes.scale, axis) if codes.scale.ndim else codes.codes * codes.scale
        share = flat.counts / flat.counts.sum()
        exact, read = (
            np.einsum("bgc,g->bc", rows, share) for rows in (flat.rows, _rounded(flat.rows, ranges[flat.point]))
        )
        wanted = np.einsum("boc,bc->bo", matrix_of(product, weight), exact)
        found = np.einsum("boc,bc->bo", matrix_of(product, rounded), read)
        shifts[name] = (wanted - found).reshape(-1)
    return shifts


def _products(graph: Graph, layers: Sequence[str]) -> dict[str, tuple[Product, str]]:
    """Layer -> its product and the tensor that is quantized for it, where it has a bias that a correction can go to."""
    wanted, found = frozenset(layers), {}
    for node in graph.model.graph:
        product = product_of(node) if node.name in wanted else None
        if product is None or product.op_type in ("LSTM", "GRU", "RNN") or intercept_of(node, product) is None:
            continue
        (read,) = (value for value in node.inputs[:2] if value is not None and not value.is_initializer())
        found[product.layer] = product, quantization_point(read).name or ""
    return found


def _drawn(view: View, index: int) -> np.ndarray | None:
    if view.rows <= _ROWS:
        return None
    return np.sort(np.random.default_rng([view.rows, index]).choice(view.rows, _ROWS, replace=False))


def _repeated(rows: np.ndarray, bounds: Range) -> list[tuple[np.ndarray, int]]:
    """The mean [blocks, columns] and the size of each group of rows [blocks, rows, columns] with the same codes."""
    # Beyond the range too: what is clipped to one code need not repeat.
    steps = np.rint(rows / affine_parameters(bounds)[0]).astype(np.int32)
    codes = np.ascontiguousarray(steps.transpose(1, 0, 2)).reshape(rows.shape[1], -1)
    whole = codes.view(np.dtype((np.void, codes.itemsize * codes.shape[1]))).reshape(-1)
    _, group, counts = np.unique(whole, return_inverse=True, return_counts=True)
    largest = [int(one) for one in np.argsort(-counts, kind="stable")[:_GROUPS] if counts[one] >= _SAME]
    return [(rows[:, group == one].mean(axis=1, dtype=np.float64), int(counts[one])) for one in largest]


def _rounded(rows: np.ndarray, bounds: Range) -> np.ndarray:
    scale, zero = affine_parameters(bounds)
    return np.asarray(np.clip(np.rint(rows / scale), -zero, 255 - zero) * float(scale))
