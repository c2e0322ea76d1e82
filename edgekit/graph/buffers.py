"""Puts every activation of a model into a buffer, the way that runtimes share memory.

A simple and slightly pessimistic picture of what OpenVINO, TensorRT and XNNPACK do:

- One execution step per node, in the order of the model. Weights are no activations.
- Views (Reshape, Squeeze, Unsqueeze, Flatten, Identity) share memory with their source.
- An elementwise function of one tensor (Relu; hard-swish, SiLU or GELU in any spelling) is computed in one pass: what
  is inside takes no memory, and the result takes the place of its source where nothing else reads that.
- An elementwise operator that joins tensors (a residual Add) writes over an operand that nothing else reads.
- Model inputs are never written over; they are there from the first step, model outputs stay to the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from edgekit.graph.layers import elements_of, reads_of

VIEW_OPS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
# fmt: off
ELEMENTWISE_OPS = frozenset({
    "Abs", "Add", "BatchNormalization", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal",
    "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh",
    "ThresholdedRelu", "Where",
})
# fmt: on


@dataclass
class Buffer:
    """Memory for ``members``, one after the other, live from step ``first`` to ``last``.

    ``inside`` are values that exist only within an elementwise function of a member, ``internal`` the steps that turn
    one member into the next, ``readers`` the other steps that read it.
    """

    elements: int
    dtype: ir.DataType
    first: int
    last: int
    is_input: bool = False
    members: list[str] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)
    internal: set[int] = field(default_factory=set)
    readers: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Flow:
    """Who makes and who reads each activation of a model, by execution step."""

    nodes: tuple[ir.Node, ...]
    values: dict[str, ir.Value]
    reads: tuple[tuple[str, ...], ...]
    readers: dict[str, list[int]]
    outputs: frozenset[str]


def flow_of(model: ir.Model) -> Flow:
    """Read the data flow of the top-level graph; what subgraphs capture counts as read by their node."""
    nodes = tuple(model.graph)
    values = {v.name: v for v in (*model.graph.inputs, *(o for node in nodes for o in node.outputs)) if v.name}
    readers: dict[str, list[int]] = {name: [] for name in values}
    reads = []
    for step, node in enumerate(nodes):
        names = tuple(v.name for v in reads_of(node) if v.name in values)
        for name in names:
            readers[name].append(step)
        reads.append(names)
    return Flow(nodes, values, tuple(reads), readers, frozenset(v.name for v in model.graph.outputs if v.name))


def allocate(flow: Flow, model_inputs: tuple[str, ...]) -> tuple[Buffer, ...]:
    """The buffers of a model, in the order in which they are first written."""
    buffers: list[Buffer] = []
    owner: dict[str, Buffer] = {}

    def new(name: str, step: int, *, is_input: bool = False) -> None:
        value = flow.values[name]
        buffer = Buffer(elements_of(value), value.dtype or ir.DataType.FLOAT, step, step, is_input, [name])
        buffers.append(buffer)
        owner[name] = buffer

    def share(name: str, step: int, buffer: Buffer) -> None:
        buffer.members.append(name)
        buffer.internal.add(step)
        owner[name] = buffer

    def only_read_by(buffer: Buffer, steps: set[int]) -> bool:
        allowed = steps | buffer.internal
        return not buffer.is_input and all(
            name not in flow.outputs and allowed.issuperset(flow.readers[name])
            for name in (*buffer.members, *buffer.inside)
        )

    for name in model_inputs:
        new(name, 0, is_input=True)
    source_of, finals, steps_of = _functions(flow)
    for step, node in enumerate(flow.nodes):
        for name in (o.name for o in node.outputs if o.name):
            source = source_of.get(name)
            if _is(node, VIEW_OPS) and flow.reads[step]:
                share(name, step, owner[flow.reads[step][0]])
            elif source is not None and name not in finals[source]:
                owner[source].inside.append(name)
            elif source is not None:
                place = owner[source]
                alone = len(finals[source]) == 1 and only_read_by(place, steps_of[source])
                if alone:
                    share(name, step, place)
                    place.internal |= steps_of[source]
                else:
                    new(name, step)
            else:
                operands = [owner[n] for n in flow.reads[step] if n in owner] if _is(node, ELEMENTWISE_OPS) else []
                free = [b for b in operands if _fits(flow.values[name], b) and only_read_by(b, {step})]
                if free:
                    share(name, step, max(free, key=lambda b: b.first))
                else:
                    new(name, step)
    for buffer in buffers:
        _finish(buffer, flow)
    return tuple(buffers)


def _functions(flow: Flow) -> tuple[dict[str, str], dict[str, set[str]], dict[str, set[int]]]:
    """Elementwise functions of one tensor: value -> source; source -> values read elsewhere; source -> its steps."""
    source_of: dict[str, str] = {}
    made: dict[int, str] = {}
    for step, node in enumerate(flow.nodes):
        outputs = [o for o in node.outputs if o.name]
        sources = {source_of.get(name, name) for name in flow.reads[step]}
        if not _is(node, ELEMENTWISE_OPS) or len(outputs) != 1 or len(sources) != 1:
            continue
        (source,) = sources
        out, root = outputs[0], flow.values[source]
        if out.dtype == root.dtype and elements_of(out) == elements_of(root):
            source_of[out.name or ""] = source
            made[step] = out.name or ""
    finals: dict[str, set[str]] = {}
    steps_of: dict[str, set[int]] = {}
    for step, name in made.items():
        source = source_of[name]
        steps_of.setdefault(source, set()).add(step)
        outside = any(source_of.get(made.get(reader, "")) != source for reader in flow.readers[name])
        finals.setdefault(source, set())
        if outside or name in flow.outputs or not flow.readers[name]:
            finals[source].add(name)
    return source_of, finals, steps_of


def _finish(buffer: Buffer, flow: Flow) -> None:
    steps = {step for name in (*buffer.members, *buffer.inside) for step in flow.readers[name]}
    buffer.readers = steps - buffer.internal
    buffer.last = max(steps | buffer.internal | {buffer.first})
    if flow.outputs.intersection(buffer.members):
        buffer.last = len(flow.nodes) - 1


def _is(node: ir.Node, ops: frozenset[str]) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in ops


def _fits(value: ir.Value, buffer: Buffer) -> bool:
    return value.dtype == buffer.dtype and elements_of(value) == buffer.elements
