"""Activations that exporters spell out in several operators become the one operator that they are.

Runtimes compute a hard swish inside the layer before it, whether it was written as one operator or as five; counted and
priced it must be one. Gelu and Mish stay as they are: they have no operator of their own in this opset.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from edgekit.graph.tidy import take_over

_CLOSE = 1e-6  # constants are written in float32, or as quotients of it
_SIXTH = 1 / 6


def restore_activations(model: ir.Model) -> None:
    """HardSigmoid and HardSwish for every spelling of them. The tensors in between must have no other reader.

    HardSigmoid(x) = clip(x + 3, 0, 6) / 6 = clip(x / 6 + 1/2, 0, 1), HardSwish(x) = x HardSigmoid(x). Exporters write
    all three, and onnxruntime the product: to it HardSwish is a function
    (https://onnx.ai/onnx/operators/onnx__HardSwish.html).
    """
    for node in list(model.graph):
        if node.graph is None:  # removed with what it was a part of
            continue
        if (parts := _hard_swish(node)) is not None:
            _replace(model, "HardSwish", parts)
        elif (parts := _hard_sigmoid(node)) is not None:
            _replace(model, "HardSigmoid", parts, alpha=_SIXTH, beta=0.5)
    for node in list(model.graph):
        if node.graph is not None and (parts := _product_with_gate(node)) is not None:
            _replace(model, "HardSwish", parts)


# What was recognised: the tensor that it is a function of, and its nodes, the one with the result first.
_Parts = tuple[ir.Value, list[ir.Node]]


def _replace(model: ir.Model, kind: str, parts: _Parts, **attributes: float) -> None:
    source, nodes = parts
    made = ir.Node("", kind, [source], [ir.AttrFloat32(*one) for one in attributes.items()], name=nodes[0].name)
    model.graph.insert_before(nodes[0], made)
    take_over(nodes[0].outputs[0], made)
    model.graph.remove(nodes, safe=True)


def _product_with_gate(node: ir.Node) -> _Parts | None:
    """x HardSigmoid(x)."""
    for source, gate in _factors(node):
        inner = gate.producer()
        if inner is not None and _is_op(inner, "HardSigmoid") and _alone(gate) and inner.inputs[0] is source:
            slope, offset = inner.attributes.get_float("alpha", 0.2), inner.attributes.get_float("beta", 0.5)
            if abs(slope - _SIXTH) < _CLOSE and offset == 0.5:
                return source, [node, inner]
    return None


def _hard_swish(node: ir.Node) -> _Parts | None:
    """x clip(x + 3, 0, 6), with the sixth after the product or in its other factor."""
    outer: list[ir.Node] = []
    product = node
    if (inner := _sixth_of(node)) is not None:
        if (maker := inner.producer()) is None or not _alone(inner):
            return None
        outer, product = [node], maker
    for plain, gate in _factors(product):
        if not _alone(gate) or (found := _window(gate)) is None:
            continue
        source, nodes = found
        maker = plain.producer()
        if outer and plain is source:
            return source, [*outer, product, *nodes]
        if not outer and maker is not None and _alone(plain) and _sixth_of(maker) is source:
            return source, [product, maker, *nodes]
    return None


def _hard_sigmoid(node: ir.Node) -> _Parts | None:
    """clip(x + 3, 0, 6) / 6, or clip(x / 6 + 1/2, 0, 1)."""
    inner = _sixth_of(node)
    if inner is not None and _alone(inner) and (found := _window(inner)) is not None:
        return found[0], [node, *found[1]]
    shifted = _clipped(node, 0.0, 1.0)
    scaled = None if shifted is None or not _alone(shifted) else _plus(shifted, 0.5)
    if shifted is None or scaled is None or not _alone(scaled):
        return None
    maker, adder = scaled.producer(), shifted.producer()
    source = None if maker is None else _sixth_of(maker)
    if source is None or maker is None or adder is None:
        return None
    return source, [node, adder, maker]


def _window(value: ir.Value) -> _Parts | None:
    """clip(x + 3, 0, 6)."""
    clip = value.producer()
    shifted = None if clip is None else _clipped(clip, 0.0, 6.0)
    if clip is None or shifted is None or not _alone(shifted):
        return None
    source, adder = _plus(shifted, 3.0), shifted.producer()
    return None if source is None or adder is None else (source, [clip, adder])


def _clipped(node: ir.Node, low: float, high: float) -> ir.Value | None:
    """What ``node`` clips to that range; None where it does something else."""
    if not _is_op(node, "Clip") or len(node.inputs) != 3:
        return None
    same = _number(node.inputs[1]) == low and _number(node.inputs[2]) == high
    return node.inputs[0] if same else None


def _plus(value: ir.Value, number: float) -> ir.Value | None:
    """The tensor that ``value`` is the sum of with that number."""
    node = value.producer()
    if node is None or not _is_op(node, "Add", "Sub"):
        return None
    sign = -1 if node.op_type == "Sub" else 1
    return _other(node, number * sign, swap=sign > 0)


def _sixth_of(node: ir.Node) -> ir.Value | None:
    """The tensor that ``node`` divides by six."""
    if _is_op(node, "Div"):
        return _other(node, 6.0, swap=False)
    return _other(node, _SIXTH, swap=True) if _is_op(node, "Mul") else None


def _other(node: ir.Node, number: float, swap: bool) -> ir.Value | None:
    """The operand beside the constant ``number``, which stands second, or first where they may ``swap``. It must have
    the result's shape: a constant of more axes would give it more.
    """
    first, second = node.inputs
    for operand, constant in ((first, second), (second, first))[: 1 + swap]:
        found = _number(constant)
        if operand is not None and found is not None and abs(found - number) < _CLOSE:
            return operand if operand.shape is not None and operand.shape == node.outputs[0].shape else None
    return None


def _number(value: ir.Value | None) -> float | None:
    """The one number of a constant; None for all else."""
    if value is None or value.const_value is None or not value.is_initializer() or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()))


def _factors(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The two factors of a product, both ways round."""
    if _is_op(node, "Mul") and len(node.inputs) == 2:
        first, second = node.inputs
        if first is not None and second is not None and first is not second:
            yield first, second
            yield second, first


def _is_op(node: ir.Node, *kinds: str) -> bool:
    return node.op_type in kinds and not node.domain


def _alone(value: ir.Value) -> bool:
    """Whether a tensor has one reader and is no output: it may go."""
    return len(value.uses()) == 1 and not value.is_graph_output()
