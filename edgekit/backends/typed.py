"""The forms of Q/DQ pairs that TensorRT reads, and node names that its flags can hold.

The hub model says an activation's range as uint8 codes; ranges that lie around zero have their zero point in the middle
(128), and are the int8 codes with zero point 0 that TensorRT asks for.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

_MIDDLE = 128
_ODD = re.compile(r"[^\w./-]")


def sign_codes(model: ir.Model) -> None:
    """Turn uint8 codes around 128 into int8 codes around 0, in place: the same values.

    Raises `ValueError` for a pair with another zero point.
    """
    body = model.graph
    for node in body:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 3:
            continue
        point = node.inputs[2]
        assert point is not None
        if point.const_value is None or point.dtype is not ir.DataType.UINT8:
            continue
        if np.any(point.const_value.numpy() != _MIDDLE):
            raise ValueError(f"{node.name} has its zero point at {point.const_value.numpy()}, not at {_MIDDLE}")
        array = np.zeros(point.const_value.shape.numpy(), np.int8)
        point.const_value = ir.tensor(array, name=point.name)
        point.type = ir.TensorType(ir.DataType.INT8)
    for node in body:
        if node.op_type == "QuantizeLinear":
            node.outputs[0].type = ir.TensorType(ir.DataType.INT8)


def pair_weights(model: ir.Model) -> None:
    """Quantized weights as floats with a pair behind them, in place, as TensorRT 8 reads them: its parser takes no int8
    constants (github.com/microsoft/onnxruntime/issues/14229, "only activation types allowed as input to this layer").
    """
    body = model.graph
    for node in list(body):
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if codes is None or not codes.is_initializer() or codes.const_value is None:
            continue
        scale, axis = node.inputs[1], node.attributes.get("axis")
        assert scale is not None
        assert scale.const_value is not None
        array, steps = codes.const_value.numpy(), scale.const_value.numpy().astype(np.float32)
        if steps.size > 1:
            shape = [1] * array.ndim
            shape[axis.as_int() if axis is not None else 1] = steps.size
            steps = steps.reshape(shape)
        name = f"{codes.name}/float"
        weight = ir.Value(name=name, const_value=ir.tensor(array.astype(np.float32) * steps, name=name))
        weight.type, weight.shape = ir.TensorType(ir.DataType.FLOAT), codes.shape
        body.register_initializer(weight)
        attributes = {"axis": axis} if axis is not None else {}
        quantize = ir.node("QuantizeLinear", [weight, *node.inputs[1:]], attributes, name=f"{node.name}/pair")
        made = quantize.outputs[0]
        made.name, made.type, made.shape = f"{node.name}/pair", ir.TensorType(ir.DataType.INT8), codes.shape
        body.insert_before(node, [quantize])
        node.replace_input_with(0, made)
        if not codes.uses():
            del body.initializers[codes.name or ""]


def dedicate_pairs(model: ir.Model) -> None:
    """Give every reader of a quantized activation its own pair, in place: TensorRT 8 fuses no shared ones
    (github.com/microsoft/onnxruntime/pull/9720).
    """
    body = model.graph
    for node in list(body):
        if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
            continue
        quantize = node.inputs[0].producer()
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        uses = list(node.outputs[0].uses())
        for number, use in enumerate(uses[1:], 2):
            codes = _copy(quantize, [*quantize.inputs], number)
            values = _copy(node, [codes, *node.inputs[1:]], number)
            use.node.replace_input_with(use.idx, values)
    body.sort()


def _copy(node: ir.Node, inputs: list[ir.Value | None], number: int) -> ir.Value:
    body, result = node.graph, node.outputs[0]
    assert body is not None
    copy = ir.node(node.op_type, inputs, dict(node.attributes), name=f"{node.name}/{number}")
    made = copy.outputs[0]
    made.name, made.type, made.shape = f"{result.name}/{number}", result.type, result.shape
    body.append(copy)
    return made


def name_plainly(model: ir.Model) -> dict[str, str]:
    """Give each node a name that trtexec's flags and layer lists can hold (no blanks, "+", "|", "," and ":"), in place.
    Returns the nodes' own names by the new ones, where these differ.
    """
    own = {node.name or "" for node in model.graph}
    taken = {name for name in own if not _ODD.search(name)}
    found: dict[str, str] = {}
    for node in model.graph:
        name = node.name or ""
        plain = _ODD.sub("_", name) or "node"
        if plain == name:
            continue
        while plain in taken:
            plain += "_"
        taken.add(plain)
        node.name = plain
        found[plain] = name
    return found
