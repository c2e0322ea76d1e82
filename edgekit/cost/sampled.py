"""Networks drawn at random from what published ones are made of, as nn-Meter draws the kernels that it measures
(Zhang et al., MobiSys 2021, section 4): real networks hold shapes that nobody would put on a list, channel counts that
fill no tile, and kernels between others of very different sizes.

A picture network has a stem, stages of blocks and a head that classifies, detects, segments or reads; a token network
is a transformer's encoder; a sound network is convolutions along time and a recurrent layer. The same name gives the
same network.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import numpy as np
import onnx

from edgekit.cost.building import Net, encode, gelu

_MOST_MACS = 8e8  # larger ones would take more than their share of the minutes
_FEWEST_MACS = 2e6
_MOST_BYTES = 40e6  # it travels to boards
_ACTIVATIONS = ("Relu", "Relu", "Clip", "HardSwish", "HardSwish", "Swish", "LeakyRelu", "PRelu", "Gelu")
_BLOCKS = ("plain", "separable", "separable", "inverted", "inverted", "residual", "bottleneck", "grouped", "joined")


class _Map(NamedTuple):
    """A value [1, channels, height, width]."""

    name: str
    channels: int
    height: int
    width: int


def picture(name: str) -> onnx.ModelProto:
    """A network that sees."""
    return _small_enough(name, _picture)


def tokens(name: str) -> onnx.ModelProto:
    """An encoder of tokens."""
    return _small_enough(name, _tokens)


def sound(name: str) -> onnx.ModelProto:
    """Convolutions along time, then a recurrent layer."""
    return _small_enough(name, _sound)


def _small_enough(name: str, make: Callable[[str, _Draw], Net]) -> onnx.ModelProto:
    for attempt in count():
        net = make(name, _Draw(name, attempt))
        if _FEWEST_MACS <= net.macs <= _MOST_MACS and (model := net.model(net.result)).ByteSize() <= _MOST_BYTES:
            return model
    raise AssertionError  # counting has no end


class _Draw:
    """Random choices that depend on a name alone."""

    def __init__(self, name: str, attempt: int) -> None:
        self._rng = np.random.default_rng([zlib.crc32(name.encode()), attempt])

    def one(self, *choices: int) -> int:
        return int(choices[self._rng.integers(len(choices))])

    def word(self, *choices: str) -> str:
        return choices[int(self._rng.integers(len(choices)))]

    def chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def between(self, low: float, high: float) -> float:
        """Each doubling as likely as any other."""
        return float(np.exp(self._rng.uniform(np.log(low), np.log(high))))

    def channels(self, about: float) -> int:
        """Mostly a multiple of 8, as designers choose; now and then any number, as pruning leaves."""
        step = self.one(8, 8, 8, 16, 4, 1)
        return max(step, 4, round(about / step) * step)


class _Painter:
    """Blocks of a picture network, all with one activation."""

    def __init__(self, net: Net, draw: _Draw) -> None:
        self.net, self.draw = net, draw
        self.activation = draw.word(*_ACTIVATIONS)
        self.excited = draw.chance(0.3)

    def bent(self, x: _Map) -> _Map:
        net = self.net
        match self.activation:
            case "Clip":
                y = net.op("Clip", x.name, net.numbers(0.0), net.numbers(6.0))
            case "Swish":
                y = net.op("Mul", x.name, net.op("Sigmoid", x.name))
            case "PRelu":
                y = net.op("PRelu", x.name, net.weight(x.channels, 1, 1))
            case "Gelu":
                y = gelu(net, x.name)
            case kind:
                y = net.op(kind, x.name)
        return x._replace(name=y)

    def conv(self, x: _Map, channels: int, kernel: int = 1, stride: tuple[int, int] = (1, 1), group: int = 1) -> _Map:
        height, width = (-(-side // step) for side, step in zip((x.height, x.width), stride, strict=True))
        y = self.net.conv(x.name, x.channels, channels, kernel, stride, group)
        self.net.macs += channels * x.channels // group * kernel**2 * height * width
        return _Map(y, channels, height, width)

    def depthwise(self, x: _Map, kernel: int, stride: tuple[int, int] = (1, 1)) -> _Map:
        return self.conv(x, x.channels, kernel, stride, x.channels)

    def gated(self, x: _Map) -> _Map:
        """Squeeze and excitation."""
        pooled = _Map(self.net.op("GlobalAveragePool", x.name), x.channels, 1, 1)
        small = self.conv(pooled, max(4, x.channels // self.draw.one(4, 4, 8)))
        gate = self.conv(small._replace(name=self.net.relu(small.name)), x.channels)
        bend = self.draw.word("HardSigmoid", "Sigmoid")
        return x._replace(name=self.net.op("Mul", x.name, self.net.op(bend, gate.name)))

    def added(self, x: _Map, y: _Map) -> _Map:
        return y._replace(name=self.net.op("Add", x.name, y.name)) if x[1:] == y[1:] else y

    def block(self, x: _Map, kind: str, channels: int, stride: tuple[int, int]) -> _Map:
        draw, kernel = self.draw, self.draw.one(3, 3, 3, 5)
        match kind:
            case "plain":
                return self.bent(self.conv(x, channels, kernel if x.channels < 64 else 3, stride))
            case "separable":
                y = self.depthwise(x, kernel, stride)
                y = self.gated(self.bent(y)) if self.excited else self.bent(y)
                return self.bent(self.conv(y, channels))
            case "inverted":
                y = self.bent(self.conv(x, draw.channels(x.channels * draw.between(2, 6))))
                y = self.bent(self.depthwise(y, kernel, stride))
                y = self.gated(y) if self.excited else y
                return self.added(x, self.conv(y, channels))
            case "residual":
                y = self.conv(self.bent(self.conv(x, channels, 3, stride)), channels, 3)
                same = x[1:] == y[1:]
                return self.bent(self.added(x if same else self.conv(x, channels, 1, stride), y))
            case "bottleneck":
                middle = draw.channels(channels / draw.between(2, 4))
                y = self.bent(self.conv(self.bent(self.conv(x, middle)), middle, 3, stride))
                return self.bent(self.added(x, self.conv(y, channels)))
            case "grouped":
                group = draw.one(2, 4, 8)
                y = self.bent(self.conv(x, -(-channels // group) * group))
                return self.bent(self.conv(y, y.channels, 3, stride, group))
            case _:
                halves = [self.bent(self.conv(x, -(-channels // 2), k, stride)) for k in (1, 3)]
                return self.joined(halves)

    def joined(self, parts: list[_Map]) -> _Map:
        y = self.net.op("Concat", *(part.name for part in parts), axis=1)
        return parts[0]._replace(name=y, channels=sum(part.channels for part in parts))


def _picture(name: str, draw: _Draw) -> Net:
    strip = draw.chance(0.25)  # a line of text
    height, width = (draw.one(32, 48), 16 * draw.one(*range(8, 28))) if strip else (16 * draw.one(*range(4, 20)),) * 2
    net = Net(name, 1, draw.one(3, 3, 3, 1), height, width)
    paint = _Painter(net, draw)
    x = paint.conv(
        _Map(net.input, net.shape[1], height, width), draw.channels(draw.between(8, 64)), draw.one(3, 3, 5, 7), (2, 2)
    )
    x = paint.bent(x)
    if draw.chance(0.2):
        y = net.op("MaxPool", x.name, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        x = x._replace(name=y, height=-(-x.height // 2), width=-(-x.width // 2))
    levels = [x]
    for _ in range(draw.one(3, 4, 5)):
        kind, channels = draw.word(*_BLOCKS), draw.channels(min(512.0, x.channels * draw.between(1.1, 2.2)))
        stride = (2, 1) if strip and draw.chance(0.5) else (2, 2)
        x = paint.block(x, kind, channels, stride if min(x.height, x.width) > 3 else (1, 1))
        for _ in range(draw.one(1, 2, 3)):
            x = paint.block(x, kind if draw.chance(0.7) else draw.word(*_BLOCKS), channels, (1, 1))
        levels.append(x)
    heads = {"classify": _classify, "detect": _detect, "segment": _segment, "read": _read}
    head = draw.word("read", "classify") if strip else draw.word("classify", "detect", "segment")
    heads[head](paint, levels)
    return net


def _classify(paint: _Painter, levels: list[_Map]) -> None:
    net, draw, x = paint.net, paint.draw, levels[-1]
    if draw.chance(0.4):
        x = paint.bent(paint.conv(x, draw.channels(x.channels * draw.between(2, 5))))
    y = net.op("Flatten", net.op("GlobalAveragePool", x.name))
    y = net.linear(y, x.channels, round(draw.between(10, 1500)))
    net.result = net.op("Softmax", y, axis=-1) if draw.chance(0.5) else y


def _detect(paint: _Painter, levels: list[_Map]) -> None:
    """Boxes and scores of the last two sizes, in one list."""
    net, draw = paint.net, paint.draw
    found = []
    width = draw.one(4, 16, 18, 85)
    for x in levels[-2:]:
        y = paint.conv(x, 2 * width, draw.one(1, 3))
        rows = net.op("Transpose", y.name, perm=[0, 2, 3, 1])
        found.append(net.op("Reshape", rows, net.whole(1, 2 * y.height * y.width, width)))
    net.result = net.op("Sigmoid", net.op("Concat", *found, axis=1))


def _segment(paint: _Painter, levels: list[_Map]) -> None:
    """Back up to a large map, joined with those on the way down."""
    net, draw = paint.net, paint.draw
    channels = draw.channels(draw.between(16, 96))
    x = paint.conv(levels[-1], channels)
    for other in reversed(levels[:-1]):
        if (other.height, other.width) == (x.height, x.width):
            continue
        size, mode = net.whole(1, x.channels, other.height, other.width), draw.word("nearest", "nearest", "linear")
        resized = net.op("Resize", x.name, "", "", size, mode=mode)
        larger = _Map(resized, x.channels, other.height, other.width)
        beside = paint.conv(other, channels)
        if draw.chance(0.5):
            x = paint.conv(paint.added(beside, larger), channels, 3)
        else:
            x = paint.bent(paint.conv(paint.joined([beside, larger]), channels, 3))
    for last in (False, True)[draw.one(0, 1) :]:
        after = 1 if last else draw.channels(channels / 2)
        y = net.transposed(x.name, x.channels, after)
        net.macs += 4 * x.channels * after * x.height * x.width
        x = _Map(y, after, 2 * x.height, 2 * x.width)
        x = x if last else paint.bent(x)
    net.result = net.op("Sigmoid", x.name)


def _read(paint: _Painter, levels: list[_Map]) -> None:
    """Columns become a sequence, and each step one of many signs."""
    net, draw, x = paint.net, paint.draw, levels[-1]
    y = net.op("ReduceMean", x.name, axes=[2], keepdims=0)
    y = net.op("Transpose", y, perm=[0, 2, 1])
    size = draw.one(64, 96, 120, 128, 192)
    y = net.linear(y, x.channels, size)
    for _ in range(draw.one(0, 1, 2)):
        y = encode(net, y, x.width, size, draw.one(4, 8), 2 * size)
    signs = round(draw.between(40, 7000))
    net.macs += x.width * size * (x.channels + signs)
    net.result = net.op("Softmax", net.linear(y, size, signs), axis=-1)


def _tokens(name: str, draw: _Draw) -> Net:
    size, steps = draw.one(64, 96, 128, 192, 256, 312, 384, 512), round(draw.between(8, 256))
    heads = draw.one(*(heads for heads in (2, 3, 4, 6, 8, 12) if size % heads == 0))
    inner = draw.one(2, 3, 4) * size
    net = Net(name, 1, steps, size)
    x = net.input
    bend = draw.word("Gelu", "Gelu", "Relu", "Swish")
    for _ in range(draw.one(1, 2, 3)):
        x = encode(net, x, steps, size, heads, inner, bend)
        net.macs += steps * size * (4 * size + 2 * inner) + 2 * size * steps**2
    net.result = x
    if draw.chance(0.6):
        classes = round(draw.between(2, 8000))
        net.macs += steps * size * classes
        net.result = net.op("Softmax", net.linear(x, size, classes), axis=-1)
    return net


def _sound(name: str, draw: _Draw) -> Net:
    raw = draw.chance(0.4)
    before, steps = (
        (1, 512 * draw.one(*range(2, 33))) if raw else (draw.one(40, 64, 80, 129), 32 * draw.one(*range(1, 17)))
    )
    net = Net(name, 1, before, steps)
    x = net.input
    if raw:  # a bank of filters over the samples
        kernel, after = draw.one(64, 128, 256, 512), 2 * draw.one(32, 40, 64, 80, 129)
        stride = kernel // draw.one(2, 4)
        x = net.line_conv(x, before, after, kernel, stride)
        steps = steps // stride + 1
        net.macs += steps * before * after * kernel
        before = after
    for _ in range(draw.one(2, 3, 4)):
        kernel, stride, after = draw.one(3, 3, 5, 7), draw.one(1, 2, 2), draw.channels(draw.between(24, 256))
        x = net.relu(net.line_conv(x, before, after, kernel, stride))
        steps = -(-steps // stride)
        net.macs += steps * before * after * kernel
        before = after
    kind, hidden = draw.word("LSTM", "LSTM", "GRU"), draw.one(32, 64, 96, 128, 192, 256)
    x = net.op("Transpose", x, perm=[2, 0, 1])
    x = net.recurrent(x, kind, before, hidden)
    net.macs += steps * hidden * (before + hidden) * (4 if kind == "LSTM" else 3)
    x = net.op("Squeeze", x, net.whole(1))
    net.result = net.op("Sigmoid", net.linear(x, hidden, round(draw.between(1, 200))))
    return net
