"""What each operator says about the positions on the axes of the tensors that it reads and writes.

Every position of every axis of every tensor is an *atom*. Operators say which atoms go together (channel 3 of a
convolution's output, row 3 of its weights and element 3 of its bias) and which atoms must stay, with the reason. Nobody
has to walk the graph: who says what first does not matter. The idea is DepGraph's (https://arxiv.org/abs/2301.12900),
taken from whole layers down to single positions, so that concatenations, splits and attention heads need no special
case.

Deliberately not done: removing whole groups of a grouped convolution (every group keeps the same number of channels);
changing head_dim where heads can go; rewriting a channel shuffle as a Gather (what it interleaves goes together); sums
and means over channels outside of layers other than LayerNormalization (their meaning changes: they pin).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.graph.layers import reads_of, shape_of

Atoms = NDArray[np.int64]
Axes = tuple[Atoms, ...]
# No layer has that many channels; an axis of samples or tokens that is longer stays as it is, as one atom.
_LONGEST_AXIS = 2**18


@dataclass(frozen=True, eq=False)
class Merge:
    """One axis (``merged``) that a Reshape makes from several or splits into several (``parts``, outermost first)."""

    node: str
    merged: Atoms
    parts: Axes


@dataclass(eq=False)
class Said:
    """The atoms of every tensor, and what the operators say about them: ``pairs`` of equally long arrays that go
    together, ``pins`` that must stay, ``merges`` that leave a choice, ``normalised`` atoms whose statistics an operator
    computes.
    """

    axes: dict[str, Axes] = field(default_factory=dict)
    count: int = 0
    pairs: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    pins: list[tuple[Atoms, str]] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    normalised: list[Atoms] = field(default_factory=list)

    def enter(self, value: ir.Value) -> None:
        """Give ``value`` fresh atoms. An axis of one position can never go: it is pinned."""
        axes = []
        for size in shape_of(value):
            atoms = 1 if size > _LONGEST_AXIS else size
            axis = np.arange(self.count, self.count + atoms)
            self.count += atoms
            if size > _LONGEST_AXIS:
                self.pin(axis, f"{value.name!r} is too long an axis for channels")
            elif size == 1:
                self.pin(axis, "a single channel is no choice")
            axes.append(np.broadcast_to(axis, size) if size else axis)
        self.axes[value.name or ""] = tuple(axes)

    def of(self, value: ir.Value | None) -> Axes:
        """The atoms of a tensor, axis by axis."""
        assert value is not None
        return self.axes[value.name or ""]

    def couple(self, a: Atoms, b: Atoms) -> None:
        """Position by position, ``a`` goes with ``b``."""
        assert a.shape == b.shape, (a.shape, b.shape)
        self.pairs.append((a, b))

    def pin(self, atoms: Atoms, reason: str) -> None:
        """These stay."""
        self.pins.append((atoms, reason))

    def pin_all(self, axes: Sequence[Atoms], reason: str) -> None:
        """All these axes stay."""
        for axis in axes:
            self.pin(axis, reason)

    def align(self, source: Sequence[Atoms], target: Sequence[Atoms]) -> None:
        """Numpy's broadcasting: axes pair from the right; one of size 1 against another size says nothing."""
        for a, b in zip(reversed(source), reversed(target), strict=False):
            if a.size == b.size:
                self.couple(a, b)


Says = Callable[[Said, ir.Node], None]


def listen(model: ir.Model, table: dict[str, Says]) -> Said:
    """Let the model's interface and then every node, in order, say what they have to say; ``table`` maps operators."""
    said = Said()
    body = model.graph
    produced = [o for node in body for o in node.outputs if o.name]
    for value in (*body.inputs, *body.initializers.values(), *produced):
        said.enter(value)
    for value in body.outputs:
        said.pin_all(said.of(value), f"they are the model output {value.name!r}")
    for value in body.inputs:
        said.pin_all(said.of(value), f"they are the model input {value.name!r}")
    for node in body:
        says = table.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        (says or not_understood)(said, node)
    return said


def not_understood(said: Said, node: ir.Node) -> None:
    """Everything that an operator reads and writes stays, what its subgraphs capture included."""
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    pin_node(said, node, f"operator {domain}{node.op_type} is not understood")


def pin_node(said: Said, node: ir.Node, reason: str) -> None:
    """Everything that ``node`` reads and writes stays."""
    for value in (*reads_of(node), *outputs_of(node)):
        if value.name in said.axes:
            said.pin_all(said.of(value), reason)


def outputs_of(node: ir.Node) -> list[ir.Value]:
    """The outputs that exist: optional ones without a name do not."""
    return [o for o in node.outputs if o.name]


def input_of(node: ir.Node, place: int) -> ir.Value | None:
    """Input number ``place``, None where it is left out."""
    value = node.inputs[place] if len(node.inputs) > place else None
    return value if value is not None and value.name else None


def ints_of(value: ir.Value | None) -> list[int] | None:
    """The whole numbers of a constant; None for anything that is not constant."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return [int(number) for number in value.const_value.numpy().ravel()]


def quoted(node: ir.Node) -> str:
    """A node for a sentence: its operator and its name."""
    return f"{node.op_type} {node.name!r}"


# -- layers ------------------------------------------------------------------------------------------------------------


def is_depthwise(node: ir.Node) -> bool:
    """Whether a Conv or ConvTranspose has one group for each input channel (and more than one)."""
    assert node.inputs[0] is not None
    return 1 < node.attributes.get_int("group", 1) == shape_of(node.inputs[0])[1]


def conv(said: Said, node: ir.Node) -> None:
    """Conv: x [N, C, ...], w [M, C/group, ...], bias [M] -> [N, M, ...]."""
    x, w, y = said.of(node.inputs[0]), said.of(node.inputs[1]), said.of(node.outputs[0])
    group = node.attributes.get_int("group", 1)
    if is_depthwise(node):
        said.couple(np.repeat(x[1], y[1].size // group), y[1])
    else:
        said.couple(x[1], np.tile(w[1], group))
        _same_in_each_group(said, y[1], group)
    said.couple(w[0], y[1])
    _sliding(said, node, x, w, y)


def conv_transpose(said: Said, node: ir.Node) -> None:
    """ConvTranspose: x [N, C, ...], w [C, M/group, ...], bias [M] -> [N, M, ...]."""
    x, w, y = said.of(node.inputs[0]), said.of(node.inputs[1]), said.of(node.outputs[0])
    group = node.attributes.get_int("group", 1)
    if is_depthwise(node):
        said.couple(np.repeat(x[1], y[1].size // group), y[1])
        said.pin(w[1], f"{quoted(node)} makes them from the same channel")
    else:
        said.couple(y[1], np.tile(w[1], group))
        _same_in_each_group(said, x[1], group)
    said.couple(w[0], x[1])
    _sliding(said, node, x, w, y)


def _same_in_each_group(said: Said, channels: Atoms, group: int) -> None:
    rows = channels.reshape(group, -1)
    for row in rows[1:]:
        said.couple(rows[0], row)


def _sliding(said: Said, node: ir.Node, x: Axes, w: Axes, y: Axes) -> None:
    said.couple(x[0], y[0])
    bias = input_of(node, 2)
    if bias is not None:
        said.couple(said.of(bias)[0], y[1])
    said.pin_all((*x[2:], *w[2:], *y[2:]), f"{quoted(node)} slides over them")


def gemm(said: Said, node: ir.Node) -> None:
    """Gemm: a [M, K], b [K, N], either transposed, c broadcast to [M, N]."""
    a, b, y = said.of(node.inputs[0]), said.of(node.inputs[1]), said.of(node.outputs[0])
    rows, inner = a[::-1] if node.attributes.get_int("transA", 0) else a
    other_inner, columns = b[::-1] if node.attributes.get_int("transB", 0) else b
    said.couple(inner, other_inner)
    said.couple(rows, y[0])
    said.couple(columns, y[1])
    if input_of(node, 2) is not None:
        said.align(said.of(node.inputs[2]), y)


def matmul(said: Said, node: ir.Node) -> None:
    """MatMul, as numpy: batch axes broadcast, operands of one axis have no row or no column."""
    a, b, y = said.of(node.inputs[0]), said.of(node.inputs[1]), said.of(node.outputs[0])
    said.couple(a[-1], b[-2] if len(b) > 1 else b[0])
    batch = y
    if len(b) > 1:
        said.couple(b[-1], batch[-1])
        batch = batch[:-1]
    if len(a) > 1:
        said.couple(a[-2], batch[-1])
        batch = batch[:-1]
    said.align(a[:-2], batch)
    said.align(b[:-2], batch)


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(said: Said, node: ir.Node) -> None:
    """LSTM, GRU, RNN: one hidden unit is a row of every gate, in both directions, and an element of every state."""
    reason = f"{quoted(node)} runs over them"
    x, w, r = (said.of(node.inputs[i]) for i in range(3))
    hidden, gates = r[2], GATES[node.op_type]
    said.couple(x[2], w[2])
    said.couple(w[1], np.tile(hidden, gates))
    said.couple(r[1], np.tile(hidden, gates))
    said.pin_all((*x[:2], w[0], r[0]), reason)
    for place, times in ((3, 2 * gates), (7, 3)):  # biases of W and R; LSTM's peepholes
        if input_of(node, place) is not None:
            directions, rows = said.of(node.inputs[place])
            said.pin(directions, reason)
            said.couple(rows, np.tile(hidden, times))
    if input_of(node, 4) is not None:
        said.pin_all(said.of(node.inputs[4]), reason)
    states = [value for place in (5, 6) if (value := input_of(node, place)) is not None]
    for value in (*states, *outputs_of(node)):
        *others, last = said.of(value)
        said.pin_all(others, reason)
        said.couple(last, hidden)


def einsum(said: Said, node: ir.Node) -> None:
    """Einsum in its explicit form: the axes of one letter go together; a letter summed in one operand alone stays."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = [*left.split(","), right]
    if not arrow or "." in equation or any(len(set(term)) != len(term) for term in terms):
        pin_node(said, node, f"{quoted(node)}: its equation {equation!r} is not understood")
        return
    seen: dict[str, list[Atoms]] = {}
    for term, value in zip(terms, [*node.inputs, node.outputs[0]], strict=True):
        for letter, axis in zip(term, said.of(value), strict=True):
            seen.setdefault(letter, []).append(axis)
    for axes in seen.values():
        size = max(axis.size for axis in axes)
        full = [axis for axis in axes if axis.size == size]
        for axis in full[1:]:
            said.couple(full[0], axis)
        if len(full) == 1:
            said.pin(full[0], mixes(node))


# -- normalisation -----------------------------------------------------------------------------------------------------


def mixes(node: ir.Node) -> str:
    """The reason of an operator that computes one thing from all positions of an axis."""
    return f"{quoted(node)} mixes them"


def batch_norm(said: Said, node: ir.Node) -> None:
    """BatchNormalization in inference: x [N, C, ...] and four vectors [C]."""
    if len(outputs_of(node)) > 1:
        not_understood(said, node)
        return
    x, y = said.of(node.inputs[0]), said.of(node.outputs[0])
    said.align(x, y)
    for value in node.inputs[1:5]:
        said.couple(said.of(value)[0], x[1])


def instance_norm(said: Said, node: ir.Node) -> None:
    """InstanceNormalization: every channel is normalised by itself, over its spatial axes."""
    x, y = said.of(node.inputs[0]), said.of(node.outputs[0])
    said.align(x[:2], y[:2])
    for value in node.inputs[1:3]:
        said.couple(said.of(value)[0], x[1])
    said.pin_all((*x[2:], *y[2:]), mixes(node))


def layer_norm(said: Said, node: ir.Node) -> None:
    """LayerNormalization, RMSNormalization: channels may go, but their statistics change with them."""
    x = said.of(node.inputs[0])
    axis = node.attributes.get_int("axis", -1) % len(x)
    said.align(x, said.of(node.outputs[0]))
    for value in node.inputs[1:]:
        if value is not None and value.name:
            said.align(said.of(value), x)
    for statistic in outputs_of(node)[1:]:  # [..., 1, 1]
        said.align(said.of(statistic)[:axis], x[:axis])
    said.normalised.extend(x[axis:])


# -- one tensor in, or several broadcast against each other ------------------------------------------------------------


def elementwise(said: Said, node: ir.Node) -> None:
    """Unary operators and those with numpy's broadcasting."""
    for output in outputs_of(node):
        for value in node.inputs:
            if value is not None and value.name:
                said.align(said.of(value), said.of(output))


def along(said: Said, node: ir.Node, axes: Sequence[int], *, dropped: bool = False) -> None:
    """The first input's ``axes`` stay, in the outputs too (where they are not ``dropped``); the others pass through."""
    x = said.of(node.inputs[0])
    pinned = {axis % len(x) for axis in axes}
    said.pin_all([x[axis] for axis in sorted(pinned)], mixes(node))
    passing = [axis for axis in range(len(x)) if axis not in pinned]
    for output in outputs_of(node):
        y = said.of(output)
        places = range(len(y)) if dropped else passing
        for axis, place in zip(passing, places, strict=True):
            said.couple(x[axis], y[place])
        if not dropped:
            said.pin_all([y[axis] for axis in sorted(pinned)], mixes(node))


def over_axis(default: int) -> Says:
    """Softmax and its like: one axis, an attribute."""

    def says(said: Said, node: ir.Node) -> None:
        along(said, node, [node.attributes.get_int("axis", default)])

    return says


def arg_reduce(said: Said, node: ir.Node) -> None:
    """ArgMax, ArgMin."""
    along(said, node, [node.attributes.get_int("axis", 0)], dropped=not node.attributes.get_int("keepdims", 1))


def reduce(said: Said, node: ir.Node) -> None:
    """ReduceMean and its like; the axes are an attribute or, from opset 13 or 18, an input."""
    rank = len(said.of(node.inputs[0]))
    axes = node.attributes.get_ints("axes", None)
    if input_of(node, 1) is not None:
        axes = ints_of(node.inputs[1])
        if axes is None:
            not_understood(said, node)
            return
    if not axes:
        axes = [] if node.attributes.get_int("noop_with_empty_axes", 0) else range(rank)
    along(said, node, axes, dropped=not node.attributes.get_int("keepdims", 1))


def cumulate(said: Said, node: ir.Node) -> None:
    """CumSum: the axis is an input."""
    axes = ints_of(node.inputs[1])
    along(said, node, axes) if axes is not None else not_understood(said, node)


def over_channels(said: Said, node: ir.Node) -> None:
    """LRN, GroupNormalization: what they compute changes with the number of channels."""
    along(said, node, [1])
    for value in node.inputs[1:]:
        said.pin_all(said.of(value), mixes(node))


def over_axes(said: Said, node: ir.Node) -> None:
    """MeanVarianceNormalization."""
    along(said, node, node.attributes.get_ints("axes", (0, 2, 3)))


def pool(said: Said, node: ir.Node) -> None:
    """Pooling keeps batch and channels; the indices that MaxPool can put out count the channels too."""
    if len(outputs_of(node)) > 1:
        not_understood(said, node)
        return
    x, y = said.of(node.inputs[0]), said.of(node.outputs[0])
    said.align(x[:2], y[:2])
    said.pin_all((*x[2:], *y[2:]), f"{quoted(node)} pools over them")
