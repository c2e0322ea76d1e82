"""The builder of the networks that boards are profiled with (`edgekit.cost.micro`, `edgekit.cost.sampled`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET = 17


class Net:
    """A network under construction; each method adds one operator and returns its result's name."""

    def __init__(self, name: str, *shape: int) -> None:
        self.name, self.shape = name, shape
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)
        self.input = "x"
        self.result = ""
        self.macs = 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """An operator."""
        name = f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def weight(self, *shape: int, fan_in: int = 1) -> str:
        """Random weights whose products keep the size of what they are multiplied with."""
        values = self._rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))
        return self._constant(values.astype(np.float32))

    def whole(self, *numbers: int) -> str:
        """Constants, such as sizes."""
        return self._constant(np.array(numbers, np.int64))

    def numbers(self, *numbers: float) -> str:
        """Constants."""
        return self._constant(np.array(numbers, np.float32))

    def _constant(self, values: np.ndarray) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(
        self, x: str, before: int, after: int, kernel: int = 1, stride: int | tuple[int, int] = 1, group: int = 1
    ) -> str:
        """A convolution that keeps the size, but for its stride."""
        strides = [stride] * 2 if isinstance(stride, int) else list(stride)
        weight = self.weight(after, before // group, kernel, kernel, fan_in=before // group * kernel * kernel)
        sizes = {"kernel_shape": [kernel] * 2, "strides": strides, "pads": [kernel // 2] * 4}
        return self.op("Conv", x, weight, self.weight(after, fan_in=100), group=group, **sizes)

    def line_conv(self, x: str, before: int, after: int, kernel: int, stride: int) -> str:
        """A convolution along time."""
        weight = self.weight(after, before, kernel, fan_in=before * kernel)
        sizes = {"kernel_shape": [kernel], "strides": [stride], "pads": [kernel // 2] * 2}
        return self.op("Conv", x, weight, self.weight(after, fan_in=100), **sizes)

    def transposed(self, x: str, before: int, after: int) -> str:
        """Twice as high and wide."""
        weight = self.weight(before, after, 2, 2, fan_in=before)
        sizes = {"kernel_shape": [2, 2], "strides": [2, 2]}
        return self.op("ConvTranspose", x, weight, self.weight(after, fan_in=100), **sizes)

    def recurrent(self, x: str, kind: str, before: int, hidden: int) -> str:
        """An LSTM or GRU over [steps, 1, before]."""
        gates = {"LSTM": 4, "GRU": 3}[kind]
        weights = [self.weight(1, gates * hidden, size, fan_in=size) for size in (before, hidden)]
        return self.op(kind, x, *weights, self.weight(1, 2 * gates * hidden, fan_in=100), hidden_size=hidden)

    def linear(self, x: str, before: int, after: int) -> str:
        """A product with weights, and a bias."""
        y = self.op("MatMul", x, self.weight(before, after, fan_in=before))
        return self.op("Add", y, self.weight(after, fan_in=100))

    def relu(self, x: str) -> str:
        """The commonest activation."""
        return self.op("Relu", x)

    def image(self, channels: int) -> str:
        """So many channels out of a picture: what enters and leaves a network is small, or copying it would count."""
        return self.relu(self.conv(self.input, 3, channels))

    def pooled(self, x: str) -> onnx.ModelProto:
        """The model that ends in the mean of each channel."""
        return self.model(self.op("GlobalAveragePool", x))

    def model(self, result: str) -> onnx.ModelProto:
        """The model that ends in that result."""
        given = [helper.make_tensor_value_info(self.input, TensorProto.FLOAT, self.shape)]
        made = [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self._nodes, self.name, given, made, self._weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
        return onnx.shape_inference.infer_shapes(proto)


def attend(net: Net, query: str, key: str, value: str, width: int) -> str:
    """Attention over [batch, heads, tokens, width]."""
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = net.op("Mul", scores, net.numbers(width**-0.5))
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), value)


def gelu(net: Net, x: str) -> str:
    """As exporters spell it out."""
    half = net.op("Mul", x, net.numbers(0.5))
    return net.op("Mul", half, net.op("Add", net.op("Erf", net.op("Mul", x, net.numbers(2**-0.5))), net.numbers(1.0)))


def encode(net: Net, x: str, tokens: int, size: int, heads: int, inner: int, bend: str = "Gelu") -> str:
    """A transformer's layer, ``inner`` wide in its middle."""

    def split() -> str:
        y = net.op("Reshape", net.linear(x, size, size), net.whole(1, tokens, heads, size // heads))
        return net.op("Transpose", y, perm=[0, 2, 1, 3])

    y = net.op("Transpose", attend(net, split(), split(), split(), size // heads), perm=[0, 2, 1, 3])
    y = net.linear(net.op("Reshape", y, net.whole(1, tokens, size)), size, size)
    x = _norm(net, net.op("Add", x, y), size)
    y = net.linear(x, size, inner)
    match bend:
        case "Gelu":
            y = gelu(net, y)
        case "Swish":
            y = net.op("Mul", y, net.op("Sigmoid", y))
        case kind:
            y = net.op(kind, y)
    return _norm(net, net.op("Add", x, net.linear(y, inner, size)), size)


def _norm(net: Net, x: str, size: int) -> str:
    return net.op("LayerNormalization", x, net.weight(size), net.weight(size), axis=-1)
