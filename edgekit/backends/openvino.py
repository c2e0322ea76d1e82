"""OpenVINO on x86 and ARM CPUs: conversion to IR, sessions, and what the CPU plugin really executed.

What ran is read from the runtime model (``runtimePrecision``, ``originalLayersNames``:
https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/debug-capabilities.html); the
precision hint is always set, since the default is bf16 wherever the CPU lists it, whether that is faster or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends import Artifact, ExecutedNode, Session
from edgekit.errors import InputError
from edgekit.types import Precision

if TYPE_CHECKING:
    import numpy as np

    from edgekit.graph import Graph

RUNNER = "openvino_runner.py"

# Weight-only int8 is unpacked to float32 when a convolution is loaded.
runtime_weight_bits = {
    Precision.FP32: 32,
    Precision.BF16: 16,
    Precision.FP16: 16,
    Precision.INT8: 8,
    Precision.W8: 32,
}

_HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16", Precision.FP16: "f16"}
# Executed node types that compute a layer, and the layers that they can be; the other types move or transform data.
_MATRIX = frozenset({"MatMul", "Gemm"})
_COMPUTES = {
    "Convolution": frozenset({"Conv"}) | _MATRIX,
    "Deconvolution": frozenset({"ConvTranspose"}),
    "FullyConnected": _MATRIX,
    "MatMul": _MATRIX,
    "RNNSeq": frozenset({"LSTM", "GRU", "RNN"}),
    "RNNCell": frozenset({"LSTM", "GRU", "RNN"}),
}
_EXECUTED_WORDS = {
    Precision.FP32: ("f32",),
    Precision.BF16: ("bf16",),
    Precision.FP16: ("f16",),
    Precision.INT8: ("i8", "u8"),
    Precision.W8: ("f32", "bf16", "f16", "i8"),  # i8: float activations, weights unpacked inside the kernel
}
_QDQ_SUFFIXES = ("/dequantize", "/quantize", "/quantized")  # what the Q/DQ writer appends to a tensor's name


def hint(base: Precision) -> str:
    """OpenVINO's INFERENCE_PRECISION_HINT for a float precision."""
    return _HINTS[base]


def executes_as(planned: Precision, executed: str) -> bool:
    """Whether a runtime precision (``f32``, ``bf16``, ``u8`` ...) is what ``planned`` asks for."""
    return executed in _EXECUTED_WORDS[planned]


def convert(onnx_bytes: bytes, folder: Path, base: Precision) -> Artifact:
    """Write ``model.xml`` and ``model.bin``. Raises `InputError` where OpenVINO cannot read the model."""
    import openvino

    try:
        model = openvino.Core().read_model(onnx_bytes)
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot read the model: {_first_line(error)}") from None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    return artifact(folder, base)


def artifact(folder: Path, base: Precision) -> Artifact:
    """What `convert` wrote into ``folder``."""
    path = folder / "model.xml"
    weights = folder / "model.bin"
    return Artifact(path, (path, weights), base, weights.stat().st_size)


def session(compiled: Artifact, threads: int, outputs: Sequence[str]) -> Session:
    """Compile for this machine's CPU; the numerics are those of the device."""
    import openvino

    config = {
        "INFERENCE_PRECISION_HINT": hint(compiled.base),
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    request = openvino.Core().compile_model(str(compiled.path), "CPU", config).create_infer_request()

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request.infer(dict(inputs), share_inputs=False)
        return {name: request.get_output_tensor(index).data.copy() for index, name in enumerate(outputs)}

    return run


def executed_nodes(rows: Sequence[Mapping[str, Any]], graph: Graph) -> tuple[ExecutedNode, ...]:
    """Join the executed nodes to layers.

    Fusion keeps a layer's name mostly, but not always. A computing node without one takes the layer upstream of the
    first name that it kept, or else the first layer of its kind, in execution order, that no other node has claimed.
    Every other node belongs to the layer upstream of its names, or to the one executed before it.
    """
    layers = {layer.name: layer.op_type for layer in graph.layers}
    node_owner, tensor_owner = _owners(graph)
    direct = [tuple(dict.fromkeys(n for n in map(_node_name, row["original_names"]) if n in layers)) for row in rows]
    unclaimed = [name for name in layers if not any(name in names for names in direct)]
    nodes = []
    previous: tuple[str, ...] = ()
    for row, found in zip(rows, direct, strict=True):
        upstream = [_owner(name, node_owner, tensor_owner) for name in row["original_names"]]
        inherited = tuple(name for name in upstream if name)[:1]
        computes = bool(found)
        if not found and row["type"] in _COMPUTES:
            fitting = [name for name in unclaimed if layers[name] in _COMPUTES[row["type"]]]
            found = tuple(name for name in inherited if name in fitting) or tuple(fitting[:1])
            computes = bool(found)
            unclaimed = [name for name in unclaimed if name not in found]
        if computes:
            previous = found
        owner = found or inherited or previous
        nodes.append(ExecutedNode(owner, computes, row["precision"], row.get("latency_ms", 0.0)))
    return tuple(nodes)


def _node_name(name: str) -> str:
    return name.removesuffix("/WithoutBiases")


def _owner(name: str, node_owner: Mapping[str, str], tensor_owner: Mapping[str, str]) -> str:
    for suffix in _QDQ_SUFFIXES:
        if name.endswith(suffix):
            return tensor_owner.get(name.removesuffix(suffix), "")
    return node_owner.get(_node_name(name), "")


def _owners(graph: Graph) -> tuple[dict[str, str], dict[str, str]]:
    """Node name, and tensor name -> the layer that it is or whose result it carries ('' before the first layer)."""
    layers = {layer.name for layer in graph.layers}
    nodes: dict[str, str] = {}
    tensors: dict[str, str] = {}
    for node in graph.model.graph:
        name = node.name or ""
        upstream = (tensors.get(value.name or "", "") for value in node.inputs if value is not None)
        nodes[name] = name if name in layers else next((owner for owner in upstream if owner), "")
        tensors |= {value.name or "": nodes[name] for value in node.outputs}
    return nodes, tensors


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    informative = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (informative or lines or ["unknown error"])[0][:300]
