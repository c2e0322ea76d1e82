"""From a graph with its measured costs and losses to the numbers that the planner optimises, and back to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.cost.table import CostTable
from edgekit.graph import Graph
from edgekit.graph.liveness import live_steps, peak_activation_bytes
from edgekit.planner import ActivationTensor, Boundary, LayerOption, Limits, PlanningLayer, Problem, Solution
from edgekit.types import Budget, Figure, Kind, LayerChoice, Plan, Precision, Predicted

Losses = Mapping[str, Mapping[Precision, float]]

# What the planner's limits are called where users set them. Loss stands in for the metric.
_BUDGETS = {"latency_ms": "latency", "weight_bytes": "size", "memory_bytes": "memory", "loss": "max_drop"}
_INT8 = "int8"
_FLOAT = "float"


@dataclass(frozen=True)
class Planning:
    """The problem beside what it was made from, so that a solution can be read as a plan."""

    graph: Graph
    table: CostTable
    losses: Losses
    problem: Problem

    def plan(self, solution: Solution) -> Plan:
        """The solution in words, with its predicted totals."""
        totals = solution.totals
        margin = totals.latency_ms * self.table.interval
        latency = Figure(
            Kind.PREDICTED,
            totals.latency_ms,
            totals.latency_ms - margin,
            totals.latency_ms + margin,
            self.table.evidence,
        )
        choices = (layer.options[index] for layer, index in zip(self.problem.layers, solution.choice, strict=True))
        return Plan(
            layers=tuple(
                LayerChoice(layer.name, layer.op_type, option.precision)
                for layer, option in zip(self.problem.layers, choices, strict=True)
            ),
            predicted=Predicted(
                latency, totals.weight_bytes, totals.peak_activation_bytes, totals.memory_bytes, totals.loss
            ),
            gap=solution.search_gap,
            binding=tuple(_BUDGETS[limit] for limit in solution.binding),
        )


def limits_of(budget: Budget, loss: float | None = None) -> Limits:
    """The budget's hard limits; ``loss`` stands in for the metric."""
    return Limits(budget.latency_ms, budget.weight_bytes, budget.memory_bytes, loss)


def formulate(
    graph: Graph,
    table: CostTable,
    losses: Losses,
    runtime_weight_bits: Mapping[Precision, int],
    forbidden: frozenset[tuple[str, Precision]] = frozenset(),
) -> Planning:
    """One option for each entry of the cost table that is not ``forbidden``.

    ``runtime_weight_bits`` says how wide a weight is in memory once the runtime has loaded it: weight-only int8 of a
    convolution is unpacked at load, so it saves storage and no memory.
    """
    index = {layer.name: number for number, layer in enumerate(graph.layers)}
    layers = []
    for layer in graph.layers:
        options = tuple(
            LayerOption(
                precision=precision,
                latency_ms=latency_ms,
                weight_bytes=weight_bytes(layer.weight_elements, layer.bias_elements, precision),
                memory_bytes=layer.weight_elements * runtime_weight_bits[precision] // 8 + 4 * layer.bias_elements,
                loss=losses[layer.name][precision],
                domain=_INT8 if precision is Precision.INT8 else _FLOAT,
            )
            for precision, latency_ms in table.latency_ms[layer.name].items()
            if (layer.name, precision) not in forbidden
        )
        layers.append(PlanningLayer(layer.name, layer.op_type, options))
    boundaries = tuple(
        Boundary(index.get(edge.producer, -1), index[edge.consumer], table.boundary_ms(edge)) for edge in graph.edges
    )
    tensors, steps = live_steps(graph)
    scale = table.base.activation_bits / 32
    activations = tuple(
        ActivationTensor(
            bytes_full=int(tensor.elements * tensor.element_bytes * (scale if tensor.element_bytes == 4 else 1)),
            bytes_small=tensor.elements,
            deciders=tuple(index[name] for name in tensor.deciders),
        )
        for tensor in tensors
    )
    return Planning(graph, table, losses, Problem(tuple(layers), boundaries, activations, steps))


def weight_bytes(weight_elements: int, bias_elements: int, precision: Precision) -> int:
    """Stored bytes of a layer's parameters: biases stay float."""
    return weight_elements * precision.weight_bits // 8 + 4 * bias_elements


def memory_bytes(
    graph: Graph, precisions: Mapping[str, Precision], runtime_weight_bits: Mapping[Precision, int]
) -> int:
    """Loaded weights + peak activations of any assignment of precisions, also one that the planner did not offer."""
    weights = sum(
        layer.weight_elements * runtime_weight_bits[precisions[layer.name]] // 8 + 4 * layer.bias_elements
        for layer in graph.layers
    )
    return weights + peak_activation_bytes(graph, precisions)
