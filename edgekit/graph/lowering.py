"""The graph that OpenVINO's CPU plugin makes of a model whose layers run in given precisions.

It is an ONNX graph again, in which the type of each tensor says its width: FLOAT, or UINT8 where it is held in 8 bit.
Read from the plugin's runtime model (`CompiledModel.get_runtime_model`) (low precision transformations,
and `graph_optimizer.cpp` of the plugin), release 2026.4:

- Every tensor that an int8 layer reads is quantized once, before the views and max-poolings that lead to the layer.
  Those run in 8 bit then; where something reads their float result, they run a second time for it.
- A concatenation that only an int8 layer reads is quantized operand by operand, on its own grid: an operand that an
  int8 layer reads too is quantized twice (MoveFakeQuantize).
- Quantizing is a part of the int8 layer, its activation and its residual Add, and of attention, global pooling,
  resizing, reducing and instance normalisation, where nothing else reads their result: they put out 8 bit. Two
  quantizers are two readers.
- What is computed elementwise, by no kernel on the side, comes out in all widths that are wanted in one pass.
- An int8 convolution that adds to an 8-bit tensor on the side, and must put out float, has that tensor made float right
  before it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.graph.buffers import KERNEL_OPS
from edgekit.graph.demands import TRANSPARENT_OPS, layers_fed_by, quantizable_adds
from edgekit.graph.flow import Flow, flow_of, is_op, sums_of
from edgekit.graph.layers import elements_of
from edgekit.graph.load import Graph
from edgekit.graph.passes import QUANTIZE, done_by_kernel, find_passes

_WIDEN = "Cast"
# What takes the quantizing of its result on, besides layers.
_TAKES_QUANTIZING = frozenset({
    "GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "MeanVarianceNormalization", "ReduceL1", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Resize",
})  # fmt: skip
_BIT = ir.DataType.UINT8


@dataclass(frozen=True)
class Lowered:
    """The graph and its ``flow``. ``origins`` are the tensors of the model that new ones are made from, ``together``
    the quantizers that are computed in one pass with what they read: several results come out at once.
    """

    flow: Flow
    origins: Mapping[str, str]
    together: frozenset[str]


def lowered(graph: Graph, int8: Collection[str]) -> Lowered:
    """The graph with the layers named ``int8`` in 8 bit and all others in float."""
    if not int8:
        return Lowered(flow_of(graph.model), {}, frozenset())
    flow = flow_of(graph.model)
    chosen = frozenset(int8)
    layers = frozenset(layer.name for layer in graph.layers)
    adds = [flow.nodes[step] for step, needed in quantizable_adds(flow, layers).items() if needed <= chosen]
    glue = [add.name for add in adds if not chosen.isdisjoint(layers_fed_by(add, layers))]
    made = _Lowering(graph.model.clone())
    nodes = {node.name: node for node in made.body}
    for layer in graph.layers:
        if layer.name in chosen:
            made.read_quantized(nodes[layer.name], layer.inputs)
    for name in glue:
        made.read_quantized(nodes[name], [v.name or "" for v in nodes[name].inputs if v is not None])
    made.drop_unread()
    made.push_before_concats()
    made.put_out_in_8_bit(chosen)
    alone = made.sum_in_8_bit(chosen)
    made.scale_apart(chosen)
    together = _together(flow_of(made.model, alone))
    return Lowered(flow_of(made.model, alone, together), made.origins, together)


def _together(flow: Flow) -> frozenset[str]:
    """Quantizers of what is computed elementwise, and by no kernel on the side, where it has other readers too."""
    passes = find_passes(flow)
    sums = {flow.nodes[add].outputs[0].name for add, _ in flow.sums.values()}
    found: set[str] = set()
    for step, node in enumerate(flow.nodes):
        name = node.outputs[0].name or ""
        readers = [flow.nodes[reader] for reader in flow.readers[name]]
        if step not in passes or is_op(node, QUANTIZE) or len(readers) < 2:
            continue
        sources = passes[step].sources
        maker = flow.values[sources[0]].producer()
        steps = [flow.nodes[at] for at in passes[step].steps]
        on_side = all(done_by_kernel(one) or is_op(one, "Softmax", QUANTIZE) for one in steps)
        by_kernel = on_side and (sources[0] in sums or (maker is not None and is_op(maker, *KERNEL_OPS)))
        if len(sources) > 1 or not by_kernel:
            found |= {reader.name or "" for reader in readers if is_op(reader, QUANTIZE)}
    return frozenset(found)


class _Lowering:
    def __init__(self, model: ir.Model) -> None:
        self.model, self.body = model, model.graph
        self.origins: dict[str, str] = {}
        self._values = {v.name: v for v in (*self.body.inputs, *(o for node in self.body for o in node.outputs))}
        self._quantized: dict[str, ir.Value] = {}

    def read_quantized(self, node: ir.Node, names: Collection[str]) -> None:
        """Let the node read these of its inputs in 8 bit."""
        for place, value in enumerate(node.inputs):
            if value is not None and value.name in names and value.name in self._values:
                node.replace_input_with(place, self._in_8_bit(value))

    def _in_8_bit(self, value: ir.Value) -> ir.Value:
        name = value.name or ""
        if name not in self._quantized:
            node = value.producer()
            source = node.inputs[0] if node is not None and is_op(node, *TRANSPARENT_OPS) else None
            if node is None or source is None or source.is_initializer():
                self._quantized[name] = self._made(QUANTIZE, [value], value, _BIT)
            else:
                inputs = [self._in_8_bit(source), *node.inputs[1:]]
                self._quantized[name] = self._made(node.op_type, inputs, value, _BIT, node)
        return self._quantized[name]

    def _made(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        like: ir.Value,
        dtype: ir.DataType,
        twin: ir.Node | None = None,
    ) -> ir.Value:
        attributes = {} if twin is None else twin.attributes
        origin = like.name or ""
        name = f"{self.origins.get(origin, origin)}/{op_type}/{len(self.origins)}"
        node = ir.node(op_type, inputs, attributes, name=name)
        (made,) = node.outputs
        made.name, made.shape, made.type = name, like.shape, ir.TensorType(dtype)
        self.body.append(node)
        self.origins[name] = self.origins.get(origin, origin)
        return made

    def drop_unread(self) -> None:
        """Nodes whose float result nothing reads any longer."""
        waiting = list(self.body)
        while waiting:
            node = waiting.pop()
            if node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
                continue
            sources = {maker for v in node.inputs if v is not None and (maker := v.producer()) is not None}
            self.body.remove(node, safe=True)
            waiting += sources

    def push_before_concats(self) -> None:
        for node in list(self.body):
            if node.graph is None or not is_op(node, QUANTIZE):
                continue
            relu = self._only_maker(node, "Relu")
            concat = self._only_maker(relu or node, "Concat")
            if concat is None:
                continue
            for place, operand in enumerate(concat.inputs):
                if operand is None or operand.is_initializer():
                    continue
                if relu is not None:
                    operand = self._made("Relu", [operand], operand, ir.DataType.FLOAT)
                concat.replace_input_with(place, self._made(QUANTIZE, [operand], operand, _BIT))
            _hold(concat.outputs[0], _BIT)
            self._skip(node)
            if relu is not None:
                self._skip(relu)

    def _only_maker(self, node: ir.Node, op_type: str) -> ir.Node | None:
        """What makes the first input of a node, if it is of that type and nothing else reads it."""
        value = node.inputs[0]
        maker = value.producer() if value is not None else None
        if value is None or maker is None or value.is_graph_output() or len(value.uses()) != 1:
            return None
        return maker if is_op(maker, op_type) else None

    def _skip(self, node: ir.Node) -> None:
        """Let the readers of a node read what it reads."""
        (source,) = (v for v in node.inputs[:1] if v is not None)
        for use in list(node.outputs[0].uses()):
            use.node.replace_input_with(use.idx, source)
        self.body.remove(node, safe=True)

    def put_out_in_8_bit(self, int8: Collection[str]) -> None:
        """Quantizing becomes a part of the int8 layers, and of the operators that take it on."""
        flow = flow_of(self.model)
        attention = {flow.nodes[one.last].name or "" for one in find_passes(flow).values() if not one.elementwise}
        taking = attention.union(int8)
        for node in list(self.body):
            if is_op(node, QUANTIZE) and (inside := self._taking_it_on(node, taking)):
                for value in inside:
                    _hold(value, _BIT)
                self._skip(node)

    def _taking_it_on(self, quantize: ir.Node, kernels: Collection[str]) -> list[ir.Value]:
        """The values, from the result of a kernel to what is quantized, that are not stored in float; empty where
        nothing takes the quantizing on.
        """
        readers: set[ir.Node] = {quantize}
        inside: list[ir.Value] = []
        waiting: dict[ir.Value | None, None] = dict.fromkeys(quantize.inputs)
        while waiting:
            value = next((v for v in waiting if v is not None and readers.issuperset(v.consumers())), None)
            maker = None if value is None or value.is_graph_output() else value.producer()
            if value is None or maker is None:
                return []
            del waiting[value]
            inside.append(value)
            if maker.name in kernels or is_op(maker, *_TAKES_QUANTIZING):
                return inside if not waiting else []
            if not done_by_kernel(maker):
                return []
            readers.add(maker)
            waiting.update(dict.fromkeys(v for v in maker.inputs if v is not None and not v.is_initializer()))
        return []

    def sum_in_8_bit(self, int8: Collection[str]) -> frozenset[str]:
        """Residual Adds that int8 convolutions do on the side. The convolutions that do not are returned."""
        alone: frozenset[str] = frozenset()
        while found := {
            conv.name or ""
            for conv, (_, peer) in sums_of(self.model, alone).items()
            if conv.name in int8 and {conv.outputs[0].dtype, peer.dtype} != {_BIT}
        }:
            alone |= found
        place = {node: number for number, node in enumerate(flow_of(self.model, alone).nodes)}
        for conv, (add, _) in sorted(sums_of(self.model, alone).items(), key=lambda item: place[item[1][0]]):
            if (conv.name or "") not in int8:
                continue
            (peer,) = (v for v in add.inputs if v is not None and v is not conv.outputs[0])
            ends, quantize = self._quantized_at(add)
            if quantize is not None:
                for value in ends:
                    _hold(value, _BIT)
                self._skip(quantize)
            else:
                _hold(conv.outputs[0], ir.DataType.FLOAT)
                widened = self._made(_WIDEN, [peer], peer, ir.DataType.FLOAT)
                add.replace_input_with(list(add.inputs).index(peer), widened)
                self._rescale(ends[-1])
        return alone

    def scale_apart(self, int8: Collection[str]) -> None:
        """What quantizes a number times something, or an average of that, knows the number: an int8 layer's scale, or
        one of the model's own. What else reads it gets it multiplied.
        """
        for node in list(self.body):
            if not any(is_op(reader, QUANTIZE) for reader in node.outputs[0].consumers()):
                continue
            averaged = is_op(node, "AveragePool")
            scaled = False
            maker: ir.Node | None = node
            while maker is not None and (done_by_kernel(maker) or (maker is node and averaged)):
                scaled |= is_op(maker, "Add", "Div", "Mul", "Sub") and any(_is_number(v) for v in maker.inputs)
                if not averaged:
                    break
                maker = next((v.producer() for v in maker.inputs if v is not None and not v.is_initializer()), None)
            if scaled or (averaged and maker is not None and maker.name in int8):
                self._rescale(node.outputs[0])

    def _rescale(self, total: ir.Value) -> None:
        """A sum in float is still on the grid of what was summed: quantizers know, other readers get it scaled."""
        others: list[tuple[ir.Node, int]] = []
        for use in list(total.uses()):
            if is_op(use.node, "MaxPool"):
                self._rescale(use.node.outputs[0])
            elif not is_op(use.node, QUANTIZE):
                others.append((use.node, use.idx))
        if others:
            scaled = self._made("Mul", [total], total, ir.DataType.FLOAT)
            for node, place in others:
                node.replace_input_with(place, scaled)

    def _quantized_at(self, add: ir.Node) -> tuple[list[ir.Value], ir.Node | None]:
        """The results of an Add and of the activations after it, and the one quantizer that reads the last."""
        values = [add.outputs[0]]
        while len(values[-1].uses()) == 1 and not values[-1].is_graph_output():
            (reader,) = values[-1].consumers()
            if is_op(reader, QUANTIZE):
                return values, reader
            sources = [v for v in reader.inputs if v is not None and not v.is_initializer()]
            if not done_by_kernel(reader) or len(sources) != 1:
                break
            values.append(reader.outputs[0])
        return values, None


def _is_number(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and elements_of(value) == 1


def _hold(value: ir.Value, dtype: ir.DataType) -> None:
    """A new type: the one it has may be shared with the model that this was cloned from."""
    value.type = ir.TensorType(dtype)
