"""What TensorRT for RTX makes of a typed model: compiled ahead of time for a desktop GPU of the generation of Jetson
Orin, or of Jetson Thor, in the toolchain ``tensorrt-rtx``, without any GPU.

It shows that TensorRT's parser reads the file and that kernels of the planned types exist for it. It is a proxy, and
says nothing about a Jetson, nor any latency.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import toolchains
from edgekit.backends.tensorrt import read_build, typed_model
from edgekit.errors import EdgekitError
from edgekit.types import Conformance, Mismatch, Precision

if TYPE_CHECKING:
    from edgekit.backends import Artifact

TOOLCHAIN = "tensorrt-rtx"
NAME = "TensorRT for RTX"
_COMPILE_S = 900.0
# Compute capability of the board's GPU -> that of the desktop GPU nearest to it; Ampere for what is older.
_NEAREST = {"11.0": "12.0"}
_AMPERE = "8.6"
_FOUR_BITS = "int4"
# Generated kernels: element-wise operators, and what was fused with them.
_GENERATED = "kgen"


@dataclass(frozen=True)
class ProxyReport:
    """Whether the proxy takes the model, or the exact ``reason`` why not; the types of its ``layers``, by name."""

    accepted: bool
    reason: str
    layers: Mapping[str, str]
    conformance: Conformance
    weight_bytes: int = 0
    activation_bytes: int = 0
    build_s: float = 0.0


def compile_proxy(compiled: Artifact) -> ProxyReport:
    """Compile an artifact of `edgekit.backends.tensorrt` for the `capability` of its proxy and read its layer table.

    Raises `InputError` where the compiler crashes, `MissingToolError` where the toolchain cannot be had.
    """
    import onnx_ir as ir

    build = read_build(compiled)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(ir.serde.serialize_model(typed_model(compiled)).SerializeToString())
        job = {"action": "compile", "onnx": str(path), "compute": capability(build)}
        document = toolchains.run(TOOLCHAIN, job, _COMPILE_S)
    if not document["accepted"]:
        return ProxyReport(False, document["reason"], {}, Conformance(0, 0, unknown=document["reason"]))
    layers = compiled_types(document["layers"], build)
    planned = [row for row in build["layers"] if row["name"] in layers]
    wrong = tuple(
        Mismatch(row["name"], Precision(row["precision"]), layers[row["name"]])
        for row in planned
        if layers[row["name"]] != row["precision"]
    )
    return ProxyReport(
        True,
        "",
        layers,
        Conformance(len(planned), len(planned) - len(wrong), wrong),
        document["weight_bytes"] or 0,
        document["activation_bytes"] or 0,
        document["build_s"],
    )


def remark(compiled: Artifact) -> str:
    """What a report says of the proxy, where no board could be asked."""
    named = f"{NAME}, a proxy (compiled for compute capability {capability(read_build(compiled))}, run by nobody)"
    try:
        report = compile_proxy(compiled)
    except EdgekitError as error:
        return f"{named}, failed: {error}"
    if not report.accepted:
        return f"{named}, refused the model: {report.reason}"
    found = report.conformance
    return f"{named}, took the model, {found.matched} of {found.planned} layers in the planned type"


def capability(build: Mapping[str, Any]) -> str:
    """The compute capability that stands for the board's."""
    return _NEAREST.get(build["compute"], _AMPERE)


def compiled_types(rows: Sequence[Mapping[str, Any]], build: Mapping[str, Any]) -> dict[str, str]:
    """Layer -> the type that its kernel reads, of the layers that the table names. A layer that was fused into a
    generated kernel has the narrowest type that this reads; one whose weights stay in 4 bits, `Precision.W4`.
    """
    written = {name: plain for plain, name in build["names"].items()}
    order = {"int8": 0, "fp8": 0, "fp16": 1, "bf16": 1, "fp32": 2}
    found: dict[str, str] = {}
    for layer in build["layers"]:
        node = written.get(layer["name"], layer["name"])
        named = [row for row in rows if node in row["nodes"] and row["inputs"]]
        if any(_FOUR_BITS in row["constants"] and _multiplies_or_unpacks(node, row["nodes"]) for row in rows):
            found[layer["name"]] = Precision.W4.value
            continue
        kernels = [row for row in named if row["kind"] != _GENERATED]
        types = [row["inputs"][0] for row in kernels] or [kind for row in named for kind in row["inputs"]]
        types = [kind for kind in types if kind in order]
        if types:
            found[layer["name"]] = min(types, key=lambda kind: order[kind])
    return found


def _multiplies_or_unpacks(layer: str, nodes: Sequence[str]) -> bool:
    """Whether one of these is the layer, or what makes floats of its weights (`edgekit.compress.qdq` names it)."""
    return any(node == layer or (node.startswith(f"{layer}/") and node.endswith("/dequantize")) for node in nodes)
