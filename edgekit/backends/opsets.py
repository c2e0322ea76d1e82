"""An ONNX model at the opset that a parser reads, with the operators that it has: small rewrites that keep every value.

Lowering goes by the schemas of the onnx package (https://onnx.ai/onnx/operators/), as `edgekit.graph.raising` does: an
operator that did not change between two opsets needs nothing, one that only took more types neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.graph.raising import constant_of, opset_of

# From opset 13 to 17 these took more types, or an attribute that changes nothing at the default given here.
_WIDENED: Mapping[str, tuple[str, int | str] | None] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "CumSum", "Identity", "LeakyRelu", "PRelu", "Pow", "Relu", "Where")),
    **dict.fromkeys(("GreaterOrEqual", "LessOrEqual", "If", "Loop", "Scan")),
    "Reshape": ("allowzero", 0),
    "LSTM": ("layout", 0),
    "GRU": ("layout", 0),
    "RNN": ("layout", 0),
    "BatchNormalization": ("training_mode", 0),
    "ScatterElements": ("reduction", "none"),
    "ScatterND": ("reduction", "none"),
    "Shape": ("start", 0),
}
_SMALLEST_HALF = 2.0**-24


def too_new(model: ir.Model, opset: int) -> list[tuple[ir.Node, str]]:
    """The nodes that cannot be said at an older ``opset``, each with the reason."""
    found = []
    for node in _nodes(model):
        reason = _too_new(node, opset_of(model), opset)
        if reason:
            found.append((node, reason))
    return found


def lower(model: ir.Model, opset: int) -> None:
    """Declare the model at an older ``opset``; nothing of it may be `too_new`."""
    for node in _nodes(model):
        attribute = _WIDENED.get(node.op_type)
        if attribute is not None and _since(node, opset_of(model)) > opset:
            node.attributes.pop(attribute[0], None)
    model.opset_imports[""] = opset


def spell_out(model: ir.Model, operators: frozenset[str], shrink: Mapping[str, float] | None = None) -> None:
    """Replace the nodes of these operators, of which there must be a `SPELLED`, by simpler ones. They inherit the
    node's metadata, and the last of them its name. ``shrink`` makes a model for halves of it: normalisations multiply
    their input by the power of two that it names, and keep a divisor that is not zero in halves.
    """
    for node in list(_nodes(model)):
        if node.op_type not in operators:
            continue
        if node.op_type == "LayerNormalization" and shrink is not None:
            _replace(node, _layer_normalization(node, shrink.get(node.name or "", 1.0), _SMALLEST_HALF))
        elif node.op_type in SPELLED:
            _replace(node, SPELLED[node.op_type](node))


def _hard_swish(node: ir.Node) -> list[ir.Node]:
    (source,) = node.inputs
    gate = ir.node("HardSigmoid", [source], {"alpha": 1 / 6, "beta": 0.5}, name=f"{node.name}/gate")
    return [gate, ir.node("Mul", [source, gate.outputs[0]])]


def _layer_normalization(node: ir.Node, shrink: float = 1.0, least: float = 0.0) -> list[ir.Node]:
    source, scale = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert source is not None
    assert source.shape is not None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    axes = list(range(axis % len(source.shape), len(source.shape)))
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    small = constant_of(node, "epsilon", np.float32(max(epsilon * shrink**2, least)))
    made: list[ir.Node] = []

    def step(operator: str, part: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        made.append(ir.node(operator, list(inputs), dict(attributes), name=f"{node.name}/{part}"))  # type: ignore[arg-type]
        return made[-1].outputs[0]

    if shrink != 1.0:
        source = step("Mul", "shrunk", source, constant_of(node, "shrink", np.float32(shrink)))
    mean = step("ReduceMean", "mean", source, axes=axes, keepdims=1)
    centred = step("Sub", "centred", source, mean)
    variance = step("ReduceMean", "variance", step("Mul", "squares", centred, centred), axes=axes, keepdims=1)
    deviation = step("Sqrt", "deviation", step("Add", "positive", variance, small))
    scaled = step("Mul", "scaled", step("Div", "normalised", centred, deviation), scale)
    if bias is not None:
        step("Add", "shifted", scaled, bias)
    return made


#: Operators that can be said by older ones.
SPELLED: Mapping[str, Callable[[ir.Node], list[ir.Node]]] = {
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_normalization,
}


def _replace(node: ir.Node, made: Sequence[ir.Node]) -> None:
    graph = node.graph
    assert graph is not None
    result, last = node.outputs[0], made[-1].outputs[0]
    for one in made:
        one.metadata_props.update(node.metadata_props)
        value = one.outputs[0]
        value.type = result.type
        value.name = f"{one.name}/result"
    last.shape = result.shape
    made[-1].name = node.name
    graph.insert_before(node, made)
    name = result.name
    result.replace_all_uses_with(last)
    for place, output in enumerate(graph.outputs):
        if output is result:
            graph.outputs[place] = last
    graph.remove(node, safe=True)
    last.name = name


def _too_new(node: ir.Node, current: int, opset: int) -> str:
    if node.domain not in ("", "ai.onnx") or _since(node, current) <= opset:
        return ""
    if node.op_type not in _WIDENED:
        return f"opset {opset} has no {node.op_type}" + (
            " of that form" if onnx.defs.has(node.op_type, opset, node.domain) else ""
        )
    attribute = _WIDENED[node.op_type]
    if attribute is not None and attribute[0] in node.attributes:
        name, default = attribute
        value = node.attributes[name].value
        if value != default:
            return f"opset {opset} has no attribute {name} of {node.op_type}"
    return ""


def _since(node: ir.Node, opset: int) -> int:
    try:
        return int(onnx.defs.get_schema(node.op_type, opset, "").since_version)
    except onnx.defs.SchemaError:
        return opset


def _nodes(model: ir.Model) -> list[ir.Node]:
    return list(ir.traversal.RecursiveGraphIterator(model.graph))
