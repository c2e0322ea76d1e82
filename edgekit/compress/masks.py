"""Zeros inside weights: anywhere, which shrinks a compressed firmware image, or two in every four, which sparse tensor
cores skip. Shapes stay; what is left of a layer can be re-solved by least squares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from edgekit.compress.parameters import intercept_of, own_weight, set_array, shift, weight_array
from edgekit.compress.products import Product, matrix_of, product_of, weight_of
from edgekit.files.deflate import deflate
from edgekit.graph.layers import find_edges, find_layers

if TYPE_CHECKING:
    from edgekit.compress.grams import Gram
    from edgekit.graph import Graph

Score = Literal["magnitude", "wanda", "obs"]
Pattern = float | Literal["2:4"]

_FOUR, _OF_FOUR = 4, 2
# Rows that are solved at a time hold no more than so many numbers.
_SOLVED_AT_ONCE = 1 << 24


@dataclass(frozen=True, eq=False)
class Masked:
    """A layer's ``weight`` with its zeros, and what its bias gains by them [blocks * outputs]; None where it gains
    nothing, or there is no bias.
    """

    weight: np.ndarray
    shift: np.ndarray | None = None


def make_masks(
    graph: Graph, patterns: Mapping[str, Pattern], score: Score = "obs", grams: Mapping[str, Gram] | None = None
) -> dict[str, np.ndarray]:
    """Layer name -> which of its weights stay, bool of the weight's shape.

    A pattern is the share of zeros, 0 to 1, or "2:4": at most two of any four neighbours along the input channels, for
    each output and kernel position, as TensorRT's sparse kernels ask for
    (https://docs.nvidia.com/deeplearning/tensorrt/11.1.0/inference-library/data-formats-tensors.html). Where four do
    not divide the channels, the last ones count as if zeros followed.

    ``magnitude`` drops the smallest weights of a layer; ``wanda`` those with the smallest product of magnitude and
    input norm, output by output (https://arxiv.org/abs/2306.11695); ``obs`` those that cost least once the rest of the
    output's weights have made up for it, w^2 / [G^-1]_jj (SparseGPT, https://arxiv.org/abs/2301.00774). Layers without
    a Gram matrix are masked by magnitude, whatever is asked for. Layers that multiply two activations have no entry.

    Raises:
        ValueError: an unknown layer, a share of zeros outside 0..1, or a score that needs ``grams`` without them.
    """
    if score != "magnitude" and grams is None:
        raise ValueError(f"the score {score!r} needs the Gram matrices of the layers")
    nodes = {node.name: node for node in graph.model.graph}
    masks = {}
    for name, pattern in patterns.items():
        if name not in nodes:
            raise ValueError(f"there is no layer {name!r}")
        if pattern != "2:4" and not 0 <= pattern <= 1:
            raise ValueError(f"layer {name!r}: a share of zeros is between 0 and 1, not {pattern}")
        product = product_of(nodes[name])
        if product is None:
            continue
        matrix = matrix_of(product, weight_array(graph.model, product.weight))
        gram = (grams or {}).get(name) if score != "magnitude" else None
        scores = np.abs(matrix) if gram is None else _scores(matrix, gram, score)
        if pattern == "2:4":
            stay = _two_of_four(product, scores)
        else:  # magnitudes of a layer are comparable, scores within an output's row only
            stay = _largest(scores.reshape(1, -1) if gram is None else scores, 1 - pattern).reshape(scores.shape)
        masks[name] = weight_of(product, stay.astype(np.float64)) != 0
    return masks


def apply_mask(graph: Graph, masks: Mapping[str, np.ndarray], grams: Mapping[str, Gram] | None = None) -> Graph:
    """The graph with the weights zeroed that do not stay, those that do re-solved where there are ``grams`` (see
    `solve_mask`). Weights that several nodes share are masked only where all of these are, and not re-solved.
    """
    nodes = {node.name or "": node for node in graph.model.graph}
    products = {name: product_of(nodes[name]) for name in masks}
    alone = {name for name, product in products.items() if product is not None and own_weight(nodes[name])}
    solved = {name: solve_mask(graph, name, masks[name], (grams or {}).get(name)) for name in masks if name in alone}
    made = put_masked(graph, solved)
    for name, product in products.items():
        if product is not None and name not in alone:
            _mask_shared(made.model, product.weight, masks)
    return made


def can_be_masked(graph: Graph) -> tuple[str, ...]:
    """The layers that multiply by a weight which no other node reads."""
    nodes = {node.name or "": node for node in graph.model.graph}
    names = [layer.name for layer in graph.layers]
    return tuple(name for name in names if product_of(nodes[name]) is not None and own_weight(nodes[name]))


def solve_mask(graph: Graph, name: str, stay: np.ndarray, gram: Gram | None) -> Masked:
    """The layer's weights zeroed that do not stay. With its Gram matrix the weights that do, and the bias, are
    re-solved in closed form, output by output: on the rows of that matrix none gets worse than by zeroing alone.

    The closed form takes a system of equations for each output, as large as the number of its zeros or of its weights
    that stay, whichever is less: a second for a layer of a thousand inputs and a hundred outputs.
    """
    node = next(node for node in graph.model.graph if node.name == name)
    product = product_of(node)
    assert product is not None, name
    weight = weight_array(graph.model, product.weight)
    if gram is None:
        return Masked(np.where(stay, weight, 0))
    matrix = matrix_of(product, weight)
    gone = matrix_of(product, ~stay) != 0
    has_bias = intercept_of(node, product) is not None
    delta = np.stack([_solved(*block, has_bias) for block in zip(gram.inverse, matrix, gone, strict=True)])
    solved = weight_of(product, np.where(gone, 0, matrix + delta[:, :, :-1]))
    return Masked(np.where(stay, solved, 0).astype(np.float32), delta[:, :, -1].reshape(-1) if has_bias else None)


def put_masked(graph: Graph, masked: Mapping[str, Masked]) -> Graph:
    """The graph with the weights of these layers, and their biases, replaced."""
    model = graph.model.clone()
    nodes = {node.name or "": node for node in model.graph}
    for name, found in masked.items():
        product = product_of(nodes[name])
        assert product is not None, name
        set_array(model, product.weight, found.weight)
        intercept = intercept_of(nodes[name], product)
        if intercept is not None and found.shift is not None:
            shift(model, intercept, found.shift)
    layers = find_layers(model)
    return replace(graph, model=model, layers=layers, edges=find_edges(model, layers))


def compressed_bytes(weights: Iterable[np.ndarray]) -> int:
    """What the arrays take in a compressed image (see `edgekit.files.deflate`), together."""
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in weights)
    return len(deflate(content)) if content else 0


def _scores(matrix: np.ndarray, gram: Gram, score: Score) -> np.ndarray:
    if score == "wanda":
        norms = np.sqrt(np.diagonal(gram.second, axis1=1, axis2=2)[:, None, :-1])
        return np.asarray(np.abs(matrix) * norms)
    own = np.diagonal(gram.inverse, axis1=1, axis2=2)[:, None, :-1]
    return np.asarray(np.square(matrix) / own)


def _largest(scores: np.ndarray, share: float) -> np.ndarray:
    """Whether each score is among the largest ``share`` of the last axis."""
    ranks = np.argsort(np.argsort(-scores, axis=-1, kind="stable"), axis=-1, kind="stable")
    return np.asarray(ranks < round(share * scores.shape[-1]))


def _two_of_four(product: Product, scores: np.ndarray) -> np.ndarray:
    """Columns are channels, and the kernel's taps within each: fours are made of the same tap of four channels."""
    blocks, outputs, columns = scores.shape
    taps = product.view.taps
    by_tap = scores.reshape(blocks, outputs, columns // taps, taps).swapaxes(2, 3)
    channels = by_tap.shape[-1]
    padded = np.pad(by_tap, [(0, 0)] * 3 + [(0, -channels % _FOUR)], constant_values=-1)
    stay = _largest(padded.reshape(*padded.shape[:-1], -1, _FOUR), _OF_FOUR / _FOUR)
    return np.asarray(stay.reshape(padded.shape)[..., :channels].swapaxes(2, 3).reshape(scores.shape))


def _solved(inverse: np.ndarray, weights: np.ndarray, gone: np.ndarray, intercept: bool) -> np.ndarray:
    """What each output's weights that stay must add, [outputs, columns + 1]: -w_R ([G^-1]_RR)^-1 [G^-1]_R for the set R
    of its weights that go, different for each output. Where more go than stay, the same from the other side: the
    weights S that stay gain w_R G_RS (G_SS)^-1.
    """
    out = np.pad(gone, ((0, 0), (0, 1)), constant_values=not intercept)
    extended = np.pad(weights, ((0, 0), (0, 1)))
    most_go = out.sum(axis=1) > out.shape[1] / 2
    delta = np.zeros_like(extended)
    few = ~most_go
    delta[few] = -_systems(inverse, extended[few], out[few]) @ inverse
    if most_go.any():
        matrix = np.linalg.inv(inverse)
        lost = np.where(out[most_go], extended[most_go], 0)
        delta[most_go] = _systems(matrix, lost @ matrix, ~out[most_go]) - lost
    return delta


def _systems(matrix: np.ndarray, right: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """For each row the solution of the system that its ``chosen`` places make of the matrix; zero at the others."""
    solved = np.zeros_like(right)
    counts = chosen.sum(axis=1)
    for count in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == count)
        places = np.nonzero(chosen[rows])[1].reshape(rows.size, count)
        step = max(1, _SOLVED_AT_ONCE // int(count) ** 2)
        for start in range(0, rows.size, step):
            some, where = rows[start : start + step, None], places[start : start + step]
            own = matrix[where[:, :, None], where[:, None, :]]
            solved[some, where] = np.linalg.solve(own, right[some, where][:, :, None])[:, :, 0]
    return solved


def _mask_shared(model: ir.Model, weight: str, masks: Mapping[str, np.ndarray]) -> None:
    readers = [use.node.name or "" for use in model.graph.initializers[weight].uses()]
    if all(name in masks for name in readers):
        stay = np.logical_or.reduce([masks[name] for name in readers])
        set_array(model, weight, np.where(stay, weight_array(model, weight), 0))
