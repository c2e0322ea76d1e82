"""Times of single kernels on a board, and what they say of kernels of other shapes.

A sum over multiply-accumulates, bytes and starts does not know what a shape does: channels that fill no tile, three of
them in a first layer, functions that take longer than the product that they follow. So a measured profile keeps the
times of the kernels in the networks that it was made from. The logarithm of a kernel's time over what the costs expect
of it is a Gaussian process over the logarithms of its loops, one for each kind of kernel (Rasmussen and Williams,
Gaussian Processes for Machine Learning, 2006, ch. 2; leaving out: section 5.4.2). Near kernels that were measured it
says what they took; far from them all what the costs say, times what is typical of the kind, less surely.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.backends import ExecutedNode
from edgekit.cost.work import Shape, Work

Array = NDArray[np.float64]

# Standard deviations of the logarithm: what a kind, an operator and a shape may do, and a measurement's noise.
_KIND, _OPERATOR, _SHAPE, _NOISE = 0.7, 0.5, 0.5, 0.1
_ACROSS = 0.6  # how much alike the shapes of two operators of one kind are
_SLOPE = 0.1  # of the logarithm by each loop's logarithm
_LENGTHS = np.array([1.5, 1.5, 1.5, 1.5, 1.0, 1.5, 3.0, 0.5, 0.5, 1.4])  # over which shapes differ
_TILE = 16  # channels that vector units take at a time
_CLOCK_MS = 0.0005  # runtimes tell times in microseconds
_LEAST_MS = 0.0003  # what the clock did not see
# Functions that take arithmetic of their own, by how much; others are next to free.
_FUNCTIONS = {
    **dict.fromkeys(("HardSwish", "HardSigmoid", "LeakyRelu", "PRelu", "Sqrt", "Div"), 1),
    **dict.fromkeys(("Sigmoid", "Tanh", "Exp", "Elu", "Softplus", "Pow"), 2),
    **dict.fromkeys(("Erf", "Gelu", "Mish"), 3),
}


@dataclass(frozen=True)
class Kernel:
    """A kernel that was timed. ``function`` is the dearest that is computed inside, 0 to 3; ``factor`` what it took
    over what the costs expect; ``seen`` how often it was timed.
    """

    kind: str
    op: str
    shape: Shape
    function: int
    latency_ms: float
    factor: float
    seen: int = 1

    @property
    def what(self) -> tuple[str, str, Shape, int]:
        """Which kernel it is, whatever it took."""
        return self.kind, self.op, self.shape, self.function

    def __str__(self) -> str:
        sizes = " ".join(map(str, self.shape))
        return f"{self.kind} {self.op} {sizes} {self.function} {self.latency_ms:.4g} {self.factor:.4g} {self.seen}"


def parse(line: str) -> Kernel:
    """The kernel of a line that `str` made; `edgekit.entries.Costs` holds no others."""
    kind, op, *sizes, function, latency_ms, factor, seen = line.split()
    return Kernel(kind, op, Shape(*map(int, sizes)), int(function), float(latency_ms), float(factor), int(seen))


def kernel_of(work: Work, latency_ms: float = 1.0, expected_ms: float = 1.0) -> Kernel:
    """A kernel whose shape is known, and what it took where it was timed."""
    assert work.shape is not None
    function = max((_FUNCTIONS.get(name, 0) for name in work.functions), default=0)
    shape = Shape(*(max(1, size) for size in work.shape))
    return Kernel(work.kind, work.op, shape, function, latency_ms, latency_ms / expected_ms)


def executed_together(work: Sequence[Work], nodes: Iterable[ExecutedNode]) -> list[tuple[tuple[int, ...], float]]:
    """Kernels by their places that the runtime executed as one, with their milliseconds. What it executed besides, to
    convert data, belongs to what came next. Where it tells no names, what follows a layer belongs to it.
    """
    place = {name: i for i, one in enumerate(work) for name in one.nodes}
    layer = {one.layer: i for i, one in reversed(list(enumerate(work)))}
    joined = list(range(len(work)))

    def root(i: int) -> int:
        while joined[i] != i:
            i = joined[i]
        return i

    told = list(nodes)
    named = any(node.sources for node in told)
    if not named:
        joined = [layer[one.layer] for one in work]
    times: list[tuple[int, float]] = []
    waiting_ms = 0.0
    for node in told:
        names = node.sources if named else node.layers
        known = place if named else layer
        found = list(dict.fromkeys(known[name] for name in names if name in known))
        if not found:
            waiting_ms += node.latency_ms
            continue
        for other in found[1:]:
            joined[root(other)] = root(found[0])
        times.append((found[0], node.latency_ms + waiting_ms))
        waiting_ms = 0.0
    if times:
        times.append((times[-1][0], waiting_ms))
    groups: dict[int, list[int]] = {}
    for i in range(len(work)):
        groups.setdefault(root(i), []).append(i)
    total = dict.fromkeys(groups, 0.0)
    for i, ms in times:
        total[root(i)] += ms
    return [(tuple(members), total[first]) for first, members in groups.items()]


def split(together: Iterable[tuple[tuple[int, ...], float]], expected_ms: Array) -> Array:
    """Milliseconds of each kernel: what several took together is shared out as ``expected_ms`` says, which stands too
    for what nothing was told of.
    """
    times = expected_ms.copy()
    for members, total_ms in together:
        places = list(members)
        times[places] = np.maximum(total_ms, _LEAST_MS) * expected_ms[places] / expected_ms[places].sum()
    return times


def merged(kernels: Iterable[Kernel]) -> tuple[Kernel, ...]:
    """Each shape once, by the geometric means of what was timed, in a steady order."""
    found: dict[tuple[str, str, Shape, int], list[Kernel]] = {}
    for one in kernels:
        found.setdefault(one.what, []).append(one)
    rows = []
    for what, same in sorted(found.items()):
        latency_ms, factor = np.exp(np.log([(one.latency_ms, one.factor) for one in same]).mean(axis=0))
        rows.append(Kernel(*what, float(latency_ms), float(factor), len(same)))
    return tuple(rows)


class Surface:
    """What kernels that were timed say of others."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self._points = _Points(kernels)
        times = np.array([one.latency_ms for one in kernels])
        seen = np.array([one.seen for one in kernels], float)
        self._said = np.log([one.factor for one in kernels])
        noise = (_NOISE**2 + (_CLOCK_MS / times) ** 2) / seen
        self._inverse = np.linalg.inv(_covariance(self._points, self._points) + np.diag(noise))
        self._weights = self._inverse @ self._said

    def log_factors(self, kernels: Sequence[Kernel]) -> tuple[Array, Array]:
        """The logarithms of what kernels take over what is expected of them, and the covariance of these."""
        points = _Points(kernels)
        across = _covariance(points, self._points)
        left = _covariance(points, points) - across @ self._inverse @ across.T
        return across @ self._weights, left

    def left_out(self, places: Sequence[int]) -> tuple[Array, Array]:
        """As `log_factors` for some of the timed kernels, from the others alone."""
        left = np.linalg.inv(self._inverse[np.ix_(places, places)])
        return self._said[places] - left @ self._weights[places], left


class _Points:
    """Kernels as numbers: kind and operator as words, and their coordinates [kernels, `_LENGTHS`]."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self.kind = np.array([one.kind for one in kernels])
        self.op = np.array([one.op for one in kernels])
        self.at = np.array([_coordinates(one) for one in kernels]).reshape(-1, len(_LENGTHS))


def _coordinates(kernel: Kernel) -> list[float]:
    shape = kernel.shape
    apart = shape.groups if kernel.kind in ("depthwise", "grouped") else 1
    inputs = shape.inputs / apart if kernel.kind == "grouped" else shape.inputs
    outputs = shape.outputs / apart if kernel.kind == "grouped" else shape.outputs
    logs = (shape.inputs / apart, shape.outputs / apart, *shape[2:5], shape.rows * shape.columns, shape.columns)
    wasted = (math.ceil(size / _TILE) * _TILE / size for size in (inputs, outputs))
    return [*map(math.log, (*logs, *wasted)), float(kernel.function)]


def _covariance(a: _Points, b: _Points) -> Array:
    """Of the logarithms of two kernels' factors: Matérn's with 5/2 over the shapes of one kind, and slopes."""
    ours, theirs = a.at / _LENGTHS, b.at / _LENGTHS
    square = (ours**2).sum(1)[:, None] + (theirs**2).sum(1)[None, :] - 2 * ours @ theirs.T
    distance = np.sqrt(5 * np.maximum(square, 0.0))
    near = (1 + distance + distance**2 / 3) * np.exp(-distance)
    same_kind = a.kind[:, None] == b.kind[None, :]
    same_op = same_kind & (a.op[:, None] == b.op[None, :])
    shapes = _SHAPE**2 * near * np.where(same_op, 1.0, _ACROSS)
    found: Array = same_kind * (_KIND**2 + _SLOPE**2 * (a.at @ b.at.T) + shapes) + same_op * _OPERATOR**2
    return found
