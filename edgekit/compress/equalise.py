"""Scales channels between layers so that the float model stays what it is and quantizing it costs less.

A channel that a layer makes a times smaller, and whose readers multiply it by a times larger weights, changes nothing
where all that lies between is positively homogeneous: cross-layer equalisation (Nagel et al. 2019,
https://arxiv.org/abs/1906.04721). Behind a LayerNormalization, whose own scale takes the factor, it is the smoothing of
SmoothQuant (Xiao et al. 2022, https://arxiv.org/abs/2211.10438). As weights here have one scale an output channel and
activations one a tensor, what is levelled out is SmoothQuant's pair: the largest magnitude of each channel, and the
largest weight that reads it. No operator is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.compress.grams import Gram
from edgekit.compress.parameters import own_weight, set_array, weight_array
from edgekit.compress.products import Product, column_units, matrix_of, output_units, product_of, weight_of
from edgekit.compress.ranges import observe
from edgekit.graph.layers import find_edges, find_layers, shape_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.compress.ranges import Samples
    from edgekit.graph import Graph
    from edgekit.graph.channels import ChannelGroup, Channels

# Channel by channel f(a x) = a f(x) for a > 0, or a matter of places alone.
_HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"}
) | frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Split", "Slice", "Resize"})
# No channel is scaled by more than this: one that hardly moved on the samples may move elsewhere.
_MOST = 32.0


@dataclass(frozen=True, eq=False)
class Site:
    """Channels that can be scaled together. ``rows`` says for each layer that makes them the channel of each of its
    outputs, ``columns`` for each layer that reads them that of each column [blocks, columns], ``vectors`` for constants
    beside them (initializer -> axis and channels). -1 is no channel of this site.
    """

    name: str
    channels: int
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    vectors: Mapping[str, tuple[int, np.ndarray]] = field(default_factory=dict)


def find_sites(graph: Graph, channels: Channels) -> tuple[Site, ...]:
    """Where channels can be scaled: groups of channels that pass homogeneous operators only, and normalisations that
    only layers read.
    """
    products = {p.layer: p for node in graph.model.graph if (p := product_of(node)) is not None and own_weight(node)}
    found = [
        _group_site(graph, channels, products, g, f) for g, f in zip(channels.groups, channels.firsts, strict=True)
    ]
    found += [_norm_site(node, products) for node in graph.model.graph if node.op_type == "LayerNormalization"]
    return tuple(site for site in found if site is not None)


def channel_magnitudes(graph: Graph, layers: Sequence[str], dataset: Samples) -> dict[str, np.ndarray]:
    """Layer -> the largest magnitude of each channel that it contracts, over the samples.

    Raises:
        InputError: a sample does not fit the model's inputs.
    """
    wanted = frozenset(layers)
    views = {p.layer: p.view for node in graph.model.graph if node.name in wanted and (p := product_of(node))}
    axes: dict[tuple[str, int], np.ndarray] = {}
    for _, _, _, values in observe(graph, sorted({view.source for view in views.values()}), dataset):
        for source, axis in {(view.source, view.axis) for view in views.values() if view.source in values}:
            array = values[source]
            rest = tuple(i for i in range(array.ndim) if i != axis)
            largest = np.maximum(np.abs(array).max(axis=rest, initial=0), axes.get((source, axis), 0))
            axes[source, axis] = np.asarray(largest)
    return {name: axes[view.source, view.axis] for name, view in views.items()}


def factors_of(
    graph: Graph, sites: Iterable[Site], magnitudes: Mapping[str, np.ndarray], strength: float = 0.5
) -> dict[str, np.ndarray]:
    """Site -> what its channels are multiplied by: the largest weight^(1 - strength) over the largest
    magnitude^strength, their mean (geometric) over the site being one. Channels that were always zero stay.
    """
    nodes = {node.name: node for node in graph.model.graph}
    found = {}
    for site in sites:
        largest, weight = np.zeros(site.channels), np.zeros(site.channels)
        for name, columns in site.columns.items():
            product = product_of(nodes[name])
            assert product is not None, name
            matrix = np.abs(matrix_of(product, weight_array(graph.model, product.weight)))
            # An output's weights share a scale: what counts is how large they are beside the largest of it.
            share = (matrix / np.maximum(matrix.max(axis=2, keepdims=True), 1e-30)).max(axis=1)
            inside = columns >= 0
            np.maximum.at(weight, columns[inside], share[inside])
            seen = np.repeat(magnitudes[name].reshape(product.view.blocks, -1), product.view.taps, axis=1)
            np.maximum.at(largest, columns[inside], seen[inside])
        alive = (largest > 0) & (weight > 0)
        if alive.sum() < 2:
            continue
        log = (1 - strength) * np.log(weight[alive]) - strength * np.log(largest[alive])
        factor = np.ones(site.channels)
        factor[alive] = np.exp(np.clip(log - log.mean(), -np.log(_MOST), np.log(_MOST)))
        found[site.name] = factor
    return found


def equalised(graph: Graph, sites: Iterable[Site], factors: Mapping[str, np.ndarray]) -> Graph:
    """The graph with the channels of each site multiplied by its factors, and their readers' weights divided."""
    model = graph.model.clone()
    nodes = {node.name or "": node for node in model.graph}
    for site in sites:
        if site.name not in factors:
            continue
        factor = np.append(factors[site.name], 1.0)  # for the channels of no site, -1
        for name, rows in site.rows.items():
            node = nodes[name]
            product = product_of(node)
            assert product is not None, name
            matrix = matrix_of(product, weight_array(model, product.weight))
            matrix = matrix * factor[rows].reshape(product.view.blocks, -1, 1)
            set_array(model, product.weight, weight_of(product, matrix))
        for name, columns in site.columns.items():
            product = product_of(nodes[name])
            assert product is not None, name
            matrix = matrix_of(product, weight_array(model, product.weight)) / factor[columns][:, None]
            set_array(model, product.weight, weight_of(product, matrix))
        for name, (axis, places) in site.vectors.items():
            array = weight_array(model, name)
            shape = [1] * array.ndim
            shape[axis] = -1
            set_array(model, name, array * factor[places].reshape(shape))
    layers = find_layers(model)
    return replace(graph, model=model, layers=layers, edges=find_edges(model, layers))


def scaled_grams(
    grams: Mapping[str, Gram], sites: Iterable[Site], factors: Mapping[str, np.ndarray]
) -> dict[str, Gram]:
    """The Gram matrices of the equalised graph: those of the graph, with scaled columns."""
    found = dict(grams)
    for site in sites:
        for name, columns in site.columns.items():
            if site.name in factors and name in found:
                times = np.append(factors[site.name], 1.0)[columns]
                times = np.column_stack([times, np.ones(len(times))])
                gram = found[name]
                found[name] = Gram(gram.second * times[:, :, None] * times[:, None, :], gram.rows, gram.damping)
    return found


def _group_site(
    graph: Graph, channels: Channels, products: Mapping[str, Product], group: ChannelGroup, first: int
) -> Site | None:
    """The channels of a group as a site; None where an operator on their way is not homogeneous."""
    last = first + group.channels

    def touched(value: ir.Value | None) -> dict[int, np.ndarray]:
        """Axis -> the group's channel of each position, of the axes that hold some."""
        units = channels.units.get(value.name or "", ()) if value is not None else ()
        local = {i: np.where((u >= first) & (u < last), u - first, -1) for i, u in enumerate(units) if u is not None}
        return {axis: places for axis, places in local.items() if (places >= 0).any()}

    rows: dict[str, np.ndarray] = {}
    columns: dict[str, np.ndarray] = {}
    vectors: dict[str, tuple[int, np.ndarray]] = {}
    for node in graph.model.graph:
        reads = {
            i: t for i, v in enumerate(node.inputs) if v is not None and not v.is_initializer() and (t := touched(v))
        }
        makes = [touched(value) for value in node.outputs if value.name]
        if not reads and not any(makes):
            continue
        if any(len(t) > 1 for t in (*reads.values(), *makes)):
            return None
        name = node.name or ""
        if name in products:
            product = products[name]
            made, read = makes[0] if makes else {}, reads.get(0) or reads.get(1) or {}
            if len(reads) > 1 or len(makes) != 1 or not set(made) <= {product.output_axis}:
                return None
            if product.output_axis < 0 or not set(read) <= {product.view.axis}:
                return None
            if made:
                rows[name] = _local(output_units(channels, product), first, last)
                bias = node.inputs[2] if len(node.inputs) > 2 else None
                if bias is not None:
                    if not bias.is_initializer() or len(bias.uses()) > 1 or shape_of(bias)[-1:] != rows[name].shape:
                        return None
                    vectors[bias.name or ""] = (len(shape_of(bias)) - 1, rows[name])
            if read:
                columns[name] = _local(column_units(channels, product.view), first, last)
        elif not _passes(node, reads, makes, vectors):
            return None
    if not columns or not rows:
        return None
    return Site(group.name, group.channels, rows, columns, vectors)


def _passes(
    node: ir.Node,
    reads: Mapping[int, dict[int, np.ndarray]],
    makes: Sequence[dict[int, np.ndarray]],
    vectors: dict[str, tuple[int, np.ndarray]],
) -> bool:
    """Whether a node that is no layer lets factors pass; constants that it adds go to ``vectors``."""
    if node.domain not in ("", "ai.onnx") or not reads or not all(makes):
        return False
    if node.op_type in _HOMOGENEOUS:
        return True
    others = [value for i, value in enumerate(node.inputs) if i not in reads and value is not None]
    if node.op_type == "Pad":
        constant = node.inputs[2] if len(node.inputs) > 2 else None
        filled = constant is not None and (not constant.is_initializer() or bool(_array(constant).any()))
        return node.attributes.get_string("mode", "constant") != "constant" or not filled
    if node.op_type == "MatMul":  # two activations: one of them, on an axis that the other does not meet
        place, axes = next(iter(reads.items()))
        rank = len(shape_of(node.inputs[place]))  # type: ignore[arg-type]
        return len(reads) == 1 and rank > 1 and next(iter(axes)) == rank - 2 + place
    if node.op_type == "Mul":
        return len(reads) == 1 and all(value.is_initializer() for value in others)
    if node.op_type == "Div":
        return set(reads) == {0} and all(value.is_initializer() for value in others)
    if node.op_type not in ("Add", "Sub"):
        return False
    (axis, places), *_ = makes[0].items()
    for value in others:
        shape, rank = shape_of(value), len(shape_of(node.outputs[0]))
        at = axis - (rank - len(shape))
        if not value.is_initializer() or len(value.uses()) > 1 or at < 0 or shape[at] != places.size:
            return False
        vectors[value.name or ""] = (at, places)
    return True


def _norm_site(node: ir.Node, products: Mapping[str, Product]) -> Site | None:
    """A normalisation over the last axis whose result nothing but layers contract."""
    result, constants = node.outputs[0], node.inputs[1:]
    rank = len(shape_of(result))
    if node.attributes.get_int("axis", -1) not in (-1, rank - 1) or result.is_graph_output() or not result.uses():
        return None
    names = [use.node.name or "" for use in result.uses()]
    last = [
        n in products and (products[n].view.source, products[n].view.axis) == (result.name, rank - 1) for n in names
    ]
    own = all(v is not None and v.is_initializer() and len(v.uses()) == 1 for v in constants)
    if not all(last) or not own or any(products[n].view.blocks > 1 or products[n].view.taps > 1 for n in names):
        return None
    places = np.arange(shape_of(result)[-1])
    vectors = {value.name or "": (0, places) for value in constants if value is not None}
    return Site(node.name or "", places.size, {}, dict.fromkeys(names, places[None]), vectors)


def _local(units: np.ndarray, first: int, last: int) -> np.ndarray:
    return np.where((units >= first) & (units < last), units - first, -1)


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None, value.name
    return np.asarray(value.const_value.numpy())


def sites_of(sites: Iterable[Site], layers: Iterable[str]) -> Iterator[Site]:
    """The sites that scale what one of these layers reads."""
    wanted = frozenset(layers)
    return (site for site in sites if wanted & site.columns.keys())
