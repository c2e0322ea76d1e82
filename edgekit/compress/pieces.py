"""Parts of models as models of their own, and what a changed copy of a model computes differently."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.graph.layers import reads_of

if TYPE_CHECKING:
    from edgekit.graph import Graph


@dataclass(frozen=True)
class Part:
    """A part of a model as a model of its own, from the tensors in ``reads`` to those in ``results``."""

    model: bytes
    reads: tuple[str, ...]
    results: tuple[str, ...]


def drifted_values(graph: Graph, model: ir.Model) -> frozenset[str]:
    """The tensors that ``model``, a changed copy of the graph with the same names, may compute differently."""
    drifted: set[str] = set()
    changed = {node.name: node for node in model.graph}
    for node in graph.model.graph:
        twin = changed[node.name]
        reads = {value.name for value in reads_of(node)}
        if reads & drifted or _differs(node, twin):
            drifted |= {output.name or "" for output in node.outputs}
    return frozenset(drifted - {""})


def tail_of(graph: Graph, model: ir.Model, held: Collection[str]) -> Part | None:
    """What ``model``, a changed copy of the graph with the same names, computes otherwise: from tensors that both have
    in common, where possible those that are ``held``, to the outputs that change. None where none does.
    """
    drifted = drifted_values(graph, model)
    results = [tensor.name for tensor in graph.outputs if tensor.name in drifted]
    given = {*held, *(tensor.name for tensor in graph.inputs)} - drifted
    return part_of(model, given, results) if results else None


def part_of(model: ir.Model, given: Collection[str], results: Sequence[str]) -> Part:
    """What leads to these results from the nearest tensors that are ``given``, which must hold the model's inputs."""
    needed, reads, nodes = set(results), set[str](), []
    for node in reversed(list(model.graph)):
        if any(output.name in needed for output in node.outputs):
            nodes.append(node)
            inputs = {value.name or "" for value in reads_of(node) if not value.is_initializer()}
            reads |= inputs.intersection(given)
            needed |= inputs.difference(given)
    nodes.reverse()
    return Part(piece(model, nodes, sorted(reads), results), tuple(sorted(reads)), tuple(results))


def piece(model: ir.Model, nodes: Sequence[ir.Node], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The nodes as a model of their own."""
    values = {v.name or "": v for n in nodes for v in (*reads_of(n), *n.outputs)}
    constants = [v for v in values.values() if v.is_initializer()]
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(node) for node in nodes],
        "piece",
        [ir.serde.serialize_value(values[name]) for name in inputs],
        [ir.serde.serialize_value(values[name]) for name in outputs],
        [_tensor(value) for value in constants],
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    whole = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    content: bytes = whole.SerializeToString()
    return content


def bytes_of(value: ir.Value) -> int:
    """Size of a tensor; 0 where it is not known."""
    if value.shape is None or value.dtype is None:
        return 0
    return math.ceil(math.prod(value.shape.numpy()) * value.dtype.itemsize)


def _differs(node: ir.Node, twin: ir.Node) -> bool:
    if ir.serde.serialize_node(node) != ir.serde.serialize_node(twin):
        return True
    pairs = zip(reads_of(node), reads_of(twin), strict=True)
    return any(_constant_differs(a, b) for a, b in pairs if a.is_initializer() and b.is_initializer())


def _constant_differs(first: ir.Value, second: ir.Value) -> bool:
    a, b = first.const_value, second.const_value
    return a is not b and a is not None and b is not None and not np.array_equal(a.numpy(), b.numpy())


def _tensor(value: ir.Value) -> onnx.TensorProto:
    assert value.const_value is not None, value.name
    proto = ir.serde.serialize_tensor(value.const_value)
    proto.name = value.name or ""
    return proto
