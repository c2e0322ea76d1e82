"""Corrects biases for what quantization does to the means of layers' results (Nagel et al. 2019,
https://arxiv.org/abs/1906.04721, section 4.2, by calibration samples as in its appendix D): layer after layer, each on
what the quantized layers before it now put out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.compress.grams import drawn_rows
from edgekit.compress.parameters import intercept_of, shift, weight_array
from edgekit.compress.products import Product, View, matrix_of, product_of, rows_of
from edgekit.compress.ranges import observe
from edgekit.compress.walk import Walk
from edgekit.recipes.samples import Subset

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.graph import Graph
    from edgekit.recipes.samples import Dataset


def correct_biases(graph: Graph, quantized: ir.Model, dataset: Dataset) -> dict[str, np.ndarray]:
    """Layer -> what its bias must gain [blocks * outputs] so that over the samples the means of its results are those
    of ``graph``, for the layers of ``quantized`` (made from ``graph`` by `apply_precisions`) that have a bias and whose
    weights are in codes. The biases of ``quantized`` are changed on the way.

    Raises:
        InputError: there are no samples, or one does not fit the model's inputs.
    """
    products = _products(graph, quantized)
    nodes = {node.name or "": node for node in quantized.graph}
    sources = {name: _read(nodes[name]) for name in products}
    walk = Walk(replace(graph, model=quantized), quantized, sources, dataset)
    means = _means(graph, products, Subset(dataset, walk.indices))
    shifts: dict[str, np.ndarray] = {}
    for names in walk.stops():
        for name in names:
            product, node = products[name], nodes[name]
            intercept = intercept_of(node, product)
            assert intercept is not None, name
            now = _mean(product.view, [x for x, _ in walk.pairs(sources[name])])
            wanted = np.einsum("boc,bc->bo", matrix_of(product, weight_array(graph.model, product.weight)), means[name])
            found = np.einsum("boc,bc->bo", matrix_of(product, _dequantized(node, product)), now)
            gained = (wanted - found).reshape(-1)
            if np.isfinite(gained).all():
                shift(quantized, intercept, gained)
                shifts[name] = gained
    return shifts


def _products(graph: Graph, quantized: ir.Model) -> dict[str, Product]:
    nodes = {node.name: node for node in quantized.graph}
    found = {}
    for node in graph.model.graph:
        product, twin = product_of(node), nodes[node.name]
        if product is None or product.op_type in ("LSTM", "GRU", "RNN") or _codes(twin) is None:
            continue
        if intercept_of(twin, product) is not None:
            found[product.layer] = product
    return found


def _codes(node: ir.Node) -> ir.Node | None:
    """What dequantizes the node's weight."""
    makers = [value.producer() for value in node.inputs[:2] if value is not None]
    constant = (m for m in makers if m is not None and m.op_type == "DequantizeLinear" and m.inputs[0] is not None)
    return next((maker for maker in constant if maker.inputs[0].is_initializer()), None)  # type: ignore[union-attr]


def _read(node: ir.Node) -> str:
    """The activation that the layer reads in the quantized model."""
    codes = _codes(node)
    first, second = node.inputs[:2]
    assert first is not None
    assert second is not None
    return (second if first.producer() is codes else first).name or ""


def _dequantized(node: ir.Node, product: Product) -> np.ndarray:
    from edgekit.compress.weights import dequantize_weights

    maker = _codes(node)
    assert maker is not None, product.layer
    codes, scale = (value.const_value.numpy() for value in maker.inputs[:2])  # type: ignore[union-attr]
    return dequantize_weights(codes, scale, maker.attributes.get_int("axis", 0)) if scale.ndim else codes * scale


def _means(graph: Graph, products: Mapping[str, Product], dataset: Dataset) -> dict[str, np.ndarray]:
    views = {product.view for product in products.values()}
    sums: dict[View, np.ndarray] = {}
    for _, _, index, values in observe(graph, sorted({view.source for view in views}), dataset):
        for view in views:
            if view.source in values:
                found = _mean_row(view, values[view.source], index, len(dataset))
                sums[view] = sums.get(view, 0.0) + found / len(dataset)
    return {name: sums[product.view] for name, product in products.items()}


def _mean(view: View, arrays: list[np.ndarray]) -> np.ndarray:
    return np.asarray(sum(_mean_row(view, x, i, len(arrays)) for i, x in enumerate(arrays)) / len(arrays))


def _mean_row(view: View, x: np.ndarray, index: int, samples: int) -> np.ndarray:
    """The mean [blocks, columns] of the rows that count of one sample: the same ones in either model."""
    return np.asarray(rows_of(view, x, drawn_rows(view, index, samples)).mean(axis=1, dtype=np.float64))
