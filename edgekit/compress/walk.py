"""Walks a model and a changed copy of it side by side over samples, from stop to stop, so that the copy's layers can be
corrected on the way: together the pieces cost one pass of each model, and nothing runs twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgekit.compress.pieces import bytes_of, drifted_values, piece
from edgekit.compress.ranges import feed_of, session_of
from edgekit.errors import InputError
from edgekit.graph.layers import reads_of

if TYPE_CHECKING:
    from edgekit.compress.ranges import Samples
    from edgekit.graph import Graph

# What the samples may hold in memory between two stops, both models together.
_LIVE_BYTES = 3 << 29


@dataclass(frozen=True)
class Stop:
    """``nodes`` run, those of ``drifted`` in the changed model as well; then the inputs of ``layers`` are there.

    ``held`` are the tensors that later stops, or these layers, read.
    """

    nodes: tuple[str, ...]
    drifted: tuple[str, ...]
    layers: tuple[str, ...]
    held: frozenset[str]


class Walk:
    """One walk; ``sources`` maps each layer to be corrected to the tensor that it reads. A model may walk alone, as
    ``graph`` and ``model`` in one: it stops at all sources then.
    """

    def __init__(self, graph: Graph, model: ir.Model, sources: Mapping[str, str], dataset: Samples) -> None:
        if len(dataset) == 0:
            raise InputError("there are no samples to reconstruct on", "pass calibration data with --data")
        self._models = (graph.model, model)
        alone = model is graph.model
        self._drifted = frozenset() if alone else drifted_values(graph, model)
        wanted = {n: s for n, s in sources.items() if alone or s in self._drifted}
        self._plan = _plan(graph.model, wanted, self._drifted)
        count = max(1, min(len(dataset), _LIVE_BYTES // max(1, self._bytes_of_a_sample())))
        self.indices = tuple(int(index) for index in np.linspace(0, len(dataset) - 1, count).round())
        self._live: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (feed_of(graph, dataset, index), {}) for index in self.indices
        ]

    def __len__(self) -> int:
        """Number of samples that take part."""
        return len(self._live)

    def stops(self) -> Iterator[tuple[str, ...]]:
        """The layers whose inputs are there, stop by stop; they must be corrected in the changed model before the next
        one is asked for.
        """
        for stop in self._plan:
            for which, names in enumerate((stop.nodes, stop.drifted)):
                self._run(which, names, stop.held)
            for live in self._live:
                for values in live:
                    for name in values.keys() - stop.held:
                        del values[name]
            yield stop.layers

    def pairs(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The tensor in both models, sample by sample."""
        for original, changed in self._live:
            yield original[name], changed.get(name, original[name])

    def _run(self, which: int, names: Sequence[str], held: frozenset[str]) -> None:
        model = self._models[which]
        wanted = frozenset(names)
        nodes = [node for node in model.graph if node.name in wanted]
        made = {output.name or "" for node in nodes for output in node.outputs}
        outputs = sorted((made - {""}) & held)
        if not outputs:
            return
        inputs = sorted({v.name or "" for n in nodes for v in reads_of(n) if not v.is_initializer()} - made)
        session = session_of(piece(model, nodes, inputs, outputs))
        for original, changed in self._live:
            values = {**original, **changed} if which else original
            found = session.run(outputs, {name: values[name] for name in inputs})
            (changed if which else original).update(zip(outputs, found, strict=True))

    def _bytes_of_a_sample(self) -> int:
        sizes = {v.name: bytes_of(v) for node in self._models[0].graph for v in node.outputs}
        sizes |= {v.name: bytes_of(v) for v in self._models[0].graph.inputs}
        return max((sum(sizes[n] * (1 + (n in self._drifted)) for n in stop.held) for stop in self._plan), default=0)


def _plan(model: ir.Model, sources: Mapping[str, str], drifted: frozenset[str]) -> list[Stop]:
    """Runs all that can run, stops at the layers whose inputs are there, goes on behind them; only what leads to a
    layer runs at all.
    """
    reads = {node.name or "": {v.name or "" for v in reads_of(node) if not v.is_initializer()} for node in model.graph}
    makes = {node.name or "": {o.name or "" for o in node.outputs if o.name} for node in model.graph}
    needed = set(sources.values())
    waiting = []
    for name in reversed(reads):
        if makes[name] & needed:
            needed |= reads[name]
            waiting.append(name)
    waiting.reverse()
    ready = {value.name for value in model.graph.inputs}
    open_layers = dict(sources)
    legs: list[tuple[list[str], list[str]]] = []
    while open_layers:
        nodes = []
        for name in waiting:
            if name not in open_layers and reads[name] <= ready:
                nodes.append(name)
                ready |= makes[name]
        done = frozenset(nodes)
        waiting = [name for name in waiting if name not in done]
        layers = [name for name, source in open_layers.items() if source in ready]
        for name in layers:
            del open_layers[name]
        legs.append((nodes, layers))
    stops: list[Stop] = []
    later: set[str] = set()
    for nodes, layers in reversed(legs):
        makes_here = set().union(*(makes[name] for name in nodes))
        drifting = [name for name in nodes if makes[name] & drifted]
        # What both models share is computed once and handed to the changed one.
        handed = set().union(*(reads[name] for name in drifting)) - drifted
        held = frozenset(later | handed | {sources[name] for name in layers})
        stops.append(Stop(tuple(nodes), tuple(drifting), tuple(layers), held))
        later = (later | {sources[name] for name in layers}).union(*(reads[name] for name in nodes)) - makes_here
    stops.reverse()
    return stops
