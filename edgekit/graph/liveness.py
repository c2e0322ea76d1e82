"""Which activations are in memory at which execution step, and how many bytes that is for given precisions.

How values share memory is told in `buffers`. A float buffer is stored in 8 bit when every layer that reads it executes
in int8, directly or through operators that int8 passes unchanged (``TRANSPARENT_OPS``). One reader of another kind, or
being a model output, keeps it float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.graph.buffers import VIEW_OPS, Buffer, allocate
from edgekit.graph.flow import Flow, flow_of
from edgekit.graph.load import Graph
from edgekit.types import Layer, Precision

TRANSPARENT_OPS = VIEW_OPS | {"Transpose", "MaxPool", "Relu", "Clip", "Concat", "Slice", "Split", "Pad"}


@dataclass(frozen=True)
class LiveTensor:
    """A piece of activation memory: ``elements`` of ``element_bytes`` each at full width (float32: 4).

    ``name`` is the last value that it holds, ``readers`` the execution steps that read it. ``deciders`` are the layers
    that must all be int8 for it to take one byte an element; empty where it never does.
    """

    name: str
    elements: int
    element_bytes: int
    readers: tuple[int, ...]
    deciders: tuple[str, ...]


def live_steps(graph: Graph) -> tuple[tuple[LiveTensor, ...], tuple[tuple[int, ...], ...]]:
    """The tensors, and for each execution step (one per node) the indices of those that are in memory then."""
    flow = flow_of(graph.model)
    layers = {layer.name: layer for layer in graph.layers}
    readers = _deciding_readers(flow, layers)
    live: list[list[int]] = [[] for _ in flow.nodes]
    tensors: list[LiveTensor] = []
    for index, buffer in enumerate(allocate(flow, tuple(tensor.name for tensor in graph.inputs))):
        deciders = _deciders(buffer, flow, readers)
        tensors.append(
            LiveTensor(
                name=buffer.members[-1],
                elements=buffer.elements,
                element_bytes=max(1, buffer.dtype.bitwidth // 8),
                readers=tuple(sorted(buffer.readers)),
                deciders=tuple(layer.name for layer in graph.layers if layer.name in deciders),
            )
        )
        for step in range(buffer.first, buffer.last + 1):
            live[step].append(index)
    return tuple(tensors), tuple(tuple(indices) for indices in live)


def peak_activation_bytes(graph: Graph, precisions: Mapping[str, Precision]) -> int:
    """The largest sum of live activation bytes over all steps. Layers that ``precisions`` does not name are float32.

    Float tensors that are not 8-bit take 4 bytes an element; or 2 where every layer is bf16, fp16 or int8 and at least
    one is not int8, because such a model runs with a 16-bit float type throughout.
    """
    tensors, steps = live_steps(graph)
    chosen = {layer.name: precisions.get(layer.name, Precision.FP32) for layer in graph.layers}
    kinds = set(chosen.values())
    half = kinds <= {Precision.BF16, Precision.FP16, Precision.INT8} and not kinds <= {Precision.INT8}
    floating = {v.name for v in _values(graph.model) if v.dtype == ir.DataType.FLOAT}
    sizes = []
    for tensor in tensors:
        small = tensor.deciders and all(chosen[name] is Precision.INT8 for name in tensor.deciders)
        full = 2 if half and tensor.name in floating else tensor.element_bytes
        sizes.append(tensor.elements * (1 if small else full))
    return max((sum(sizes[index] for index in step) for step in steps), default=0)


def _values(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]


# What a step says about storing a value that it reads: these layers must be int8; None: it needs the float value.
Deciding = dict[tuple[int, str], frozenset[str] | None]


def _deciding_readers(flow: Flow, layers: Mapping[str, Layer]) -> Deciding:
    found: Deciding = {}
    needs: dict[str, frozenset[str] | None] = {}
    for step in reversed(range(len(flow.nodes))):
        node = flow.nodes[step]
        layer = layers.get(node.name or "")
        outputs = [o.name for o in node.outputs if o.name]
        for name in outputs:
            readers = [found[reader, name] for reader in flow.readers[name]]
            needs[name] = None if name in flow.outputs else _all(readers)
        for name in flow.reads[step]:
            if layer is not None:
                found[step, name] = frozenset({layer.name}) if name in layer.inputs else None
            elif node.op_type in TRANSPARENT_OPS and node.domain in ("", "ai.onnx"):
                found[step, name] = _all([needs[output] for output in outputs])
            else:
                found[step, name] = None
    return found


def _all(parts: list[frozenset[str] | None]) -> frozenset[str] | None:
    known = [part for part in parts if part is not None]
    return frozenset().union(*known) if len(known) == len(parts) else None


def _deciders(buffer: Buffer, flow: Flow, readers: Deciding) -> frozenset[str]:
    if buffer.is_input or buffer.dtype != ir.DataType.FLOAT or flow.outputs.intersection(buffer.members):
        return frozenset()
    steps = [readers[step, name] for name in buffer.members for step in flow.readers[name] if step in buffer.readers]
    return _all(steps) or frozenset()
