"""What a model is made of, before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.backends import backend
from edgekit.catalog import Target
from edgekit.graph import Graph, Tensor
from edgekit.graph.channels import find_channels
from edgekit.graph.liveness import peak_activation_bytes
from edgekit.results import FixedDetail
from edgekit.tables.formulate import weight_bytes
from edgekit.types import Layer, Precision


@dataclass(frozen=True)
class LayerReport:
    """A layer with the precisions that the target's backend may try for it (empty without a target)."""

    name: str
    op_type: str
    output_elements: int
    macs: int
    weight_bytes: int
    options: tuple[Precision, ...]


@dataclass(frozen=True)
class GroupReport:
    """Channels that can only go together: the layers that make them, and those that read them."""

    name: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A model in numbers, as float32. ``operators`` counts all nodes of the normalised graph by type; ``fixed`` names
    the layers whose output channels cannot be pruned, and why.
    """

    model: str
    sha256: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operators: dict[str, int]
    layers: tuple[LayerReport, ...]
    macs: int
    weight_bytes: int
    peak_activation_bytes: int
    groups: tuple[GroupReport, ...] = ()
    fixed: tuple[FixedDetail, ...] = ()
    schema: str = "edgekit/inspect/1"


def inspect_graph(path: Path, graph: Graph, target: Target | None) -> Inspection:
    """Describe a loaded model."""
    layers = tuple(
        LayerReport(
            layer.name,
            layer.op_type,
            layer.output_elements,
            layer.macs,
            weight_bytes(layer.weight_elements, layer.bias_elements, Precision.FP32),
            _options(layer, target),
        )
        for layer in graph.layers
    )
    channels = find_channels(graph)
    operators: dict[str, int] = {}
    for node in graph.model.graph:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return Inspection(
        model=path.name,
        sha256=graph.sha256,
        inputs=graph.inputs,
        outputs=graph.outputs,
        operators=dict(sorted(operators.items())),
        layers=layers,
        macs=sum(layer.macs for layer in layers),
        weight_bytes=sum(layer.weight_bytes for layer in layers),
        peak_activation_bytes=peak_activation_bytes(graph, {}),
        groups=tuple(GroupReport(g.name, g.channels, g.producers, g.consumers) for g in channels.groups),
        fixed=tuple(FixedDetail(one.layer, one.reason) for one in channels.fixed),
    )


def _options(layer: Layer, target: Target | None) -> tuple[Precision, ...]:
    if target is None:
        return ()
    quantized = backend(target.backend).quantized_op_types
    return tuple(
        precision
        for precision in target.precisions
        if layer.op_type in quantized.get(precision, {layer.op_type})
        and (precision is not Precision.W8 or layer.weights)
    )
