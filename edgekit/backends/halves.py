"""A float32 model, Q/DQ pairs and all, as one whose tensors have the types that a plan gives them: fp16 by casts.

What a strongly typed TensorRT obeys. Int8 operators read and write halves where the scales of their pairs are normal
numbers there, else single precision: no cast comes between a pair and its operator.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.graph.raising import opset_of, raise_to

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
# QuantizeLinear and DequantizeLinear know halves from here on.
OPSET = 19
# A pair may stand before these, see edgekit.compress.qdq.
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "MaxPool", "Identity"})
# They write values that they read; int8 operators dequantize inside.
_EXACT = _VIEWS | {
    "Relu",
    "Concat",
    "Slice",
    "Split",
    "Gather",
    "Expand",
    "Tile",
    "DepthToSpace",
    "SpaceToDepth",
    "Pad",
}
_EXACT |= {"DequantizeLinear"}


def cast_to_halves(model: ir.Model, single: frozenset[str]) -> dict[str, ir.DataType]:
    """Let all nodes compute in half precision but those named in ``single``, in place, at opset 19 or later.

    The model's inputs and outputs keep their types. Returns the type of each node as it came to be: int8 operators
    whose scales are too small for halves are single as well, and so is what ONNX has no halves for.
    """
    raise_to(model, OPSET)
    body, opset = model.graph, opset_of(model)
    types = {node: SINGLE if node.name in single or not _computes_in_half(node, opset) else HALF for node in body}
    _settle_pairs(body, types)
    for node in body:
        if node.op_type == "Cast" and types[node] is HALF and node.outputs[0].dtype is SINGLE:
            node.attributes["to"] = ir.AttrInt64("to", int(HALF))
        for index, result in enumerate(node.outputs):
            if result.dtype is SINGLE and types[node] is HALF and _knows_half(node, opset, index, written=True):
                result.type = ir.TensorType(HALF)  # a clone shares types with its original
    casts = _Casts(body)
    for node in list(ir.traversal.RecursiveGraphIterator(body)):
        if node.op_type == "Cast":
            continue
        kind = types.get(node, SINGLE)
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (HALF, SINGLE):
                half = kind is HALF and _knows_half(node, opset, index, written=False)
                node.replace_input_with(index, casts.of(value, HALF if half else SINGLE))
    for place, output in enumerate(list(body.outputs)):
        if output.dtype is HALF:
            name = output.name
            output.name = f"{name}/fp16"
            back = casts.of(output, SINGLE)
            back.name = name
            body.outputs[place] = back
    body.sort()
    return {node.name or "": kind for node, kind in types.items()}


class _Casts:
    """The one cast of each tensor, and the one copy of each constant, made when it is first asked for."""

    def __init__(self, body: ir.Graph) -> None:
        self._body = body
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._names = {value.name for value in (*body.inputs, *body.initializers.values())}
        for node in ir.traversal.RecursiveGraphIterator(body):
            self._names |= {node.name, *(value.name for value in node.outputs)}

    def of(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """``value`` in that type."""
        if value.dtype is kind:
            return value
        if (value, kind) not in self._made:
            name = self._fresh(f"{value.name}/{'fp16' if kind is HALF else 'fp32'}")
            if value.is_initializer() and value.const_value is not None:
                with np.errstate(over="ignore"):  # infinite where the caller did not keep its readers single
                    array = value.const_value.numpy().astype(kind.numpy())
                made = ir.Value(name=name, const_value=ir.tensor(array, name=name))
                self._body.register_initializer(made)
            else:
                node = ir.node("Cast", [value], {"to": int(kind)}, name=name)
                made = node.outputs[0]
                made.name = name
                self._body.append(node)
            made.dtype, made.shape = kind, value.shape
            self._made[value, kind] = made
        return self._made[value, kind]

    def _fresh(self, wish: str) -> str:
        while wish in self._names:
            wish += "_"
        self._names.add(wish)
        return wish


def _settle_pairs(body: ir.Graph, types: dict[ir.Node, ir.DataType]) -> None:
    """Give all that meets in a pair one type: the quantizer, the dequantizer, the views behind it and its readers."""
    members = {node: _pair_of(node) for node in body if node.op_type == "DequantizeLinear"}
    for node, pair in members.items():
        if not all(_is_normal(one.inputs[1]) for one in (node, *pair) if one.op_type.endswith("tizeLinear")):
            types[node] = SINGLE
    changed = True
    while changed:
        changed = False
        for node, pair in members.items():
            if any(types[one] is SINGLE for one in (node, *pair)):
                for one in (node, *pair):
                    changed |= types[one] is HALF
                    types[one] = SINGLE
    for node in body:
        # Constant weights are quantized as they are.
        if node.op_type == "QuantizeLinear" and node.inputs[0] is not None and node.inputs[0].is_initializer():
            types[node] = SINGLE


def _pair_of(dequantize: ir.Node) -> list[ir.Node]:
    """The quantizer of an activation, the readers of the dequantized tensor, and those behind views of it."""
    found = []
    codes = dequantize.inputs[0]
    quantize = codes.producer() if codes is not None else None
    if quantize is not None and quantize.inputs[0] is not None and not quantize.inputs[0].is_initializer():
        found.append(quantize)
    waiting = [dequantize]
    while waiting:
        for reader in waiting.pop().outputs[0].consumers():
            if reader.op_type != "QuantizeLinear" and reader.graph is dequantize.graph and reader not in found:
                found.append(reader)
                if reader.op_type in _VIEWS:
                    waiting.append(reader)
    return found


def _is_normal(scale: ir.Value | None) -> bool:
    if scale is None or scale.const_value is None:
        return False
    array = scale.const_value.numpy()
    limits = np.finfo(np.float16)
    return bool(np.all(array >= float(limits.tiny)) and np.all(array <= float(limits.max)))


def _computes_in_half(node: ir.Node, opset: int) -> bool:
    """Whether ONNX has the operator for halves; those with graphs inside stay as they are."""
    inner = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    if node.domain not in ("", "ai.onnx") or any(one.type in inner for one in node.attributes.values()):
        return False
    if node.op_type == "Cast":
        return True
    floats = [index for index, value in enumerate(node.inputs) if value is not None and value.dtype is SINGLE]
    return any(_knows_half(node, opset, index, written=False) for index in floats)


def _knows_half(node: ir.Node, opset: int, index: int, written: bool) -> bool:
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    formal = schema.outputs if written else schema.inputs
    return "tensor(float16)" in formal[min(index, len(formal) - 1)].types


def simulate(model: ir.Model) -> None:
    """Let a model of halves compute in single precision and round what it writes to halves, in place: what tensor cores
    do, and what every machine can. Halves as such would not do: onnxruntime runs them in single precision too where it
    has no kernel, and leaves out the rounding between two of them.
    """
    body = model.graph
    for value in body.initializers.values():
        if value.dtype is HALF and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(SINGLE)
    for node in list(body):
        for value in node.outputs:
            if value.dtype is HALF:
                _round(body, node, value)
    body.sort()


def _round(body: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let the readers of ``value``, which ``node`` writes, read it in single precision, rounded to a half."""
    uses = list(value.uses())
    half = value
    if node.op_type != "Cast":
        value.type = ir.TensorType(SINGLE)
        if node.op_type in _EXACT:
            return
        half = _cast(body, value, HALF, f"{value.name}/half")
    single = _cast(body, half, SINGLE, f"{value.name}/rounded")
    for use in uses:
        use.node.replace_input_with(use.idx, single)


def _cast(body: ir.Graph, value: ir.Value, kind: ir.DataType, name: str) -> ir.Value:
    node = ir.node("Cast", [value], {"to": int(kind)}, name=name)
    made = node.outputs[0]
    made.name, made.type, made.shape = name, ir.TensorType(kind), value.shape
    body.append(node)
    return made
