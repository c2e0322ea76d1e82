"""The in-network latency table: what each layer costs in each precision inside this network on this device.

Made from the per-node profiles of the uniform models (everything in one precision). Raw node times do not add up to
the latency of a whole inference, so each uniform total is scaled to that model's latency, raced in the same run (the
*anchors*). What a table of single layers cannot know, the cost of converting tensors where precisions meet, is fitted
on plans that alternate: for each edge where their profiles show it (`edgekit.cost.crossings`), and as one coefficient
per element for the others. Pure numbers: measuring is done elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgekit.backends import ExecutedNode
from edgekit.types import EIGHT_BITS, Edge, Figure, Kind, Layer, Precision


@dataclass(frozen=True)
class CostTable:
    """``latency_ms[layer][precision]`` sums to ``anchors_ms[precision]`` over all layers; a layer's entry holds the
    operators that follow it up to the next layer. ``crossing_ms[producer][consumer]`` is paid for an edge that crosses
    between int8 and the float ``base``; where there is no entry, ``boundary_ms_per_element`` for each of its elements.
    ``floats`` holds the float precision that each layer really executes in under that base: not every kernel exists in
    16 bits. ``interval`` is how far the 90 % interval reaches, relative to the value: up to 1 + ``interval`` times it,
    and down to that part of it. Where ``unknown`` says why no latency is known, entries only compare the options of one
    model, by the arithmetic that they take.
    """

    base: Precision
    floats: Mapping[str, Precision]
    latency_ms: Mapping[str, Mapping[Precision, float]]
    anchors_ms: Mapping[Precision, float]
    boundary_ms_per_element: float
    interval: float
    evidence: str
    crossing_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unknown: str = ""

    def figure(self, latency_ms: float) -> Figure:
        """A sum of entries as a prediction with its 90 % interval, or as none."""
        if self.unknown:
            return Figure(Kind.NONE, source=self.unknown)
        reach = 1 + self.interval
        return Figure(Kind.PREDICTED, latency_ms, latency_ms / reach, latency_ms * reach, self.evidence)

    def boundary_ms(self, edge: Edge) -> float:
        """What the edge costs where its two ends differ in domain."""
        known = self.crossing_ms.get(edge.producer, {}).get(edge.consumer)
        return self.boundary_ms_per_element * edge.elements if known is None else known


def layer_times_ms(nodes: Iterable[ExecutedNode], layers: Sequence[Layer]) -> dict[str, float]:
    """Milliseconds by layer, raw. Work before the first layer (input conversion) counts to the first layer."""
    times = dict.fromkeys((layer.name for layer in layers), 0.0)
    for node in nodes:
        owner = node.layers[0] if node.layers else layers[0].name
        times[owner] += node.latency_ms
    return times


def anchored(times_ms: Mapping[str, float], anchor_ms: float) -> dict[str, float]:
    """Times scaled so that they sum to the measured latency of the whole; equal ones where the clock saw none."""
    total = sum(times_ms.values())
    if total <= 0:
        return {name: anchor_ms / len(times_ms) for name in times_ms}
    return {name: time * anchor_ms / total for name, time in times_ms.items()}


def crossing(edges: Iterable[Edge], precisions: Mapping[str, Precision]) -> list[Edge]:
    """The edges that pass between a layer of 8 bits and a float one (model inputs are float)."""
    int8 = {name for name, precision in precisions.items() if precision in EIGHT_BITS}
    return [edge for edge in edges if (edge.producer in int8) != (edge.consumer in int8)]


def crossing_elements(edges: Iterable[Edge], precisions: Mapping[str, Precision]) -> int:
    """Elements of the tensors that pass between an int8 and a float layer."""
    return sum(edge.elements for edge in crossing(edges, precisions))


def fit_boundary(rows: Iterable[tuple[int, float]]) -> float:
    """Milliseconds per crossing element from (crossing elements, measured - summed milliseconds) of some plans: least
    squares through the origin, never negative.
    """
    pairs = list(rows)
    weight = sum(elements * elements for elements, _ in pairs)
    slope = sum(elements * rest for elements, rest in pairs) / weight if weight else 0.0
    return max(slope, 0.0)


def total_ms(table: CostTable, edges: Iterable[Edge], precisions: Mapping[str, Precision]) -> float:
    """The sum of a plan's entries and crossings."""
    layers = sum(table.latency_ms[name][precision] for name, precision in precisions.items())
    return layers + sum(map(table.boundary_ms, crossing(edges, precisions)))


def predict_ms(table: CostTable, edges: Iterable[Edge], precisions: Mapping[str, Precision]) -> Figure:
    """Latency of a plan with its 90 % interval."""
    return table.figure(total_ms(table, edges, precisions))


def pace(seen: Iterable[tuple[float, float]]) -> float:
    """How slow the device is now, from (predicted, measured) milliseconds of models that a table knows: a device is not
    equally fast all day. The geometric mean of the ratios; 1 where none was seen.
    """
    ratios = [math.log(measured / predicted) for predicted, measured in seen if predicted > 0 and measured > 0]
    return math.exp(math.fsum(ratios) / len(ratios)) if ratios else 1.0


def at_pace(table: CostTable, factor: float) -> CostTable:
    """The table of the same device where everything takes ``factor`` times as long."""
    return replace(
        table,
        latency_ms={name: {p: ms * factor for p, ms in row.items()} for name, row in table.latency_ms.items()},
        anchors_ms={p: ms * factor for p, ms in table.anchors_ms.items()},
        boundary_ms_per_element=table.boundary_ms_per_element * factor,
        crossing_ms={
            producer: {consumer: ms * factor for consumer, ms in row.items()}
            for producer, row in table.crossing_ms.items()
        },
    )


def mac_baseline_ms(table: CostTable, layers: Iterable[Layer], precisions: Mapping[str, Precision]) -> float:
    """The naive prediction that is printed beside ours: between the uniform totals, by the share of MACs in int8."""
    macs = {layer.name: layer.macs for layer in layers}
    share = sum(macs[name] for name, p in precisions.items() if p in EIGHT_BITS) / max(1, sum(macs.values()))
    base = table.anchors_ms[table.base]
    return base + share * (table.anchors_ms.get(Precision.INT8, base) - base)
