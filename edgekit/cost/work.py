"""What a network asks of a device: arithmetic by kind of kernel, bytes moved, and how many kernels are started.

The cost model of a device profile is a sum over these. Counting is done on the normalised graph, so that the published
models that a profile was fitted on and the model that it predicts are counted by the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.types import Precision

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.graph import Graph

# Kinds of kernels that multiply: runtimes have a kernel of its own for each, with an efficiency of its own.
MAC_KINDS = ("conv3x3", "conv", "pointwise", "depthwise", "grouped", "matmul", "attention", "recurrent")
# Kinds without weights: arithmetic on elements, windows, and mere movement.
OTHER_KINDS = ("elementwise", "pool", "move")
# What a latency is a sum of, in the order of the coefficients of a profile.
FEATURES = ("call", "layer", "operator", *MAC_KINDS, "activation_bytes", "weight_bytes")

# Gone after compilation, or never more than a change of shape.
_FREE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Shape", "Constant", "Cast"})
_POOLS = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceSum", "LRN"}
)
_MOVES = frozenset(
    {"Concat", "Transpose", "Slice", "Split", "Pad", "Resize", "Gather", "Expand", "DepthToSpace", "SpaceToDepth"}
    | {"Tile", "Upsample", "ScatterND", "GatherND", "GatherElements"}
)
_ROWS = frozenset({"Softmax", "LogSoftmax", "LayerNormalization"})  # computed row by row, whatever the rank


class Shape(NamedTuple):
    """The loops of a kernel. Of a convolution: channels in and out, the weights of one output in one channel, the
    product of its strides, groups, height and width of what it writes. Of a matrix product: its inner size, columns,
    1, 1, matrices, rows, 1. Of a recurrent layer: sizes of its input and state, 1, 1, 1, steps, 1. Of any other
    operator: the last or, of a map, the channels' size in and out, its window, 1, 1, height and width.
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int
    groups: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Work:
    """One kernel. ``layer`` names the layer that it is, or that it follows ('' before the first one); elements are
    those read, stored as weights and written. Where the graph is known, ``op`` is the operator, ``shape`` its loops,
    ``functions`` the operators that are computed inside, element by element, and ``nodes`` the graph's nodes that it
    stands for, changes of shape included.
    """

    layer: str
    kind: str
    macs: int
    input_elements: int
    weight_elements: int
    output_elements: int
    op: str = ""
    shape: Shape | None = None
    functions: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


def work_of(graph: Graph) -> tuple[Work, ...]:
    """The kernels of a normalised graph in its order. Shape changes are none, nor is what a runtime computes inside the
    kernel before it: every function, element by element, of one kernel's result alone. That is an activation, in one
    operator or spelled out in many (SiLU, Gelu), a bias, or a scale.
    """
    from edgekit.graph.layers import elements_of
    from edgekit.graph.passes import ELEMENTWISE_OPS

    layers = {layer.name: layer for layer in graph.layers}
    of: dict[str, ir.Value] = {}  # a value -> the kernel's result that it is such a function of
    maker: dict[str, int] = {}  # a value -> the kernel that it comes out of
    found: list[Work] = []
    inside: list[list[ir.Node]] = []  # what each kernel computes: itself, functions of its result, changes of shape
    last = ""

    def add(kernel: Work, node: ir.Node) -> None:
        maker.update((value.name or "", len(found)) for value in node.outputs)
        found.append(kernel)
        inside.append([node])

    def follow(place: int, node: ir.Node) -> None:
        maker.update((value.name or "", place) for value in node.outputs)
        inside[place].append(node)

    for node in graph.model.graph:
        layer = layers.get(node.name or "")
        if layer is not None:
            last = layer.name
            weights = layer.weight_elements + layer.bias_elements
            sizes = (layer.macs, layer.input_elements, weights, layer.output_elements)
            add(Work(last, _layer_kind(node), *sizes, node.op_type, _layer_shape(node)), node)
            of.update((o.name, o) for o in node.outputs if o.name == layer.output)
            continue
        data = [v for v in node.inputs if v is not None and v.name and not v.is_initializer()]
        made = [o for o in node.outputs if o.name and o.shape is not None]
        if data and node.op_type in _FREE and data[0].name in maker:
            follow(maker[data[0].name or ""], node)
        if not data or not made or node.op_type in _FREE or not all(v.shape is not None for v in data):
            continue
        read, written = sum(map(elements_of, data)), sum(map(elements_of, made))
        if node.op_type in ELEMENTWISE_OPS and not node.domain:
            source = _common_source(data, of)
            if source is not None and elements_of(source) == written:
                of[made[0].name or ""] = source
                follow(maker[source.name or ""], node)
                continue
            of[made[0].name or ""] = made[0]
        add(Work(last, _other_kind(node.op_type), 0, read, 0, written, node.op_type, _other_shape(node)), node)
    return tuple(
        replace(
            one,
            functions=tuple(node.op_type for node in nodes[1:] if node.op_type in ELEMENTWISE_OPS),
            nodes=tuple(node.name or "" for node in nodes),
        )
        for one, nodes in zip(found, inside, strict=True)
    )


def _common_source(data: list[ir.Value], of: Mapping[str, ir.Value]) -> ir.Value | None:
    """The one kernel's result that all of these are functions of."""
    first = of.get(data[0].name or "")
    return first if all(of.get(value.name or "") is first for value in data) else None


def _layer_kind(node: ir.Node) -> str:
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return "recurrent"
    if node.op_type in ("Gemm", "MatMul"):
        return "matmul" if any(v is not None and v.is_initializer() for v in node.inputs[:2]) else "attention"
    weight = node.inputs[1]
    shape = [d for d in weight.shape if isinstance(d, int)] if weight is not None and weight.shape is not None else []
    group = node.attributes.get_int("group", 1)
    strides = node.attributes.get_ints("strides", ())
    return conv_kind(shape, group, max(strides, default=1), transposed=node.op_type == "ConvTranspose")


def conv_kind(weight_shape: list[int], group: int, stride: int, *, transposed: bool = False) -> str:
    """The kind of a convolution with weights [out, in / group, ...]. Only 3x3 at stride 1 has Winograd kernels."""
    kernel = weight_shape[2:]
    if group > 1:
        return "depthwise" if group >= weight_shape[0] or weight_shape[1] == 1 else "grouped"
    if math.prod(kernel) == 1:
        return "pointwise"
    narrow = weight_shape[1] < 8  # the first layer of a network: few channels to vectorise over
    return "conv3x3" if kernel == [3, 3] and stride == 1 and not transposed and not narrow else "conv"


def _layer_shape(node: ir.Node) -> Shape:
    from edgekit.graph.layers import shape_of

    first, second = (shape_of(value) for value in node.inputs[:2] if value is not None)
    made = next(shape_of(value) for value in node.outputs if value.name)
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return Shape(first[-1], node.attributes.get_int("hidden_size", made[-1]), 1, 1, 1, first[0] * first[1], 1)
    if node.op_type in ("Gemm", "MatMul"):
        inner = first[0] if node.attributes.get_int("transA", 0) else first[-1]
        constant = any(value is not None and value.is_initializer() for value in node.inputs[:2])
        matrices = 1 if constant else math.prod(made[:-2])
        return Shape(inner, made[-1], 1, 1, matrices, math.prod(made[:-1]) // matrices, 1)
    group = node.attributes.get_int("group", 1)
    stride = math.prod(node.attributes.get_ints("strides", ()))
    return Shape(first[1], made[1], math.prod(second[2:]), stride, group, made[2], math.prod(made[3:]))


def _other_shape(node: ir.Node) -> Shape:
    from edgekit.graph.layers import shape_of

    source = next(shape_of(v) for v in node.inputs if v is not None and v.name and not v.is_initializer())
    made = next(shape_of(value) for value in node.outputs if value.name and value.shape is not None)
    if node.op_type in _ROWS and made:
        return Shape(made[-1], made[-1], 1, 1, 1, math.prod(made[:-1]), 1)
    window = math.prod(node.attributes.get_ints("kernel_shape", ()))
    stride = math.prod(node.attributes.get_ints("strides", ()))
    if len(made) == 4 and len(source) == 4:
        return Shape(source[1], made[1], window, stride, 1, made[2], made[3])
    return Shape((source or (1,))[-1], (made or (1,))[-1], window, stride, 1, math.prod(made[:-1]), 1)


def _other_kind(op_type: str) -> str:
    return "pool" if op_type in _POOLS else "move" if op_type in _MOVES else "elementwise"


@dataclass(frozen=True)
class Units:
    """What one unit of each feature is on a device at its theoretical best, so that coefficients say how far from it
    a runtime stays: MACs in one precision, and bytes of main memory.
    """

    macs_per_ms: float
    bytes_per_ms: float
    element_bytes: int


def features(work: Iterable[Work], units: Units) -> NDArray[np.float64]:
    """One row of `FEATURES` for each kernel, [kernels, features]: MACs and bytes in milliseconds at the device's peak,
    starts counted. The feature "call" is 0: it is paid once, not by a kernel.
    """
    rows = [_row(one, units) for one in work]
    return np.asarray(rows, float).reshape(-1, len(FEATURES))


def _row(work: Work, units: Units) -> list[float]:
    moved = (work.input_elements + work.output_elements) * units.element_bytes / units.bytes_per_ms
    weights = work.weight_elements * units.element_bytes / units.bytes_per_ms
    macs = [work.macs / units.macs_per_ms if kind == work.kind else 0.0 for kind in MAC_KINDS]
    starts = [1.0, 0.0] if work.kind in MAC_KINDS else [0.0, 1.0]
    return [0.0, *starts, *macs, moved, weights]


def element_bytes(precision: Precision) -> int:
    """Bytes of one activation or weight element as the compute-bound precisions store them."""
    return precision.activation_bits // 8


def macs_by_kind(work: Iterable[Work]) -> dict[str, int]:
    """MACs of the kinds that occur."""
    found: dict[str, int] = {}
    for one in work:
        if one.macs:
            found[one.kind] = found.get(one.kind, 0) + one.macs
    return found


def layers_of(work: Iterable[Work]) -> Iterator[str]:
    """The layers in order, each once."""
    return iter(dict.fromkeys(one.layer for one in work if one.layer))
