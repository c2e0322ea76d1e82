"""Brings a model with frozen shapes into the one form that the rest of edgekit works on."""

from __future__ import annotations

import os

import onnx
import onnx_ir as ir
from onnx import inliner, version_converter

from edgekit.errors import InputError
from edgekit.graph.activations import restore_activations
from edgekit.graph.fold import fold_affine
from edgekit.graph.pads import fold_pads
from edgekit.graph.read import all_nodes
from edgekit.graph.tidy import (
    constants_to_initializers,
    first_line,
    name_nodes,
    simplify_softmax,
    static_shapes,
    unshare_biases,
)

OPSET = 17
# These rewrite matrix products and layouts instead of removing work; layers keep the form their author gave them.
_KEEP_AS_WRITTEN = ["MatMulAddFusion", "TransposeOptimizer"]


def normalise(model: onnx.ModelProto, where: str) -> ir.Model:
    """Fold constants, BatchNorm and identities, raise the opset to 17, name every node, infer every shape.

    onnxruntime's level-1 optimisations do the folding (constants, identities, dropout, constant ``If``, BatchNorm into
    Conv): they keep node names, use the real kernels and take a few hundredths of a second. What they leave, an affine
    operator after a layer and zero padding before it, `fold_affine` and `fold_pads` merge. ``model`` must have static
    input shapes; it is not changed.
    """
    if model.functions:
        model = inliner.inline_local_functions(model)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    model = _optimise(model, where)
    version = next(o.version for o in model.opset_import if o.domain == "")
    if version < OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except Exception as error:  # C++ raises RuntimeError, the wrapper ConvertError and others
            raise InputError(
                f"{where}: cannot be converted from opset {version} to {OPSET}: {first_line(error)}",
                f"Export the model with opset {OPSET}.",
            ) from None
        model = _optimise(model, where)
    name_nodes(model)
    normal = static_shapes(ir.serde.deserialize_model(model), where)
    fold_pads(normal)
    fold_affine(normal)
    simplify_softmax(normal)
    restore_activations(normal)
    constants_to_initializers(normal)
    unshare_biases(normal)
    normal.ir_version = max(8, normal.ir_version)
    normal.metadata_props.clear()
    normal.metadata_props.update(metadata)
    return normal


def _optimise(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """The model after onnxruntime's level-1 optimisations, which is also the judge of what can be executed."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # A file in memory: nothing is left of it, however this process ends.
    with os.fdopen(os.memfd_create("model.onnx"), "rb") as file:
        options.optimized_model_filepath = f"/proc/self/fd/{file.fileno()}"
        try:
            ort.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_KEEP_AS_WRITTEN,
                enable_fallback=0,  # its retry prints to stdout
            )
        except Exception as error:  # onnxruntime's exceptions share no base class
            custom = [n for n in all_nodes(model.graph) if n.domain and f"{n.domain}:{n.op_type}" in str(error)]
            if custom:
                nodes = ", ".join(f"{n.op_type} {n.name}" for n in custom[:3])
                raise InputError(
                    f"{where}: unknown operator of domain {custom[0].domain!r}: {nodes}",
                    "Export with standard operators.",
                ) from None
            raise InputError(
                f"{where}: onnxruntime cannot execute the model: {first_line(error)}",
                "Check the input shapes and that every operator is a standard one.",
            ) from None
        optimised = onnx.load_from_string(file.read())
    used = {node.domain for node in all_nodes(optimised.graph)} | {""}
    imports = [o for o in optimised.opset_import if o.domain in used]
    del optimised.opset_import[:]
    optimised.opset_import.extend(imports)
    return optimised
