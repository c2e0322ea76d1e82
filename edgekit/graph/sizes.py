"""How large layers and tensors are when channel groups keep fewer channels: sizes as polynomials in the kept counts.

Every axis of a tensor has a length that is linear in the kept counts (fixed positions, and so many for each unit of a
group that lies on it), so element counts, weights and multiply-accumulates are products of linear forms: degree two
where a layer reads one group and makes another. That they are polynomials is what lets the planner count them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.graph.layers import shape_of
from edgekit.graph.load import Graph

if TYPE_CHECKING:
    from edgekit.graph.channels import Channels


Term = tuple[int, ...]
_AxesOf = Callable[[ir.Value], tuple["Size", ...]]


@dataclass(frozen=True)
class Size:
    """A polynomial of degree two at most: for each set of groups (indices, repeated for a square) its coefficient."""

    terms: Mapping[Term, float]

    def at(self, kept: Sequence[float]) -> float:
        """Its value when group ``g`` keeps ``kept[g]`` units."""
        return math.fsum(c * math.prod(kept[g] for g in term) for term, c in self.terms.items())

    def times(self, other: Size | float) -> Size:
        """The product. Raises ``ValueError`` beyond degree two, which no operator of a normalised model has."""
        if not isinstance(other, Size):
            return Size({term: c * other for term, c in self.terms.items()})
        made: dict[Term, float] = {}
        for one, a in self.terms.items():
            for two, b in other.terms.items():
                term = tuple(sorted(one + two))
                if len(term) > 2:
                    raise ValueError("a size of degree three in the kept channels")
                made[term] = made.get(term, 0.0) + a * b
        return Size(made)

    def plus(self, other: Size) -> Size:
        """The sum."""
        made = dict(self.terms)
        for term, c in other.terms.items():
            made[term] = made.get(term, 0.0) + c
        return Size(made)

    @property
    def groups(self) -> frozenset[int]:
        """The groups that it depends on."""
        return frozenset(g for term, c in self.terms.items() if c for g in term)


def constant(value: float) -> Size:
    """A size that no group changes."""
    return Size({(): float(value)})


@dataclass(frozen=True)
class LayerSizes:
    """What a layer is made of (elements), and its multiply-accumulates. ``inputs`` are those that `Layer` counts."""

    macs: Size
    weights: Size
    biases: Size
    inputs: Size
    outputs: Size
    channels: Size  # of its output, along the axis that carries them


@dataclass(frozen=True)
class Sizes:
    """The sizes of a graph's layers and tensors (by value name)."""

    layers: Mapping[str, LayerSizes]
    tensors: Mapping[str, Size]


def sizes_of(graph: Graph, channels: Channels) -> Sizes:
    """The sizes of every layer and activation of ``graph``."""
    group_of = np.repeat(np.arange(len(channels.groups)), [group.channels for group in channels.groups])
    counts = [group.channels for group in channels.groups]
    axes: dict[str, tuple[Size, ...]] = {}

    def axes_of(value: ir.Value) -> tuple[Size, ...]:
        name = value.name or ""
        if name not in axes:
            shape = shape_of(value)
            units = channels.units.get(name, (None,) * len(shape))
            axes[name] = tuple(_axis(length, unit, group_of, counts) for length, unit in zip(shape, units, strict=True))
        return axes[name]

    tensors = {
        value.name: _product(axes_of(value))
        for value in (*graph.model.graph.inputs, *(o for node in graph.model.graph for o in node.outputs))
        if value.name and value.shape is not None
    }
    nodes = {node.name: node for node in graph.model.graph}
    layers = {}
    for layer in graph.layers:
        node = nodes[layer.name]
        by_name = {v.name: v for v in node.inputs if v is not None and v.name}
        weights = [_product(axes_of(by_name[name])) for name in layer.weights]
        bias = _bias(node) if layer.bias_elements else None
        outputs = [axes_of(o) for o in node.outputs if o.name and o.shape is not None]
        layers[layer.name] = LayerSizes(
            macs=_macs(node, axes_of),
            weights=_sum(weights),
            biases=_product(axes_of(bias)) if bias is not None else constant(0),
            inputs=_sum([_product(axes_of(by_name[name])) for name in layer.inputs]),
            outputs=_sum([_product(axis) for axis in outputs]),
            channels=next((a for a in outputs[0] if a.groups), constant(1)),
        )
    return Sizes(layers, tensors)


def _axis(length: int, units: np.ndarray | None, group_of: np.ndarray, counts: Sequence[int]) -> Size:
    if units is None:
        return constant(length)
    found = units[units >= 0]
    terms: dict[Term, float] = {(): float(len(units) - len(found))}
    groups, positions = np.unique(group_of[found], return_counts=True)
    terms |= {(int(g),): int(n) / counts[g] for g, n in zip(groups, positions, strict=True)}
    return Size({term: c for term, c in terms.items() if c})


def _product(axes: Sequence[Size]) -> Size:
    made = constant(1)
    for axis in axes:
        made = made.times(axis)
    return made


def _sum(sizes: Sequence[Size]) -> Size:
    made = constant(0)
    for size in sizes:
        made = made.plus(size)
    return made


def _bias(node: ir.Node) -> ir.Value | None:
    place = 3 if node.op_type in ("LSTM", "GRU", "RNN") else 2
    return node.inputs[place] if len(node.inputs) > place else None


def _macs(node: ir.Node, axes_of: _AxesOf) -> Size:
    first, second = node.inputs[0], node.inputs[1]
    assert first is not None
    assert second is not None
    x, w, made = axes_of(first), axes_of(second), axes_of(node.outputs[0])
    if node.op_type == "Conv":
        return _product(made).times(_product(w[1:]))
    if node.op_type == "ConvTranspose":
        return _product(x).times(_product(w[1:]))
    if node.op_type in ("LSTM", "GRU", "RNN"):
        recurrent = node.inputs[2]
        assert recurrent is not None
        steps = x[0].times(x[1])
        return steps.times(_product(w).plus(_product(axes_of(recurrent))))
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transA", 0))
    return _product(made).times(x[0] if transposed else x[-1])
