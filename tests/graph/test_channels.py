from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper

from edgekit.graph import Graph
from edgekit.graph.channels import ChannelGroup, Channels, find_channels
from tests import zoo
from tests.graph.channel_nets import channel_nets
from tests.graph.nets import load_model
from tests.zoo import Net

Middle = Callable[[Net, str], str]


def found(model: onnx.ModelProto, folder: Path) -> Channels:
    return find_channels(load_model(model, folder))


def between(middle: Middle, channels: int = 8, size: int = 4) -> onnx.ModelProto:
    """x -> convolution -> what is tested -> convolution, so that nothing but the middle decides."""
    net = Net()
    y = middle(net, net.conv(net.input("x", [1, 3, size, size]), 3, channels))
    made = onnx.shape_inference.infer_shapes(net.model([y]), strict_mode=True).graph.output[0]
    c = made.type.tensor_type.shape.dim[1].dim_value
    return net.model([net.conv(y, c, 2, 1)])


def sizes(channels: Channels) -> list[tuple[int, int]]:
    return [(group.channels, group.width) for group in channels.groups]


def layer_norm(net: Net, y: str) -> str:
    y = net.op("Transpose", y, perm=[0, 2, 3, 1])
    y = net.op("LayerNormalization", y, net.random(8), net.random(8), axis=-1)
    return net.op("Transpose", y, perm=[0, 3, 1, 2])


def shuffle(net: Net, y: str) -> str:
    y = net.op("Reshape", y, net.ints(1, 2, 4, 4, 4))
    return net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), net.ints(1, 8, 4, 4))


def halves(net: Net, y: str) -> str:
    a, b = net.op("Split", y, axis=1, outputs=2)
    return net.op("Mul", net.op("Sigmoid", a), b)


def uneven(net: Net, y: str) -> str:
    a, b = net.op("Split", y, net.ints(5, 3), axis=1, outputs=2)
    return net.op("Concat", b, net.op("Relu", a), axis=1)


def grouped(group: int) -> Middle:
    return lambda net, y: net.conv(y, 8, 16, group=group)


def one(op_type: str, *more: Any, **attributes: Any) -> Middle:
    return lambda net, y: net.op(op_type, y, *(net.ints(*m) if m else "" for m in more), **attributes)


def two(op_type: str, *shape: int) -> Middle:
    return lambda net, y: net.op(op_type, y, net.random(*shape))


def rows_beside_channels(net: Net, y: str) -> str:
    y = net.op("Relu", net.op("Reshape", y, net.ints(1, 32, 4)))
    return str(net.op("Reshape", y, net.ints(1, 4, 8, 4)))


def rows_of_groups(net: Net, y: str) -> str:
    """The two groups of a grouped convolution beside each other: what is inside a group can go, a group cannot."""
    y = net.op("Relu", net.op("Reshape", net.conv(y, 8, 8, group=2), net.ints(1, 2, 4, 16)))
    return str(net.op("Reshape", y, net.ints(1, 8, 4, 4)))


def padded_shortcut(net: Net, y: str) -> str:
    """A residual network's shortcut without weights: the two channels that are added have no counterpart."""
    return str(net.op("Add", net.op("Pad", y, net.ints(0, 1, 0, 0, 0, 1, 0, 0)), net.conv(y, 8, 10)))


def resize_by_sizes(net: Net, y: str) -> str:
    return net.op("Resize", y, "", "", net.ints(1, 8, 8, 8), mode="linear")


# What is between two convolutions -> (units, positions of a unit on the first one's output) of each group.
COUPLED: dict[str, tuple[Middle, list[tuple[int, int]]]] = {
    "nothing": (lambda net, y: y, [(8, 1)]),
    "unary": (one("Relu"), [(8, 1)]),
    "slope": (two("PRelu", 8, 1, 1), [(8, 1)]),
    "scalar": (two("Mul", 1), [(8, 1)]),
    "constant of every channel": (two("Mul", 1, 8, 1, 1), [(8, 1)]),
    "constant of every column": (two("Mul", 4), [(8, 1)]),
    "layer norm": (layer_norm, [(8, 1)]),
    "instance norm": (lambda n, y: n.op("InstanceNormalization", y, n.random(8), n.random(8)), [(8, 1)]),
    "grouped": (grouped(4), [(2, 4), (4, 4)]),
    "two groups": (grouped(2), [(4, 2), (8, 2)]),
    "depthwise": (grouped(8), [(8, 1)]),
    "shuffle": (shuffle, [(4, 2)]),
    "shuffle after groups": (lambda net, y: shuffle(net, net.conv(y, 8, 8, group=2)), [(4, 2), (4, 2)]),
    "transposed": (lambda n, y: n.op("ConvTranspose", y, n.random(8, 6, 1, 1)), [(8, 1), (6, 1)]),
    "transposed, grouped": (lambda n, y: n.op("ConvTranspose", y, n.random(8, 3, 1, 1), group=2), [(4, 2), (3, 2)]),
    "transposed, depthwise": (lambda n, y: n.op("ConvTranspose", y, n.random(8, 3, 1, 1), group=8), [(8, 1)]),
    "halves gate each other": (halves, [(4, 2)]),
    "split unevenly": (uneven, [(5, 1), (3, 1)]),
    "slice": (one("Slice", [2], [7], [1]), [(3, 1), (5, 1)]),  # 0, 1 and 7 feed nothing
    "slice from the end": (one("Slice", [-6], [2**40], [1]), [(2, 1), (6, 1)]),
    "gather": (one("Gather", [7, 0, -1, 3], axis=1), [(2, 1), (5, 1)]),  # 7 twice, as no other: no choice
    "pad": (one("Pad", [0, 1, 0, 0, 0, 2, 0, 0]), [(8, 1)]),
    "padded shortcut": (padded_shortcut, [(8, 1)]),
    "rows of groups": (rows_of_groups, [(4, 2), (4, 2)]),
    "reflect rows": (one("Pad", [0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"), [(8, 1)]),
    "resize": (resize_by_sizes, [(8, 1)]),
    "pool": (one("MaxPool", kernel_shape=[2, 2]), [(8, 1)]),
    "mean of pixels": (one("ReduceMean", axes=[2, 3]), [(8, 1)]),
    "softmax of pixels": (one("Softmax", axis=3), [(8, 1)]),
    "depth to space, DCR": (one("DepthToSpace", blocksize=2), [(2, 4)]),
    "depth to space, CRD": (one("DepthToSpace", blocksize=2, mode="CRD"), [(2, 4)]),
    "space to depth": (one("SpaceToDepth", blocksize=2), [(8, 1)]),
    "tile": (one("Tile", [1, 3, 1, 1]), [(8, 1)]),
    "unsqueeze and squeeze": (lambda n, y: n.op("Squeeze", n.op("Unsqueeze", y, n.ints(2)), n.ints(2)), [(8, 1)]),
    "flatten pixels": (one("Reshape", [1, 8, 1, 16]), [(8, 1)]),
    "rows beside channels": (rows_beside_channels, [(4, 2)]),
    "pairs of channels": (lambda n, y: n.op("Reshape", n.op("Softmax", n.op("Reshape", y, n.ints(1, 4, 2, 16)), axis=2),
                                            n.ints(1, 8, 4, 4)), [(4, 2)]),
}  # fmt: skip


@pytest.mark.parametrize("name", COUPLED)
def test_what_each_operator_couples(name: str, tmp_path: Path) -> None:
    middle, expected = COUPLED[name]
    assert sizes(found(between(middle), tmp_path)) == expected


def uneven_blocks(net: Net, y: str) -> str:
    """[1, 6, 4, 4] -> [1, 4, 6, 4]: six rows of four become four of six."""
    return str(net.op("Reshape", net.conv(y, 8, 6), net.ints(1, 4, 6, 4)))


def captured(net: Net, y: str) -> str:
    """A value that both branches of an If read from outside."""
    bodies = []
    for name, op in (("then", "Relu"), ("else", "Neg")):
        value = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [1, 8, 4, 4])
        bodies.append(helper.make_graph([helper.make_node(op, [y], [f"{name}_y"])], name, [], [value]))
    flag = net.op("Greater", net.op("ReduceMax", "x", keepdims=0), net.weight(np.float32(0)))
    return str(net.op("If", flag, then_branch=bodies[0], else_branch=bodies[1]))


def scattered(net: Net, y: str) -> str:
    return str(net.op("ScatterElements", y, net.weight(np.zeros((1, 1, 1, 1), np.int64)), net.random(1, 1, 1, 1)))


FIXED: dict[str, tuple[Middle, str]] = {
    "softmax": (one("Softmax", axis=1), "Softmax 'Softmax_4' mixes them"),
    "mean": (one("ReduceMean", axes=[1]), "ReduceMean 'ReduceMean_4' mixes them"),
    "summed": (lambda n, y: n.op("Einsum", y, n.random(4, 1), equation="bchw,wo->bohw"), "Einsum 'Einsum_5' mixes"),
    "top": (one("ArgMax", axis=1), "ArgMax 'ArgMax_4' mixes them"),
    "cumulated": (lambda n, y: n.op("CumSum", y, n.weight(np.int64(1))), "CumSum 'CumSum_5' mixes them"),
    "across channels": (one("LRN", size=3), "LRN 'LRN_4' mixes them"),
    "uneven blocks": (uneven_blocks, "Reshape 'Reshape_8' mixes them"),
    "every other": (one("Slice", [0], [8], [1], [2]), "Slice 'Slice_8' takes them in steps of 2"),
    "reflected": (one("Pad", [0, 1, 0, 0, 0, 0, 0, 0], mode="reflect"), "Pad 'Pad_5' pads them with each other"),
    "blended": (lambda n, y: n.op("Resize", y, "", n.weight(np.float32([1, 2, 1, 1]))), "Resize 'Resize_5' resizes"),
    "no operator of ours": (scattered, "operator ScatterElements is not understood"),
    "control flow": (captured, "operator If is not understood"),
    "the input": (lambda net, y: net.op("Add", y, net.conv(net.op("Concat", *["x"] * 8, axis=1), 24, 8)), ""),
    "added to the input": (lambda net, y: net.op("Add", net.conv(y, 8, 3), "x"), "they are the model input 'x'"),
}


@pytest.mark.parametrize("name", FIXED)
def test_what_must_stay_stays_with_the_reason(name: str, tmp_path: Path) -> None:
    middle, reason = FIXED[name]

    def floats(net: Net, y: str) -> str:
        y = middle(net, y)
        return net.op("Cast", y, to=TensorProto.FLOAT)

    channels = found(between(floats), tmp_path)
    if not reason:
        assert sizes(channels) == [(8, 1)]
        return
    assert any(fixed.reason.startswith(reason) for fixed in channels.fixed), channels.fixed
    assert len(channels.groups) <= 1


def test_a_residual_stream_is_one_group_through_every_block(tmp_path: Path) -> None:
    (stem, inner, head) = found(zoo.conv_net(), tmp_path).groups
    assert stem == ChannelGroup("Conv_2", 16, 1, ("Conv_2", "Conv_19"), ("Conv_10", "Conv_30"), False)
    assert inner == ChannelGroup("Conv_10", 16, 1, ("Conv_10",), ("Conv_19",), False)
    assert (head.producers, head.consumers) == (("Conv_30",), ("Gemm_36",))


def test_depthwise_convolutions_produce_and_squeeze_excite_gates_follow(tmp_path: Path) -> None:
    wide = found(zoo.inverted_residual(), tmp_path).groups[0]
    assert (wide.producers, wide.consumers) == (("Conv_12", "Conv_22"), ("Conv_32",))
    (gated, squeezed) = found(zoo.squeeze_excite(), tmp_path).groups
    assert (gated.producers, gated.consumers) == (("Conv_3", "Conv_14", "Conv_30"), ("Conv_26", "Conv_35"))
    assert (squeezed.channels, squeezed.producers, squeezed.consumers) == (4, ("Conv_26",), ("Conv_30",))


def test_a_transformer_has_heads_hidden_units_and_a_normalised_stream(tmp_path: Path) -> None:
    channels = found(zoo.transformer(heads=4), tmp_path)
    assert sizes(channels) == [(4, 4), (16, 1), (64, 1)]
    heads, stream, hidden = channels.groups
    assert len(heads.producers) == 5  # q, k, v and the two products of attention
    assert len(heads.consumers) == 1
    assert [group.normalised for group in (heads, stream, hidden)] == [False, True, False]
    embedding = next(w for w in channels.units if channels.units[w][-1] is not None and w == "w1")
    assert channels.units[embedding][0] is None


def test_one_head_leaves_its_inside_to_choose(tmp_path: Path) -> None:
    """With a single head, q and k share the width that scores sum over, and v has its own."""
    channels = found(zoo.transformer(heads=1), tmp_path)
    assert sizes(channels)[:2] == [(16, 1), (16, 1)]
    queries = next(group for group in channels.groups if len(group.producers) == 2 and not group.normalised)
    assert all("MatMul" in name for name in queries.consumers)


@pytest.mark.parametrize("split", ["gather", "split"])
def test_heads_of_three_projections_in_one(split: str, tmp_path: Path) -> None:
    net, tokens, width, heads = Net(), 5, 12, 3
    x = net.op("Gather", net.random(9, width), net.input("ids", [1, tokens], TensorProto.INT64))
    qkv = net.op("MatMul", x, net.random(width, 3 * width))
    if split == "gather":
        qkv = net.op("Reshape", qkv, net.ints(1, tokens, 3, heads, width // heads))
        qkv = net.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        q, k, v = (net.op("Gather", qkv, net.weight(np.int64(i)), axis=0) for i in range(3))
    else:
        parts = net.op("Split", qkv, axis=2, outputs=3)
        parts = [net.op("Reshape", part, net.ints(1, tokens, heads, width // heads)) for part in parts]
        q, k, v = (net.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts)
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = net.op("Reshape", net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3]), net.ints(1, tokens, -1))
    channels = found(net.model([net.op("MatMul", y, net.random(width, 2))]), tmp_path)
    (heads_found,) = [group for group in channels.groups if group.width > 1]
    assert (heads_found.channels, heads_found.width) == (heads, 3 * width // heads)


def test_key_and_value_heads_that_several_queries_share_go_with_them(tmp_path: Path) -> None:
    net, tokens, width = Net(), 5, 4
    x = net.op("Gather", net.random(9, 6), net.input("ids", [1, tokens], TensorProto.INT64))
    q = net.op("Transpose", net.op("Reshape", net.op("MatMul", x, net.random(6, 6 * width)), net.ints(1, 5, 6, 4)),
               perm=[0, 2, 1, 3])  # fmt: skip
    both = []
    for _ in range(2):  # 3 heads, each repeated twice
        part = net.op("Reshape", net.op("MatMul", x, net.random(6, 3 * width)), net.ints(1, tokens, 3, 1, width))
        part = net.op(
            "Reshape", net.op("Expand", part, net.ints(1, tokens, 3, 2, width)), net.ints(1, tokens, 6, width)
        )
        both.append(net.op("Transpose", part, perm=[0, 2, 1, 3]))
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", both[0], perm=[0, 1, 3, 2])), axis=-1)
    y = net.op("Transpose", net.op("MatMul", scores, both[1]), perm=[0, 2, 1, 3])
    y = net.op("MatMul", net.op("Reshape", y, net.ints(1, tokens, -1)), net.random(6 * width, 2))
    (heads,) = [group for group in found(net.model([y]), tmp_path).groups if group.width > 1]
    assert (heads.channels, len(heads.producers), len(heads.consumers)) == (3, 5, 1)


def test_recurrent_layers(tmp_path: Path) -> None:
    features, hidden = found(zoo.gru(), tmp_path).groups
    assert (features.channels, features.consumers) == (8, ("GRU_10",))
    assert (hidden.channels, hidden.producers, hidden.consumers) == (12, ("GRU_10",), ("MatMul_15",))
    channels = found(zoo.lstm(), tmp_path)
    assert not channels.groups  # its states are inputs and outputs
    assert channels.fixed[0].reason.startswith("they are the model output")


def test_groups_of_one_layer_have_names_of_their_own(tmp_path: Path) -> None:
    names = [group.name for group in found(between(uneven), tmp_path).groups]
    assert names == ["Conv_3", "Conv_3#2"]


def test_channel_numbers_follow_the_position_on_the_first_output(tmp_path: Path) -> None:
    graph = load_model(between(uneven), tmp_path)
    channels = find_channels(graph)
    (axis,) = [axes[1] for name, axes in channels.units.items() if name == graph.layers[0].output]
    assert axis is not None
    assert axis.tolist() == list(range(8))
    assert channels.firsts == (0, 5)
    joined = next(axes[1] for n, axes in channels.units.items() if n.startswith("Concat"))
    assert joined is not None
    assert joined.tolist() == [5, 6, 7, 0, 1, 2, 3, 4]


def check_consistent(graph: Graph, channels: Channels) -> None:
    """What the description of `Channels` promises."""
    layers = {layer.name: layer for layer in graph.layers}
    values = {v.name: v for v in graph.model.graph.initializers.values()}
    values |= {v.name: v for node in graph.model.graph for v in node.outputs if v.name}
    assert len({group.name for group in channels.groups}) == len(channels.groups)
    for value in (*graph.inputs, *graph.outputs):
        assert all(axis is None for axis in channels.units[value.name])
    for name, axes in channels.units.items():
        if name in values:
            assert len(axes) == len(values[name].shape)
            assert all(a is None or a.size == size for a, size in zip(axes, values[name].shape, strict=True))
    pruned_layers = {name for group in channels.groups for name in group.producers}
    assert not pruned_layers & {fixed.layer for fixed in channels.fixed}
    weighted = {layer.name for layer in graph.layers if layer.weights}
    assert weighted <= pruned_layers | {fixed.layer for fixed in channels.fixed}
    for group, first in zip(channels.groups, channels.firsts, strict=True):
        own = np.arange(first, first + group.channels)
        assert group.channels > 1
        producer = layers[group.name.partition("#")[0]]
        assert producer.weights
        axes = [a for a in channels.units[producer.output] if a is not None and np.isin(own, a).all()]
        assert any([(a == unit).sum() for unit in own] == [group.width] * group.channels for a in axes)
        order = [layer.name for layer in graph.layers]
        assert list(group.producers) == sorted(group.producers, key=order.index)
        assert list(group.consumers) == sorted(group.consumers, key=order.index)
        touched = [(n, i) for n, axes in channels.units.items() for i, a in enumerate(axes)
                   if a is not None and np.isin(own, a).any()]  # fmt: skip
        assert all(np.isin(own, channels.units[n][i]).all() for n, i in touched)  # so no axis can be emptied


@pytest.mark.parametrize("name", sorted(zoo.STATIC))
def test_what_is_promised_holds_on_every_model(name: str, tmp_path: Path) -> None:
    graph = load_model(zoo.STATIC[name](), tmp_path)
    check_consistent(graph, find_channels(graph))


@given(model=channel_nets())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_promised_holds_on_random_networks(model: onnx.ModelProto, tmp_path: Path) -> None:
    graph = load_model(model, tmp_path)
    channels = find_channels(graph)
    check_consistent(graph, channels)
    again = find_channels(graph)
    assert (again.groups, again.fixed, again.firsts) == (channels.groups, channels.fixed, channels.firsts)


def test_large_networks_take_no_time(tmp_path: Path) -> None:
    net = Net()
    y = net.conv(net.input("x", [1, 3, 4, 4]), 3, 256, 1)
    for _ in range(60):
        inner = net.conv(net.op("Relu", net.conv(y, 256, 64, 1)), 64, 256, 1)
        y = net.op("Add", net.op("Relu", inner), y)
    graph = load_model(net.model([net.conv(y, 256, 2, 1)]), tmp_path)
    start = time.perf_counter()
    channels = find_channels(graph)
    assert time.perf_counter() - start < 2
    assert [group.channels for group in channels.groups] == [256] + [64] * 60
