"""TFLite on ARM and x86 CPUs: conversion in the ``tflite`` toolchain, LiteRT sessions, and what the file really holds.

The hub model's Q/DQ pairs are taken apart again: the converter gets the float graph, the precision of each layer and
the ranges, since TFLite quantizes operators and not tensors. int8 operators write 8 bits too, so the hub model must
quantize results (``results`` of `edgekit.compress.qdq.apply_precisions`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import toolchains
from edgekit.backends import Artifact, ExecutedNode, Session
from edgekit.errors import DeviceError, InputError, MissingToolError
from edgekit.types import Precision

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from edgekit.graph import Graph

RUNNER = "tflite_runner.py"
TOOLCHAIN = "tflite"
quantizes_results = True
symmetric = False
types_floats = False
four_bit_columns = 1
sparse_op_types: Mapping[Precision, frozenset[str]] = {}

# XNNPACK unpacks weights of float operators when a model is loaded.
runtime_weight_bits = {
    Precision.FP32: 32,
    Precision.FP16: 32,
    Precision.INT8: 8,
    Precision.INT16X8: 8,
    Precision.W8: 32,
    Precision.W4: 32,
}
# int8 transposed convolutions come out wrong (8 dB where their Q/DQ pairs promise 37).
_QUANTIZED = frozenset({"Conv", "Gemm", "MatMul"})
quantized_op_types = {
    Precision.INT8: _QUANTIZED,
    Precision.INT16X8: _QUANTIZED,
    Precision.W8: _QUANTIZED | {"ConvTranspose"},
    Precision.W4: _QUANTIZED,
}

_MODEL, _TABLE = "model.tflite", "operators.json"
_PRECISION = "edgekit.precision"  # of a node's metadata, see edgekit.compress.qdq
# The converter may write it in several operators: then it stays float.
_GLUE = frozenset({"Add", "Concat", "GlobalAveragePool", "Mul", "Resize"})
_INTEGER = (Precision.INT8, Precision.INT16X8)
_CONVERT_S = 1800.0
# Float conversions agree with onnxruntime to 1e-5 and better; a wrong one is off by its outputs' own size.
FLOAT_TOLERANCE = 0.02
# Of the signal, and of the noise that the plan itself adds: what kernels may differ from the plan's numerics by.
KERNEL_NOISE, KERNEL_SHARE = 0.02, 4.0
# Outputs below this are compared with it: a random probe shows a detector nothing, and all that is left is noise.
_SILENT = 3e-3
# Delegated to XNNPACK, which has kernels for them; 16-bit activations run in the built-in ones.
_DELEGATED = frozenset({"fp32", "fp16", "int8", "w8"})


@dataclass(frozen=True)
class FloatModel:
    """A hub model taken apart: the float ONNX model, the nodes' own precisions, and ranges by tensor."""

    model: ir.Model
    nodes: Mapping[str, Precision]
    ranges: Mapping[str, tuple[float, float]]


def hint(base: Precision) -> str:
    """The runtime takes no word for it: the file says it all."""
    return base.value


def executes_as(planned: Precision, executed: str) -> bool:
    """Whether an operator's types mean what ``planned`` asks for."""
    return executed == planned.value


def convert(onnx_bytes: bytes, folder: Path, base: Precision) -> Artifact:
    """Write ``model.tflite`` and ``operators.json``.

    Raises `InputError` where the model cannot be converted, or computes something else than it says, and
    `MissingToolError` where the toolchain or LiteRT is missing.
    """
    import onnx
    import onnx_ir as ir

    _litert()
    parts = take_apart(onnx_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as place:
        source = Path(place) / "float.onnx"
        onnx.save(ir.serde.serialize_model(parts.model), source)
        job = {
            "action": "convert",
            "onnx": str(source),
            "tflite": str(folder / _MODEL),
            "base": base.value,
            "nodes": _nodes(parts, base),
        }
        document = toolchains.run(TOOLCHAIN, job, _CONVERT_S)
        if not document["float_error"] <= FLOAT_TOLERANCE:
            raise InputError(
                f"the TFLite form of the model is off by {document['float_error']:.2g} of its largest output",
                "the converter misreads one of its operators: export the model in another way, or use another backend",
            )
        table = {key: document[key] for key in ("operators", "weight_bytes")}
        (folder / _TABLE).write_text(json.dumps(table), encoding="utf-8")
        made = artifact(folder, base)
        _require_numerics(made, onnx_bytes, source.read_bytes(), parts)
    return made


def artifact(folder: Path, base: Precision) -> Artifact:
    """What `convert` wrote into ``folder``."""
    path, table = folder / _MODEL, folder / _TABLE
    weight_bytes = int(json.loads(table.read_text(encoding="utf-8"))["weight_bytes"])
    return Artifact(path, (path, table), base, weight_bytes)


def compress(folder: Path) -> None:
    """Raise `InputError`: LiteRT reads weights from the file as they are."""
    raise InputError(f"{folder}: TFLite models cannot be stored with compressed weights")


def session(compiled: Artifact, threads: int, outputs: Sequence[str]) -> Session:
    """Load into LiteRT on this machine. Raises `InputError` where it refuses the model, `DeviceError` where its fast
    kernels are not in use.
    """
    interpreter = _litert()(model_path=str(compiled.path), num_threads=threads)
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise InputError(f"LiteRT cannot run the model: {' '.join(str(error).split())[:300]}") from None
    _require_delegate(interpreter, compiled)
    readers = {row["name"]: row["index"] for row in interpreter.get_input_details()}
    writers = {row["name"]: row["index"] for row in interpreter.get_output_details()}

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, index in readers.items():
            interpreter.set_tensor(index, inputs[name])
        interpreter.invoke()
        return {name: interpreter.get_tensor(writers[name]) for name in outputs}

    return run


def compiled_rows(compiled: Artifact) -> Sequence[Mapping[str, Any]]:
    """The operators of the file: every interpreter executes them as they are."""
    table = compiled.path.with_name(_TABLE)
    rows: Sequence[Mapping[str, Any]] = json.loads(table.read_text(encoding="utf-8"))["operators"]
    return rows


def executed_nodes(rows: Sequence[Mapping[str, Any]], graph: Graph) -> tuple[ExecutedNode, ...]:
    """The operators with the layers that they compute; the others belong to the layer upstream of them."""
    names = {layer.name for layer in graph.layers}
    found = []
    for row in rows:
        computes = row["layer"] in names
        owner = row["layer"] if computes else row["upstream"]
        layers = (owner,) if owner in names else ()
        found.append(ExecutedNode(layers, computes, row["precision"], row.get("latency_ms", 0.0)))
    return tuple(found)


def take_apart(onnx_bytes: bytes) -> FloatModel:
    """Undo what `edgekit.compress.qdq.apply_precisions` did: weights come out as the floats that their codes stand for,
    so that the same scales give the same codes again.
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

    model = ir.serde.deserialize_model(onnx.load_model_from_string(onnx_bytes))
    body = model.graph
    nodes: dict[str, Precision] = {}
    ranges: dict[str, tuple[float, float]] = {}
    for node in list(body):
        word = node.metadata_props.pop(_PRECISION, None)
        if word is not None:
            nodes[node.name or ""] = Precision(word)
        if node.op_type != "DequantizeLinear":
            continue
        codes, result = node.inputs[0], node.outputs[0]
        assert codes is not None
        quantize = codes.producer()
        if quantize is None:
            _float_weight(body, node)
            continue
        value = quantize.inputs[0]
        assert value is not None
        scale, zero_point = (_scalar(one) for one in quantize.inputs[1:3])
        wide = quantize.outputs[0].dtype == ir.DataType.INT16
        if result.is_graph_output():
            name = result.name
            result.name, value.name = None, name
            body.outputs[[output is result for output in body.outputs].index(True)] = value
        result.replace_all_uses_with(value)
        if wide:  # where both are asked for, they span the same
            ranges.setdefault(value.name or "", (-32767 * scale, 32767 * scale))
        else:
            ranges[value.name or ""] = (-zero_point * scale, (255 - zero_point) * scale)
    RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)  # views that stood on both sides of a pair
    RemoveUnusedNodesPass()(model)
    return FloatModel(model, nodes, ranges)


def _float_weight(body: ir.Graph, node: ir.Node) -> None:
    import numpy as np
    import onnx_ir as ir

    codes, scale = (one.const_value.numpy() for one in node.inputs[:2] if one is not None and one.const_value)
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[node.attributes["axis"].as_int()] = scale.size
    array = codes.astype(np.float32) * scale.astype(np.float32).reshape(shape)
    result = node.outputs[0]
    weight = ir.Value(name=f"{result.name}/float", const_value=ir.tensor(array, name=f"{result.name}/float"))
    weight.dtype, weight.shape = ir.DataType.FLOAT, ir.Shape(array.shape)
    body.register_initializer(weight)
    result.replace_all_uses_with(weight)


def _scalar(value: ir.Value | None) -> float:
    assert value is not None
    assert value.const_value is not None
    return float(value.const_value.numpy())


def _nodes(parts: FloatModel, base: Precision) -> dict[str, dict[str, Any]]:
    """What the converter must know of each node that is not in the base precision."""
    found: dict[str, dict[str, Any]] = {}
    for node in parts.model.graph:
        precision = parts.nodes.get(node.name or "", base)
        if precision is base:
            continue
        entry: dict[str, Any] = {"precision": precision.value}
        if node.op_type in _GLUE:
            entry["optional"] = True
        if precision in _INTEGER:
            activations = (v for v in node.inputs if v is not None and not v.is_initializer())
            entry["inputs"] = [_range_before(value, parts.ranges) for value in activations]
            entry["output"] = _range_after(node.outputs[0], parts.ranges)
        found[node.name or ""] = entry
    return found


def _range_before(value: ir.Value, ranges: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """The range of a tensor, or of the tensor that it is a view of."""
    while (value.name or "") not in ranges:
        node = value.producer()
        assert node is not None, f"{value.name} was never observed"
        source = node.inputs[0]
        assert source is not None
        value = source
    return ranges[value.name or ""]


def _range_after(value: ir.Value, ranges: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """The range of a result, or of what the activation behind it makes of it."""
    while (value.name or "") not in ranges:
        value = next(iter(value.consumers())).outputs[0]
    return ranges[value.name or ""]


def _require_numerics(made: Artifact, hub: bytes, plain: bytes, parts: FloatModel) -> None:
    """Refuse where LiteRT computes something else than the plan's pairs say, as some kernels do in silence."""
    import numpy as np

    inputs = _probe_inputs(parts)
    expected, reference = _outputs_of(hub, inputs), _outputs_of(plain, inputs)
    actual = session(made, 1, list(expected))(inputs)
    worst, plan = 0.0, 0.0
    for name, wanted in expected.items():
        if wanted.dtype.kind != "f":
            continue
        signal = max(float(np.mean(np.square(reference[name], dtype=np.float64))), _SILENT**2)
        worst = max(worst, float(np.mean(np.square(actual[name] - wanted, dtype=np.float64))) / signal)
        plan = max(plan, float(np.mean(np.square(wanted - reference[name], dtype=np.float64))) / signal)
    if not worst <= max(KERNEL_NOISE, KERNEL_SHARE * plan):
        raise InputError(
            f"LiteRT computes otherwise than the plan says: noise of {worst:.2g} of the signal, not {plan:.2g}"
        )


def _probe_inputs(parts: FloatModel) -> dict[str, np.ndarray]:
    """One sample: floats over the input's range where it is known; integers 0 and 1, valid as ids and masks."""
    import numpy as np

    rng = np.random.default_rng(0)
    found = {}
    for value in parts.model.graph.inputs:
        assert value.dtype is not None
        assert value.shape is not None
        name, dtype, shape = value.name or "", value.dtype.numpy(), tuple(int(dim) for dim in value.shape.numpy())
        low, high = parts.ranges.get(name, (0.0, 1.0))
        draw = low + (high - low) * rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        found[name] = draw.astype(dtype)
    return found


def _outputs_of(model: bytes, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # the plan's numerics, no kernel's
    run = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    names = [output.name for output in run.get_outputs()]
    return dict(zip(names, run.run(names, dict(inputs)), strict=True))


def _require_delegate(interpreter: Any, compiled: Artifact) -> None:
    rows = json.loads(compiled.path.with_name(_TABLE).read_text(encoding="utf-8"))["operators"]
    wanted = any(row["layer"] and row["precision"] in _DELEGATED for row in rows)
    # No public name says it: the delegate shows up among the operators as one of them.
    if wanted and not any(row["op_name"] == "DELEGATE" for row in interpreter._get_ops_details()):
        raise DeviceError(
            "LiteRT runs on this machine without XNNPACK: every latency would be several times too high",
            "install a build with it: pip install ai-edge-litert",
        )


def _litert() -> Any:
    """LiteRT's interpreter class. Raises `MissingToolError` where it is not installed."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise MissingToolError("LiteRT is not installed", "add it: pip install 'edgekit-sdk[tflite]'") from None
    return Interpreter
