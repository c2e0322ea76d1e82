"""Which operators must not run in half precision: those that would overflow there, or lose all digits, by the values
that calibration data takes them to.

IEEE 754 binary16 holds 65504 at most, keeps 11 bits down to 2**-14 and rounds what is below 2**-25 to zero. Samples
show some of what a network will see, so a margin is kept (`HEADROOM`). Sums inside an operator are taken to be
accumulated in single precision, as onnxruntime does; squares that a normalisation sums are not, since TensorRT before
8.6 has these spelled out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.compress.ranges import observe

if TYPE_CHECKING:
    from edgekit.compress.ranges import Samples
    from edgekit.graph import Graph
    from edgekit.types import Precision

LARGEST = 65504.0
PLANNED, SINGLE, SHRINK = "edgekit.precision", "edgekit.single", "edgekit.shrink"
SMALLEST_NORMAL = 2.0**-14
# How much larger than on the calibration samples values may become before they overflow.
HEADROOM = 4.0
_SQUARES = frozenset({"LayerNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization"})
_SQUARES |= {"ReduceL2", "ReduceSumSquare"}
_FEAR_ZERO = frozenset({"Sqrt", "Div", "Log", "Pow", "Reciprocal"})


def magnitudes(
    graph: Graph, dataset: Samples, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, float]:
    """Largest absolute value of each float tensor of the graph over all samples, its inputs included; infinite where a
    value is not finite.
    """
    inputs = [tensor.name for tensor in graph.inputs if np.dtype(tensor.dtype).kind == "f"]
    results = [value.name for node in graph.model.graph for value in node.outputs if _is_float(value)]
    found = {name: 0.0 for name in (*inputs, *results) if name}
    for done, runs, _, values in observe(graph, list(found), dataset):
        for name, array in values.items():
            if array.size:
                largest = max(abs(float(array.max())), abs(float(array.min())))
                found[name] = max(found[name], largest if math.isfinite(largest) else math.inf)
        if on_progress is not None:
            on_progress(done, runs)
    return found


def unsafe_in_half(graph: Graph, largest: Mapping[str, float]) -> dict[str, str]:
    """Node name -> why it must compute in single precision; ``largest`` is what `magnitudes` found."""
    found: dict[str, str] = {}
    for node in graph.model.graph:
        reason = _reason(node, largest)
        if reason:
            found[node.name or ""] = reason
    return found


def shrinks(graph: Graph, largest: Mapping[str, float]) -> dict[str, float]:
    """LayerNormalization -> the power of two by which its input may be multiplied so that squares do not overflow: a
    layer that is spelled out needs no more than that (what it computes does not depend on the scale of its input).
    """
    limit = math.sqrt(LARGEST / HEADROOM)
    found = {}
    for node in graph.model.graph:
        source = node.inputs[0] if node.op_type == "LayerNormalization" else None
        size = 0.0 if source is None else largest.get(source.name or "", 0.0)
        if limit <= size < LARGEST / HEADROOM and _reason(node, largest) == _squared(node, largest, LARGEST / HEADROOM):
            found[node.name or ""] = 2.0 ** -math.ceil(math.log2(size / limit) + 1e-9)
    return found


def label_types(
    model: ir.Model,
    layers: Collection[str],
    precisions: Mapping[str, Precision],
    single: Mapping[str, str],
    shrink: Mapping[str, float] | None = None,
) -> None:
    """Write into the nodes' metadata what a backend must know of their types: a layer's planned precision under
    `PLANNED` ('' where it is the base of the model), why a node must compute in single precision under `SINGLE`, what
    `shrinks` says of it under `SHRINK`.
    """
    for node in model.graph:
        name = node.name or ""
        if name in layers:
            node.metadata_props[PLANNED] = precisions[name].value if name in precisions else ""
        if name in single:
            node.metadata_props[SINGLE] = single[name]
        if shrink and name in shrink:
            node.metadata_props[SHRINK] = repr(shrink[name])


def _reason(node: ir.Node, largest: Mapping[str, float]) -> str:
    limit = LARGEST / HEADROOM
    for index, value in enumerate(node.inputs):
        if value is not None and value.is_initializer():
            reason = _constant_reason(value, added=_is_added(node, index))
            if reason:
                return reason
    for value in (*node.inputs, *node.outputs):
        size = None if value is None else largest.get(value.name or "")
        if value is None or size is None:
            continue
        if size >= limit:
            return f"{value.name} reaches {size:.3g}: fp16 holds {LARGEST:.0f}"
        if 0 < size < SMALLEST_NORMAL:
            return f"{value.name} stays below {size:.2g}: fp16 has no digits there"
    return _squared(node, largest, limit)


def _constant_reason(value: ir.Value, added: bool) -> str:
    if not _is_float(value) or value.const_value is None:
        return ""
    array = np.abs(value.const_value.numpy())
    size = float(array.max(initial=0.0))
    if size > LARGEST:
        return f"constant {value.name} holds {size:.3g}: fp16 holds {LARGEST:.0f}"
    if 0 < size < SMALLEST_NORMAL and not added:
        return f"constant {value.name} is {size:.2g} at most: fp16 has no digits there"
    return ""


def _is_added(node: ir.Node, index: int) -> bool:
    """Whether an input is added to larger ones, which makes little of its digits; what keeps a divisor or a logarithm
    from zero is not.
    """
    if node.op_type in ("Add", "Sub"):
        return not any(reader.op_type in _FEAR_ZERO for reader in node.outputs[0].consumers())
    return index >= 2 and node.op_type in ("Conv", "ConvTranspose", "Gemm", "LayerNormalization")


def _squared(node: ir.Node, largest: Mapping[str, float], limit: float) -> str:
    source = node.inputs[0] if node.inputs else None
    if node.op_type not in _SQUARES or source is None:
        return ""
    square = largest.get(source.name or "", 0.0) ** 2
    return f"squares of {source.name} reach {square:.3g}: fp16 holds {LARGEST:.0f}" if square >= limit else ""


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT
