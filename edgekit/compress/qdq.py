"""Writes a plan into the graph as QuantizeLinear / DequantizeLinear pairs and quantized weights: the hub format that
every backend starts from.

Conventions, each one because runtimes fall back to float without it (OpenVINO's low precision transformations,
https://docs.openvino.ai/2025/documentation/openvino-extensibility/openvino-plugin-library/advanced-guides/low-precision-transformations.html):

- weights int8, symmetric, one scale an output channel; biases stay float;
- activations uint8, asymmetric, one scale a tensor, one shared pair for all int8 readers of the tensor;
- a residual Add between int8 layers reads quantized inputs as well, so that the block never leaves int8;
- a pair stands before the views and max-poolings that lead to the layer, so that these run in 8 bits too.

fp8 is TensorRT's alone: one scale a tensor, for activations and weights, and the pair right before the operator, where
TensorRT looks for it (https://github.com/NVIDIA/Model-Optimizer/pull/1289 moves transposes to the other side of it).

Two precisions are TFLite's alone (https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec):
int16x8 with int16 activations, symmetric over what the 8-bit grid of the tensor spans, and w4 with weights in -7 .. 7,
clipped where that lowers their squared error, and stored in bytes here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from edgekit.compress import float8
from edgekit.compress.observers import Range
from edgekit.compress.weights import Codes, WeightObserver, affine_parameters, quantize_weights, symmetric_parameters
from edgekit.graph.raising import raise_to
from edgekit.types import Precision

if TYPE_CHECKING:
    from edgekit.graph import Graph

# Quantizing commutes with these, so the pair may stand before them.
TRANSPARENT = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "MaxPool", "Identity"})
# Runtimes fuse these into the producing layer; what they put out is what is quantized.
_FUSED_ACTIVATIONS = frozenset({"Relu", "Clip"})
# ONNX has 16-bit pairs since opset 21; onnxruntime has had them in this domain for long.
CONTRIB = "com.microsoft"
# Codes of what a layer of that precision reads and writes.
_GRIDS = {Precision.INT8: ir.DataType.UINT8, Precision.INT16X8: ir.DataType.INT16, Precision.FP8: float8.GRID}
_WEIGHTS_QUANTIZED = frozenset({*_GRIDS, Precision.W8, Precision.W4})
# Besides sums: what TFLite computes in int8 as it is, between int8 layers.
_RESULTS_GLUE = frozenset({"Concat", "GlobalAveragePool", "Mul", "Resize"})
# Functions of each value: XNNPACK makes one table of a chain of them between two quantized tensors, where pairs inside
# would cost more.
_FUNCTIONS = frozenset({"HardSigmoid", "HardSwish", "Sigmoid", "Tanh"})
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
        if _is_glue(node, results):
            points |= {quantization_point(value).name for value in _read_by(node)}
            points |= {result_point(node.outputs[0]).name} if results else set()
    return tuple(sorted(name for name in points if name))


def apply_precisions(
    graph: Graph,
    precisions: Mapping[str, Precision],
    ranges: Mapping[str, Range],
    results: bool = False,
    chosen: Mapping[str, Codes] | None = None,
) -> ir.Model:
    """A copy of the graph in which each layer named in ``precisions`` carries its precision; at opset 19 where fp8 is
    planned.

    ``ranges`` must hold every tensor of `quantization_points` that integer layers read. Layers that are missing in
    ``precisions``, or are planned in a float precision, stay as they are.

    With ``results``, for runtimes whose int8 operators write 8 bits as well, the results of int8 layers are quantized
    whoever reads them, and each planned node says its precision under `PRECISION` in its metadata: what reads quantized
    values may still be float then. ``chosen`` are the codes of the weights of some layers, in the bits of their
    precision; all other weights are rounded to the nearest code.
    """
    model = graph.model.clone()
    if Precision.FP8 in precisions.values():
        raise_to(model, float8.OPSET)
    body = model.graph
    values = _values(body)
    nodes = {node.name: node for node in body}
    names = _Names(model)
    for layer in graph.layers:
        if precisions.get(layer.name) in _WEIGHTS_QUANTIZED:
            for weight in layer.weights:
                codes = (chosen or {}).get(layer.name) or nearest_codes(
                    body, weight, layer.weight_axis, precisions[layer.name]
                )
                _write_weight(body, names, nodes[layer.name], weight, layer.weight_axis, codes)
    grids = {name: _GRIDS[p] for name, p in precisions.items() if p in _GRIDS}
    pairs = _Pairs(body, names, ranges)
    for layer in graph.layers:
        if layer.name in grids:
            for name in layer.inputs:
                _read_quantized(nodes[layer.name], values[name], pairs, grids[layer.name])
    glue = _int8_glue(body, {name for name, grid in grids.items() if grid is ir.DataType.UINT8}, results)
    for node in glue:
        for value in _read_by(node):
            _read_quantized(node, value, pairs, ir.DataType.UINT8)
    if results:
        for layer in graph.layers:
            if layer.name in precisions:
                nodes[layer.name].metadata_props[PRECISION] = precisions[layer.name].value
        for node in glue:
            node.metadata_props[PRECISION] = Precision.INT8.value
        for node in (*(nodes[layer.name] for layer in graph.layers if layer.name in grids), *glue):
            _write_quantized(body, node, pairs, names, grids.get(node.name or "", ir.DataType.UINT8))
    if any(node.domain == CONTRIB for node in body):
        body.opset_imports.setdefault(CONTRIB, 1)
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
    """The one shared Q/DQ pair of each tensor and grid, made when it is first asked for."""

    def __init__(self, body: ir.Graph, names: _Names, ranges: Mapping[str, Range]) -> None:
        self._body = body
        self._names = names
        self._ranges = ranges
        self._made: dict[tuple[str, ir.DataType], ir.Value] = {}  # tensor, grid -> dequantized tensor
        # view of a tensor, grid -> the same view of the dequantized tensor
        self._twins: dict[tuple[str, ir.DataType], ir.Value] = {}

    def dequantized(self, value: ir.Value, grid: ir.DataType) -> ir.Value:
        name = value.name or ""
        if (name, grid) not in self._made:
            observed = quantization_point(value) if grid is float8.GRID else value
            scale, zero_point, domain = _pair_parameters(self._ranges[observed.name or ""], grid)
            fresh = self._names.fresh
            parameters = [
                _initializer(self._body, fresh(f"{name}/scale"), scale),
                _initializer(self._body, fresh(f"{name}/zero_point"), zero_point),
            ]
            dtype = ir.DataType.from_numpy(zero_point.dtype)
            quantize = _node(
                "QuantizeLinear", [value, *parameters], fresh(f"{name}/quantize"), dtype, value.shape, domain=domain
            )
            dequantize = _node(
                "DequantizeLinear",
                [quantize.outputs[0], *parameters],
                fresh(f"{name}/dequantize"),
                ir.DataType.FLOAT,
                value.shape,
                domain=domain,
            )
            self._body.extend([quantize, dequantize])
            self._made[name, grid] = dequantize.outputs[0]
        return self._made[name, grid]

    def through(self, value: ir.Value, grid: ir.DataType) -> ir.Value:
        """``value`` as integer readers see it: the views between the quantization point and it are repeated on the
        quantized side, so that float readers of the same tensor are not touched.
        """
        point = quantization_point(value)
        if value is point or grid is float8.GRID:
            return self.dequantized(value, grid)
        name = value.name or ""
        if (name, grid) not in self._twins:
            node = value.producer()
            assert node is not None
            source = node.inputs[0]
            assert source is not None
            inputs = [self.through(source, grid), *node.inputs[1:]]
            twin = ir.node(node.op_type, inputs, node.attributes, name=self._names.fresh(f"{node.name}/quantized"))
            made = twin.outputs[0]
            made.name, made.shape, made.dtype = self._names.fresh(f"{name}/quantized"), value.shape, ir.DataType.FLOAT
            self._body.append(twin)
            self._twins[name, grid] = made
        return self._twins[name, grid]


def _pair_parameters(bounds: Range, grid: ir.DataType) -> tuple[np.float32, np.generic, str]:
    """Scale, zero point, and the domain of operators that have such pairs."""
    if grid is float8.GRID:
        return float8.scale_of(bounds), grid.numpy().type(0), ""
    scale, zero_point = affine_parameters(bounds)
    if grid is ir.DataType.UINT8:
        return scale, np.uint8(zero_point), ""
    ends = Range(-zero_point * float(scale), (255 - zero_point) * float(scale))
    return symmetric_parameters(ends, grid.bitwidth)[0], np.int16(0), CONTRIB


def _read_quantized(node: ir.Node, value: ir.Value, pairs: _Pairs, grid: ir.DataType) -> None:
    quantized = pairs.through(value, grid)
    for index, current in enumerate(node.inputs):
        if current is value:
            node.replace_input_with(index, quantized)


def _write_quantized(body: ir.Graph, node: ir.Node, pairs: _Pairs, names: _Names, grid: ir.DataType) -> None:
    """Let every reader of a node's result, and the caller of the model, see it quantized."""
    value = result_point(node.outputs[0])
    dequantized = pairs.dequantized(value, grid)
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


def nearest_codes(body: ir.Graph, name: str, axis: int, precision: Precision) -> Codes:
    """The codes of the initializer ``name`` by rounding alone, one scale an index of ``axis``; one in all where < 0."""
    constant = body.initializers[name].const_value
    assert constant is not None
    array = constant.numpy()
    if precision is Precision.FP8:
        return float8.float8_codes(array)
    bits: Literal[8, 4] = 4 if precision is Precision.W4 else 8
    observer: WeightObserver = "max-abs" if bits == 8 else "mse"
    if axis < 0:  # no output channels (a vector): one scale
        codes, scale = quantize_weights(array.reshape(1, -1), 0, observer, bits=bits)
        return Codes(codes.reshape(array.shape), scale.reshape(()))
    return Codes(*quantize_weights(array, axis, observer, bits=bits))


def _write_weight(body: ir.Graph, names: _Names, node: ir.Node, name: str, axis: int, weight_codes: Codes) -> None:
    weight = body.initializers[name]
    codes, scale = weight_codes.codes, weight_codes.scale
    prefix = f"{node.name}/{name}"
    inputs = [
        _initializer(body, names.fresh(f"{prefix}/{codes.dtype}"), codes),
        _initializer(body, names.fresh(f"{prefix}/scale"), scale),
        _initializer(body, names.fresh(f"{prefix}/zero_point"), np.zeros(scale.shape, codes.dtype)),
    ]
    dequantize = _node(
        "DequantizeLinear",
        inputs,
        names.fresh(f"{prefix}/dequantize"),
        ir.DataType.FLOAT,
        weight.shape,
        axis=None if axis < 0 or not scale.ndim else axis,
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


def _is_glue(node: ir.Node, results: bool) -> bool:
    """A residual Add; with ``results``, a concatenation with other tensors or zeros, a mean over all pixels, a product
    with a gate and a nearest-neighbour resizing too.
    """
    if not results or node.op_type not in _RESULTS_GLUE or node.domain != "":
        return _is_residual_add(node)
    if node.op_type == "Mul":
        return len(_read_by(node)) == 2
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    constants = (one.const_value for one in node.inputs if one is not None and one.is_initializer())
    return bool(_read_by(node)) and not any(one is None or np.any(one.numpy()) for one in constants)


def _read_by(node: ir.Node) -> list[ir.Value]:
    """The activations that glue reads, each once."""
    places = node.inputs[:1] if node.op_type == "Resize" else node.inputs
    return list(dict.fromkeys(value for value in places if value is not None and not value.is_initializer()))


def _int8_glue(body: ir.Graph, int8: set[str], results: bool) -> list[ir.Node]:
    """Glue whose producers are int8 layers (or such glue) and whose result an int8 layer reads."""
    found: dict[str, ir.Node] = {}
    for node in list(body):
        if _is_glue(node, results):
            sources = [_producing(value, results) for value in _read_by(node)]
            if all(source is not None and (source.name in int8 or source.name in found) for source in sources):
                found[node.name or ""] = node
    return [node for node in found.values() if _feeds_int8(node, int8, found, results)]


def _producing(value: ir.Value, results: bool) -> ir.Node | None:
    node = value.producer()
    while node is not None and _passes(node, results):
        source = next(iter(_read_by(node)), None)
        node = source.producer() if source is not None else None
    return node


def _passes(node: ir.Node, results: bool) -> bool:
    """Whether a node only moves or clips what it reads, or, with ``results``, is another function of each value."""
    if node.op_type in _PASSING:
        return True
    functions = _FUNCTIONS if len(node.inputs) == 1 else {"Add", "Mul"}
    return results and node.op_type in functions and node.domain == "" and len(_read_by(node)) == 1


def _feeds_int8(node: ir.Node, int8: set[str], glue: Mapping[str, ir.Node], results: bool) -> bool:
    seen, waiting = {node}, [node]
    while waiting:
        for reader in waiting.pop().outputs[0].consumers():
            if reader.name in int8:
                return True
            if (_passes(reader, results) or (reader.name or "") in glue) and reader not in seen:
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
    domain: str = "",
) -> ir.Node:
    node = ir.node(op_type, inputs, {} if axis is None else {"axis": axis}, domain=domain, name=name)
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
