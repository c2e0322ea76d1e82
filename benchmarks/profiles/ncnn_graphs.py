"""Reads ncnn's text graphs (`.param`): the models of ncnn's own benchmark exist in no other form.

The notation: github.com/Tencent/ncnn/wiki/param-and-model-file-structure and the parameter ids of operators in its
docs/developer-guide/operators.md. Shape hints (id 30) are used where they stand; else shapes are propagated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from edgekit.cost.work import Work, conv_kind

Shape = tuple[int, ...]  # channels, height, width, or features

_FREE = frozenset({"Split", "Flatten", "Reshape", "Noop", "Input", "MemoryData", "Dropout"})
_FUSED = frozenset({"ReLU", "Swish", "HardSwish", "HardSigmoid", "Sigmoid", "BatchNorm"})
_MOVES = frozenset({"Concat", "Slice", "ShuffleChannel", "Permute", "Interp", "Padding", "Crop", "PriorBox"})
_POOLS = frozenset({"Pooling", "Reduction", "LRN"})
_SIZES = {"FastestDet": 352}  # where the file does not say


def read_param(path: Path) -> tuple[list[Work], str]:
    """The kernels of one model and its input shape as NCHW text."""
    shapes: dict[str, Shape] = {}
    layers: set[str] = set()  # results that an activation is fused to
    work: list[Work] = []
    size = ""
    for line in path.read_text().splitlines()[2:]:
        words = line.split()
        op, name, reads, writes = words[0], words[1], int(words[2]), int(words[3])
        ins, outs = words[4 : 4 + reads], words[4 + reads : 4 + reads + writes]
        given = dict(word.split("=", 1) for word in words[4 + reads + writes :])
        hinted = _hints(given.get("-23330"))
        known = [shapes[i] for i in ins]
        made = hinted or _propagated(op, given, known, writes, path.stem)
        shapes.update(zip(outs, made, strict=False))
        if op == "Input":
            size = size or "x".join(map(str, (1, *made[0])))
        if op in _FREE:
            layers.update(outs if ins and set(ins) <= layers else ())
            continue
        read = sum(map(math.prod, known))
        written = sum(map(math.prod, made))
        if op in ("Convolution", "ConvolutionDepthWise", "DeconvolutionDepthWise", "InnerProduct"):
            weights, macs, kind = _product(op, given, known[0], made[0])
            work.append(Work(name, kind, macs, read, weights, written))
            layers.update(outs)
        elif op in _FUSED and set(ins) <= layers:
            layers.update(outs)
        else:
            kind = "pool" if op in _POOLS else "move" if op in _MOVES else "elementwise"
            work.append(Work(name, kind, 0, read, 0, written))
    return work, size


def _hints(text: str | None) -> list[Shape]:
    """`n,rank,w,h,c,rank,...` as shapes, outermost first. Ranks below 3 hold 1 where they hold nothing."""
    if text is None:
        return []
    numbers = [int(n) for n in text.split(",")[1:]]
    groups = [numbers[i : i + 4] for i in range(0, len(numbers), 4)]
    return [tuple(group[1 : 1 + group[0]][::-1]) for group in groups]


def _product(op: str, given: Mapping[str, str], x: Shape, y: Shape) -> tuple[int, int, str]:
    """Weights, MACs and kind of a layer."""
    if op == "InnerProduct":
        weights = int(given["2"])
        return weights + int(given["0"]), weights, "matmul"
    channels, weights, group = int(given["0"]), int(given["6"]), int(given.get("7", 1))
    width = int(given.get("1", 1))
    height = int(given.get("11", width))
    per_output = weights // channels
    stride = int(given.get("3", 1))
    transposed = op.startswith("Deconv")
    kind = conv_kind([channels, per_output // (width * height), height, width], group, stride, transposed=transposed)
    return weights + channels, per_output * math.prod(x if transposed else y), kind


def _propagated(op: str, given: Mapping[str, str], known: list[Shape], writes: int, model: str) -> list[Shape]:
    if op == "Input":
        side = _SIZES.get(model, 0)
        return [(int(given.get("2", 3)), int(given.get("1", side)), int(given.get("0", side)))]
    if op == "MemoryData":
        return [(int(given.get("0", 1)),)]
    x = known[0]
    if op in ("Convolution", "ConvolutionDepthWise"):
        kernel, stride, pad = int(given["1"]), int(given.get("3", 1)), int(given.get("4", 0))
        dilation = int(given.get("2", 1))
        reach = dilation * (kernel - 1) + 1
        sides = [-(-side // stride) if pad < 0 else (side + 2 * pad - reach) // stride + 1 for side in x[1:]]
        return [(int(given["0"]), *sides)]
    if op == "InnerProduct":
        return [(int(given["0"]),)]
    if op == "Pooling":
        if given.get("4") == "1":
            return [(x[0],)]
        kernel, stride, pad = int(given["1"]), int(given.get("2", 1)), int(given.get("3", 0))
        up = -1 if given.get("5", "0") == "0" else 0  # ncnn rounds up unless told otherwise
        return [(x[0], *((side + 2 * pad - kernel - up * (stride - 1)) // stride + 1 for side in x[1:]))]
    if op == "Concat":
        return [(sum(shape[0] for shape in known), *x[1:])]
    if op == "Slice":
        return [(x[0] // writes, *x[1:])] * writes
    if op == "Interp":
        scale = float(given.get("1", 1))
        return [(x[0], *(int(side * scale) for side in x[1:]))]
    if op == "Permute" and given.get("0") == "3":
        return [(x[1], x[2], x[0])] if len(x) == 3 else [x]
    return [max(known, key=math.prod)] * writes
