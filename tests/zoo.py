"""Small ONNX models with deterministic random weights, one for each kind of network that edgekit must handle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]


class Net:
    """Builds a model node by node: every method returns the name of the value that it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.count = 0

    def input(self, name: str, shape: Shape, kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def weight(self, values: Any, name: str = "") -> str:
        array = np.asarray(values)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.count += 1
        name = name or f"w{self.count}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def random(self, *shape: int, name: str = "") -> str:
        fan_in = max(1, int(np.prod(shape[1:])))
        return self.weight(self.rng.standard_normal(shape) / np.sqrt(fan_in), name)

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        self.count += 1
        name = f"{op_type}_{self.count}"
        made = [f"{name}_out{i}" if i else f"{name}_out" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), made, name=name, **attributes))
        return made[0] if outputs == 1 else made

    def conv(
        self, x: str, cin: int, cout: int, k: int = 3, *, bias: bool = True, group: int = 1, stride: int = 1
    ) -> str:
        inputs = [x, self.random(cout, cin // group, k, k)] + ([self.random(cout)] if bias else [])
        pads = [k // 2] * 4
        return self.op("Conv", *inputs, group=group, pads=pads, strides=[stride] * 2, kernel_shape=[k, k])

    def batch_norm(self, x: str, channels: int) -> str:
        gamma = self.weight(self.rng.uniform(0.5, 1.5, channels))
        variance = self.weight(self.rng.uniform(0.5, 2.0, channels))
        return self.op("BatchNormalization", x, gamma, self.random(channels), self.random(channels), variance)

    def clip6(self, x: str) -> str:
        return self.op("Clip", x, self.weight(np.float32(0)), self.weight(np.float32(6)))

    def hard_swish(self, x: str) -> str:
        gate = self.clip6(self.op("Add", x, self.weight(np.float32([3]))))
        return self.op("Div", self.op("Mul", x, gate), self.weight(np.float32([6])))

    def ints(self, *values: int) -> str:
        return self.weight(np.array(values, np.int64))

    def model(
        self,
        outputs: Sequence[str],
        *,
        opset: int = 17,
        ir_version: int = 8,
        old_inputs: bool = False,
        kind: int = TensorProto.FLOAT,
    ) -> Any:
        inputs = list(self.inputs)
        if old_inputs:  # before IR 4 every initializer was also an input
            inputs += [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in self.weights]
        values = [onnx.ValueInfoProto(name=name) for name in outputs]
        for value in values:
            value.type.tensor_type.elem_type = kind
        graph = helper.make_graph(self.nodes, "zoo", inputs, values, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def conv_net(seed: int = 0, *, opset: int = 17, batch: int | str = 1, size: int | str = 16) -> onnx.ModelProto:
    """Conv + BatchNorm + Relu, a residual block, pooling and a Gemm head. x [1, 3, 16, 16] -> [1, 10]."""
    net = Net(seed)
    x = net.input("x", [batch, 3, size, size])
    stem = net.op("Relu", net.batch_norm(net.conv(x, 3, 16, bias=False), 16))
    y = net.op("Relu", net.batch_norm(net.conv(stem, 16, 16, bias=False), 16))
    y = net.batch_norm(net.conv(y, 16, 16), 16)
    y = net.op("Relu", net.op("Add", y, stem))
    y = net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Relu", net.conv(y, 16, 24, stride=2))
    y = net.op("Flatten", net.op("GlobalAveragePool", y))
    return net.model([net.op("Gemm", y, net.random(10, 24), net.random(10), transB=1)], opset=opset)


def redundant_net(seed: int = 11) -> onnx.ModelProto:
    """Three convolutions whose 64 channels are scaled copies of 16. x [1, 3, 32, 32] -> [1, 10]."""
    net = Net(seed)
    y, channels = net.input("x", [1, 3, 32, 32]), 3
    for _ in range(3):
        few = net.rng.standard_normal((16, channels, 3, 3)) / np.sqrt(9 * min(channels, 16))
        scale = net.rng.uniform(0.5, 1.5, (64, 1, 1, 1))
        y = net.op("Conv", y, net.weight(np.tile(few, (4, 1, 1, 1)) * scale), net.random(64), pads=[1] * 4)
        y, channels = net.op("Relu", y), 64
    y = net.op("Flatten", net.op("GlobalAveragePool", y))
    return net.model([net.op("Gemm", y, net.random(10, 64), net.random(10), transB=1)])


def inverted_residual(seed: int = 1) -> onnx.ModelProto:
    """Two MobileNetV2 blocks: expansion, depthwise, projection, BatchNorm, ReLU6. x [1, 3, 16, 16] -> [1, 8]."""
    net = Net(seed)
    y = net.clip6(net.batch_norm(net.conv(net.input("x", [1, 3, 16, 16]), 3, 8, bias=False, stride=2), 8))
    for _ in range(2):
        wide = net.clip6(net.batch_norm(net.conv(y, 8, 48, 1, bias=False), 48))
        wide = net.clip6(net.batch_norm(net.conv(wide, 48, 48, 3, bias=False, group=48), 48))
        y = net.op("Add", net.batch_norm(net.conv(wide, 48, 8, 1, bias=False), 8), y)
    return net.model([net.op("Flatten", net.op("GlobalAveragePool", y))])


def grouped_conv(seed: int = 2) -> onnx.ModelProto:
    """Grouped convolutions with a channel shuffle between them. x [1, 8, 12, 12] -> [1, 16, 12, 12]."""
    net = Net(seed)
    y = net.op("Relu", net.conv(net.input("x", [1, 8, 12, 12]), 8, 16, group=4))
    y = net.op("Reshape", y, net.ints(1, 4, 4, 12, 12))
    y = net.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = net.op("Reshape", y, net.ints(1, 16, 12, 12))
    return net.model([net.batch_norm(net.conv(y, 16, 16, group=2), 16)])


def conv_transpose(seed: int = 3, *, group: int = 1) -> onnx.ModelProto:
    """Encoder and decoder with ConvTranspose + BatchNorm and a skip by Concat. x [1, 4, 8, 8] -> [1, 2, 16, 16]."""
    net = Net(seed)
    x = net.input("x", [1, 4, 8, 8])
    down = net.op("Relu", net.conv(x, 4, 8, stride=2))
    up = net.op("ConvTranspose", down, net.random(8, 8 // group, 2, 2), strides=[2, 2], group=group)
    y = net.op("Concat", net.op("Relu", net.batch_norm(up, 8)), x, axis=1)
    y = net.op("ConvTranspose", y, net.random(12, 2, 4, 4), net.random(2), strides=[2, 2], pads=[1, 1, 1, 1])
    return net.model([net.op("Sigmoid", y)])


def squeeze_excite(seed: int = 4) -> onnx.ModelProto:
    """MobileNetV3's block: hard-swish spelled out, squeeze-and-excite with HardSigmoid. x [1, 8, 12, 12]."""
    net = Net(seed)
    x = net.input("x", [1, 8, 12, 12])
    y = net.hard_swish(net.conv(x, 8, 16, 1))
    y = net.hard_swish(net.conv(y, 16, 16, 5, group=16))
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", y), 16, 4, 1))
    gate = net.op("HardSigmoid", net.conv(gate, 4, 16, 1), alpha=1 / 6)
    y = net.conv(net.op("Mul", y, gate), 16, 8, 1)
    return net.model([net.op("Add", y, x)])


def transformer(seed: int = 5, *, tokens: int = 8, width: int = 16, heads: int = 2) -> onnx.ModelProto:
    """A BERT-like encoder block on token ids with an attention mask. ids, mask int64 [1, 8] -> [1, 4]."""
    net = Net(seed)
    ids = net.input("ids", [1, tokens], TensorProto.INT64)
    mask = net.input("mask", [1, tokens], TensorProto.INT64)
    x = net.op("Gather", net.weight(net.rng.standard_normal((32, width))), ids)

    def linear(value: str, cin: int, cout: int) -> str:
        return net.op("Add", net.op("MatMul", value, net.random(cin, cout)), net.random(cout))

    def split(value: str, perm: list[int]) -> str:
        return net.op("Transpose", net.op("Reshape", value, net.ints(1, tokens, heads, width // heads)), perm=perm)

    def norm(value: str) -> str:
        return net.op("LayerNormalization", value, net.weight(np.ones(width)), net.weight(np.zeros(width)), axis=-1)

    q, k, v = (split(linear(x, width, width), p) for p in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    scores = net.op("Div", net.op("MatMul", q, k), net.weight(np.float32(np.sqrt(width / heads))))
    open_mask = net.op("Unsqueeze", net.op("Cast", mask, to=TensorProto.FLOAT), net.ints(1, 2))
    bias = net.op("Mul", net.op("Sub", net.weight(np.float32(1)), open_mask), net.weight(np.float32(-1e4)))
    scores = net.op("Softmax", net.op("Add", scores, bias), axis=-1)
    y = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = linear(net.op("Reshape", y, net.ints(1, tokens, width)), width, width)
    x = norm(net.op("Add", x, y))
    y = linear(x, width, 4 * width)
    half = net.op("Mul", y, net.weight(np.float32(0.5)))
    erf = net.op("Erf", net.op("Div", y, net.weight(np.float32(np.sqrt(2)))))
    y = linear(net.op("Mul", half, net.op("Add", erf, net.weight(np.float32(1)))), 4 * width, width)
    pooled = net.op("ReduceMean", norm(net.op("Add", x, y)), axes=[1], keepdims=0)
    return net.model([net.op("Gemm", pooled, net.random(width, 4), net.random(4))])


def lstm(seed: int = 6, *, steps: int = 6, features: int = 8, hidden: int = 12) -> onnx.ModelProto:
    """A streaming LSTM: x [6, 1, 8] with its states h, c [1, 1, 12] in and out, and a Gemm head."""
    net = Net(seed)
    x = net.input("x", [steps, 1, features])
    h, c = net.input("h", [1, 1, hidden]), net.input("c", [1, 1, hidden])
    w, r = net.random(1, 4 * hidden, features), net.random(1, 4 * hidden, hidden)
    bias = net.weight(net.rng.standard_normal((1, 8 * hidden)) * 0.1)
    y, hn, cn = net.op("LSTM", x, w, r, bias, "", h, c, outputs=3, hidden_size=hidden)
    flat = net.op("Reshape", y, net.ints(steps, hidden))
    return net.model([net.op("Sigmoid", net.op("Gemm", flat, net.random(hidden, 1), net.random(1))), hn, cn])


def gru(seed: int = 7, *, steps: int = 6, features: int = 8, hidden: int = 12) -> onnx.ModelProto:
    """A bidirectional GRU over 1-D convolution features, with the zero state that exporters write."""
    net = Net(seed)
    x = net.input("x", [1, features, steps])
    y = net.op("Relu", net.op("Conv", x, net.random(features, features, 3), net.random(features), pads=[1, 1]))
    y = net.op("Transpose", y, perm=[2, 0, 1])
    w, r = net.random(2, 3 * hidden, features), net.random(2, 3 * hidden, hidden)
    zero = net.weight(np.zeros((2, 1, hidden)))
    bias = net.weight(net.rng.standard_normal((2, 6 * hidden)) * 0.1)
    y, _ = net.op("GRU", y, w, r, bias, "", zero, outputs=2, hidden_size=hidden, direction="bidirectional")
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(steps, 2 * hidden))
    return net.model([net.op("MatMul", y, net.random(2 * hidden, 5))])


def dynamic_batch(seed: int = 0) -> onnx.ModelProto:
    """`conv_net` with a symbolic batch: loads without being told a shape."""
    return conv_net(seed, batch="N")


def dynamic_image(seed: int = 8) -> onnx.ModelProto:
    """x [N, 3, H, W] with Shape/Slice/Concat/Reshape arithmetic that folds once the shape is frozen."""
    net = Net(seed)
    y = net.op("Relu", net.conv(net.input("x", ["N", 3, "H", "W"]), 3, 8))
    shape = net.op("Shape", y)
    lead = net.op("Slice", shape, net.ints(0), net.ints(2), net.ints(0))
    flat = net.op("Reshape", y, net.op("Concat", lead, net.ints(-1), axis=0))
    return net.model([net.op("MatMul", net.op("Transpose", flat, perm=[0, 2, 1]), net.random(8, 4))])


def old_opset(seed: int = 9) -> onnx.ModelProto:
    """Opset 7, IR 3: initializers listed as inputs, attribute-style Clip, Dropout, spatial BatchNorm, no node names."""
    net = Net(seed)
    y = net.conv(net.input("x", [1, 3, 8, 8]), 3, 8, bias=False)
    y = net.op("Clip", net.batch_norm(y, 8), min=0.0, max=6.0)
    y = net.op("Upsample", net.op("Dropout", y, ratio=0.5), scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
    y = net.op("Flatten", net.op("AveragePool", net.conv(y, 8, 4), kernel_shape=[4, 4], strides=[4, 4]))
    y = net.op("Softmax", net.op("Gemm", y, net.random(64, 5), net.random(5)), axis=1)
    model = net.model([y], opset=7, ir_version=3, old_inputs=True)
    for node in model.graph.node:
        node.name = ""
    return model


def constants_as_nodes(seed: int = 10) -> onnx.ModelProto:
    """Weights as Constant nodes, Identity nodes, a duplicate node name and a constant If, as some exporters write."""
    net = Net(seed)
    y = net.op("Identity", net.op("Relu", net.conv(net.input("x", [1, 3, 8, 8]), 3, 8)))
    branches = []
    for name, op in (("then", "Relu"), ("else", "Neg")):
        value = onnx.ValueInfoProto(name=f"{name}_y")
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        branches.append(helper.make_graph([helper.make_node(op, [y], [f"{name}_y"])], name, [], [value]))
    y = net.op("If", net.weight(np.array(True)), then_branch=branches[0], else_branch=branches[1])
    model = net.model([net.conv(net.conv(y, 8, 8, 1), 8, 4, 1)])
    constants = [helper.make_node("Constant", [], [w.name], value=w) for w in model.graph.initializer]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.name = "conv"
    return model


def save_external(model: onnx.ModelProto, path: Path, data: str = "weights.bin") -> Path:
    """Write ``model`` with all its weights in a data file beside it."""
    onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=0)
    return path


# Every model that loads without shapes.
STATIC: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        conv_net,
        inverted_residual,
        grouped_conv,
        conv_transpose,
        squeeze_excite,
        transformer,
        lstm,
        gru,
        dynamic_batch,
        old_opset,
        constants_as_nodes,
    )
}
