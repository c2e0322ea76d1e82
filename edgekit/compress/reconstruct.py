"""Re-solves layers by least squares after channels were removed, so that they put out what they did before: closed
form, no labels, no gradients. The second-order solution of Optimal Brain Surgeon, layer by layer (Optimal Brain
Compression, https://arxiv.org/abs/2208.11580; ZipLM for whole structures, https://arxiv.org/abs/2302.04089).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.compress.grams import Gram, Moments, drawn_rows, fold_of, mixes_channels
from edgekit.compress.parameters import intercept_of, own_weight, set_array, shift, weight_array
from edgekit.compress.products import (
    Product,
    View,
    column_units,
    matrix_of,
    output_units,
    product_of,
    rows_of,
    weight_of,
)
from edgekit.compress.prune import prune
from edgekit.compress.walk import Walk
from edgekit.graph.layers import find_edges, find_layers

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.compress.ranges import Samples
    from edgekit.graph import Graph
    from edgekit.graph.channels import Channels


def reconstruct_alone(
    graph: Graph, channels: Channels, kept: Mapping[str, np.ndarray], grams: Mapping[str, Gram]
) -> Graph:
    """Prune, then re-solve every layer that lost inputs as if its other inputs had not changed.

    Quick: it needs no pass over data, and the inverse of each Gram matrix is computed once, whatever is removed. The
    ridge pulls towards the pruned weights, so on the rows of the Gram matrices no layer gets worse than by removal
    alone. Layers without a Gram matrix, or whose weights another layer shares, are only pruned.
    """
    pruned = prune(graph, channels, kept)
    removed = removed_units(channels, kept)
    if not removed.any():
        return pruned
    model = pruned.model
    whole = {node.name: node for node in graph.model.graph}
    for node in list(model.graph):
        gram, pair = grams.get(node.name or ""), _pair(whole[node.name], node)
        if gram is None or pair is None:
            continue
        before, after = pair
        gone = removed[column_units(channels, before.view)]
        if gone.any():
            wanted = _wanted_matrix(channels, removed, before, after, weight_array(graph.model, before.weight))
            _correct(model, node, after, _compensation(gram, wanted, gone, intercept_of(node, after) is not None))
    return _finished(pruned)


def reconstruct(
    graph: Graph,
    channels: Channels,
    kept: Mapping[str, np.ndarray],
    dataset: Samples,
    on_layer: Callable[[str], None] | None = None,
) -> Graph:
    """Prune, then re-solve all layers behind the first removal, in execution order: each sees what the pruned and
    already re-solved layers before it really put out, and aims at what it put out in the unpruned model.

    The asymmetric least squares of ThiNet (https://arxiv.org/abs/1707.06342): W' minimises |W x - W' x'|^2 plus a ridge
    towards the pruned weights. Both models run once over the samples, in pieces between the re-solved layers; where
    there are more samples than fit into memory so, some are taken, evenly spread. ``on_layer`` is called after each
    layer. Layers that mix no channels (depthwise convolutions), or that share weights, stay as they are pruned; so does
    a layer whose solution from one half of the samples would be no better than that on the other half.

    Raises:
        InputError: there are no samples, or one does not fit the model's inputs.
    """
    pruned = prune(graph, channels, kept)
    removed = removed_units(channels, kept)
    if not removed.any():
        return pruned
    model = pruned.model
    whole = {node.name or "": node for node in graph.model.graph}
    nodes = {node.name or "": node for node in model.graph}
    products = {name: pair for name, node in nodes.items() if (pair := _pair(whole[name], node)) is not None}
    walk = Walk(graph, model, {name: after.view.source for name, (_, after) in products.items()}, dataset)
    for names in walk.stops():
        for name in names:
            before, after = products[name]
            wanted = _wanted_matrix(channels, removed, before, after, weight_array(graph.model, before.weight))
            stay = _rows_that_stay(channels, removed, before.view)
            moments = _moments(walk, before, after, stay, wanted, weight_array(model, after.weight))
            delta = moments.regression(intercept_of(nodes[name], after) is not None)
            _correct(model, nodes[name], after, delta)
            if on_layer is not None:
                on_layer(name)
    return _finished(pruned)


def _pair(whole: ir.Node, node: ir.Node) -> tuple[Product, Product] | None:
    """A layer's product before and after pruning, where it can be re-solved."""
    before, after = product_of(whole), product_of(node)
    if before is None or after is None or not mixes_channels(before.view) or not own_weight(node):
        return None
    return before, after


def removed_units(channels: Channels, kept: Mapping[str, np.ndarray]) -> np.ndarray:
    """Per unit of the whole graph, whether it goes; the last entry, False, stands for the -1 of fixed positions."""
    gone = np.zeros(sum(group.channels for group in channels.groups) + 1, bool)
    for group, first in zip(channels.groups, channels.firsts, strict=True):
        if group.name in kept:
            gone[first : first + group.channels] = True
            gone[first + np.asarray(kept[group.name], np.int64)] = False
    return gone


def _wanted_matrix(
    channels: Channels, removed: np.ndarray, before: Product, after: Product, weight: np.ndarray
) -> np.ndarray:
    """The unpruned weight, of the outputs that stay: [blocks, outputs, columns] with ``after``'s outputs."""
    matrix = matrix_of(before, weight).reshape(-1, before.view.columns)
    stay = ~removed[output_units(channels, before)]
    return np.asarray(matrix[stay].reshape(after.view.blocks, after.outputs, -1))


def _rows_that_stay(channels: Channels, removed: np.ndarray, view: View) -> dict[int, np.ndarray]:
    """Per axis of the product's input that is not contracted and loses positions, the mask of those that stay: where a
    layer mixes tokens, others see fewer rows.
    """
    axes = channels.units.get(view.source, ())
    masks = {axis: ~removed[units] for axis, units in enumerate(axes) if units is not None and axis != view.axis}
    return {axis: mask for axis, mask in masks.items() if not mask.all()}


def _compensation(gram: Gram, matrix: np.ndarray, gone: np.ndarray, intercept: bool) -> np.ndarray:
    """What the columns that stay, and the constant, must add: -W_R ([G^-1]_RR)^-1 [G^-1]_RK, block by block.

    A constant that cannot be added to is one of the columns R whose weight must stay zero.
    """
    found = []
    for inverse, weights, lost in zip(gram.inverse, matrix, gone, strict=True):
        out = np.append(lost, not intercept)
        extended = np.column_stack([weights, np.zeros(len(weights))])
        stay = np.append(~lost, True)
        share = np.linalg.solve(inverse[np.ix_(out, out)], extended[:, out].T).T  # far fewer outputs than columns
        delta = -share @ inverse[np.ix_(out, stay)]
        delta[:, -1] *= intercept
        found.append(delta)
    return np.stack(found)


def _moments(
    walk: Walk,
    before: Product,
    after: Product,
    stay: Mapping[int, np.ndarray],
    matrix: np.ndarray,
    weight: np.ndarray,
) -> Moments:
    """What the pruned layer really reads, and what its results miss then of those of the unpruned ``matrix``."""
    pruned = matrix_of(after, weight)
    moments = Moments(after.view.blocks, after.view.columns, after.outputs)
    for index, (x, drifted) in enumerate(walk.pairs(after.view.source)):
        choice = drawn_rows(after.view, index, len(walk))
        rows = rows_of(after.view, drifted, choice)
        for axis, mask in stay.items():
            x = np.compress(mask, x, axis)
        wanted = rows_of(before.view, x, choice) @ matrix.transpose(0, 2, 1)
        moments.add(fold_of(index, len(walk)), rows, wanted - rows @ pruned.transpose(0, 2, 1))
    return moments


def _correct(model: ir.Model, node: ir.Node, product: Product, delta: np.ndarray) -> None:
    """Add ``delta`` [blocks, outputs, columns + 1] to the layer's weights and bias."""
    if not np.isfinite(delta).all():
        return
    weight = matrix_of(product, weight_array(model, product.weight)) + delta[:, :, :-1]
    set_array(model, product.weight, weight_of(product, weight))
    intercept = intercept_of(node, product)
    if intercept is not None:
        shift(model, intercept, delta[:, :, -1].reshape(-1))


def _finished(pruned: Graph) -> Graph:
    layers = find_layers(pruned.model)  # some have a bias now
    return replace(pruned, layers=layers, edges=find_edges(pruned.model, layers))
