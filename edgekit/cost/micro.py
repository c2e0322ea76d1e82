"""Small networks that a board is profiled with: chains of one kind of kernel each in several shapes, and the blocks
that real networks repeat, since kernels that follow each other share caches and are fused. Those named "deep" are whole
networks, whose weights and activations no longer fit the caches that those of a few kernels stay in.

Which shapes: those that mobile networks hold, from few channels on large pictures to many on small ones, so that both
arithmetic and memory are at times the limit (the classes of nn-Meter: Zhang et al., MobiSys 2021, section 3). Weights
and inputs are random: they do not change how long dense kernels take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import onnx

from edgekit.cost import sampled
from edgekit.cost.building import Net, attend, encode

# Channel counts around multiples of 4, 8, 16, 32 and 64.
STEP_CHANNELS = (48, 49, 52, 53, 56, 57, 64, 65, 72, 80, 96, 97)
BOUNDARY_LAYERS = 8


def _convs(
    name: str, channels: tuple[int, ...], side: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> onnx.ModelProto:
    """Convolutions from one channel count to the next with a ReLU after each. ``groups`` 0: depthwise."""
    net = Net(name, 1, 3, side, side)
    x = net.input if channels[0] == 3 else net.image(channels[0])
    for before, after in pairwise(channels):
        x = net.relu(net.conv(x, before, after, kernel, stride, groups or before))
    return net.pooled(x)


def _transposed(name: str, channels: int, side: int) -> onnx.ModelProto:
    net = Net(name, 1, 3, side, side)
    weight = net.weight(channels, channels // 2, 2, 2, fan_in=channels)
    x = net.op("ConvTranspose", net.image(channels), weight, kernel_shape=[2, 2], strides=[2, 2])
    return net.pooled(net.relu(x))


def _linears(name: str, rows: int, sizes: tuple[int, ...]) -> onnx.ModelProto:
    net = Net(name, 1, rows, sizes[0])
    x = net.input
    for before, after in pairwise(sizes):
        x = net.relu(net.linear(x, before, after))
    return net.model(x)


def _products(name: str, heads: int, tokens: int, width: int) -> onnx.ModelProto:
    """Products of activations alone, twice over."""
    net = Net(name, 1, heads, tokens, width)
    x = net.input
    for _ in range(2):
        x = attend(net, x, x, x, width)
    return net.model(x)


def _recurrent(name: str, kind: str, steps: int, size: int) -> onnx.ModelProto:
    net = Net(name, steps, 1, size)
    return net.model(net.recurrent(net.input, kind, size, size))


def _encoder(name: str, tokens: int, size: int, heads: int, times: int = 1) -> onnx.ModelProto:
    """A transformer's layers."""
    net = Net(name, 1, tokens, size)
    x = net.input
    for _ in range(times):
        x = encode(net, x, tokens, size, heads, 4 * size)
    return net.model(x)


def _inverted(name: str, channels: int, side: int, kernel: int = 3, times: int = 2) -> onnx.ModelProto:
    """Inverted residuals, six times as wide inside (MobileNetV2)."""
    net = Net(name, 1, 3, side, side)
    x = net.image(channels)
    for _ in range(times):
        y = net.op("Clip", net.conv(x, channels, 6 * channels), net.numbers(0.0), net.numbers(6.0))
        y = net.conv(y, 6 * channels, 6 * channels, kernel, group=6 * channels)
        y = net.op("Clip", y, net.numbers(0.0), net.numbers(6.0))
        x = net.op("Add", x, net.conv(y, 6 * channels, channels))
    return net.pooled(x)


def _basic(name: str, channels: int, side: int) -> onnx.ModelProto:
    """Two residual blocks (ResNet-18)."""
    net = Net(name, 1, 3, side, side)
    x = net.image(channels)
    for _ in range(2):
        y = net.conv(net.relu(net.conv(x, channels, channels, 3)), channels, channels, 3)
        x = net.relu(net.op("Add", x, y))
    return net.pooled(x)


def _excited(name: str, channels: int, side: int) -> onnx.ModelProto:
    """Depthwise, squeeze and excitation, hard swish, twice (MobileNetV3)."""
    net = Net(name, 1, 3, side, side)
    x = net.image(channels)
    for _ in range(2):
        y = net.op("HardSwish", net.conv(x, channels, channels, 5, group=channels))
        gate = net.relu(net.conv(net.op("GlobalAveragePool", y), channels, channels // 4))
        gate = net.op("HardSigmoid", net.conv(gate, channels // 4, channels))
        x = net.op("Add", x, net.conv(net.op("Mul", y, gate), channels, channels))
    return net.pooled(x)


def _gathered(name: str, channels: int, side: int) -> onnx.ModelProto:
    """Branches that are joined, pooled and made larger again, as detectors do."""
    net = Net(name, 1, 3, side, side)
    first = net.image(channels)
    small = net.op("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2])
    small = net.relu(net.conv(small, channels, channels))
    large = net.op("Resize", small, "", net.numbers(1.0, 1.0, 2.0, 2.0), mode="nearest")
    x = net.op("Concat", first, large, axis=1)
    x = net.relu(net.conv(x, 2 * channels, channels))
    halves = [net.conv(x, channels, channels // 2), net.conv(x, channels, channels // 2, 3)]
    return net.pooled(net.relu(net.op("Concat", *halves, axis=1)))


def _deep_mobile(name: str, side: int, widths: tuple[int, ...], times: int, excited: bool) -> onnx.ModelProto:
    """A whole network of inverted residuals, each width at half the side of the one before; ``excited`` with hard
    swish, squeeze and excitation (MobileNetV3), else with ReLU6 (MobileNetV2).
    """
    net = Net(name, 1, 3, side, side)

    def bent(y: str) -> str:
        return net.op("HardSwish", y) if excited else net.op("Clip", y, net.numbers(0.0), net.numbers(6.0))

    x = bent(net.conv(net.input, 3, widths[0], 3, 2))
    before = widths[0]
    for width in widths:
        for place in range(times):
            wide, stride = 4 * before, 2 if place == 0 else 1
            y = bent(net.conv(x, before, wide))
            y = bent(net.conv(y, wide, wide, 5 if excited else 3, stride, wide))
            if excited:
                gate = net.relu(net.conv(net.op("GlobalAveragePool", y), wide, wide // 4))
                y = net.op("Mul", y, net.op("HardSigmoid", net.conv(gate, wide // 4, wide)))
            y = net.conv(y, wide, width)
            x, before = (y if place == 0 else net.op("Add", x, y)), width
    return net.pooled(x)


def _deep_basic(name: str, side: int, widths: tuple[int, ...]) -> onnx.ModelProto:
    """A whole network of residual blocks (ResNet), each width at half the side of the one before."""
    net = Net(name, 1, 3, side, side)
    x = net.relu(net.conv(net.input, 3, widths[0], 7, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    before = widths[0]
    for place, width in enumerate(widths):
        for again in (False, True):
            stride = 2 if place and not again else 1
            y = net.conv(net.relu(net.conv(x, before, width, 3, stride)), width, width, 3)
            x = net.relu(net.op("Add", y, x if stride == 1 else net.conv(x, before, width, 1, 2)))
            before = width
    return net.pooled(x)


def _deep_detector(name: str, side: int, widths: tuple[int, ...]) -> onnx.ModelProto:
    """Halved again and again, then joined on the way back up, as detectors of objects or text are."""
    net = Net(name, 1, 3, side, side)
    x = net.relu(net.conv(net.input, 3, widths[0], 3, 2))
    levels = []
    for before, after in pairwise((widths[0], *widths)):
        x = net.relu(net.conv(x, before, before, 3, 2, before))
        x = net.relu(net.conv(x, before, after))
        x = net.relu(net.conv(net.conv(x, after, after, 5, 1, after), after, after))
        levels.append((x, after))
    joined = widths[0]
    top, *rest = [net.conv(x, width, joined) for x, width in reversed(levels)]
    for lateral in rest:
        larger = net.op("Resize", top, "", net.numbers(1.0, 1.0, 2.0, 2.0), mode="nearest")
        top = net.relu(net.conv(net.op("Add", lateral, larger), joined, joined, 3))
    weight = net.weight(joined, joined // 2, 2, 2, fan_in=joined)
    return net.pooled(net.relu(net.op("ConvTranspose", top, weight, kernel_shape=[2, 2], strides=[2, 2])))


def _pointless(name: str) -> onnx.ModelProto:
    """Next to nothing: what a call costs."""
    net = Net(name, 1, 4, 1, 1)
    return net.model(net.conv(net.input, 4, 4))


def _elements(name: str, channels: int, side: int) -> onnx.ModelProto:
    """Windows, and between them operators that cannot be fused into a layer."""
    net = Net(name, 1, 3, side, side)
    x = net.image(channels)
    for window in (3, 3, 3):
        y = net.op("AveragePool", x, kernel_shape=[window] * 2, strides=[1, 1], pads=[window // 2] * 4)
        x = net.op("Mul", net.op("Add", x, y), net.weight(1, channels, 1, 1))
    return net.pooled(x)


def _rated(name: str) -> onnx.ModelProto:
    """A little of every common kind: what float precisions are compared on."""
    net = Net(name, 1, 3, 112, 112)
    x = net.relu(net.conv(net.input, 3, 32, 3, 2))
    x = net.relu(net.conv(net.relu(net.conv(x, 32, 64, 3, 2)), 64, 64, 3))
    y = net.relu(net.conv(net.relu(net.conv(x, 64, 192)), 192, 192, 3, group=192))
    x = net.op("Add", x, net.conv(y, 192, 64))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(x, 64, 256))))
    return net.model(net.linear(x, 256, 512))


# Name -> what makes it. The part of a name before the "/" is the kind that it is there for.
NETWORKS: Mapping[str, Callable[[str], onnx.ModelProto]] = {
    "call/empty": _pointless,
    **{
        f"conv3x3/{channels}x{side}": partial(_convs, channels=(channels,) * 4, side=side, kernel=3)
        for channels, side in ((32, 56), (64, 40))
    },
    "conv/stem": partial(_convs, channels=(3, 32), side=224, kernel=3, stride=2),
    "conv/stem7": partial(_convs, channels=(3, 64), side=160, kernel=7, stride=2),
    "conv/halving": partial(_convs, channels=(32, 64, 128, 256), side=56, kernel=3, stride=2),
    "conv/transposed": partial(_transposed, channels=64, side=28),
    "pointwise/48-192x28": partial(_convs, channels=(48, 192, 48, 192), side=28),
    "depthwise/192x28": partial(_convs, channels=(192,) * 4, side=28, kernel=3, groups=0),
    "grouped/8x128": partial(_convs, channels=(128,) * 4, side=28, kernel=3, groups=8),
    "matmul/16x768": partial(_linears, rows=16, sizes=(768, 768, 768)),
    "matmul/1x1280": partial(_linears, rows=1, sizes=(1280, 1000)),
    "matmul/1x2048": partial(_linears, rows=1, sizes=(2048, 2048, 2048)),
    "attention/4x40x32": partial(_products, heads=4, tokens=40, width=32),
    "recurrent/lstm64": partial(_recurrent, kind="LSTM", steps=32, size=64),
    "recurrent/lstm192": partial(_recurrent, kind="LSTM", steps=16, size=192),
    "recurrent/gru96": partial(_recurrent, kind="GRU", steps=32, size=96),
    "elementwise/32x96": partial(_elements, channels=32, side=96),
    "block/inverted40x28": partial(_inverted, channels=40, side=28, kernel=5),
    "block/basic24x48": partial(_basic, channels=24, side=48),
    "block/excited72x28": partial(_excited, channels=72, side=28),
    "block/gathered64x40": partial(_gathered, channels=64, side=40),
    "block/encoder64x128": partial(_encoder, tokens=64, size=128, heads=4),
    "deep/mobile160": partial(_deep_mobile, side=160, widths=(16, 24, 48, 96), times=2, excited=False),
    "deep/mobile256": partial(_deep_mobile, side=256, widths=(24, 40, 80, 160), times=3, excited=False),
    "deep/excited128": partial(_deep_mobile, side=128, widths=(16, 32, 64, 96), times=2, excited=True),
    "deep/excited224": partial(_deep_mobile, side=224, widths=(24, 48, 96, 128), times=2, excited=True),
    "deep/basic128": partial(_deep_basic, side=128, widths=(48, 96, 192, 256)),
    "deep/basic224": partial(_deep_basic, side=224, widths=(32, 64, 128, 256)),
    "deep/detector256": partial(_deep_detector, side=256, widths=(32, 64, 128, 256)),
    "deep/detector416": partial(_deep_detector, side=416, widths=(24, 48, 96, 192)),
    "deep/encoder64x256": partial(_encoder, tokens=64, size=256, heads=8, times=6),
    "deep/encoder160x320": partial(_encoder, tokens=160, size=320, heads=5, times=4),
    "deep/matmul32x1024": partial(_linears, rows=32, sizes=(1024,) * 8),
    **{f"picture/{number}": sampled.picture for number in range(36)},
    **{f"tokens/{number}": sampled.tokens for number in range(8)},
    **{f"sound/{number}": sampled.sound for number in range(8)},
}


def build(name: str) -> onnx.ModelProto:
    """The network of `NETWORKS` with that name; the same name gives the same model."""
    return NETWORKS[name](name)


def rating_network() -> onnx.ModelProto:
    """What the float precisions of a board are compared on."""
    return _rated("rating")


def step_network(channels: int) -> onnx.ModelProto:
    """Three 3x3 convolutions of ``channels`` at 28x28: steps in their latency show the channel step."""
    return _convs(f"step/{channels}", (channels,) * 4, 28, kernel=3)


def boundary_network() -> onnx.ModelProto:
    """`BOUNDARY_LAYERS` convolutions in a row, to alternate the precisions of."""
    return _convs("boundary", (64,) * (BOUNDARY_LAYERS + 1), 28, kernel=3)
