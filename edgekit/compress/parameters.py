"""The weights and biases of a layer in a model that is being changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.compress.products import Product
from edgekit.graph.layers import shape_of


@dataclass(frozen=True, eq=False)
class Intercept:
    """Where a constant can be added to a product's results: input ``place`` of ``node``, which holds ``shape``."""

    node: ir.Node
    place: int
    shape: tuple[int, ...]
    scale: float = 1.0  # what the node multiplies the input by


def own_weight(node: ir.Node) -> bool:
    """Whether the node is the only one that reads its weight."""
    return any(v is not None and v.is_initializer() and len(v.uses()) == 1 for v in node.inputs[:2])


def weight_array(model: ir.Model, name: str) -> np.ndarray:
    """The values of an initializer."""
    constant = model.graph.initializers[name].const_value
    assert constant is not None, name
    return np.asarray(constant.numpy())


def set_array(model: ir.Model, name: str, array: np.ndarray) -> None:
    """Replace the values of an initializer by others of the same shape."""
    model.graph.initializers[name].const_value = ir.tensor(np.ascontiguousarray(array, dtype=np.float32), name=name)


def intercept_of(node: ir.Node, product: Product) -> Intercept | None:
    """Where the product takes its bias: the layer's own, or that of the Add behind a MatMul. A layer without one gets
    none: what a plan promises of sizes must hold to the byte.
    """
    outputs = product.view.blocks * product.outputs
    if product.op_type in ("Conv", "ConvTranspose"):
        return _checked(Intercept(node, 2, (outputs,)))
    if product.op_type == "Gemm":
        beta = node.attributes.get_float("beta", 1.0)
        shape = _shape(node, 2)
        return _checked(Intercept(node, 2, shape if shape[-1:] == (outputs,) else (outputs,), beta)) if beta else None
    if product.op_type == "MatMul":
        return _added(node, product)
    directions, gates = product.weight_shape[:2]
    return _checked(Intercept(node, 3, (directions, 2 * gates)))


def shift(model: ir.Model, intercept: Intercept, amount: np.ndarray) -> None:
    """Add ``amount`` [blocks * outputs] to every result; a bias that others read too is copied first."""
    body, node, place = model.graph, intercept.node, intercept.place
    current = node.inputs[place]
    assert current is not None
    array = weight_array(model, current.name or "").astype(np.float64)
    amount = amount / intercept.scale
    if node.op_type in ("LSTM", "GRU", "RNN"):  # the biases of the input weights, then those of the recurrent ones
        half = intercept.shape[1] // 2
        array[:, :half] += amount.reshape(-1, half)
    else:
        array = array + amount.reshape(intercept.shape)
    if len(current.uses()) == 1:
        set_array(model, current.name or "", array)
        return
    name = _fresh(model, f"{node.name}/bias")
    value = ir.Value(name=name, const_value=ir.tensor(array.astype(np.float32), name=name))
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(array.shape)
    body.register_initializer(value)
    node.replace_input_with(place, value)


def _added(node: ir.Node, product: Product) -> Intercept | None:
    """The one-dimensional constant that the only reader of a MatMul's result adds to it."""
    result = node.outputs[0]
    if not product.transposed or result.is_graph_output() or len(result.uses()) != 1:
        return None
    reader = next(iter(result.uses())).node
    if reader.op_type != "Add" or reader.domain not in ("", "ai.onnx"):
        return None
    place = 1 if reader.inputs[0] is result else 0
    shape = _shape(reader, place)
    rank = len(shape_of(result))
    return (
        _checked(Intercept(reader, place, shape)) if shape[-1:] == (product.outputs,) and len(shape) <= rank else None
    )


def _checked(intercept: Intercept) -> Intercept | None:
    """None where the input holds anything but one constant for each output."""
    node, place = intercept.node, intercept.place
    current = node.inputs[place] if len(node.inputs) > place else None
    if current is None:
        return None
    shape = shape_of(current)
    constant = current.is_initializer() and not current.is_graph_input()
    flat = node.op_type in ("LSTM", "GRU", "RNN") or all(dim == 1 for dim in shape[:-1])
    return intercept if constant and flat and shape == intercept.shape else None


def _shape(node: ir.Node, place: int) -> tuple[int, ...]:
    value = node.inputs[place] if len(node.inputs) > place else None
    return () if value is None else shape_of(value)


def _fresh(model: ir.Model, wish: str) -> str:
    taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    taken |= {output.name for node in ir.traversal.RecursiveGraphIterator(model.graph) for output in node.outputs}
    while wish in taken:
        wish += "_"
    return wish
