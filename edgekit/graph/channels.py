"""Finds the channel groups of a normalised model: which channels can be removed, and which only together.

What the operators say about positions (`couplings`) is settled here: positions that go together are one component; a
component that holds a pinned position stays. What is left are the *units*: the smallest sets of positions that can be
removed. Units that touch the same axes of the same tensors form a *group*; a plan keeps some of its units, any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from edgekit.graph.couplings import GATES, Atoms, Merge, Said, is_depthwise, listen, outputs_of
from edgekit.graph.layers import shape_of
from edgekit.graph.load import Graph
from edgekit.graph.moves import OPERATORS
from edgekit.types import Layer

Units = NDArray[np.int64]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that a plan may keep or remove.

    ``channels`` is the number of units. ``name`` is the first layer with weights that makes them, in execution order;
    where one layer makes several groups (its output is split), the second is called "name#2", and so on. ``width`` is
    the number of positions of one unit on that layer's output axis: 1, head_dim for attention heads, the number of
    groups for a grouped convolution.

    ``producers`` are the layers whose output channels these are, depthwise convolutions included, and products of two
    activations (attention), which have no weights but shrink as well. ``consumers`` are the layers that sum over these
    channels; a depthwise convolution is only a producer, and so is a recurrent layer of its own hidden units.
    ``normalised`` says that a LayerNormalization computes its statistics over these channels: they change with them.
    """

    name: str
    channels: int
    width: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    normalised: bool


@dataclass(frozen=True)
class FixedChannels:
    """A layer with weights none of whose output channels can be removed, and the first reason found."""

    layer: str
    reason: str


@dataclass(frozen=True, eq=False)
class Channels:
    """The channel groups of a graph, in the execution order of their first layers, and what stays.

    ``units`` maps each tensor of the top-level graph, weights included, to one entry for each axis: the number of the
    unit at each position (-1 where it stays), or None where the whole axis stays. Units are numbered through: group g
    owns ``firsts[g]`` up to ``firsts[g] + groups[g].channels - 1``, in order of position on its first layer's output.
    """

    groups: tuple[ChannelGroup, ...]
    fixed: tuple[FixedChannels, ...]
    units: Mapping[str, tuple[Units | None, ...]]
    firsts: tuple[int, ...]


def find_channels(graph: Graph) -> Channels:
    """The channel groups of ``graph``: the same graph gives the same groups in the same order."""
    said = listen(graph.model, OPERATORS)
    settled = _settle(said)
    layers = _layer_axes(graph)
    found = [group for bundle in _bundles(said, settled) if (group := _found(bundle, said, settled, layers))]
    found.sort(key=lambda one: (one.place, one.start))
    names = _names([one.group.name for one in found], {layer.name for layer in graph.layers})
    groups: list[ChannelGroup] = []
    firsts: list[int] = []
    numbers = np.full(settled.reasons.size, -1, np.int64)
    first = 0
    for name, one in zip(names, found, strict=True):
        groups.append(replace(one.group, name=name))
        firsts.append(first)
        numbers[one.components] = first + np.arange(one.components.size)
        first += one.components.size
    units = {name: tuple(_or_none(numbers[settled.labels[a]]) for a in axes) for name, axes in said.axes.items()}
    fixed = _fixed(layers, said, settled, units)
    return Channels(tuple(groups), fixed, units, tuple(firsts))


def _names(wishes: list[str], layers: set[str]) -> list[str]:
    """The second group of one layer is called "layer#2", and so on, unless a layer is."""
    names: list[str] = []
    for wish in wishes:
        name, count = wish, 1
        while name in names or (count > 1 and name in layers):
            count += 1
            name = f"{wish}#{count}"
        names.append(name)
    return names


def _or_none(units: Units) -> Units | None:
    return units if (units >= 0).any() else None


# -- components --------------------------------------------------------------------------------------------------------

_FREE = np.iinfo(np.int64).max


@dataclass(eq=False)
class _Settled:
    """``labels``: atom -> component. ``reasons``: component -> the first of ``texts`` that pins it, or _FREE."""

    labels: NDArray[np.int64]
    reasons: NDArray[np.int64]
    texts: list[str]

    def free(self, atoms: Atoms) -> NDArray[np.bool_]:
        free: NDArray[np.bool_] = self.reasons[self.labels[atoms]] == _FREE
        return free

    def join(self, pairs: list[tuple[Atoms, Atoms]]) -> None:
        ends = [np.concatenate([pair[i] for pair in pairs]) if pairs else np.empty(0, np.int64) for i in (0, 1)]
        joined = _components(self.reasons.size, self.labels[ends[0]], self.labels[ends[1]])
        reasons = np.full(int(joined.max(initial=-1)) + 1, _FREE)
        np.minimum.at(reasons, joined, self.reasons)
        self.labels, self.reasons = joined[self.labels], reasons

    def reason(self, atoms: Atoms) -> str:
        """Why all of these stay: the first reason; '' where some can go."""
        reasons = self.reasons[self.labels[atoms]]
        return "" if (reasons == _FREE).any() else self.texts[reasons.min()]

    def pin(self, atoms: Atoms, reason: str) -> None:
        np.minimum.at(self.reasons, self.labels[atoms], len(self.texts))
        self.texts.append(reason)


def _components(size: int, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    links = coo_array((np.ones(a.size, np.int8), (a, b)), shape=(size, size))
    labels: NDArray[np.int64] = connected_components(links, directed=False)[1].astype(np.int64)
    return labels


def _settle(said: Said) -> _Settled:
    """Join what goes together, then decide which part of each merge carries units, one undecided merge at a time."""
    settled = _Settled(np.arange(said.count), np.full(said.count, _FREE), [])
    settled.join(said.pairs)
    for atoms, reason in said.pins:
        settled.pin(atoms, reason)
    pending = said.merges
    while pending:
        decided = {i: part for i, merge in enumerate(pending) if (part := _only_part(merge, settled)) is not None}
        decided = decided or {0: _best_part(pending[0], said.merges, settled)}
        settled.join([(pending[i].merged, _spread(pending[i], part)) for i, part in decided.items()])
        for i, part in decided.items():
            text = settled.reason(pending[i].merged) or f"{pending[i].node} merges them with others"
            for other, atoms in enumerate(pending[i].parts):
                if other != part:
                    settled.pin(atoms, text)
        pending = [merge for i, merge in enumerate(pending) if i not in decided]
    return settled


def _only_part(merge: Merge, settled: _Settled) -> int | None:
    """The one part that can carry units; None where there is a choice."""
    if not settled.free(merge.merged).any():
        return 0
    free = [i for i, atoms in enumerate(merge.parts) if settled.free(atoms).any()]
    return None if len(free) > 1 else free[0] if free else 0


def _best_part(merge: Merge, merges: list[Merge], settled: _Settled) -> int:
    """The outermost part that leaves more than one unit on the merged axis: heads rather than what is inside a head.
    For a channel shuffle the part that leaves the most.
    """
    units = [_units_left(merge, part, settled) for part in range(len(merge.parts))]
    if any(_swapped(merge, other, settled) for other in merges):
        return units.index(max(units))
    return next((part for part, left in enumerate(units) if left > 1), 0)


def _units_left(merge: Merge, part: int, settled: _Settled) -> int:
    """The units on the merged axis if ``part`` carries them."""
    others = [atoms for i, atoms in enumerate(merge.parts) if i != part]
    ends = [settled.labels[atoms] for atoms in (merge.merged, _spread(merge, part), *others)]
    names, local = np.unique(np.concatenate(ends), return_inverse=True)
    length = merge.merged.size
    joined = _components(names.size, local[:length], local[length : 2 * length])
    pinned = np.union1d(joined[local[2 * length :]], joined[settled.reasons[names] != _FREE])
    return int(np.setdiff1d(joined[local[:length]], pinned).size)


def _swapped(one: Merge, other: Merge, settled: _Settled) -> bool:
    """Whether one splits an axis into the parts that the other merges in another order."""
    parts = [[settled.labels[atoms].tobytes() for atoms in merge.parts] for merge in (one, other)]
    return parts[0] != parts[1] and sorted(parts[0]) == sorted(parts[1])


def _spread(merge: Merge, part: int) -> Atoms:
    """The atom of ``part`` behind each position of the merged axis."""
    shape = [1] * len(merge.parts)
    shape[part] = -1
    sizes = [atoms.size for atoms in merge.parts]
    return np.broadcast_to(merge.parts[part].reshape(shape), sizes).ravel()


# -- groups ------------------------------------------------------------------------------------------------------------

_Axis = tuple[str, int]  # a tensor and one of its axes


@dataclass(frozen=True, eq=False)
class _Bundle:
    """Components that touch the same axes; ``touches`` says how many positions of each axis one component takes."""

    components: NDArray[np.int64]
    touches: Mapping[_Axis, int]


@dataclass(frozen=True)
class _LayerAxes:
    """The axes of a layer's outputs that hold its output channels, and those of its inputs that it sums over."""

    layer: Layer
    made: tuple[_Axis, ...]
    summed: tuple[_Axis, ...]


@dataclass(frozen=True, eq=False)
class _Found:
    """A group with its components in order of position; ``place`` and ``start`` order the groups."""

    group: ChannelGroup
    components: NDArray[np.int64]
    place: int
    start: int


def _bundles(said: Said, settled: _Settled) -> list[_Bundle]:
    touched: dict[int, list[tuple[_Axis, int]]] = {}
    for name, axes in said.axes.items():
        for place, atoms in enumerate(axes):
            present, counts = np.unique(settled.labels[atoms][settled.free(atoms)], return_counts=True)
            for component, count in zip(present.tolist(), counts.tolist(), strict=True):
                touched.setdefault(component, []).append(((name, place), count))
    alike: dict[tuple[tuple[_Axis, int], ...], list[int]] = {}
    for component, touches in touched.items():
        alike.setdefault(tuple(touches), []).append(component)
    return [_Bundle(np.array(components), dict(touches)) for touches, components in alike.items()]


def _found(bundle: _Bundle, said: Said, settled: _Settled, layers: list[_LayerAxes]) -> _Found | None:
    """The group that a bundle is; None where it is a single unit, or where no layer with weights makes it."""
    producers = [one for one in layers if any(axis in bundle.touches for axis in one.made)]
    first = next((one for one in producers if one.layer.weights), None)
    if first is None or bundle.components.size < 2:
        return None
    value, place = next(axis for axis in first.made if axis in bundle.touches)
    on_axis = settled.labels[said.axes[value][place]]
    present, starts = np.unique(on_axis, return_index=True)
    starts = starts[np.searchsorted(present, bundle.components)]
    normalised = any(np.isin(settled.labels[atoms], bundle.components).any() for atoms in said.normalised)
    group = ChannelGroup(
        name=first.layer.name,
        channels=bundle.components.size,
        width=bundle.touches[value, place],
        producers=tuple(one.layer.name for one in producers),
        consumers=tuple(one.layer.name for one in layers if any(axis in bundle.touches for axis in one.summed)),
        normalised=normalised,
    )
    return _Found(group, bundle.components[np.argsort(starts)], layers.index(first), int(starts.min()))


def _layer_axes(graph: Graph) -> list[_LayerAxes]:
    nodes = {node.name: node for node in graph.model.graph}
    return [_LayerAxes(layer, *_made_and_summed(nodes[layer.name])) for layer in graph.layers]


def _made_and_summed(node: ir.Node) -> tuple[tuple[_Axis, ...], tuple[_Axis, ...]]:
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    assert x is not None
    assert w is not None
    if node.op_type in ("Conv", "ConvTranspose"):
        return ((y.name or "", 1),), () if is_depthwise(node) else ((x.name or "", 1),)
    if node.op_type in GATES:
        made = tuple((value.name or "", len(shape_of(value)) - 1) for value in outputs_of(node))
        return made, ((x.name or "", 2),)
    rank_x, rank_w, rank_y = len(shape_of(x)), len(shape_of(w)), len(shape_of(y))
    if node.op_type == "Gemm":
        trans_x, trans_w = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
        inner_x, inner_w = 0 if trans_x else 1, 1 if trans_w else 0
    else:
        inner_x, inner_w = rank_x - 1, max(rank_w - 2, 0)
    summed = ((x.name or "", inner_x), (w.name or "", inner_w))
    if w.is_initializer():
        free = {rank_y - 1} if rank_w > 1 else set()
        batch, rank = shape_of(w)[:-2], rank_w
    elif x.is_initializer():
        free = {rank_y - min(rank_w, 2)} if rank_x > 1 else set()
        batch, rank = shape_of(x)[:-2], rank_x
    else:
        return tuple((y.name or "", place) for place in range(rank_y)), summed
    missing = rank_y - len(batch) - (rank_w > 1) - (rank_x > 1)  # leading axes that the weight has not
    made_places = [place + missing for place, size in enumerate(batch) if size > 1 and rank > 2]
    return tuple((y.name or "", place) for place in (*sorted(free), *made_places)), summed


def _fixed(
    layers: list[_LayerAxes], said: Said, settled: _Settled, units: Mapping[str, tuple[Units | None, ...]]
) -> tuple[FixedChannels, ...]:
    fixed = []
    for one in layers:
        if one.layer.weights and all(units[value][place] is None for value, place in one.made):
            reasons = (settled.reasons[settled.labels[said.axes[v][place]]].min() for v, place in one.made)
            reason = min((int(r) for r in reasons), default=_FREE)
            text = "they can only be removed all together" if reason == _FREE else settled.texts[reason]
            fixed.append(FixedChannels(one.layer.name, text))
    return tuple(fixed)
