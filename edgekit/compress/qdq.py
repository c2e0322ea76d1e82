"""Writes a plan into the graph as QuantizeLinear / DequantizeLinear pairs and quantized weights: the hub format that
every backend starts from.

Conventions, each one because runtimes fall back to float without it (OpenVINO's low precision transformations,
https://docs.openvino.ai/2025/documentation/openvino-extensibility/openvino-plugin-library/advanced-guides/low-precision-transformations.html):

- weights int8, symmetric, one scale an output channel; biases stay float;
- activations uint8, asymmetric, one scale a tensor, one shared pair for all int8 readers of the tensor;
- a residual Add between int8 layers reads quantized inputs as well, so that the block never leaves int8;
- a pair stands before the views and max-poolings that lead to the layer, so that these run in 8 bits too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.compress.weights import affine_parameters, quantize_weights
from edgekit.types import Precision

if TYPE_CHECKING:
    from edgekit.compress.observers import Range
    from edgekit.graph import Graph

# Quantizing commutes with these, so the pair may stand before them.
TRANSPARENT = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "MaxPool", "Identity"})
# Runtimes fuse these into the producing layer; what they put out is what is quantized.
_FUSED_ACTIVATIONS = frozenset({"Relu", "Clip"})
# Where a node's metadata says its precision.
PRECISION = "edgekit.precision"
_PASSING = TRANSPARENT | _FUSED_ACTIVATIONS | {"QuantizeLinear", "DequantizeLinear"}


def quantization_point(value: ir.Value) -> ir.Value:
    """The tensor whose range decides the scale when ``value`` is read in int8: ``value`` itself, or the tensor before
    the views and max-poolings that lead to it.
    """
    while (node := value.producer()) is not None and node.op_type in TRANSPARENT and node.domain == "":
        source = node.inputs[0]
        if source is None or source.is_initializer():
            break
        value = source
    return value


def result_point(value: ir.Value) -> ir.Value:
    """The tensor whose range decides the scale of what an int8 layer writes: its result ``value``, or what the
    activations make of it that runtimes fuse into the layer.
    """
    while not value.is_graph_output():
        readers = list(value.consumers())
        if len(readers) != 1 or readers[0].op_type not in _FUSED_ACTIVATIONS or readers[0].domain != "":
            break
        value = readers[0].outputs[0]
    return value


def quantization_points(graph: Graph, results: bool = False) -> tuple[str, ...]:
    """Every tensor that some plan may quantize, sorted: the tensors whose ranges must be observed. With ``results``,
    what the layers write too.
    """
    values = _values(graph.model.graph)
    points = {quantization_point(values[name]).name for layer in graph.layers for name in layer.inputs}
    if results:
        points |= {result_point(values[layer.output]).name for layer in graph.layers}
    for node in graph.model.graph:
        if _is_residual_add(node):
            points |= {quantization_point(value).name for value in node.inputs if value is not None}
    return tuple(sorted(name for name in points if name))


def apply_precisions(
    graph: Graph, precisions: Mapping[str, Precision], ranges: Mapping[str, Range], results: bool = False
) -> ir.Model:
    """A copy of the graph in which each layer named in ``precisions`` carries its precision.

    ``ranges`` must hold every tensor of `quantization_points` that the int8 layers read. Layers that are missing in
    ``precisions``, or are planned in a float precision, stay as they are.

    With ``results``, for runtimes whose int8 operators write 8 bits as well, the results of int8 layers are quantized
    whoever reads them, and each planned node says its precision under `PRECISION` in its metadata: what reads quantized
    values may still be float then.
    """
    model = graph.model.clone()
    body = model.graph
    values = _values(body)
    nodes = {node.name: node for node in body}
    names = _Names(model)
    weighted = [layer for layer in graph.layers if precisions.get(layer.name) in (Precision.INT8, Precision.W8)]
    for layer in weighted:
        for weight in layer.weights:
            _quantize_weight(body, names, nodes[layer.name], weight, layer.weight_axis)
    int8 = [layer for layer in graph.layers if precisions.get(layer.name) is Precision.INT8]
    pairs = _Pairs(body, names, ranges)
    for layer in int8:
        node = nodes[layer.name]
        for name in layer.inputs:
            _read_quantized(node, values[name], pairs)
    adds = _int8_adds(body, {layer.name for layer in int8})
    for add in adds:
        for value in list(add.inputs):
            if value is not None:
                _read_quantized(add, value, pairs)
    if results:
        for layer in graph.layers:
            if layer.name in precisions:
                nodes[layer.name].metadata_props[PRECISION] = precisions[layer.name].value
        for add in adds:
            add.metadata_props[PRECISION] = Precision.INT8.value
        for node in (*(nodes[layer.name] for layer in int8), *adds):
            _write_quantized(body, node, pairs, names)
    body.sort()
    return model


class _Names:
    """Names that nothing in the model has yet, in subgraphs neither: a name must be unique among all of them."""

    def __init__(self, model: ir.Model) -> None:
        self._taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            self._taken |= {node.name, *(value.name for value in node.outputs)}
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    inner = attribute.as_graph()
                    self._taken |= {value.name for value in (*inner.inputs, *inner.initializers.values())}

    def fresh(self, wish: str) -> str:
        """``wish``, or where that is taken, with underscores after it."""
        while wish in self._taken:
            wish += "_"
        self._taken.add(wish)
        return wish


class _Pairs:
    """The one shared Q/DQ pair of each tensor, made when it is first asked for."""

    def __init__(self, body: ir.Graph, names: _Names, ranges: Mapping[str, Range]) -> None:
        self._body = body
        self._names = names
        self._ranges = ranges
        self._made: dict[str, ir.Value] = {}  # tensor -> dequantized tensor
        self._twins: dict[str, ir.Value] = {}  # view of a tensor -> the same view of the dequantized tensor

    def dequantized(self, value: ir.Value) -> ir.Value:
        name = value.name or ""
        if name not in self._made:
            scale, zero_point = affine_parameters(self._ranges[name])
            fresh = self._names.fresh
            parameters = [
                _initializer(self._body, fresh(f"{name}/scale"), np.float32(scale)),
                _initializer(self._body, fresh(f"{name}/zero_point"), np.uint8(zero_point)),
            ]
            quantize = _node(
                "QuantizeLinear", [value, *parameters], fresh(f"{name}/quantize"), ir.DataType.UINT8, value.shape
            )
            dequantize = _node(
                "DequantizeLinear",
                [quantize.outputs[0], *parameters],
                fresh(f"{name}/dequantize"),
                ir.DataType.FLOAT,
                value.shape,
            )
            self._body.extend([quantize, dequantize])
            self._made[name] = dequantize.outputs[0]
        return self._made[name]

    def through(self, value: ir.Value) -> ir.Value:
        """``value`` as int8 readers see it: the views between the quantization point and it are repeated on the
        quantized side, so that float readers of the same tensor are not touched.
        """
        point = quantization_point(value)
        if value is point:
            return self.dequantized(value)
        name = value.name or ""
        if name not in self._twins:
            node = value.producer()
            assert node is not None
            source = node.inputs[0]
            assert source is not None
            inputs = [self.through(source), *node.inputs[1:]]
            twin = ir.node(node.op_type, inputs, node.attributes, name=self._names.fresh(f"{node.name}/quantized"))
            made = twin.outputs[0]
            made.name, made.shape, made.dtype = self._names.fresh(f"{name}/quantized"), value.shape, ir.DataType.FLOAT
            self._body.append(twin)
            self._twins[name] = made
        return self._twins[name]


def _read_quantized(node: ir.Node, value: ir.Value, pairs: _Pairs) -> None:
    quantized = pairs.through(value)
    for index, current in enumerate(node.inputs):
        if current is value:
            node.replace_input_with(index, quantized)


def _write_quantized(body: ir.Graph, node: ir.Node, pairs: _Pairs, names: _Names) -> None:
    """Let every reader of a node's result, and the caller of the model, see it quantized."""
    value = result_point(node.outputs[0])
    dequantized = pairs.dequantized(value)
    made = dequantized.producer()
    quantize = made.inputs[0].producer() if made is not None and made.inputs[0] is not None else None
    for use in list(value.uses()):
        if use.node is not quantize:
            use.node.replace_input_with(use.idx, dequantized)
    for place, output in enumerate(body.outputs):
        if output is value:
            name = value.name or ""
            value.name, dequantized.name = names.fresh(f"{name}/float"), name
            body.outputs[place] = dequantized


def _quantize_weight(body: ir.Graph, names: _Names, node: ir.Node, name: str, axis: int) -> None:
    weight = body.initializers[name]
    assert weight.const_value is not None
    array = weight.const_value.numpy()
    if axis < 0:  # no output channels (a vector): one scale
        codes, scale = quantize_weights(array.reshape(1, -1), 0)
        codes, scale = codes.reshape(array.shape), scale.reshape(())
    else:
        codes, scale = quantize_weights(array, axis)
    prefix = f"{node.name}/{name}"
    inputs = [
        _initializer(body, names.fresh(f"{prefix}/int8"), codes),
        _initializer(body, names.fresh(f"{prefix}/scale"), scale),
        _initializer(body, names.fresh(f"{prefix}/zero_point"), np.zeros(scale.shape, np.int8)),
    ]
    dequantize = _node(
        "DequantizeLinear",
        inputs,
        names.fresh(f"{prefix}/dequantize"),
        ir.DataType.FLOAT,
        weight.shape,
        axis=None if axis < 0 else axis,
    )
    body.append(dequantize)
    for index, current in enumerate(node.inputs):
        if current is weight:
            node.replace_input_with(index, dequantize.outputs[0])
    if not weight.uses():
        del body.initializers[name]


def _is_residual_add(node: ir.Node) -> bool:
    """An Add of two activations of the same shape."""
    if node.op_type != "Add" or node.domain != "" or len(node.inputs) != 2:
        return False
    first, second = node.inputs
    if first is None or second is None or first is second or first.is_initializer() or second.is_initializer():
        return False
    return first.shape is not None and first.shape == second.shape and first.dtype == ir.DataType.FLOAT


def _int8_adds(body: ir.Graph, int8: set[str]) -> list[ir.Node]:
    """Residual Adds whose producers are int8 layers (or such Adds) and whose result an int8 layer reads."""
    found: dict[str, ir.Node] = {}
    for node in list(body):
        if not _is_residual_add(node):
            continue
        sources = [_producing(value) for value in node.inputs if value is not None]
        if all(source is not None and (source.name in int8 or source.name in found) for source in sources):
            found[node.name or ""] = node
    return [add for add in found.values() if _feeds_int8(add, int8)]


def _producing(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    while node is not None and node.op_type in _PASSING:
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    return node


def _feeds_int8(node: ir.Node, int8: set[str]) -> bool:
    seen, waiting = {node}, [node]
    while waiting:
        for reader in waiting.pop().outputs[0].consumers():
            if reader.name in int8:
                return True
            if reader.op_type in (_PASSING | {"Add"}) and reader not in seen:
                seen.add(reader)
                waiting.append(reader)
    return False


def _node(
    op_type: str,
    inputs: list[ir.Value],
    name: str,
    dtype: ir.DataType,
    shape: ir.Shape | None,
    axis: int | None = None,
) -> ir.Node:
    node = ir.node(op_type, inputs, {} if axis is None else {"axis": axis}, name=name)
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = name, dtype, shape
    return node


def _initializer(body: ir.Graph, name: str, array: np.ndarray | np.generic) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
    value.dtype = ir.DataType.from_numpy(np.asarray(array).dtype)
    value.shape = ir.Shape(np.asarray(array).shape)
    body.register_initializer(value)
    return value


def _values(body: ir.Graph) -> dict[str, ir.Value]:
    values = {value.name: value for value in body.inputs if value.name}
    for node in body:
        values |= {value.name: value for value in node.outputs if value.name}
    return values
