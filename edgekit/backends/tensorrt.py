"""TensorRT on Jetson boards: a typed ONNX model and what its builder must be told. The engine is built on the board.

The precision of every layer stands in the file: Q/DQ pairs of int8 or fp8 around zero, and halves by casts where the
board's TensorRT takes types from the file (10 and later). TensorRT 8 gets a float32 file, and the same plan as flags.
Here on the host onnxruntime computes what either promises.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit import releases as facts
from edgekit.backends import Artifact, ExecutedNode, Session
from edgekit.errors import InputError
from edgekit.types import Precision

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from edgekit.graph import Graph
    from edgekit.releases import Release

RUNNER = "tensorrt.sh"
TOOLCHAIN = ""
quantizes_results = False
symmetric = True
types_floats = True
# "Sub-byte quantization with odd tensor volume is not supported", its builder says, and its parser wants the last even.
four_bit_columns = 2

runtime_weight_bits = {Precision.FP32: 32, Precision.FP16: 16, Precision.INT8: 8, Precision.FP8: 8, Precision.W4: 4}
# Recurrent layers have no int8 form (onnx-tensorrt, docs/operators.md: FP32 and FP16 only). Transposed convolutions
# have one there, but TensorRT for RTX 1.7.1 compiled those of PP-OCRv4 det, pairs and all, in fp16.
# 4-bit weights are those of matrix products (TensorRT developer guide, quantized types: weight-only GEMM). fp8 is for
# these too: some convolutions have kernels, and the others cannot be built (github.com/NVIDIA/TensorRT/issues/3987).
quantized_op_types = {
    Precision.INT8: frozenset({"Conv", "Gemm", "MatMul"}),
    Precision.FP8: frozenset({"Gemm", "MatMul"}),
    Precision.W4: frozenset({"Gemm", "MatMul"}),
}
# Measured on a Jetson: github.com/onnxsim/onnxsim/pull/1764. Not behind Q/DQ: github.com/NVIDIA/TensorRT/issues/4694.
sparse_op_types = {Precision.FP16: frozenset({"Gemm", "MatMul"})}

#: In the metadata of a layer's node: its planned precision; of any node: why it computes in single precision; of a
#: normalisation: what to multiply its input by so that it need not, once it is spelled out.
PLANNED, SINGLE, SHRINK = "edgekit.precision", "edgekit.single", "edgekit.shrink"
MODEL, BUILD = "model.onnx", "build.json"
_SCHEMA = 1


@dataclass(frozen=True)
class TensorRT:
    """The backend for the releases that a target names. ``compute`` is the capability of the target's GPU;
    ``accelerator`` is what computes halves in its place.
    """

    releases: tuple[Release, ...]
    compute: str
    sparsity: bool = False
    accelerator: str = ""
    version: int = 2  # raised when it writes the same model in another way
    RUNNER: str = RUNNER
    TOOLCHAIN: str = TOOLCHAIN
    quantizes_results: bool = quantizes_results
    symmetric: bool = symmetric
    types_floats: bool = types_floats
    four_bit_columns: int = four_bit_columns

    @property
    def runtime_weight_bits(self) -> Mapping[Precision, int]:
        """Bits of one weight element in an engine."""
        return runtime_weight_bits

    @property
    def quantized_op_types(self) -> Mapping[Precision, frozenset[str]]:
        """Operator types of the layers that may take each quantized precision."""
        return quantized_op_types

    @property
    def typing(self) -> Literal["flags", "strong"]:
        """Where the releases take a network's types from."""
        return self.releases[0].typing

    def hint(self, base: Precision) -> str:
        """The float precision's own word."""
        return base.value

    def convert(self, onnx_bytes: bytes, folder: Path, base: Precision) -> Artifact:
        """Write ``model.onnx`` and ``build.json``.

        Raises `InputError` where none of the releases can take the model, with the nodes and the reasons.
        """
        import onnx
        import onnx_ir as ir

        from edgekit.backends import halves, opsets, typed
        from edgekit.graph import raising

        model = ir.serde.deserialize_model(onnx.load_model_from_string(onnx_bytes))
        planned = _planned(model, base)
        typed.sign_codes(model)
        self._spell_out(model, base)
        accepted, refused = self._accepted(model, base)
        opset = min(raising.opset_of(model), *(one.opset for one in accepted))
        opsets.lower(model, opset)
        single = _singles(model, planned) if base is Precision.FP16 else {}
        own = typed.name_plainly(model)
        written = {name: plain for plain, name in own.items()}
        single = {written.get(name, name): reason for name, reason in single.items()}
        layers = [_layer(node, own, planned) for node in model.graph if own.get(node.name or "", node.name) in planned]
        cast = model.clone()
        if base is Precision.FP16:
            halves.cast_to_halves(cast, frozenset(single))
        four_bits = frozenset(row["name"] for row in layers if row["precision"] == Precision.W4.value)
        typed.pack_four_bits(cast, frozenset(written.get(name, name) for name in four_bits))
        weight_bytes = _drop_unused(cast)
        shipped = cast
        if self.typing == "flags":
            shipped = model
            typed.pair_weights(shipped)
            typed.dedicate_pairs(shipped)
            _drop_unused(shipped)
        for node in ir.traversal.RecursiveGraphIterator(shipped.graph):
            node.metadata_props.clear()
        shipped.ir_version = onnx.helper.find_min_ir_version_for(
            [onnx.helper.make_opsetid("", raising.opset_of(shipped))]
        )
        content = ir.serde.serialize_model(shipped)
        onnx.checker.check_model(content)
        document = {
            "schema": _SCHEMA,
            "base": base.value,
            "typing": self.typing,
            "opset": raising.opset_of(shipped),
            "compute": self.compute,
            "releases": [
                {"name": one.name, "l4t": list(one.l4t), "tensorrt": one.tensorrt, "typing": one.typing}
                for one in accepted
            ],
            "refused": [{"name": name, "reason": reason} for name, reason in refused.items()],
            "flags": {
                "fp16": base is Precision.FP16,
                "int8": any(row["precision"] == Precision.INT8.value for row in layers),
                "sparsity": self.sparsity,
            },
            # It computes no single precision: a whole model in fp32 is for the GPU.
            "accelerator": self.accelerator if base is Precision.FP16 else "",
            "layer_precisions": dict.fromkeys(single, "fp32") if self.typing == "flags" else {},
            "single": single,
            "names": own,
            "layers": layers,
            "inputs": [_tensor(value, self.typing) for value in shipped.graph.inputs],
            "outputs": [_tensor(value, self.typing) for value in shipped.graph.outputs],
            "weight_bytes": weight_bytes,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL).write_bytes(content.SerializeToString(deterministic=True))
        (folder / BUILD).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return self.artifact(folder, base)

    def artifact(self, folder: Path, base: Precision) -> Artifact:
        """What `convert` wrote. ``weight_bytes`` are those of an engine: codes and halves, whatever the file holds."""
        path, build = folder / MODEL, folder / BUILD
        weight_bytes = int(json.loads(build.read_text(encoding="utf-8"))["weight_bytes"])
        return Artifact(path, (path, build), base, weight_bytes)

    def compress(self, folder: Path) -> None:
        """Raise `InputError`: an engine holds its weights as they are."""
        raise InputError(f"{folder}: TensorRT models cannot be stored with compressed weights")

    def session(self, compiled: Artifact, threads: int, outputs: Sequence[str]) -> Session:
        """The plan's numerics in onnxruntime: pairs in the float type of their layer, halves rounded as halves."""
        run = numerics(compiled, threads)
        names = list(outputs)

        def answer(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return dict(zip(names, run.run(names, dict(inputs)), strict=True))

        return answer

    def compiled_rows(self, compiled: Artifact) -> None:
        """Nothing: the builder on the board decides."""

    def executed_nodes(self, rows: Sequence[Mapping[str, Any]], graph: Graph) -> tuple[ExecutedNode, ...]:
        """The engine's layers, joined to those of the graph."""
        from edgekit.backends import trtexec_output

        return trtexec_output.executed_nodes(rows, graph)

    def executes_as(self, planned: Precision, executed: str) -> bool:
        """Whether an engine layer's type is what ``planned`` asks for."""
        from edgekit.backends import trtexec_output

        return trtexec_output.executes_as(planned, executed)

    @property
    def sparse_op_types(self) -> Mapping[Precision, frozenset[str]]:
        """Operator types of the layers whose kernels gain from 2:4 zeros."""
        return sparse_op_types

    def _spell_out(self, model: ir.Model, base: Precision) -> None:
        from edgekit.backends import opsets

        operators = self._spelled(model)
        shrink: dict[str, float] | None = None
        if base is Precision.FP16:
            shrink = {}
            for node in model.graph:
                if node.op_type in operators and SHRINK in node.metadata_props:
                    shrink[node.name or ""] = float(node.metadata_props[SHRINK])
                    node.metadata_props.pop(SINGLE, None)
        opsets.spell_out(model, operators, shrink)

    def _spelled(self, model: ir.Model) -> frozenset[str]:
        """Operators that some release lacks, by version or opset, and that can be said otherwise."""
        from edgekit.backends import opsets

        present = {node.op_type for node in model.graph} & set(opsets.SPELLED)
        least = min(one.opset for one in self.releases)
        new = {node.op_type for node, _ in opsets.too_new(model, least)}
        return frozenset(o for o in present if o in new or any(not _parses(one, o) for one in self.releases))

    def _accepted(self, model: ir.Model, base: Precision) -> tuple[list[Release], dict[str, str]]:
        accepted: list[Release] = []
        refused: dict[str, str] = {}
        for release in self.releases:
            reason = _refusal(release, self.compute, model, base)
            if reason:
                refused[release.name] = reason
            else:
                accepted.append(release)
        if not accepted:
            raise InputError(
                "; ".join(f"{name}: {reason}" for name, reason in refused.items()),
                "export the model without these operators, or name newer releases in a target of your own",
            )
        return accepted, refused


def typed_model(compiled: Artifact) -> ir.Model:
    """The artifact's model with the plan's types in the file, whoever its releases take them from."""
    import onnx
    import onnx_ir as ir

    from edgekit.backends import halves

    model = ir.serde.deserialize_model(onnx.load_model_from_string(compiled.path.read_bytes()))
    build = read_build(compiled)
    if build["typing"] == "flags" and build["base"] == Precision.FP16.value:
        halves.cast_to_halves(model, frozenset(build["single"]))
    return model


def read_build(compiled: Artifact) -> dict[str, Any]:
    """The ``build.json`` of an artifact."""
    document: dict[str, Any] = json.loads(compiled.path.with_name(BUILD).read_text(encoding="utf-8"))
    return document


def numerics(compiled: Artifact, threads: int) -> Any:
    """An onnxruntime session of an artifact of this backend, in the types that its plan gives to the layers."""
    import onnx_ir as ir
    import onnxruntime

    from edgekit.backends import halves

    model = typed_model(compiled)
    halves.simulate(model)
    content = ir.serde.serialize_model(model).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Pairs stay as they stand, and no fusion keeps more digits than the types have.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _refusal(release: Release, compute: str, model: ir.Model, base: Precision) -> str:
    """Why a release cannot take the model as it stands on GPUs of that capability, '' where it can."""
    from edgekit.backends import opsets

    for node in model.graph:
        if not _parses(release, node.op_type):
            return f"TensorRT {release.tensorrt} is not known to read {node.op_type} (node {node.name})"
    lacks = facts.lacks_of(compute) | release.lacks
    for node in model.graph:
        word = node.metadata_props.get(PLANNED)
        if word in lacks:
            return f"{lacks[word]} (node {node.name})"
    new = opsets.too_new(model, release.opset)
    if new:
        node, reason = new[0]
        return f"TensorRT {release.tensorrt} reads opset {release.opset} at most: {reason} (node {node.name})"
    if base is Precision.FP16 and release.typing == "flags" and not release.names_layers:
        for node in model.graph:
            if SINGLE in node.metadata_props:
                return (
                    f"TensorRT {release.tensorrt} cannot keep single layers in fp32, and fp16 does not do for node "
                    f"{node.name}: {node.metadata_props[SINGLE]}"
                )
    return ""


def _parses(release: Release, operator: str) -> bool:
    first = facts.operators().get(operator)
    return first is not None and release.version >= first


def _planned(model: ir.Model, base: Precision) -> dict[str, str]:
    """The precision of each layer, in the order of the graph."""
    found = {}
    for node in model.graph:
        word = node.metadata_props.get(PLANNED)
        if word is not None:
            floats = Precision.FP32 if base is Precision.FP16 and SINGLE in node.metadata_props else base
            found[node.name or ""] = word or floats.value
    return found


def _singles(model: ir.Model, planned: Mapping[str, str]) -> dict[str, str]:
    """Why some nodes compute in single precision while the rest is in halves, by their names."""
    found = {name: "the plan says so" for name, word in planned.items() if word == Precision.FP32.value}
    return found | {n.name or "": n.metadata_props[SINGLE] for n in model.graph if SINGLE in n.metadata_props}


def _layer(node: ir.Node, own: Mapping[str, str], planned: Mapping[str, str]) -> dict[str, str]:
    name = own.get(node.name or "", node.name or "")
    output = node.outputs[0].name or ""
    return {"name": name, "op_type": node.op_type, "precision": planned[name], "output": output}


def _tensor(value: ir.Value, typing: str) -> dict[str, Any]:
    """A binding of the engine. TensorRT 8 has no 64-bit integers: its parser makes such inputs and outputs int32
    (onnx-tensorrt, docs/Changelog.md, 9.0 EA).
    """
    assert value.dtype is not None
    assert value.shape is not None
    dtype = str(value.dtype.numpy())
    if typing == "flags" and dtype == "int64":
        dtype = "int32"
    return {"name": value.name, "dtype": dtype, "shape": [int(dim) for dim in value.shape.numpy()]}


def _drop_unused(model: ir.Model) -> int:
    """Remove the constants that nobody reads any more; the bytes of those that stay."""
    body = model.graph
    for value in list(body.initializers.values()):
        if not value.uses() and not value.is_graph_output():
            del body.initializers[value.name or ""]
    return sum(value.const_value.nbytes for value in body.initializers.values() if value.const_value is not None)
