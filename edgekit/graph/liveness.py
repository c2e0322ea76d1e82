"""Which activations are in memory at which execution step, and how many bytes that is for given precisions.

How values share memory is told in `buffers`, which width a reader wants in `demands`. For given precisions every tensor
has one width, and what is held is what OpenVINO's CPU plugin holds of the graph that is left then (`lowering`).

A planner needs it before the precisions are known: as a sum over tensors, each wide or narrow by what some layers are.
For that, without precisions, these rules are counted:

- An int8 layer puts out 8 bit where all readers want that, and float otherwise; a float layer always puts out float.
  Elementwise functions, pooling and other operators put out whichever is wanted, both at once if need be.
- Where a layer put out float and an int8 reader comes, a copy in 8 bit is made right before that reader: both are in
  memory then. The float one goes when nothing else reads it.
- An int8 convolution does not add to a float tensor by the way: its result is there beside that tensor. The sum takes
  the place of the first of them where nothing else ever reads either, and memory of its own otherwise.

What those rules do not know: concatenations that quantize their operands once more, and views and poolings that run
twice, in float and in 8 bit. A plan is measured by its arena afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import onnx_ir as ir

from edgekit.graph.buffers import Buffer, Phase, allocate
from edgekit.graph.demands import NOTHING, Demand, both, find_demands, quantizable_adds
from edgekit.graph.flow import Flow, flow_of
from edgekit.graph.load import Graph
from edgekit.graph.lowering import lowered
from edgekit.graph.packing import Block, packed_bytes
from edgekit.graph.passes import Pass, find_passes
from edgekit.types import EIGHT_BITS, Precision

Layers = frozenset[str]


@dataclass(frozen=True)
class LiveTensor:
    """A piece of activation memory: ``elements`` of ``large_bytes`` each where one of the layers ``deciders`` is in the
    ``domain``, else of ``small_bytes``; always the first where there are no deciders. Where there are ``int8_guards``,
    all of these layers must be int8 besides. ``is_float`` says that the large ones are floats that the runtime holds:
    two bytes where the model runs in a 16-bit float type, which what the caller holds does not. ``name`` is a value
    that it holds. Pieces with the same ``buffer`` follow each other in one place; the caller's have none (-1).
    """

    name: str
    elements: int
    large_bytes: int
    small_bytes: int
    deciders: tuple[str, ...]
    domain: Literal["float", "int8"]
    is_float: bool
    buffer: int = -1
    int8_guards: tuple[str, ...] = ()

    def bytes_in(self, precisions: Mapping[str, Precision], float_bits: int) -> int:
        """What it takes. Layers that ``precisions`` does not name are float."""
        domains = {"int8" if precisions.get(name) in EIGHT_BITS else "float" for name in self.deciders}
        large = not self.deciders or self.domain in domains
        large = large and all(precisions.get(name) in EIGHT_BITS for name in self.int8_guards)
        return self.elements * (self.bytes_large(float_bits) if large else self.small_bytes)

    def bytes_large(self, float_bits: int) -> int:
        """Bytes an element while it is large, in a model of that float type."""
        return float_bits // 8 if self.is_float else self.large_bytes


Steps = tuple[tuple[int, ...], ...]
"""For each execution step the indices of the tensors that are in memory then. Each node has two steps: what it reads is
brought into its width, and it is computed."""


def planning_steps(graph: Graph) -> tuple[tuple[LiveTensor, ...], Steps]:
    """The tensors and steps that a planner counts with, before the precisions are known: in the order as if all were
    float, with what int8 takes more counted in.
    """
    flow = flow_of(graph.model)
    memory = _Memory(
        flow,
        {layer.name: layer.inputs for layer in graph.layers},
        find_demands(flow, {layer.name: layer.inputs for layer in graph.layers}),
        quantizable_adds(flow, frozenset(layer.name for layer in graph.layers)),
        find_passes(flow),
    )
    order = {layer.name: place for place, layer in enumerate(graph.layers)}
    numbers: dict[tuple[int, int, LiveTensor], int] = {}
    live: list[set[int]] = [set() for _ in range(2 * len(flow.nodes))]
    buffers = allocate(flow, tuple(tensor.name for tensor in graph.inputs))
    for place, buffer in enumerate(buffers):
        relaid = any(other.phases[0].members == buffer.members for other in buffers[place + 1 :])
        width = max(1, buffer.dtype.bitwidth // 8)
        for name, first, last, part in memory.parts(buffer, relaid):
            kept = buffer.is_input or (not buffer.is_relaid and not flow.outputs.isdisjoint(buffer.members))
            outside = kept and not part.is_copy
            tensor = LiveTensor(
                name=name,
                elements=buffer.elements,
                large_bytes=1 if part.is_copy else width,
                small_bytes=part.small_bytes,
                deciders=tuple(sorted(part.deciders, key=order.__getitem__)),
                domain=part.domain,
                is_float=buffer.dtype == ir.DataType.FLOAT and not part.is_copy and not outside,
                buffer=-1 if outside else place,
                int8_guards=tuple(sorted(part.int8_guards, key=order.__getitem__)),
            )
            index = numbers.setdefault((place, part.number, tensor), len(numbers))
            for step in range(max(first, 0), last + 1):
                live[step].add(index)
    return tuple(tensor for *_, tensor in numbers), tuple(tuple(sorted(indices)) for indices in live)


def lowered_steps(graph: Graph, precisions: Mapping[str, Precision]) -> tuple[tuple[LiveTensor, ...], Steps]:
    """The tensors and steps of the graph that is left for given precisions: its nodes, quantizers included, in their
    order, and one width for every tensor. Layers that ``precisions`` does not name are float.
    """
    low = lowered(graph, frozenset(name for name, precision in precisions.items() if precision in EIGHT_BITS))
    flow = low.flow
    tensors: list[LiveTensor] = []
    live: list[list[int]] = [[] for _ in range(2 * len(flow.nodes))]
    buffers = allocate(flow, tuple(tensor.name for tensor in graph.inputs), low.together)
    relaid = {name: buffer.first for buffer in buffers if buffer.is_relaid for name in buffer.members}
    for place, buffer in enumerate(buffers):
        kept = not buffer.is_relaid and (buffer.is_input or not flow.outputs.isdisjoint(buffer.members))
        name = buffer.members[-1]
        width = max(1, buffer.dtype.bitwidth // 8)
        tensors.append(
            LiveTensor(
                name=low.origins.get(name, name),
                elements=buffer.elements,
                large_bytes=width,
                small_bytes=0,
                deciders=(),
                domain="float",
                is_float=buffer.dtype == ir.DataType.FLOAT and not kept,
                buffer=-1 if kept else place,
            )
        )
        first, last = 2 * buffer.first + (not kept), 2 * buffer.last + 1
        if name in low.origins and name in relaid:  # quantized, and then laid out for a convolution
            first, last = (2 * buffer.first, last) if buffer.is_relaid else (first, 2 * relaid[name])
        for step in range(first, last + 1):
            live[step].append(place)
    return tuple(tensors), tuple(tuple(indices) for indices in live)


def peak_activation_bytes(graph: Graph, precisions: Mapping[str, Precision], base: Precision = Precision.FP32) -> int:
    """What a runtime needs for activations: what the caller holds, and the block in which OpenVINO packs the others
    (see `packing`). Layers that ``precisions`` does not name are float; ``base`` is the float type that the model runs
    in.
    """
    tensors, steps = lowered_steps(graph, precisions)
    return arena_bytes(tensors, steps, [t.bytes_in(precisions, base.activation_bits) for t in tensors])


def live_activation_bytes(graph: Graph, precisions: Mapping[str, Precision], base: Precision = Precision.FP32) -> int:
    """The largest sum of live activation bytes over all steps, by the rules that a planner can count with: near what
    `peak_activation_bytes` finds, above it at times.
    """
    tensors, steps = planning_steps(graph)
    sizes = [t.bytes_in(precisions, base.activation_bits) for t in tensors]
    return max((sum(sizes[index] for index in step) for step in steps), default=0)


def arena_bytes(tensors: Sequence[LiveTensor], steps: Sequence[Sequence[int]], sizes_bytes: Sequence[int]) -> int:
    """What the caller holds + the packed block, for the tensors and steps of `lowered_steps` with these sizes."""
    caller = {index for step in steps for index in step if tensors[index].buffer < 0}
    return sum(sizes_bytes[index] for index in caller) + packed_bytes(blocks_of(tensors, steps, sizes_bytes))


def blocks_of(tensors: Sequence[LiveTensor], steps: Sequence[Sequence[int]], sizes_bytes: Sequence[int]) -> list[Block]:
    """The tensors between inputs and outputs. Those of one size that follow each other in one buffer are one block."""
    held: dict[tuple[int, int, int], list[int]] = {}  # buffer, size and how many of these before, to steps
    for at, live in enumerate(steps):
        seen: dict[tuple[int, int], int] = {}
        for index in live:
            key = (tensors[index].buffer, sizes_bytes[index])
            if min(key) >= 0 and key[1]:
                number = seen[key] = seen.get(key, -1) + 1
                held.setdefault((*key, number), []).append(at)
    found = []
    for (_, size_bytes, _), during in held.items():
        starts = [at for before, at in zip([-2, *during], during, strict=False) if at != before + 1]
        ends = [at for at, after in zip(during, [*during[1:], -2], strict=True) if after != at + 1]
        found += [Block(first, last, size_bytes) for first, last in zip(starts, ends, strict=True)]
    return found


class _Part(NamedTuple):
    """Memory that a value takes for a while: the value itself, or a copy of it in 8 bit. See `LiveTensor`."""

    deciders: Layers
    small_bytes: int = 0
    is_copy: bool = False
    domain: Literal["float", "int8"] = "float"
    int8_guards: Layers = frozenset()
    number: int = 0  # tells a second such part from the first


def _copy(wanted_by: Layers) -> _Part:
    return _Part(wanted_by, is_copy=True, domain="int8")


class _Reader(NamedTuple):
    step: int
    demand: Demand


@dataclass(frozen=True)
class _Memory:
    """What each buffer takes, and when. Steps are counted twice here: 2 s is before node s, 2 s + 1 is node s."""

    flow: Flow
    layers: Mapping[str, tuple[str, ...]]
    demands: Mapping[tuple[int, str], Demand]
    adds: Mapping[int, Layers]
    passes: Mapping[int, Pass]

    def parts(self, buffer: Buffer, relaid: bool) -> Iterator[tuple[str, int, int, _Part]]:
        """Name, first and last step, and the part."""
        name = buffer.members[-1]
        kept = buffer.is_input or not self.flow.outputs.isdisjoint(buffer.members)
        if buffer.dtype != ir.DataType.FLOAT or kept:
            yield name, 2 * buffer.first + (not kept), 2 * buffer.last + 1, _Part(frozenset())
            if buffer.dtype == ir.DataType.FLOAT:
                yield from self._copies(buffer, relaid)
            return
        ended: Phase | None = None
        for phase, after in zip(buffer.phases, [*buffer.phases[1:], None], strict=True):
            for first, last, parts in self._of_phase(buffer, phase, ended, after):
                for part in parts:
                    yield name, first, last, part
            ended = phase

    def _copies(self, buffer: Buffer, relaid: bool) -> Iterator[tuple[str, int, int, _Part]]:
        """Of what the caller holds, for int8 readers. What convolutions read is laid out afterwards in another copy."""
        readers = [r for phase in buffer.phases for r in self._readers(buffer, phase)]
        wanting = [r for r in readers if r.demand.int8_if]
        for place, reader in enumerate(wanting[:1] if relaid else wanting):
            first = 2 * (wanting[place - 1].step + 1 if place else reader.step)
            left = both(r.demand for r in wanting[place:]).int8_if
            yield buffer.members[-1], first, 2 * reader.step + (not relaid), _copy(left)

    def _readers(self, buffer: Buffer, phase: Phase) -> list[_Reader]:
        """In the order of execution; what is computed in one pass reads until its end."""
        found: dict[int, Demand] = {}
        for name in phase.members:
            for step in self.flow.readers[name]:
                if step in buffer.readers:
                    last = self.passes[step].last if step in self.passes else step
                    found[last] = both((found.get(last, NOTHING), self.demands[step, name]))
        return [_Reader(*item) for item in sorted(found.items())]

    def _of_phase(
        self, buffer: Buffer, phase: Phase, ended: Phase | None, after: Phase | None
    ) -> Iterator[tuple[int, int, list[_Part]]]:
        """First and last step with what is held then. A phase that takes another's place begins with it."""
        readers = self._readers(buffer, phase)
        if after is not None:
            name = phase.members[-1]
            wanted = both(self.demands[step, name] for step in self.flow.readers[name] if step in buffer.internal)
            readers = [*(r for r in readers if r.step < after.first), _Reader(after.first, wanted)]
        made = self._made_by(phase)
        begin = 2 * phase.first + 1
        if not readers:
            yield begin, 2 * buffer.last + 1, _held(Demand(made))
            return
        everything = both(r.demand for r in readers)
        if len(phase.makers) > 1:
            yield from self._summed(phase, made, readers)
        if ended is not None and len(phase.makers) == 1:  # an elementwise function, in the place of its source
            yield begin, begin, [_copy(everything.int8_if)] if everything.int8_if else []
            begin += 1
        end = 2 * readers[-1].step + 1
        if after is not None and len(after.makers) > 1:
            end -= 1  # the convolution that adds to it counts it then
        if made == frozenset():
            yield from _both_at_once(begin, readers, end)
        elif len(readers) == 1:
            yield from _copied_at_once(begin, made, readers[0], end)
        else:
            yield from _copied_when_read(begin, made, readers, end)

    def _summed(
        self, phase: Phase, made: Layers | None, readers: list[_Reader]
    ) -> Iterator[tuple[int, int, list[_Part]]]:
        """What an int8 convolution takes besides, where the tensor that it would add to by the way is float: its own
        result, the sum where that is written over nothing, and the sum in 8 bit, which comes out at once.
        """
        conv, add = phase.makers
        layer = frozenset({self.flow.nodes[conv].name or ""})
        if made is not None and made <= layer:
            return
        floats = frozenset() if made is None else made - layer
        alone = _Part(floats, int8_guards=layer)
        yield 2 * conv + 1, 2 * add + 1, [alone]
        everything = both(r.demand for r in readers)
        in_both = bool(everything.int8_if) and everything.int8_if != everything.float_if
        if in_both or any(len(self.flow.readers[name]) > 1 for name in self.flow.reads[add]):
            yield 2 * add + 1, 2 * add + 1, [alone._replace(number=1)]
        wanting = [r.step for r in readers if r.demand.int8_if]
        if made is None and in_both and 2 * wanting[0] > 2 * add + 1:
            early = _copy(everything.int8_if)._replace(int8_guards=layer)
            yield 2 * add + 1, 2 * wanting[0] - 1, [early]

    def _made_by(self, phase: Phase) -> Layers | None:
        """The layers that must be int8 for it to come out in 8 bit; ``None``: it never does."""
        if phase.makers and phase.makers[0] in self.passes:
            return frozenset()
        if len(phase.makers) > 1:
            return self.adds.get(phase.makers[1])
        return frozenset(name for step in phase.makers if (name := self.flow.nodes[step].name or "") in self.layers)


def _both_at_once(begin: int, readers: list[_Reader], end: int) -> Iterator[tuple[int, int, list[_Part]]]:
    """What is wanted comes out of no layer: in the widths that are wanted."""
    for place, reader in enumerate(readers):
        last = end if place == len(readers) - 1 else 2 * reader.step + 1
        yield begin, last, _held(both(r.demand for r in readers[place:]))
        begin = last + 1


def _copied_at_once(
    begin: int, made: Layers | None, reader: _Reader, end: int
) -> Iterator[tuple[int, int, list[_Part]]]:
    """The one reader of a layer's result has its copy made as soon as that is there."""
    yield begin, begin, _held(_joined(Demand(made), reader.demand.float_if))
    yield begin + 1, begin + 1, _held(_joined(reader.demand, made))
    yield begin + 2, end, _held(reader.demand)


def _copied_when_read(
    begin: int, made: Layers | None, readers: list[_Reader], end: int
) -> Iterator[tuple[int, int, list[_Part]]]:
    """Where there are more, the copy is made right before the first that wants it. Of two readers this is exact; of
    more it may count a width that nothing reads any longer.
    """
    demands = [r.demand for r in readers]
    yield begin, 2 * readers[0].step - 1, _held(_joined(Demand(made), both(demands).float_if))
    for place, reader in enumerate(readers):
        at, left = 2 * reader.step, both((*demands[:1], *demands[place:])).float_if
        copied = demands[0].int8_if if place == 0 else both(demands[place:]).int8_if
        yield at, at, _held(Demand(_union(left, made) if place == 0 else left, copied))
        if place == len(readers) - 1:
            yield at + 1, end, _held(reader.demand)
            return
        yield at + 1, at + 1, _held(Demand(left, copied))
        rest = both((*demands[:1], *demands[place + 1 :]))
        wanted = both(demands[place + 1 :]).int8_if if place + 2 < len(readers) else frozenset()
        yield at + 2, 2 * readers[place + 1].step - 1, _held(Demand(rest.float_if, wanted))


def _union(one: Layers | None, other: Layers | None) -> Layers | None:
    return None if one is None or other is None else one | other


def _joined(demand: Demand, float_if: Layers | None) -> Demand:
    return Demand(_union(demand.float_if, float_if), demand.int8_if)


def _held(demand: Demand) -> list[_Part]:
    """The value in the widths that are wanted: one part where it is one or the other, two where it can be both."""
    if demand.float_if is None:
        value = _Part(frozenset())
    elif not demand.int8_if or (demand.int8_if == demand.float_if and len(demand.float_if) == 1):
        return [_Part(demand.float_if, 1)]
    else:
        value = _Part(demand.float_if)
    return [value, _copy(demand.int8_if)] if demand.int8_if else [value]
