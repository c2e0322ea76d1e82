"""The definition of pruning that tests hold `prune` against: the original model, in which no layer hears the removed
channels. It knows each operator's meaning by itself and takes from edgekit only which positions go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekit.graph import Graph, to_bytes
from edgekit.graph.channels import Channels

RECURRENT = ("LSTM", "GRU", "RNN")


def masked(graph: Graph, channels: Channels, kept: Mapping[str, Any]) -> bytes:
    """The model with the removed units multiplied by zero wherever positions are summed over: at the inputs of Conv,
    Gemm, MatMul, Einsum and LSTM, in the recurrence, and in the statistics of LayerNormalization.
    """
    stays = stays_of(channels, kept)
    model = onnx.load_from_string(to_bytes(graph.model))
    weights = {w.name: w for w in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, values: Any) -> str:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def vector(value: str, axis: int) -> Any:
        """0/1 along an axis of ``value``, shaped to broadcast; None where all of it stays."""
        axes = channels.units[value]
        units = axes[axis]
        if units is None or stays[units].all():
            return None
        shape = [1] * len(axes)
        shape[axis] = -1
        return stays[units].astype(np.float32).reshape(shape)

    def mask_input(node: onnx.NodeProto, place: int, axis: int) -> None:
        value = node.input[place]
        mask = vector(value, axis)
        if mask is None:
            return
        made = f"{node.name}_masked{place}"
        nodes.append(helper.make_node("Mul", [value, constant(f"{made}_m", mask)], [made], name=made))
        node.input[place] = made

    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("Conv", "ConvTranspose"):
            w, group = weights[node.input[1]], attributes.get("group", 1)
            own = w.dims[1] == 1 if node.op_type == "Conv" else w.dims[0] == group
            if group == 1 or not own:  # a depthwise convolution sums over no channels
                mask_input(node, 0, 1)
        elif node.op_type == "Gemm":
            mask_input(node, 0, 0 if attributes.get("transA") else 1)
        elif node.op_type == "MatMul":
            mask_input(node, 0, len(channels.units[node.input[0]]) - 1)
        elif node.op_type == "Einsum":
            left, right = attributes["equation"].decode().replace(" ", "").split("->")
            for place, term in enumerate(left.split(",")):
                for letter in set(term) - set(right):
                    mask_input(node, place, term.index(letter))
        elif node.op_type in RECURRENT:
            mask_input(node, 0, 2)
            mask_input(node, 2, 2)  # the recurrence
        elif node.op_type == "LayerNormalization":
            nodes.extend(masked_norm(node, attributes, vector, channels, constant))
            continue
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()


def stays_of(channels: Channels, kept: Mapping[str, Any]) -> Any:
    """Unit -> whether it stays; the last, for -1, does."""
    stays = np.ones(sum(g.channels for g in channels.groups) + 1, bool)
    for group, first in zip(channels.groups, channels.firsts, strict=True):
        if group.name in kept:
            stays[first : first + group.channels] = False
            stays[first + np.asarray(kept[group.name])] = True
    return stays


def masked_norm(node: onnx.NodeProto, attributes: Any, vector: Any, channels: Channels, constant: Any) -> Any:
    """LayerNormalization, its statistics over the channels that stay alone."""
    x, name = node.input[0], node.name
    rank = len(channels.units[x])
    first = attributes.get("axis", -1) % rank
    masks = [mask for axis in range(first, rank) if (mask := vector(x, axis)) is not None]
    if not masks:
        return [node]
    mask = np.prod(np.broadcast_arrays(*masks), axis=0)
    # What of the normalised axes the mask does not span is counted by its size.
    m = constant(f"{name}_mask", mask)
    axes = list(range(first, rank))
    made = []

    def op(op_type: str, *inputs: str, **more: Any) -> str:
        out = f"{name}_step{len(made)}"
        made.append(helper.make_node(op_type, list(inputs), [out], name=out, **more))
        return out

    def mean(value: str) -> str:
        ones = op("Add", op("Mul", value, constant(f"{name}_zero{len(made)}", 0.0)), m)  # the mask, at full size
        inside = op("Mul", value, m)
        return op("Div", op("ReduceSum", inside, axes_name, keepdims=1), op("ReduceSum", ones, axes_name, keepdims=1))

    axes_name = f"{name}_axes"
    made.append(helper.make_node("Constant", [], [axes_name], value=numpy_helper.from_array(np.array(axes, np.int64))))
    centred = op("Sub", x, mean(x))
    variance = mean(op("Mul", centred, centred))
    scale = op("Sqrt", op("Add", variance, constant(f"{name}_eps", attributes.get("epsilon", 1e-5))))
    y = op("Mul", op("Div", centred, scale), node.input[1])
    if len(node.input) > 2 and node.input[2]:
        y = op("Add", y, node.input[2])
    made.append(helper.make_node("Identity", [y], [node.output[0]], name=f"{name}_out"))
    return made
