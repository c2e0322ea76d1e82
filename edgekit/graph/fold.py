"""Merges an affine operator that follows a layer into the layer's weights and bias."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgekit.graph.layers import shape_of
from edgekit.graph.tidy import take_over

Array = npt.NDArray[np.float32]
_AFFINE = frozenset({"BatchNormalization", "Mul", "Add", "Sub", "Div"})


def fold_affine(model: ir.Model) -> None:
    """Fold BatchNorm, and multiplication or addition by per-channel constants, into the layer before it, in place.

    Applies to Conv, ConvTranspose and Gemm, and for factors to MatMul with constant weights, as long as the layer's
    output has no other reader. ``y = s * (W x + b) + t`` becomes ``(s W) x + (s b + t)``.
    """
    for node in list(model.graph):
        while _fold_next(model, node):
            pass


def _fold_next(model: ir.Model, layer: ir.Node) -> bool:
    if layer.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or layer.domain:
        return False
    output = layer.outputs[0]
    uses = output.uses()
    if len(uses) != 1 or output.is_graph_output() or output.shape is None or not output.shape.is_static():
        return False
    (use,) = uses
    after = use.node
    if after.op_type not in _AFFINE or after.domain or after.outputs[0].shape != output.shape:
        return False
    channels = _channels(layer)
    if channels is None:
        return False
    axis, count = channels
    affine = _affine(after, output, axis, count)
    if affine is None or not _apply(model, layer, *affine):
        return False
    take_over(after.outputs[0], layer)
    model.graph.remove(after, safe=True)
    return True


def _channels(layer: ir.Node) -> tuple[int, int] | None:
    """The output's channel axis and its size; None where weights are not plain float constants of this layer."""
    weight, output = layer.inputs[1], layer.outputs[0]
    if array(weight) is None or output.shape is None:
        return None
    axis = 1 if layer.op_type in ("Conv", "ConvTranspose") else len(output.shape) - 1
    if len(output.shape) <= axis:
        return None
    return axis, shape_of(output)[axis]


def array(value: ir.Value | None) -> Array | None:
    """The float32 constant behind ``value``; None for anything else."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy() if value.const_value.dtype == ir.DataType.FLOAT else None


def _affine(node: ir.Node, x: ir.Value, axis: int, count: int) -> tuple[Array, Array] | None:
    """(scale, shift) per channel of ``node`` as a function of ``x``; None where it is no such function."""
    one, zero = np.ones(count, np.float32), np.zeros(count, np.float32)
    if node.op_type == "BatchNormalization":
        gamma, beta, mean, var = (array(v) for v in node.inputs[1:5])
        plain = len([o for o in node.outputs if o.name]) == 1 and not node.attributes.get_int("training_mode", 0)
        if node.inputs[0] is not x or axis != 1 or not plain:
            return None
        if gamma is None or beta is None or mean is None or var is None:
            return None
        # In float64: the quotient of small variances is where float32 would lose digits.
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        scale64 = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + epsilon)
        shift64 = beta - mean * scale64
        return scale64.astype(np.float32), shift64.astype(np.float32)
    left = node.inputs[0] is x
    constant = array(node.inputs[1 if left else 0])
    vector = None if constant is None else _per_channel(constant, len(x.shape or ()), axis, count)
    if vector is None:
        return None
    if node.op_type == "Mul":
        return vector, zero
    if node.op_type == "Add":
        return one, vector
    if node.op_type == "Sub":
        return (one, -vector) if left else (-one, vector)
    return (one / vector, zero) if left and np.all(vector != 0) else None


def _per_channel(constant: Array, rank: int, axis: int, count: int) -> Array | None:
    if constant.ndim > rank:
        return None
    aligned = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    if any(size != 1 for place, size in enumerate(aligned.shape) if place != axis):
        return None
    return np.broadcast_to(aligned.reshape(-1), (count,)).astype(np.float32)


def _apply(model: ir.Model, layer: ir.Node, scale: Array, shift: Array) -> bool:
    weight = array(layer.inputs[1])
    assert weight is not None
    slot = 2
    bias_value = layer.inputs[slot] if len(layer.inputs) > slot else None
    bias = np.zeros(scale.size, np.float32) if bias_value is None else array(bias_value)
    if bias is None:
        return False
    if layer.op_type == "MatMul":
        if np.any(shift) or weight.ndim < 2:
            return False
        scaled = weight * scale
    elif layer.op_type == "Gemm":
        if layer.attributes.get_float("beta", 1.0) != 1.0:
            return False
        if bias.size not in (1, scale.size) or bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1):
            return False
        bias = np.broadcast_to(bias.reshape(-1), scale.shape)
        scaled = weight * (scale[:, None] if layer.attributes.get_int("transB", 0) else scale)
    elif layer.op_type == "Conv":
        scaled = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    else:
        group = layer.attributes.get_int("group", 1)
        # [C, M/group, k...]: the output channels of group g are made by the input channels of group g.
        per_group = scale.reshape(group, 1, -1)
        blocks = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        scaled = (blocks * per_group[..., None]).reshape(weight.shape)
    _replace(model, layer, 1, scaled.astype(np.float32))
    if layer.op_type != "MatMul":
        new_bias = (bias * scale + shift).astype(np.float32)
        if bias_value is not None or np.any(new_bias):
            _replace(model, layer, slot, new_bias)
    return True


def _replace(model: ir.Model, layer: ir.Node, slot: int, values: Array) -> None:
    """Give ``layer`` its own constant at input ``slot``; a constant that nobody reads any more is dropped."""
    old = layer.inputs[slot] if len(layer.inputs) > slot else None
    base = old.name if old is not None and old.name else f"{layer.outputs[0].name}_bias"
    alone = old is not None and len(old.uses()) == 1 and not old.is_graph_output()
    if old is not None and alone:
        model.graph.initializers.pop(base)
    name, count = base, 1
    taken = model.graph.initializers
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    value = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = ir.Tensor(values, name=name)
    model.graph.register_initializer(value)
    if slot >= len(layer.inputs):
        layer.resize_inputs(slot + 1)
    layer.replace_input_with(slot, value)
