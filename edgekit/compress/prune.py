"""Removes channels for good: smaller tensors, and constants and attributes that fit them.

A position of an axis goes when its unit goes. That is the same for every tensor, so weights need no code for each
operator; only the operators that name sizes or positions (Reshape, Slice, Split, Gather, ...) have to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.graph.channels import Channels
from edgekit.graph.couplings import GATES, input_of, ints_of, is_depthwise
from edgekit.graph.layers import find_edges, find_layers, shape_of
from edgekit.graph.load import Graph
from edgekit.graph.moves import slices_of

Mask = NDArray[np.bool_]


def prune(graph: Graph, channels: Channels, kept: Mapping[str, np.ndarray]) -> Graph:
    """The smaller model in which each group named in ``kept`` has only those of its units.

    ``kept`` maps a group's name to the units that stay, numbered from 0 within the group, ascending; groups that are
    not named stay whole. ``channels`` must be those of ``graph``. Node and value names, inputs and outputs stay.

    Raises:
        ValueError: an unknown group, or units that are none, not ascending or not there.
    """
    stays = _stays(channels, kept)
    if stays.all():
        return graph
    masks: dict[str, tuple[Mask | None, ...]] = {}
    for name, axes in channels.units.items():
        of_axes = tuple(None if a is None or stays[a].all() else stays[a] for a in axes)
        if any(mask is not None for mask in of_axes):
            masks[name] = of_axes
    model = graph.model.clone()
    read = [name for name, value in model.graph.initializers.items() if value.uses()]
    # Operators are told first, while the tensors around them still have their old shapes.
    todo = [(node, tell(node, masks)) for node in model.graph if (tell := _TOLD.get(node.op_type)) is not None]
    _shrink(model, masks)
    constants = _Constants(model)
    for node, changes in todo:
        for place, numbers in changes.inputs.items():
            constants.give(node, place, numbers)
        for key, value in changes.attributes.items():
            if value is None:
                node.attributes.pop(key, None)
            else:
                node.attributes[key] = ir.AttrInt64(key, value)
    for name in read:
        if not model.graph.initializers[name].uses():
            del model.graph.initializers[name]
    layers = find_layers(model)
    return replace(graph, model=model, layers=layers, edges=find_edges(model, layers))


def _stays(channels: Channels, kept: Mapping[str, np.ndarray]) -> Mask:
    """Unit -> whether it stays; one more at the end, for what has no unit (-1)."""
    places = {group.name: place for place, group in enumerate(channels.groups)}
    stays = np.ones(sum(group.channels for group in channels.groups) + 1, np.bool_)
    for name, units in kept.items():
        if name not in places:
            raise ValueError(f"there is no channel group {name!r}")
        place = places[name]
        count, chosen = channels.groups[place].channels, np.asarray(units)
        if chosen.size == 0:
            raise ValueError(f"channel group {name!r} would lose all of its {count} channels")
        whole = chosen.ndim == 1 and np.issubdtype(chosen.dtype, np.integer)
        if not whole or chosen.min() < 0 or chosen.max() >= count or (np.diff(chosen) < 1).any():
            raise ValueError(f"channel group {name!r}: kept must be ascending numbers from 0 to {count - 1}")
        first = channels.firsts[place]
        stays[first : first + count] = False
        stays[first + chosen] = True
    return stays


def _shrink(model: ir.Model, masks: Mapping[str, tuple[Mask | None, ...]]) -> None:
    """Slice the weights and set the shapes of everything that loses positions."""
    body = model.graph
    produced = (output for node in body for output in node.outputs)
    for value in (*body.initializers.values(), *produced):
        of_axes = masks.get(value.name or "")
        if of_axes is None:
            continue
        sizes = [size if m is None else int(m.sum()) for size, m in zip(shape_of(value), of_axes, strict=True)]
        if value.is_initializer():
            assert value.const_value is not None
            values = value.const_value.numpy()
            for axis, mask in enumerate(of_axes):
                if mask is not None:
                    values = np.compress(mask, values, axis=axis)
            value.const_value = ir.Tensor(np.ascontiguousarray(values), name=value.name)
        value.shape = ir.Shape(sizes)


class _Constants:
    """Gives nodes whole-number constants of their own under names that nothing in the model has."""

    def __init__(self, model: ir.Model) -> None:
        self._body = model.graph
        self._taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            self._taken |= {output.name for output in node.outputs}
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    inner = attribute.as_graph()
                    self._taken |= {value.name for value in (*inner.inputs, *inner.initializers.values())}

    def give(self, node: ir.Node, place: int, numbers: NDArray[np.int64]) -> None:
        """Let input ``place`` of ``node`` be ``numbers``; a constant that says so already stays."""
        old = input_of(node, place)
        if old is not None and old.is_initializer() and old.const_value is not None:
            was = old.const_value.numpy()
            if was.shape == numbers.shape and np.array_equal(was, numbers):
                return
            numbers = numbers.astype(was.dtype)
        name = f"{node.name}_input{place}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        tensor = ir.Tensor(numbers, name=name)
        value = ir.Value(name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        self._body.register_initializer(value)
        if place >= len(node.inputs):
            node.resize_inputs(place + 1)
        node.replace_input_with(place, value)


# -- what operators are told -------------------------------------------------------------------------------------------

Masks = Mapping[str, tuple[Mask | None, ...]]


@dataclass(frozen=True)
class _Changes:
    """New constants by input number, new attributes by name (None: it goes)."""

    inputs: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)
    attributes: Mapping[str, int | None] = field(default_factory=dict)


def _mask(masks: Masks, value: ir.Value | None, axis: int) -> Mask | None:
    assert value is not None
    return masks[value.name or ""][axis] if value.name in masks else None


def _new_shape(masks: Masks, value: ir.Value) -> list[int]:
    """The shape that a tensor is going to have."""
    masked = ((size, _mask(masks, value, axis)) for axis, size in enumerate(shape_of(value)))
    return [size if mask is None else int(mask.sum()) for size, mask in masked]


def _numbers(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _tell_shape(node: ir.Node, masks: Masks) -> _Changes:
    """Reshape, Expand: the shape is a constant."""
    if node.outputs[0].name not in masks:
        return _Changes()
    return _Changes({1: _numbers(_new_shape(masks, node.outputs[0]))})


def _tell_squeeze(node: ir.Node, masks: Masks) -> _Changes:
    """Squeeze without axes drops every axis of size 1, and there may be more of these now."""
    x = node.inputs[0]
    assert x is not None
    if input_of(node, 1) is not None or x.name not in masks:
        return _Changes()
    return _Changes({1: _numbers([axis for axis, size in enumerate(shape_of(x)) if size == 1])})


def _tell_split(node: ir.Node, masks: Masks) -> _Changes:
    x = node.inputs[0]
    assert x is not None
    axis = node.attributes.get_int("axis", 0) % len(shape_of(x))
    if _mask(masks, x, axis) is None:
        return _Changes()
    sizes = []
    start, mask = 0, _mask(masks, x, axis)
    assert mask is not None
    for output in node.outputs:
        size = shape_of(output)[axis]
        sizes.append(int(mask[start : start + size].sum()))
        start += size
    return _Changes({1: _numbers(sizes)}, {"num_outputs": None})


def _tell_slice(node: ir.Node, masks: Masks) -> _Changes:
    slices = slices_of(node)
    x = node.inputs[0]
    assert x is not None
    if slices is None or not any(_mask(masks, x, axis) is not None for axis in slices):
        return _Changes()
    starts, ends = ints_of(node.inputs[1]), ints_of(node.inputs[2])
    assert starts is not None
    assert ends is not None
    for place, (axis, taken) in enumerate(slices.items()):
        mask = _mask(masks, x, axis)
        if mask is not None:  # such an axis has step 1
            start, end, _ = taken.indices(mask.size)
            starts[place], ends[place] = int(mask[:start].sum()), int(mask[: max(start, end)].sum())
    return _Changes({1: _numbers(starts), 2: _numbers(ends)})


def _tell_gather(node: ir.Node, masks: Masks) -> _Changes:
    x, index = node.inputs[0], node.inputs[1]
    assert x is not None
    axis = node.attributes.get_int("axis", 0) % len(shape_of(x))
    mask, places = _mask(masks, x, axis), ints_of(index)
    if mask is None or places is None:
        return _Changes()
    taken = _numbers(places) % mask.size
    return _Changes({1: (np.cumsum(mask) - 1)[taken[mask[taken]]]})


def _tell_resize(node: ir.Node, masks: Masks) -> _Changes:
    """Resize by sizes names the channels too."""
    y = node.outputs[0]
    sizes = ints_of(input_of(node, 3))
    if sizes is None or y.name not in masks:
        return _Changes()
    shape = _new_shape(masks, y)
    axes = node.attributes.get_ints("axes", None) or range(len(shape))
    return _Changes({3: _numbers([shape[axis] for axis in axes])})


def _tell_conv(node: ir.Node, masks: Masks) -> _Changes:
    """A depthwise convolution has as many groups as channels."""
    x = node.inputs[0]
    assert x is not None
    if not is_depthwise(node) or x.name not in masks:
        return _Changes()
    return _Changes(attributes={"group": _new_shape(masks, x)[1]})


def _tell_recurrent(node: ir.Node, masks: Masks) -> _Changes:
    r = node.inputs[2]
    assert r is not None
    if r.name not in masks:
        return _Changes()
    return _Changes(attributes={"hidden_size": _new_shape(masks, r)[2]})


_TOLD: dict[str, Callable[[ir.Node, Masks], _Changes]] = {
    "Conv": _tell_conv,
    "ConvTranspose": _tell_conv,
    "Expand": _tell_shape,
    "Gather": _tell_gather,
    "Reshape": _tell_shape,
    "Resize": _tell_resize,
    "Slice": _tell_slice,
    "Split": _tell_split,
    "Squeeze": _tell_squeeze,
    **dict.fromkeys(GATES, _tell_recurrent),
}
