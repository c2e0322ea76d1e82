"""What the operators that move positions about say: views, joins, cuts, padding, resizing; and the table of all."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgekit.graph import couplings as c
from edgekit.graph.couplings import Said, input_of, ints_of, not_understood, quoted
from edgekit.graph.layers import shape_of


def reshape(said: Said, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: one axis stays one, is split into several, or made from several."""
    x, y = said.of(node.inputs[0]), said.of(node.outputs[0])
    if (node.op_type == "Reshape" and ints_of(node.inputs[1]) is None) or 0 in shape_of(node.outputs[0]):
        not_understood(said, node)
        return
    before, after = [axis for axis in x if axis.size > 1], [axis for axis in y if axis.size > 1]
    for ours, theirs in _blocks([axis.size for axis in before], [axis.size for axis in after]):
        old, new = before[ours], after[theirs]
        if len(old) == len(new) == 1:
            said.couple(old[0], new[0])
        elif len(old) == 1:
            said.merges.append(c.Merge(quoted(node), old[0], tuple(new)))
        elif len(new) == 1:
            said.merges.append(c.Merge(quoted(node), new[0], tuple(old)))
        else:
            said.pin_all((*old, *new), c.mixes(node))


def _blocks(a: list[int], b: list[int]) -> Iterator[tuple[slice, slice]]:
    """The shortest runs of ``a`` and of ``b`` that have the same product, in order; no size is 1."""
    i = j = 0
    while i < len(a):
        first = i, j
        i, j = i + 1, j + 1
        while (left := math.prod(a[first[0] : i])) != (right := math.prod(b[first[1] : j])):
            i, j = (i + 1, j) if left < right else (i, j + 1)
        yield slice(first[0], i), slice(first[1], j)


def transpose(said: Said, node: ir.Node) -> None:
    """Transpose; without ``perm`` the axes are reversed."""
    x, y = said.of(node.inputs[0]), said.of(node.outputs[0])
    perm = node.attributes.get_ints("perm", None) or range(len(x))[::-1]
    for axis, source in zip(y, perm, strict=True):
        said.couple(axis, x[source])


def expand(said: Said, node: ir.Node) -> None:
    """Expand: an axis that grows from 1 has positions of its own."""
    if ints_of(node.inputs[1]) is None:
        not_understood(said, node)
        return
    said.align(said.of(node.inputs[0]), said.of(node.outputs[0]))


def tile(said: Said, node: ir.Node) -> None:
    """Tile: the copies of a position go together."""
    for x, y in zip(said.of(node.inputs[0]), said.of(node.outputs[0]), strict=True):
        said.couple(np.tile(x, y.size // x.size), y)


def concat(said: Said, node: ir.Node) -> None:
    """Concat along one axis; the others go together."""
    y = said.of(node.outputs[0])
    axis = node.attributes.get_int("axis", 0) % len(y)
    inputs = [said.of(value) for value in node.inputs]
    for place in range(len(y)):
        if place == axis:
            said.couple(np.concatenate([x[axis] for x in inputs]), y[axis])
        else:
            for x in inputs:
                said.couple(x[place], y[place])


def split(said: Said, node: ir.Node) -> None:
    """Split along one axis, into the sizes that the outputs have."""
    x = said.of(node.inputs[0])
    axis = node.attributes.get_int("axis", 0) % len(x)
    if input_of(node, 1) is not None and ints_of(node.inputs[1]) is None:
        not_understood(said, node)
        return
    start = 0
    for output in node.outputs:
        size = shape_of(output)[axis]
        if output.name:
            for place, y in enumerate(said.of(output)):
                said.couple(x[place][start : start + size] if place == axis else x[place], y)
        start += size


def slices_of(node: ir.Node) -> dict[int, slice] | None:
    """Axis -> what a Slice takes of it, as Python writes it; None where that is not constant."""
    starts, ends = ints_of(node.inputs[1]), ints_of(node.inputs[2])
    if starts is None or ends is None:
        return None
    axes, steps = ([*range(len(starts))], [1] * len(starts))
    for place, chosen in ((3, axes), (4, steps)):
        if input_of(node, place) is not None:
            given = ints_of(node.inputs[place])
            if given is None:
                return None
            chosen[:] = given
    assert node.inputs[0] is not None
    shape = shape_of(node.inputs[0])
    found = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = shape[axis]
        if step < 0 and end < -size:  # Python has no number for "past the front"
            found[axis % len(shape)] = slice(start, None, step)
        else:
            found[axis % len(shape)] = slice(start, end, step)
    return found


def cut(said: Said, node: ir.Node) -> None:
    """Slice: a run of positions; with a step other than 1 the axis stays."""
    slices = slices_of(node)
    if slices is None:
        not_understood(said, node)
        return
    for axis, (x, y) in enumerate(zip(said.of(node.inputs[0]), said.of(node.outputs[0]), strict=True)):
        taken = slices.get(axis, slice(None))
        if taken.step in (None, 1):
            said.couple(x[taken], y)
        else:
            said.pin_all((x, y), f"{quoted(node)} takes them in steps of {taken.step}")


def gather(said: Said, node: ir.Node) -> None:
    """Gather: constant indices are a map of positions; one alone or computed ones (an embedding) keep all."""
    x, y, index = said.of(node.inputs[0]), said.of(node.outputs[0]), said.of(node.inputs[1])
    axis = node.attributes.get_int("axis", 0) % len(x)
    places = ints_of(node.inputs[1])
    for source, target in zip((*x[:axis], *x[axis + 1 :]), (*y[:axis], *y[axis + len(index) :]), strict=True):
        said.couple(source, target)
    if places is not None and len(index) == 1:
        said.couple(x[axis][places], y[axis])
        return
    said.pin(x[axis], f"{quoted(node)} looks them up")
    if places is None:
        for source, target in zip(index, y[axis : axis + len(index)], strict=True):
            said.couple(source, target)
    else:
        said.pin_all(y[axis : axis + len(index)], f"{quoted(node)} looks them up")


def pad(said: Said, node: ir.Node) -> None:
    """Pad with a constant: what is inside passes, the padding stays. Other modes, and cropping, pin the axis."""
    x, y = said.of(node.inputs[0]), said.of(node.outputs[0])
    pads = ints_of(node.inputs[1])
    axes = ints_of(input_of(node, 3)) if input_of(node, 3) is not None else [*range(len(x))]
    if pads is None or axes is None:
        not_understood(said, node)
        return
    begins = {axis % len(x): size for axis, size in zip(axes, pads[: len(axes)], strict=True)}
    ends = {axis % len(x): size for axis, size in zip(axes, pads[len(axes) :], strict=True)}
    constant = node.attributes.get_string("mode", "constant") == "constant"
    for axis, (source, target) in enumerate(zip(x, y, strict=True)):
        begin, end = begins.get(axis, 0), ends.get(axis, 0)
        if min(begin, end) < 0 or (not constant and (begin or end)):
            said.pin_all((source, target), f"{quoted(node)} pads them with each other")
            continue
        said.couple(source, target[begin : target.size - end])
        said.pin(target[:begin], f"{quoted(node)} adds them")
        said.pin(target[target.size - end :], f"{quoted(node)} adds them")


def resize(said: Said, node: ir.Node) -> None:
    """Resize: axes of scale 1 pass, the others stay."""
    x, y = said.of(node.inputs[0]), said.of(node.outputs[0])
    scales, sizes = input_of(node, 2), input_of(node, 3)
    given = scales if scales is not None and shape_of(scales) != (0,) else sizes
    crops = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if given is None or not given.is_initializer() or given.const_value is None or crops or policy != "stretch":
        not_understood(said, node)
        return
    axes = [axis % len(x) for axis in node.attributes.get_ints("axes", None) or range(len(x))]
    factors = dict(zip(axes, given.const_value.numpy().tolist(), strict=True))
    for axis, (source, target) in enumerate(zip(x, y, strict=True)):
        if source.size == target.size and (given is sizes or factors.get(axis, 1) == 1):
            said.couple(source, target)
        else:
            said.pin_all((source, target), f"{quoted(node)} resizes them")


def depth_to_space(said: Said, node: ir.Node) -> None:
    """DepthToSpace: the blocksize^2 channels of one output channel go together."""
    x, y = said.of(node.inputs[0]), said.of(node.outputs[0])
    block = node.attributes.get_int("blocksize", 1) ** 2
    crd = node.attributes.get_string("mode", "DCR") == "CRD"
    said.couple(np.repeat(y[1], block) if crd else np.tile(y[1], block), x[1])
    said.couple(x[0], y[0])
    said.pin_all((*x[2:], *y[2:]), f"{quoted(node)} moves channels there")


def space_to_depth(said: Said, node: ir.Node) -> None:
    """SpaceToDepth: the blocksize^2 channels made of one input channel go together."""
    x, y = said.of(node.inputs[0]), said.of(node.outputs[0])
    said.couple(np.tile(x[1], node.attributes.get_int("blocksize", 1) ** 2), y[1])
    said.couple(x[0], y[0])
    said.pin_all((*x[2:], *y[2:]), f"{quoted(node)} makes channels of them")


def grid_sample(said: Said, node: ir.Node) -> None:
    """GridSample: x [N, C, ...] sampled at the same places in every channel."""
    x, y = said.of(node.inputs[0]), said.of(node.outputs[0])
    said.align(x[:2], y[:2])
    said.pin_all((*x[2:], *y[2:], *said.of(node.inputs[1])), f"{quoted(node)} samples them")


# fmt: off
_ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Dropout", "Elu",
    "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg",
    "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
)
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)
_POOLINGS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
# fmt: on

OPERATORS: dict[str, c.Says] = {
    **dict.fromkeys(_ELEMENTWISE, c.elementwise),
    **dict.fromkeys(_REDUCTIONS, c.reduce),
    **dict.fromkeys(_POOLINGS, c.pool),
    **dict.fromkeys(("ArgMax", "ArgMin"), c.arg_reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "TopK", "LpNormalization"), c.over_axis(-1)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), c.recurrent),
    **dict.fromkeys(("LRN", "GroupNormalization"), c.over_channels),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), c.layer_norm),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    "BatchNormalization": c.batch_norm,
    "Concat": concat,
    "Conv": c.conv,
    "ConvTranspose": c.conv_transpose,
    "CumSum": c.cumulate,
    "DepthToSpace": depth_to_space,
    "Einsum": c.einsum,
    "Expand": expand,
    "Gather": gather,
    "Gemm": c.gemm,
    "GridSample": grid_sample,
    "InstanceNormalization": c.instance_norm,
    "MatMul": c.matmul,
    "MeanVarianceNormalization": c.over_axes,
    "Pad": pad,
    "Resize": resize,
    "Slice": cut,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Tile": tile,
    "Transpose": transpose,
}
