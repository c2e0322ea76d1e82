"""Puts every activation of a model into a buffer, the way that OpenVINO's CPU plugin does.

`benchmarks/memory.py` compares it with what that plugin allocates: the zoo's models in float32 agree to the byte. Other
runtimes share less (LiteRT) or about as much (TensorRT).

- One execution step per node, in the order of `flow`. Weights are no activations.
- Model inputs and outputs belong to the caller: there from the first step to the last, and never written over. Where
  a convolution or a pooling reads or makes one, there is a copy of it in another layout as well.
- Views (Reshape, Squeeze, Unsqueeze, Flatten, Identity) share memory with their source, but for the layout of
  convolutions: that is laid out again.
- Elementwise functions (hard-swish, SiLU or GELU in any spelling, scaling and adding), Softmax and attention are
  computed in one pass: what is inside takes no memory, and what they read is there until they are done.
- An elementwise result takes the place of the first tensor that it is computed from, where nothing else reads any of
  them. A residual Add right after a convolution is part of that: it adds to the tensor that is there already.

What this does not know: layouts that only some kernels want. Which tensors are 8 bit wide is decided before
(`lowering`); where the blocks then lie, and which holes that leaves, is told in `packing`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from edgekit.graph.flow import Flow, is_op
from edgekit.graph.layers import elements_of, shape_of
from edgekit.graph.passes import ELEMENTWISE_OPS, QUANTIZE, Pass, done_by_kernel, find_passes

# fmt: off
_LAYOUT_OPS = ELEMENTWISE_OPS | {
    "AveragePool", "Concat", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool", "Pad", "Resize", "Slice",
    "Split",
}
# fmt: on
_BLOCK = 16  # channels, of 4 bytes each in a register of AVX-512; half as many with AVX2
KERNEL_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
VIEW_OPS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@dataclass
class Phase:
    """What a buffer holds from step ``first`` on, until its next phase: ``members`` that are one value, or the stages
    of one function. ``makers`` are the nodes that compute it together, a layer and the Add that it does on the side,
    say.
    """

    first: int
    makers: tuple[int, ...]
    members: list[str]


@dataclass
class Buffer:
    """Memory for its ``members``, one after the other, live from step ``first`` to ``last``.

    ``inside`` are values that exist only within a function that is computed in one pass, ``internal`` the steps that
    turn one member into the next, ``readers`` the other steps that read it, ``until`` a step that it must outlive.
    ``is_relaid`` says that it is a copy of an input, of an output, or of what a node reads, in another layout.
    """

    elements: int
    dtype: ir.DataType
    first: int
    last: int
    phases: list[Phase]
    is_input: bool = False
    is_relaid: bool = False
    inside: list[str] = field(default_factory=list)
    internal: set[int] = field(default_factory=set)
    readers: set[int] = field(default_factory=set)
    until: int = 0

    @property
    def members(self) -> list[str]:
        """Every value that it holds at some time."""
        return [name for phase in self.phases for name in phase.members]


def allocate(flow: Flow, model_inputs: tuple[str, ...], together: frozenset[str] = frozenset()) -> tuple[Buffer, ...]:
    """The buffers of a model, in the order in which they are first written. The nodes named ``together`` are computed
    in one pass with what they read: several results come out at once, and such are written over nothing.
    """
    buffers: list[Buffer] = []
    owner: dict[str, Buffer] = {}
    passes = find_passes(flow)
    summed: set[int] = set()  # Adds that a convolution does
    inner = _in_layout(flow)

    def new(name: str, step: int, *, is_input: bool = False) -> None:
        value = flow.values[name]
        makers = () if is_input else (step,)
        phases = [Phase(step, makers, [name])]
        blocked = not is_input and _pools_an_input(flow, step, model_inputs)
        elements = _blocked_elements(value) if blocked else elements_of(value)
        buffer = Buffer(elements, value.dtype or ir.DataType.FLOAT, step, step, phases, is_input)
        buffers.append(buffer)
        owner[name] = buffer

    def share(name: str, step: int, buffer: Buffer) -> None:
        buffer.phases[-1].members.append(name)
        buffer.internal.add(step)
        owner[name] = buffer

    def readers_of(buffer: Buffer) -> set[int]:
        return {step for name in buffer.members for step in flow.readers[name]} - buffer.internal

    def readers_now(buffer: Buffer) -> set[int]:
        return {step for name in buffer.phases[-1].members for step in flow.readers[name]} - buffer.internal

    def can_be_written_over(buffer: Buffer, name: str) -> bool:
        return (
            _fits(flow.values[name], buffer) and not buffer.is_input and not flow.outputs.intersection(buffer.members)
        )

    def takes_the_place_of(name: str, steps: set[int], sources: tuple[str, ...]) -> bool:
        """Whether nothing but ``steps`` reads any of the sources, and the first has the room."""
        alone = all(readers_now(owner[source]) <= steps for source in sources)
        return alone and can_be_written_over(owner[sources[0]], name) and not _joins_kept(flow, sources[0])

    for name in model_inputs:
        new(name, 0, is_input=True)
    for step, node in enumerate(flow.nodes):
        group = passes.get(step)
        for name in (o.name for o in node.outputs if o.name):
            if step in flow.sums:
                last, peer = flow.sums[step]
                place = owner[peer]
                others = (readers_of(place) - {last}) | {place.until - 1}
                if can_be_written_over(place, name) and all(reader < step for reader in others):
                    place.inside.append(name)
                    place.phases.append(Phase(step, (step, last), []))
                    owner[name] = place
                    summed.add(last)
                else:
                    new(name, step)
            elif step in summed or _is_view(flow, step, inner) or _renames_axes(flow, step):
                share(name, step, owner[flow.reads[step][0]])
            elif group is not None and step != group.last:
                home = owner[group.sources[0]]
                home.inside.append(name)
                owner[name] = home
            elif (
                group is not None
                and group.elementwise
                and not together.intersection(flow.nodes[reader].name or "" for reader in flow.readers[name])
                and node.name not in together
                and takes_the_place_of(name, group.steps, group.sources)
                and (len(flow.readers[name]) < 2 or _writes_over_for_many(flow, group, owner[group.sources[0]]))
            ):
                place = owner[group.sources[0]]
                if not _done_by_maker(flow, group, place):
                    place.phases.append(Phase(step, (step,), []))
                share(name, step, place)
                place.internal |= group.steps
            else:
                new(name, step)
        for source in group.sources if group is not None and step == group.last else ():
            until = [at for o in node.outputs for at in flow.readers[o.name or ""] if flow.nodes[at].name in together]
            owner[source].until = max([owner[source].until, step, *until])
    for buffer in buffers:
        _finish(buffer, flow)
    return (*buffers, *_relaid(flow, model_inputs, inner))


def _in_layout(flow: Flow) -> frozenset[str]:
    """The values that are held in the layout of convolutions (channels last, or blocked)."""
    inner: set[str] = set()
    for step, node in enumerate(flow.nodes):
        if is_op(node, "Conv", "ConvTranspose") or (is_op(node, *_LAYOUT_OPS) and inner & set(flow.reads[step])):
            inner |= {o.name for o in node.outputs if o.name and _has_layout(o)}
    return frozenset(inner)


def _is_view(flow: Flow, step: int, inner: frozenset[str]) -> bool:
    """Whether a step gives what it reads another shape where it is. Another layout is another tensor."""
    if not is_op(flow.nodes[step], *VIEW_OPS) or not flow.reads[step]:
        return False
    return is_op(flow.nodes[step], "Identity") or flow.reads[step][0] not in inner


def _renames_axes(flow: Flow, step: int) -> bool:
    """Whether a step is a Transpose that says in other words how a convolution lays its tensor out: channels last."""
    node = flow.nodes[step]
    if not is_op(node, "Transpose") or not flow.reads[step]:
        return False
    order = list(node.attributes.get_ints("perm", ()))
    producer = flow.values[flow.reads[step][0]].producer()
    if order == [0, 2, 3, 1]:
        return producer is not None and is_op(producer, "Conv") and len(flow.readers[flow.reads[step][0]]) == 1
    readers = [flow.nodes[reader] for o in node.outputs for reader in flow.readers[o.name or ""]]
    return order == [0, 3, 1, 2] and producer is None and all(is_op(reader, "Conv") for reader in readers)


def _relaid(flow: Flow, model_inputs: tuple[str, ...], inner: frozenset[str]) -> list[Buffer]:
    """Copies of model inputs and outputs in the layout of convolutions, and of what such a tensor is read as."""
    copies = []

    def copy(name: str, first: int, last: int, readers: set[int], elements: int = 0) -> None:
        value = flow.values[name]
        dtype = value.dtype or ir.DataType.FLOAT
        phases = [Phase(first, (), [name])]
        size = elements or elements_of(value)
        copies.append(Buffer(size, dtype, first, last, phases, is_relaid=True, readers=readers))

    # What is quantized of a model input still has the input's layout.
    quantized = {at for name in model_inputs for at in flow.readers[name] if is_op(flow.nodes[at], QUANTIZE)}
    for name in (*model_inputs, *(flow.nodes[at].outputs[0].name or "" for at in sorted(quantized))):
        steps = {step for step in flow.readers[name] if is_op(flow.nodes[step], "Conv", "ConvTranspose")}
        if steps and _has_layout(flow.values[name]):
            copy(name, min(steps), max(flow.readers[name]), set(flow.readers[name]))
    for step, node in enumerate(flow.nodes):
        for name in (o.name for o in node.outputs if o.name in flow.outputs and o.name in inner):
            copy(name or "", step, step, set())
        if is_op(node, "GlobalAveragePool", "GlobalMaxPool") and len(shape_of(node.outputs[0])) == 3:
            for name in inner.intersection(flow.reads[step]):  # these know no layout but that of images
                copy(name, step, step, {step})
        if _pools_an_input(flow, step, model_inputs):
            copy(flow.reads[step][0], step, step, {step}, _blocked_elements(flow.values[flow.reads[step][0]]))
    return copies


def _pools_an_input(flow: Flow, step: int, model_inputs: tuple[str, ...]) -> bool:
    """Whether a step is a pooling of a model input whose few channels are filled up to a block for it: two or three of
    a picture, more than one of a sequence. Others are pooled as they are.
    """
    node = flow.nodes[step]
    if not is_op(node, "AveragePool", "LpPool", "MaxPool") or len([o for o in node.outputs if o.name]) > 1:
        return False
    if not set(flow.reads[step][:1]) & set(model_inputs):
        return False
    shape = shape_of(flow.values[flow.reads[step][0]])
    return shape[1] > 1 if len(shape) == 3 else shape[1] in (2, 3)


def _blocked_elements(value: ir.Value) -> int:
    """With the channels filled up to whole blocks."""
    channels = shape_of(value)[1]
    return elements_of(value) // channels * _BLOCK * -(-channels // _BLOCK)


def _has_layout(value: ir.Value) -> bool:
    shape = shape_of(value)
    return len(shape) > 2 and shape[1] > 1 and shape[0] * shape[1] < elements_of(value)


def _writes_over_for_many(flow: Flow, group: Pass, buffer: Buffer) -> bool:
    """Whether a pass whose result has several readers still writes it over its first source."""
    softmax = is_op(flow.nodes[group.last], "Softmax")
    return len(group.sources) > 1 or softmax or _done_by_maker(flow, group, buffer)


def _done_by_maker(flow: Flow, group: Pass, buffer: Buffer) -> bool:
    """Whether a matrix kernel does the elementwise function of its result as well."""
    made = any(is_op(flow.nodes[step], *KERNEL_OPS) for step in buffer.phases[-1].makers)
    return made and len(group.sources) == 1 and all(done_by_kernel(flow.nodes[step]) for step in group.steps)


def _joins_kept(flow: Flow, name: str) -> bool:
    """Whether a value is a Concat of tensors that others read too: OpenVINO never writes over such a one."""
    producer = flow.values[name].producer()
    if producer is None or not is_op(producer, "Concat"):
        return False
    return any(len(flow.readers.get(v.name or "", ())) > 1 for v in producer.inputs if v is not None)


def _finish(buffer: Buffer, flow: Flow) -> None:
    steps = {step for name in buffer.members for step in flow.readers[name]}
    buffer.readers = steps - buffer.internal
    buffer.last = max(steps | buffer.internal | {buffer.first, buffer.until})
    if buffer.is_input or flow.outputs.intersection(buffer.members):
        buffer.first, buffer.last = 0, len(flow.nodes) - 1


def _fits(value: ir.Value, buffer: Buffer) -> bool:
    return value.dtype == buffer.dtype and elements_of(value) == buffer.elements
