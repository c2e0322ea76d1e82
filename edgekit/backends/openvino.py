"""OpenVINO on x86 and ARM CPUs: conversion to IR, sessions, and what the CPU plugin really executed.

What ran is read from the runtime model (``runtimePrecision``, ``originalLayersNames``:
https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/debug-capabilities.html); the
precision hint is always set, since the default is bf16 wherever the CPU lists it, whether that is faster or not.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends import Artifact, ExecutedNode, Session
from edgekit.errors import InputError
from edgekit.files.deflate import deflate
from edgekit.types import Precision

if TYPE_CHECKING:
    import numpy as np
    import openvino

    from edgekit.graph import Graph
    from edgekit.types import Layer

RUNNER = "openvino_runner.py"
TOOLCHAIN = ""
quantizes_results = False
symmetric = False
types_floats = False
four_bit_columns = 1
sparse_op_types: Mapping[Precision, frozenset[str]] = {}
_WEIGHTS, _PACKED = "model.bin", "model.bin.gz"

# Weight-only int8 is unpacked to float32 when a convolution is loaded. Of fp16 there are two copies: converted, and
# laid out as the kernel wants it.
runtime_weight_bits = {
    Precision.FP32: 32,
    Precision.BF16: 16,
    Precision.FP16: 32,
    Precision.INT8: 8,
    Precision.W8: 32,
}

# LSTM, GRU and RNN are left out. Their int8 kernels keep the recurrent state in 8 bits, on the input's scale, which no
# Q/DQ pair describes (measured 3 to 20 dB where the pairs promise 34 to 56), and some ranges fail to compile; with w8
# they do not compile beside any int8 layer ("expects Constant for port 4").
_QUANTIZED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
quantized_op_types = {Precision.INT8: _QUANTIZED, Precision.W8: _QUANTIZED}

_HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16", Precision.FP16: "f16"}
# Executed node types that compute a layer, and the layers that they can be; the other types move or transform data.
_MATRIX = frozenset({"MatMul", "Gemm"})
_COMPUTES = {
    "Convolution": frozenset({"Conv"}) | _MATRIX,
    "Deconvolution": frozenset({"ConvTranspose"}),
    "FullyConnected": frozenset({"Conv"}) | _MATRIX,  # a constant matrix, or a pointwise convolution between transposes
    "MatMul": _MATRIX,
    "RNNSeq": frozenset({"LSTM", "GRU", "RNN"}),
    "RNNCell": frozenset({"LSTM", "GRU", "RNN"}),
}
_SUBGRAPH = "Subgraph"  # generated code: element-wise operators, and the whole of an attention with its two products
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


def _runtime() -> Any:
    """OpenVINO, which at its first import would start a process that tells its makers of it."""
    name = "openvino_telemetry"
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # not to be found
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules[name]  # others may want it
    return openvino


def convert(onnx_bytes: bytes, folder: Path, base: Precision) -> Artifact:
    """Write ``model.xml`` and ``model.bin``. Raises `InputError` where OpenVINO cannot read the model, `OSError` where
    the files cannot be written.
    """
    openvino = _runtime()
    try:
        model = openvino.Core().read_model(onnx_bytes)
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot read the model: {_first_line(error)}") from None
    _name_steadily(model, _names(onnx_bytes))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.xml"
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        # OpenVINO does not say what was wrong with the disk. Nothing that it writes is larger than this.
        _require_room(folder, 2 * len(onnx_bytes) + 2**20)
        raise InputError(f"OpenVINO cannot write the model: {_first_line(error)}") from None
    return artifact(folder, base)


def artifact(folder: Path, base: Precision) -> Artifact:
    """What `convert`, and perhaps `compress`, wrote into ``folder``."""
    path, weights, packed = folder / "model.xml", folder / _WEIGHTS, folder / _PACKED
    if not packed.is_file():
        return Artifact(path, (path, weights), base, weights.stat().st_size)
    return Artifact(path, (path, weights), base, packed.stat().st_size, {_WEIGHTS: packed})


def compress(folder: Path) -> None:
    """Write ``model.bin.gz`` beside ``model.bin``."""
    (folder / _PACKED).write_bytes(deflate((folder / _WEIGHTS).read_bytes()))


def session(compiled: Artifact, threads: int, outputs: Sequence[str]) -> Session:
    """Compile for this machine's CPU; the numerics are those of the device. Raises `InputError` where that fails."""
    openvino = _runtime()
    config = {
        "INFERENCE_PRECISION_HINT": hint(compiled.base),
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    try:
        request = openvino.Core().compile_model(str(compiled.path), "CPU", config).create_infer_request()
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot compile the model: {_first_line(error)}") from None

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request.infer(dict(inputs), share_inputs=False)
        return {name: request.get_output_tensor(index).data.copy() for index, name in enumerate(outputs)}

    return run


def compiled_rows(compiled: Artifact) -> None:
    """Nothing: each CPU compiles the model anew, to what it has kernels for."""


def executed_nodes(rows: Sequence[Mapping[str, Any]], graph: Graph) -> tuple[ExecutedNode, ...]:
    """Join the executed nodes to layers.

    Fusion keeps a layer's name mostly, but not always. A computing node without one takes the layer upstream of its own
    name (a fused bias, say) or of the names that it kept, or else the first layer of its kind, in execution order, that
    no other node has claimed.
    A subgraph computes the layers that it is named after, and the products of activations that it swallowed nameless.
    Every other node belongs to the layer upstream of its names, or to the one executed before it.
    """
    layers = {layer.name: layer for layer in graph.layers}
    results = {layer.output: layer.name for layer in graph.layers}  # where a model output lends the node its name
    node_owner, tensor_owner = _owners(graph)
    makers = {value.name or "": node.name or "" for node in graph.model.graph for value in node.outputs}
    makers |= {node.name or "": node.name or "" for node in graph.model.graph}
    named: list[tuple[str, ...]] = []
    upstream: list[tuple[str, ...]] = []
    for row in rows:
        names = [_node_name(name) for name in row["original_names"]]
        named.append(tuple(dict.fromkeys(n for n in (results.get(n, n) for n in names) if n in layers)))
        owners = (_owner(name, node_owner, tensor_owner) for name in (row["name"], *names))
        upstream.append(tuple(dict.fromkeys(owner for owner in owners if owner)))
    computes: list[tuple[str, ...]] = [()] * len(rows)
    unclaimed = list(layers)

    def claim(index: int, names: tuple[str, ...]) -> None:
        computes[index] = tuple(name for name in names if name in unclaimed)
        unclaimed[:] = [name for name in unclaimed if name not in names]

    def fitting(index: int) -> list[str]:
        return [name for name in unclaimed if _can_compute(rows[index]["type"], layers[name])]

    kernels = [index for index, row in enumerate(rows) if row["type"] in _COMPUTES]
    subgraphs = [index for index, row in enumerate(rows) if row["type"] == _SUBGRAPH]
    for index in kernels:
        claim(index, tuple(name for name in fitting(index) if name in named[index]))
    for index in kernels:
        if not computes[index]:
            found = fitting(index)
            claim(index, tuple([name for name in (*upstream[index], *found) if name in found][:1]))
    for index in subgraphs:
        swallowed = tuple(name for name in upstream[index] if name in unclaimed and not layers[name].weights)
        claim(index, tuple(dict.fromkeys((*swallowed, *named[index]))))
    nodes = []
    previous: tuple[str, ...] = ()
    for index, row in enumerate(rows):
        previous = computes[index] or previous
        owner = computes[index] or named[index] or upstream[index][:1] or previous
        sources = dict.fromkeys(source for name in row["original_names"] if (source := _source(name, makers)))
        time_ms = row.get("latency_ms", 0.0)
        nodes.append(ExecutedNode(owner, bool(computes[index]), row["precision"], time_ms, tuple(sources)))
    return tuple(nodes)


def _can_compute(kind: str, layer: Layer) -> bool:
    return layer.op_type in _COMPUTES[kind] and (kind != "FullyConnected" or bool(layer.weights))


def _names(onnx_bytes: bytes) -> frozenset[str]:
    """The names that the ONNX model gives to its nodes and values, those of subgraphs included."""
    import onnx

    found: set[str] = set()

    def collect(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            found.update((node.name, *node.output))
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs):
                    collect(body)
        found.update(value.name for value in (*graph.input, *graph.initializer))

    collect(onnx.load_model_from_string(onnx_bytes).graph)
    return frozenset(found)


def _name_steadily(model: openvino.Model, taken: frozenset[str], path: str = "") -> None:
    """Rename what OpenVINO named itself, by a counter of this process, so that the same model gives the same bytes."""
    for index, node in enumerate(model.get_ordered_ops()):
        name = node.get_friendly_name()
        if name == node.get_name() and name not in taken:
            node.set_friendly_name(f"{path}{node.get_type_name()}#{index}")
        kind = node.get_type_name()
        if kind == "If":
            bodies = [node.get_then_body(), node.get_else_body()]
        else:
            bodies = [node.get_function()] if kind in ("Loop", "TensorIterator") else []
        for number, body in enumerate(bodies):
            _name_steadily(body, taken, f"{path}{index}.{number}/")


def _node_name(name: str) -> str:
    return name.removesuffix("/WithoutBiases")


def _source(name: str, makers: Mapping[str, str]) -> str:
    """The node that a name comes from: OpenVINO and the Q/DQ writer append to names what they add after a slash."""
    while name not in makers and "/" in name:
        name = name.rpartition("/")[0]
    return makers.get(name, "")


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


def _require_room(folder: Path, size_bytes: int) -> None:
    """Raise the `OSError` that keeps a file of that size from being written."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(size_bytes))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]  # one for each unknown operator
    noise = ("Exception from", "Check '")
    informative = [line for line in lines if not line.startswith(noise) and not line.endswith(":")]
    return (found or informative or lines or ["unknown error"])[0][:300]
