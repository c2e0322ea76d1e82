"""Random small networks for the properties of channel groups: every operator through which channels are coupled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.zoo import Net

Draw = st.DrawFn
# Takes [1, channels, size, size], gives the same with other channels and size.
Block = Callable[[Draw, Net, str, int, int], tuple[str, int, int]]


def conv(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    made = draw(st.sampled_from([2, 4, 6, 8]))
    act = draw(st.sampled_from(["Relu", "Sigmoid", "Tanh"]))
    return net.op(act, net.conv(y, c, made, draw(st.sampled_from([1, 3])))), made, s


def grouped(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    group = draw(st.sampled_from([g for g in (1, 2, 4, 8) if c % g == 0]))
    made = group * draw(st.integers(1, 3))
    return net.conv(y, c, made, group=group), made, s


def transposed(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    group = draw(st.sampled_from([g for g in (1, 2, c) if c % g == 0]))
    each = draw(st.integers(1, 3))
    w, bias = net.random(c, each, 3, 3), net.random(group * each)
    return net.op("ConvTranspose", y, w, bias, group=group, pads=[1] * 4), group * each, s


def depthwise(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    each = draw(st.integers(1, 2))
    return net.conv(y, c, c * each, group=c), c * each, s


def norm(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    kind = draw(st.sampled_from(["bn", "instance", "layer", "prelu", "scale"]))
    if kind == "bn":
        return net.batch_norm(net.op("Relu", y), c), c, s
    if kind == "instance" and s > 1:
        return net.op("InstanceNormalization", y, net.random(c), net.random(c)), c, s
    if kind == "layer":
        last = net.op("Transpose", y, perm=[0, 2, 3, 1])
        last = net.op("LayerNormalization", last, net.random(c), net.random(c), axis=-1, epsilon=0.1)
        return net.op("Transpose", last, perm=[0, 3, 1, 2]), c, s
    if kind == "prelu":
        return net.op("PRelu", y, net.random(c, 1, 1)), c, s
    return net.op(draw(st.sampled_from(["Mul", "Add"])), net.random(1, c, 1, 1), y), c, s


def residual(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    inner = net.conv(net.op("Relu", net.conv(y, c, 4)), 4, c, 1)
    return net.op("Add", inner, y), c, s


def squeeze_excite(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    if draw(st.booleans()):
        pooled = net.op("GlobalAveragePool", y)
        gate = net.op("Sigmoid", net.conv(net.op("Relu", net.conv(pooled, c, 3, 1)), 3, c, 1))
    else:
        pooled = net.op("ReduceMean", y, axes=[2, 3], keepdims=0)
        hidden = net.op("Relu", net.op("Gemm", pooled, net.random(3, c), net.random(3), transB=1))
        gate = net.op("Sigmoid", net.op("Gemm", hidden, net.random(3, c), net.random(c)))
        gate = net.op("Unsqueeze", gate, net.ints(2, 3))
    return net.op("Mul", y, gate), c, s


def dense(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    more = draw(st.integers(1, 4))
    return net.op("Concat", *draw(st.permutations([y, net.conv(y, c, more)])), axis=1), c + more, s


def gated(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    a, b = net.op("Split", net.conv(y, c, 8), axis=1, outputs=2)
    return net.op("Mul", a, net.op("Sigmoid", b)), 4, s


def branches(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    wide = net.conv(y, c, 8)
    a, b = net.op("Split", wide, net.ints(5, 3), axis=1, outputs=2)
    again = net.op("Relu", net.conv(b, 3, 3))
    if draw(st.booleans()):
        a = net.op("Slice", wide, net.ints(-8), net.ints(5), net.ints(1))
    return net.op("Concat", a, b, again, axis=1), 11, s


def sliced(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    start = draw(st.integers(0, c - 1))
    end = draw(st.integers(start + 1, c))
    step = draw(st.sampled_from([1, 1, 2]))
    made = len(range(start, end, step))
    return net.op("Slice", y, net.ints(start), net.ints(end), net.ints(1), net.ints(step)), made, s


def picked(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    places = draw(st.lists(st.integers(-c, c - 1), min_size=1, max_size=6))
    return net.op("Gather", y, net.ints(*places), axis=1), len(places), s


def shuffled(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    group = draw(st.sampled_from([2, 4]))
    y = net.conv(y, c, 8, group=group if c % group == 0 else 1)
    y = net.op("Reshape", y, net.ints(1, group, 8 // group, s, s))
    return net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), net.ints(0, 8, -1, s)), 8, s


def padded(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    return net.op("Pad", y, net.ints(0, before, 0, 0, 0, after, 0, 0)), before + c + after, s


def resized(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    if s > 4:
        return net.op("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2]), c, s // 2
    if draw(st.booleans()):
        return net.op("Resize", y, "", net.weight(np.float32([1, 1, 2, 2])), mode="nearest"), c, 2 * s
    return net.op("Resize", y, "", "", net.ints(1, c, 2 * s, 2 * s), mode="linear"), c, 2 * s


def depth(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    if s % 2 == 0 and draw(st.booleans()):
        return net.op("SpaceToDepth", y, blocksize=2), 4 * c, s // 2
    mode = draw(st.sampled_from(["DCR", "CRD"]))
    return net.op("DepthToSpace", net.conv(y, c, 12), blocksize=2, mode=mode), 3, 2 * s


def tiled(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    if draw(st.booleans()):
        return net.op("Tile", y, net.ints(1, 2, 1, 1)), 2 * c, s
    pooled = net.op("Expand", net.op("GlobalMaxPool", y), net.ints(1, c, s, s))
    return net.op("Max", y, pooled), c, s


def flattened(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    y = net.op("GlobalAveragePool", net.conv(y, c, 6))
    flat = net.op("Squeeze", y) if draw(st.booleans()) else net.op("Reshape", y, net.ints(-1))  # [6]
    flat = net.op("MatMul", flat, net.random(6, 8))
    return net.op("Reshape", net.op("Relu", flat), net.ints(1, 2, 2, 2)), 2, 2


def tokens(net: Net, y: str, c: int, s: int) -> str:
    """[1, s * s, c]."""
    return net.op("Transpose", net.op("Reshape", y, net.ints(1, c, s * s)), perm=[0, 2, 1])


def image(net: Net, y: str, c: int, s: int) -> str:
    return net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1]), net.ints(1, c, s, s))


def attention(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    heads, width, n = draw(st.sampled_from([1, 2, 3])), 2, s * s
    made = heads * width
    x = tokens(net, y, c, s)
    if draw(st.booleans()):  # three projections in one, as timm writes it
        qkv = net.op("Add", net.op("MatMul", x, net.random(c, 3 * made)), net.random(3 * made))
        qkv = net.op("Transpose", net.op("Reshape", qkv, net.ints(1, n, 3, heads, width)), perm=[2, 0, 3, 1, 4])
        q, k, v = (net.op("Gather", qkv, net.weight(np.int64(i)), axis=0) for i in range(3))
    else:
        parts = [net.op("MatMul", x, net.random(c, made)) for _ in range(3)]
        parts = [net.op("Reshape", part, net.ints(1, n, heads, width)) for part in parts]
        q, k, v = (net.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts)
    if draw(st.booleans()):
        scores = net.op("Einsum", q, k, equation="bhid,bhjd->bhij")
    else:
        scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(1, n, made))
    if draw(st.booleans()):
        return image(net, net.op("MatMul", y, net.random(made, 4)), 4, s), 4, s
    return image(net, y, made, s), made, s


def mixer(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    """Tokens mixed by weights on the left side, channels by Einsum."""
    x = tokens(net, y, c, s)
    hidden = net.op("Relu", net.op("Add", net.op("MatMul", net.random(5, s * s), x), net.random(5, 1)))
    x = net.op("Add", x, net.op("MatMul", net.random(s * s, 5), hidden))
    return image(net, net.op("Einsum", x, net.random(c, 4), equation="btc,cd->btd"), 4, s), 4, s


def recurrent(draw: Draw, net: Net, y: str, c: int, s: int) -> tuple[str, int, int]:
    kind = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    both = draw(st.booleans())
    gates, hidden, d = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 3, 1 + both
    x = net.op("Transpose", tokens(net, y, c, s), perm=[1, 0, 2])  # [s * s, 1, c]
    w, r = net.random(d, gates * hidden, c), net.random(d, gates * hidden, hidden)
    more = [net.random(d, 2 * gates * hidden), "", net.weight(np.zeros((d, 1, hidden)))]
    if kind == "LSTM" and draw(st.booleans()):
        more += [net.weight(np.ones((d, 1, hidden))), net.random(d, 3 * hidden)]
    inputs = [x, w, r, *(more if draw(st.booleans()) else [])]
    y = net.op(kind, *inputs, hidden_size=hidden, direction="bidirectional" if both else "forward")  # [n, d, 1, h]
    y = net.op("Reshape", net.op("Transpose", y, perm=[2, 0, 1, 3]), net.ints(1, s * s, d * hidden))
    return image(net, y, d * hidden, s), d * hidden, s


BLOCKS: tuple[Block, ...] = (
    conv,
    grouped,
    transposed,
    depthwise,
    norm,
    residual,
    squeeze_excite,
    dense,
    gated,
    branches,
    sliced,
    picked,
    shuffled,
    padded,
    resized,
    depth,
    tiled,
    flattened,
    attention,
    mixer,
    recurrent,
)


@st.composite
def channel_nets(draw: Draw) -> onnx.ModelProto:
    """A stem, two to seven random blocks with convolutions among them, and a head; x [1, 3, 4, 4]."""
    net = Net(draw(st.integers(0, 2**16)))
    y, c, s = conv(draw, net, net.input("x", [1, 3, 4, 4]), 3, 4)
    for block in draw(st.lists(st.sampled_from(BLOCKS), min_size=2, max_size=7)):
        y, c, s = block(draw, net, y, c, s)
        if c > 24 or s > 8:
            y, c, s = net.conv(net.op("GlobalAveragePool", y), c, 8, 1), 8, 1
            y, s = net.op("Expand", y, net.ints(1, 8, 4, 4)), 4
    head = draw(st.sampled_from(["conv", "flatten", "softmax"]))
    if head == "flatten":
        y = net.op("Gemm", net.op("Flatten", y), net.random(c * s * s, 3), net.random(3))
    else:
        y = net.conv(y, c, 3, 1)
        y = net.op("Softmax", y, axis=1) if head == "softmax" else y
    return net.model([y])
