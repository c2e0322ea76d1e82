"""A layer as the matrix product that it is: the rows of its input, times a constant weight matrix.

A convolution multiplies patches of its input (im2col), a transposed one the patches of its input with zeros between,
Gemm and MatMul the rows of a matrix, LSTM/GRU/RNN the features of each step by the input weights of all gates. A
grouped convolution is several products beside each other: ``blocks``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.graph.layers import shape_of

if TYPE_CHECKING:
    from edgekit.graph.channels import Channels

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(frozen=True)
class Window:
    """Which input positions meet in one output position, per spatial axis: output ``o`` and tap ``k`` read input
    ``o * stride - pad + k * dilation``; a transposed window reads ``(o + pad - k * dilation) / stride`` where that is
    whole. What lies outside the input is zero.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    transposed: bool


@dataclass(frozen=True)
class View:
    """How the rows are read from a tensor; layers with equal views multiply the same rows.

    ``axis`` of the tensor ``source`` holds the channels that are contracted; each gives ``taps`` columns, next to each
    other, and ``blocks`` products share the channels out among them.
    """

    source: str
    axis: int
    shape: tuple[int, ...]
    blocks: int = 1
    window: Window | None = None

    @property
    def taps(self) -> int:
        """Columns of one channel."""
        return 1 if self.window is None else math.prod(self.window.kernel)

    @property
    def channels(self) -> int:
        """Contracted channels of the tensor, all blocks together."""
        return self.shape[self.axis]

    @property
    def columns(self) -> int:
        """Columns of one block."""
        return self.channels // self.blocks * self.taps

    @property
    def rows(self) -> int:
        """Rows that one sample has."""
        if self.window is None:
            return math.prod(self.shape) // self.channels
        return self.shape[0] * math.prod(self.window.outputs)


@dataclass(frozen=True)
class Product:
    """The product of one layer. Its weight as a matrix is [blocks, outputs, columns] (see `matrix_of`).

    ``output_axis`` is the axis of ``output`` that holds the blocks * outputs results; -1 for recurrent layers, whose
    results nobody sees. ``scale`` is Gemm's alpha.
    """

    layer: str
    op_type: str
    view: View
    weight: str
    weight_shape: tuple[int, ...]
    outputs: int
    output: str
    output_axis: int
    transposed: bool = False
    scale: float = 1.0


def product_of(node: ir.Node) -> Product | None:
    """The product of a layer's node; None where no constant weight of rank >= 2 multiplies an activation."""
    if node.domain not in ("", "ai.onnx") or len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    x, w = node.inputs[0], node.inputs[1]
    if x.shape is None or w.shape is None or x.dtype != ir.DataType.FLOAT:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        return _convolution(node, x, w)
    if node.op_type in _RECURRENT:
        return _recurrent(node, x, w)
    if node.op_type == "Gemm":
        return _gemm(node, x, w)
    return _matmul(node, x, w) if node.op_type == "MatMul" else None


def rows_of(view: View, x: np.ndarray, choice: np.ndarray | None = None) -> np.ndarray:
    """The rows [blocks, rows, columns] of the tensor ``x``; only those numbered in ``choice`` where it is given."""
    if view.window is None:
        rows = np.moveaxis(x, view.axis, -1).reshape(-1, view.channels)
        return (rows if choice is None else rows[choice])[None]
    window = view.window
    batch, channels = x.shape[:2]
    number = np.arange(view.rows) if choice is None else choice
    sample, *position = np.unravel_index(number, (batch, *window.outputs))
    place = np.zeros((number.size, 1), np.int64)
    inside = np.ones((number.size, 1), bool)
    for axis, size in enumerate(window.inputs):
        stride, pad = window.strides[axis], window.pads[axis]
        tap = np.arange(window.kernel[axis]) * window.dilations[axis]
        if window.transposed:
            at, rest = np.divmod(position[axis][:, None] + pad - tap, stride)
            fits = (rest == 0) & (at >= 0) & (at < size)
        else:
            at = position[axis][:, None] * stride - pad + tap
            fits = (at >= 0) & (at < size)
        place = (place[:, :, None] * size + np.clip(at, 0, size - 1)[:, None, :]).reshape(number.size, -1)
        inside = (inside[:, :, None] & fits[:, None, :]).reshape(number.size, -1)
    flat = x.reshape(batch, channels, -1)
    patches = flat[sample[:, None], :, place]  # [rows, taps, channels]
    patches[~inside] = 0
    patches = patches.transpose(2, 0, 1).reshape(view.blocks, channels // view.blocks, number.size, -1)
    return patches.transpose(0, 2, 1, 3).reshape(view.blocks, number.size, -1)


def matrix_of(product: Product, weight: np.ndarray) -> np.ndarray:
    """The weight as [blocks, outputs, columns], float64."""
    blocks, outputs = product.view.blocks, product.outputs
    matrix = weight.astype(np.float64)
    if product.op_type == "ConvTranspose":  # [channels, outputs, *kernel]
        matrix = matrix.reshape(blocks, -1, outputs, product.view.taps).transpose(0, 2, 1, 3)
    elif product.transposed:
        matrix = matrix.T
    return product.scale * matrix.reshape(blocks, outputs, -1)


def weight_of(product: Product, matrix: np.ndarray) -> np.ndarray:
    """The inverse of `matrix_of`: the weight, float32."""
    blocks, outputs = product.view.blocks, product.outputs
    if product.op_type == "ConvTranspose":
        matrix = matrix.reshape(blocks, outputs, -1, product.view.taps).transpose(0, 2, 1, 3)
    elif product.transposed:
        matrix = matrix[0].T
    return np.ascontiguousarray(matrix.reshape(product.weight_shape) / product.scale, dtype=np.float32)


def column_units(channels: Channels, view: View) -> np.ndarray:
    """The channel unit of each column [blocks, columns], -1 where it stays."""
    axes = channels.units.get(view.source)
    found = None if axes is None else axes[view.axis]
    units = np.full(view.channels, -1) if found is None else found
    return np.repeat(units.reshape(view.blocks, -1), view.taps, axis=1)


def output_units(channels: Channels, product: Product) -> np.ndarray:
    """The channel unit of each output [blocks * outputs], -1 where it stays."""
    recurrent = product.output_axis < 0  # the axis of gates * hidden is the same for every direction
    axes = channels.units.get(product.weight if recurrent else product.output)
    found = None if axes is None else axes[1 if recurrent else product.output_axis]
    count = product.view.blocks * product.outputs
    return np.full(count, -1) if found is None else np.tile(found, count // found.size)


def _convolution(node: ir.Node, x: ir.Value, w: ir.Value) -> Product | None:
    kernel, source = shape_of(w), shape_of(x)
    if not w.is_initializer() or x.is_initializer():
        return None
    blocks = node.attributes.get_int("group", 1)
    transposed = node.op_type == "ConvTranspose"
    window = _window(node, kernel[2:], source[2:], shape_of(node.outputs[0])[2:], transposed)
    return Product(
        layer=node.name or "",
        op_type=node.op_type,
        view=View(x.name or "", 1, source, blocks, window),
        weight=w.name or "",
        weight_shape=kernel,
        outputs=kernel[1] if transposed else kernel[0] // blocks,
        output=node.outputs[0].name or "",
        output_axis=1,
    )


def _window(
    node: ir.Node, kernel: tuple[int, ...], inputs: tuple[int, ...], outputs: tuple[int, ...], transposed: bool
) -> Window:
    ones = (1,) * len(kernel)
    strides = tuple(node.attributes.get_ints("strides", ones))
    dilations = tuple(node.attributes.get_ints("dilations", ones))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = (0,) * len(kernel)
    elif auto == "NOTSET" and "output_shape" not in node.attributes:
        pads = tuple(node.attributes.get_ints("pads", (0,) * 2 * len(kernel)))[: len(kernel)]
    elif transposed:  # https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
        extra = node.attributes.get_ints("output_padding", (0,) * len(kernel))
        ends = zip(strides, inputs, extra, spans, outputs, strict=True)
        totals = [max(0, s * (i - 1) + e + span - o) for s, i, e, span, o in ends]
        pads = tuple(total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals)
    else:
        ends = zip(strides, inputs, [0] * len(kernel), spans, outputs, strict=True)
        totals = [max(0, s * (o - 1) + span - i) for s, i, _, span, o in ends]
        pads = tuple(total - total // 2 if auto == "SAME_LOWER" else total // 2 for total in totals)
    return Window(kernel, strides, pads, dilations, inputs, outputs, transposed)


def _recurrent(node: ir.Node, x: ir.Value, w: ir.Value) -> Product | None:
    shape = shape_of(w)  # [directions, gates * hidden, input]
    if not w.is_initializer() or x.is_initializer():
        return None
    return Product(
        layer=node.name or "",
        op_type=node.op_type,
        view=View(x.name or "", 2, shape_of(x)),
        weight=w.name or "",
        weight_shape=shape,
        outputs=shape[0] * shape[1],
        output=next(o.name or "" for o in node.outputs if o.name),
        output_axis=-1,
    )


def _gemm(node: ir.Node, x: ir.Value, w: ir.Value) -> Product | None:
    if not w.is_initializer() or x.is_initializer():
        return None
    shape = shape_of(w)
    outputs_first = bool(node.attributes.get_int("transB", 0))
    scale = node.attributes.get_float("alpha", 1.0)
    return (
        Product(
            layer=node.name or "",
            op_type="Gemm",
            view=View(x.name or "", 0 if node.attributes.get_int("transA", 0) else 1, shape_of(x)),
            weight=w.name or "",
            weight_shape=shape,
            outputs=shape[0] if outputs_first else shape[1],
            output=node.outputs[0].name or "",
            output_axis=1,
            transposed=not outputs_first,
            scale=scale,
        )
        if scale
        else None
    )


def _matmul(node: ir.Node, a: ir.Value, b: ir.Value) -> Product | None:
    weight_left = a.is_initializer()
    x, w = (b, a) if weight_left else (a, b)
    if not w.is_initializer() or x.is_initializer() or len(shape_of(w)) != 2:
        return None
    shape, rank = shape_of(w), len(shape_of(x))
    if weight_left and rank < 2:
        return None
    return Product(
        layer=node.name or "",
        op_type="MatMul",
        view=View(x.name or "", rank - 2 if weight_left else rank - 1, shape_of(x)),
        weight=w.name or "",
        weight_shape=shape,
        outputs=shape[0] if weight_left else shape[1],
        output=node.outputs[0].name or "",
        output_axis=rank - 2 if weight_left else rank - 1,
        transposed=not weight_left,
    )
