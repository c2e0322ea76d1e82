"""The forms of Q/DQ pairs and of 4-bit weights that TensorRT reads, and node names that its flags can hold.

The hub model says an activation's range as uint8 codes; ranges that lie around zero have their zero point in the middle
(128), and are the int8 codes with zero point 0 that TensorRT asks for.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

_MIDDLE = 128
# ONNX has 4-bit integers, and scales by blocks, from this opset on.
_FOUR_BITS = 21
# Of scales along the inner size of a product: NVIDIA's Model Optimizer writes 128 for TensorRT.
_BLOCKS = (128, 64, 32, 16)
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
        point = node.inputs[2] if node.op_type == "QuantizeLinear" and len(node.inputs) > 2 else None
        if point is not None and point.dtype is ir.DataType.INT8:
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


def pack_four_bits(model: ir.Model, layers: Collection[str]) -> None:
    """Store the weights of these matrix products, 8-bit codes from -8 to 7 with one scale a column, in 4 bits with one
    scale a block of the inner size, in place: TensorRT unpacks such while it multiplies. The blocks of a column share
    its scale, so that no value changes.

    Its parser takes them since 10.0 and no zero points with them (onnx-tensorrt, docs/Changelog.md; `IDequantizeLayer`
    in NvInfer.h), and looks at no upper bound of the opset (ModelImporter.cpp).
    """
    body = model.graph
    for node in list(body):
        for value in node.inputs if node.name in layers else ():
            dequantize = value.producer() if value is not None else None
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            codes, scale, *points = dequantize.inputs
            assert codes is not None
            assert scale is not None
            if codes.const_value is None or scale.const_value is None or len(codes.const_value.shape) != 2:
                continue
            axis = dequantize.attributes.get_int("axis", 1)
            inner = 1 - axis
            size = codes.const_value.shape.numpy()[inner]
            block = next((one for one in _BLOCKS if size % one == 0 and size > one), size)
            steps = np.expand_dims(scale.const_value.numpy(), inner).repeat(size // block, inner)
            packed = ir.tensor(codes.const_value.numpy(), dtype=ir.DataType.INT4, name=f"{codes.name}/4")
            blocks = ir.tensor(steps, name=f"{scale.name}/4")
            for place, tensor in enumerate((packed, blocks)):
                constant = ir.Value(name=tensor.name, const_value=tensor, shape=ir.Shape(tensor.shape.numpy()))
                constant.type = ir.TensorType(tensor.dtype)
                body.register_initializer(constant)
                dequantize.replace_input_with(place, constant)
            dequantize.resize_inputs(2)
            dequantize.attributes["axis"] = ir.AttrInt64("axis", inner)
            dequantize.attributes["block_size"] = ir.AttrInt64("block_size", block)
            for old in (codes, scale, *points):
                if old is not None and not old.uses():
                    del body.initializers[old.name or ""]
            model.opset_imports[""] = max(_FOUR_BITS, model.opset_imports[""])


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
