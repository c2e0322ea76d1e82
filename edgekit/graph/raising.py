"""An ONNX model at a newer opset, by small rewrites that keep every value.

It goes by the schemas of the onnx package (https://onnx.ai/onnx/operators/): an operator that did not change between
two opsets needs nothing, one that only took more types neither.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

# Opset 18 made their axes an input, as ReduceSum's are from 13 on.
_REDUCTIONS = frozenset(f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod"))
_REDUCTIONS |= {"ReduceSumSquare"}


def opset_of(model: ir.Model) -> int:
    """The version of the default domain."""
    return int(model.opset_imports.get("", 1))


def raise_to(model: ir.Model, opset: int) -> None:
    """Rewrite the model for a newer ``opset``, up to 19."""
    assert opset <= 19
    if opset_of(model) < 18 <= opset:
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            if node.op_type in _REDUCTIONS and "axes" in node.attributes:
                axes = np.array(node.attributes.pop("axes").as_ints(), np.int64)
                node.resize_inputs(len(node.inputs) + 1)
                node.replace_input_with(len(node.inputs) - 1, constant_of(node, "axes", axes))
            elif node.op_type == "Split" and len(node.inputs) == 1:
                node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
    model.opset_imports[""] = max(opset, opset_of(model))


def constant_of(node: ir.Node, part: str, array: np.ndarray | np.generic) -> ir.Value:
    """A new initializer that is named after a node and the ``part`` that it plays there."""
    graph = node.graph
    assert graph is not None
    root = graph if isinstance(graph, ir.Graph) else graph.graph
    name = f"{node.name}/{part}"
    while name in root.initializers:
        name += "_"
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(np.asarray(array).dtype), ir.Shape(np.asarray(array).shape)
    root.register_initializer(value)
    return value
