"""What edgekit does not start from, said before any work is done."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx

from edgekit.errors import InputError
from edgekit.graph.read import all_nodes, tensors

_LOW_PRECISION: dict[int, str] = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}
# Tensors that these operators read are parameters: an infinity there is damage, never a mask.
PARAMETER_OPS = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "LSTM",
        "GRU",
        "RNN",
        "BatchNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "GroupNormalization",
        "PRelu",
    }
)
# ONNX's own quantized operators and onnxruntime's (QLinearAdd, MatMulInteger, DynamicQuantizeLSTM, MatMulNBits ...).
_QUANTIZED = re.compile(r"^Q[A-Z]|[qQ]uantize|Integer|NBits|Bnb4")
_VIEWS = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
_ONNX_DOMAINS = ("", "ai.onnx")


def refuse_unusable(model: onnx.ModelProto, where: str) -> None:
    """Raise InputError for a quantized model, low-precision floats, unknown operators or damaged weights."""
    _refuse_quantized(model, where)
    _refuse_low_precision(model, where)
    _refuse_unknown_operators(model, where)
    _refuse_damaged_weights(model, where)


def _refuse_quantized(model: onnx.ModelProto, where: str) -> None:
    found = _some(model, lambda node: _QUANTIZED.search(node.op_type) is not None)
    if found:
        raise InputError(f"{where}: the model is already quantized: {found}", "Start from the float32 model.")


def _refuse_low_precision(model: onnx.ModelProto, where: str) -> None:
    names = [(t.name, _LOW_PRECISION[t.data_type]) for t in tensors(model) if t.data_type in _LOW_PRECISION]
    for value in model.graph.input:
        kind = value.type.tensor_type.elem_type
        if kind in _LOW_PRECISION:
            names.append((value.name, _LOW_PRECISION[kind]))
    if names:
        name, kind_name = names[0]
        raise InputError(
            f"{where}: {len(names)} {kind_name} tensor(s), the first is {name!r}",
            "Export the model in float32; edgekit chooses the precision of each layer itself.",
        )


def _refuse_unknown_operators(model: onnx.ModelProto, where: str) -> None:
    version = next((o.version for o in model.opset_import if o.domain in _ONNX_DOMAINS), 0)
    if version < 7:
        raise InputError(f"{where}: opset {version}; 7 is the oldest supported", "Export with opset 13 or later.")
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise InputError(f"{where}: opset {version}; {newest} is the newest known", f"Export with opset {newest}.")
    local = {(f.domain, f.name) for f in model.functions}

    def unknown(node: onnx.NodeProto) -> bool:
        standard = node.domain in _ONNX_DOMAINS
        return standard and (node.domain, node.op_type) not in local and not onnx.defs.has(node.op_type, version, "")

    found = _some(model, unknown)
    if found:
        raise InputError(
            f"{where}: unknown operator at opset {version}: {found}", "Export with standard ONNX operators."
        )


def _some(model: onnx.ModelProto, wanted: Callable[[onnx.NodeProto], bool]) -> str:
    bodies = [model.graph, *model.functions]
    nodes = [node for body in bodies for node in all_nodes(body) if wanted(node)]
    listed = ", ".join(f"{node.op_type} {node.name or '-> ' + ' '.join(node.output)}".strip() for node in nodes[:3])
    return listed + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")


def _refuse_damaged_weights(model: onnx.ModelProto, where: str) -> None:
    """NaN, infinity or float64 in a tensor that a parameter operator reads, directly or through views and constants.

    Constants elsewhere (attention masks of -inf, NaN fill values) are legitimate and stay.
    """
    stored: dict[str, onnx.TensorProto] = {t.name: t for t in model.graph.initializer}
    origin: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    stored[node.output[0]] = attribute.t
        elif node.op_type in _VIEWS and node.input:
            origin[node.output[0]] = node.input[0]
    checked: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in PARAMETER_OPS or node.domain not in _ONNX_DOMAINS:
            continue
        for name in node.input:
            while name in origin and name not in stored:
                name = origin[name]
            if name in stored and name not in checked:
                checked.add(name)
                _refuse_damaged(stored[name], name, node, where)


def _refuse_damaged(tensor: onnx.TensorProto, name: str, node: onnx.NodeProto, where: str) -> None:
    if tensor.data_type == onnx.TensorProto.DOUBLE:
        raise InputError(
            f"{where}: weight {name!r} of {node.op_type} {node.name} is float64", "Export the model in float32."
        )
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return
    try:
        values = onnx.numpy_helper.to_array(tensor)
    except ValueError as error:
        raise InputError(f"{where}: weight {name!r} is damaged: {error}", "Copy or export the model again.") from None
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise InputError(
            f"{where}: weight {name!r} of {node.op_type} {node.name}: {bad} of {values.size} values are NaN or inf",
            "The training diverged or the file is damaged: export a sound checkpoint.",
        )
