"""Small guarantees of the normalised form: names, constants as initializers, static shapes."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from edgekit.errors import InputError
from edgekit.graph.layers import elements_of
from edgekit.graph.read import all_nodes

# A tensor of 4 GB in float32: no board holds it, and running it here would end the process instead of failing.
MAX_ELEMENTS = 2**30


def name_nodes(model: onnx.ModelProto) -> None:
    """Make every node name non-empty and unique, in subgraphs too; names that are so already stay.

    A new name is built from the operator and its first output, so it depends on nothing but the model. Comments go:
    exporters leave stack traces with the paths of the machine there.
    """
    nodes = list(all_nodes(model.graph))
    taken: set[str] = set()
    renamed: list[onnx.NodeProto] = []
    for node in nodes:
        node.ClearField("doc_string")
        del node.metadata_props[:]
        if node.name and node.name not in taken:
            taken.add(node.name)
        else:
            renamed.append(node)
    for node in renamed:
        base = node.name or f"{node.op_type}_{next((o for o in node.output if o), '')}"
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        node.name = name
        taken.add(name)


def constants_to_initializers(model: ir.Model) -> None:
    """Turn every ``Constant`` node into an initializer and drop what nothing reads."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)


def unshare_biases(model: ir.Model) -> None:
    """Give every layer a bias of its own: exporters let layers share one that happens to be equal (all zeros, mostly),
    and their channels could then only be pruned together.
    """
    for name, value in list(model.graph.initializers.items()):
        for copy, use in enumerate(value.uses()):
            if copy and use.idx == 2 and use.node.op_type in ("Conv", "ConvTranspose", "Gemm"):
                own = ir.Value(name=f"{name}_{use.node.name}", shape=value.shape, type=value.type)
                own.const_value = value.const_value
                model.graph.register_initializer(own)
                use.node.replace_input_with(use.idx, own)


def simplify_softmax(model: ir.Model) -> None:
    """Flatten -> Softmax -> Reshape, as the opset converter writes a last-axis softmax, becomes one Softmax."""
    for node in list(model.graph):
        if node.op_type not in ("Softmax", "LogSoftmax") or node.inputs[0] is None:
            continue
        flatten = node.inputs[0].producer()
        uses = node.outputs[0].uses()
        if flatten is None or flatten.op_type != "Flatten" or len(uses) != 1 or node.outputs[0].is_graph_output():
            continue
        (use,) = uses
        reshape, source = use.node, flatten.inputs[0]
        if reshape.op_type != "Reshape" or source is None or source.shape is None or not source.shape.is_static():
            continue
        rank, output = len(source.shape), reshape.outputs[0]
        if flatten.attributes.get_int("axis", 1) % rank != rank - 1 or output.shape != source.shape:
            continue
        if node.attributes.get_int("axis", -1) not in (-1, 1):
            continue
        node.replace_input_with(0, source)
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        take_over(output, node)
        for dead in (reshape, flatten):
            if not any(o.uses() or o.is_graph_output() for o in dead.outputs):
                model.graph.remove(dead, safe=True)


def take_over(value: ir.Value, node: ir.Node) -> None:
    """Let ``node`` produce ``value``'s name and consumers; the node that made ``value`` is left without consumers."""
    new = node.outputs[0]
    name = value.name
    new.shape, new.type = value.shape, value.type
    value.name = f"{name}_replaced"
    value.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name


def static_shapes(model: ir.Model, where: str) -> ir.Model:
    """The model with the shape and type of every top-level value filled in; InputError where one is not static."""
    if _open(model):
        try:
            proto = onnx.shape_inference.infer_shapes(ir.serde.serialize_model(model), data_prop=True)
        except Exception as error:  # C++ InferenceError or RuntimeError
            message = f"{where}: shapes cannot be inferred: {first_line(error)}"
            raise InputError(message, "Check the input shapes.") from None
        model = ir.serde.deserialize_model(proto)
    unknown = _open(model)
    if unknown:
        raise _open_error(unknown, where)
    for value in _values(model):
        if elements_of(value) > MAX_ELEMENTS:
            raise InputError(f"{where}: {value.name!r} would have the shape {value.shape}", "Choose smaller inputs.")
    return model


def _values(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *(v for node in model.graph for v in node.outputs if v.name)]


def _open(model: ir.Model) -> list[ir.Value]:
    return [v for v in _values(model) if v.shape is None or not v.shape.is_static() or v.dtype is None]


def _open_error(unknown: list[ir.Value], where: str) -> InputError:
    node = unknown[0].producer()
    if node is not None and node.op_type in ("If", "Loop", "Scan"):
        return InputError(
            f"{where}: {node.op_type} {node.name} chooses what to compute at run time, so its shapes are not fixed",
            "Export the model without that control flow, for the one case that the board runs.",
        )
    made_by = f" (made by {node.op_type} {node.name})" if node is not None else ""
    return InputError(
        f"{where}: the shape of {unknown[0].name!r}{made_by} depends on the data; {len(unknown)} such value(s)",
        "Export the model without the part that has data-dependent shapes, such as post-processing.",
    )


def first_line(error: BaseException) -> str:
    """The first telling line of a library's message, without its status prefix."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line.rpartition(" : ")[2] if line.startswith("[ONNXRuntimeError]") else line
