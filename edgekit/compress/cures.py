"""What is done to single layers so that quantizing them costs less, and how it gets into a model: other ranges, scaled
channels, chosen codes, corrected biases. Shapes and operators stay, so that the kernels and their times do too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.compress.equalise import Site, equalised
from edgekit.compress.parameters import intercept_of, shift
from edgekit.compress.products import product_of
from edgekit.compress.qdq import quantization_point, result_point
from edgekit.compress.rounding import Rounded
from edgekit.compress.weights import Codes
from edgekit.types import Precision

if TYPE_CHECKING:
    from edgekit.compress.observers import Range
    from edgekit.graph import Graph


@dataclass(frozen=True, eq=False)
class Cures:
    """``factors`` scale the channels of sites, ``observers`` choose the ranges of tensors, ``rounded`` are the weights
    of layers by their bits, ``shifts`` what the biases of int8 layers gain in place of what rounding them adds.
    """

    factors: Mapping[str, np.ndarray] = field(default_factory=dict)
    observers: Mapping[str, str] = field(default_factory=dict)
    rounded: Mapping[tuple[str, Precision], Rounded] = field(default_factory=dict)
    shifts: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.factors or self.observers or self.rounded or self.shifts)

    def codes(self, precisions: Mapping[str, Precision]) -> dict[str, Codes]:
        """The chosen codes of the layers that have some in their precision."""
        chosen = {name: self.rounded.get(option) for name, option in zip(precisions, precisions.items(), strict=True)}
        return {name: rounded.weight for name, rounded in chosen.items() if rounded is not None}

    def biases(self, precisions: Mapping[str, Precision]) -> dict[str, np.ndarray]:
        """What the biases of layers gain in these precisions."""
        found = {}
        for name, precision in precisions.items():
            rounded = self.rounded.get((name, precision))
            if precision is Precision.INT8 and name in self.shifts:
                found[name] = self.shifts[name]
            elif rounded is not None and rounded.shift is not None:
                found[name] = rounded.shift
        return found

    def ranges(self, by_observer: Mapping[str, Mapping[str, Range]], usual: str) -> dict[str, Range]:
        """The range of each tensor, by its own observer or the ``usual`` one."""
        found = dict(by_observer[usual])
        for tensor, observer in self.observers.items():
            if tensor in found:
                found[tensor] = by_observer[observer][tensor]
        return found


NO_CURES = Cures()


def scaled(graph: Graph, cures: Cures, sites: Iterable[Site]) -> Graph:
    """The graph with its channels scaled: what it computes stays the same."""
    return equalised(graph, sites, cures.factors) if cures.factors else graph


def shifted(graph: Graph, shifts: Mapping[str, np.ndarray]) -> Graph:
    """The graph with something added to the biases of these layers."""
    if not shifts:
        return graph
    model = graph.model.clone()
    for node in list(model.graph):
        product = product_of(node)
        if product is not None and node.name in shifts:
            intercept = intercept_of(node, product)
            assert intercept is not None, node.name
            shift(model, intercept, shifts[product.layer])
    return replace(graph, model=model)


def tensors_of(graph: Graph, results: bool) -> dict[str, tuple[str, ...]]:
    """Layer -> the tensors whose ranges quantizing it needs; those of its results too where runtimes write 8 bits."""
    values = {value.name: value for node in graph.model.graph for value in node.outputs}
    values |= {value.name: value for value in graph.model.graph.inputs}
    found = {}
    for layer in graph.layers:
        points = [quantization_point(values[name]) for name in layer.inputs]
        points += [result_point(values[layer.output])] if results else []
        found[layer.name] = tuple(point.name or "" for point in points)
    return found
