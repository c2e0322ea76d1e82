from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgekit.compress.prune import prune
from edgekit.graph import Graph, load, to_bytes
from edgekit.graph.channels import Channels, find_channels
from tests import zoo
from tests.graph.channel_nets import channel_nets
from tests.graph.nets import load_model, random_feed, random_nets, run
from tests.masks import masked
from tests.zoo import Net

Kept = dict[str, Any]


def some_kept(channels: Channels, seed: int, share: float = 0.8) -> Kept:
    """Random units of most groups, at least one of each."""
    rng = np.random.default_rng(seed)
    return {
        group.name: np.sort(rng.permutation(group.channels)[: rng.integers(1, group.channels + 1)])
        for group in channels.groups
        if rng.random() < share
    }


def check_equal_to_masked(graph: Graph, channels: Channels, kept: Kept, seed: int = 0) -> Graph:
    pruned = prune(graph, channels, kept)
    content = to_bytes(pruned.model)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    assert (pruned.inputs, pruned.outputs, pruned.sha256) == (graph.inputs, graph.outputs, graph.sha256)
    feed = random_feed(graph, seed)
    for got, want in zip(run(content, feed), run(masked(graph, channels, kept), feed), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-4 * max(1.0, float(np.abs(want).max())), rtol=0)
    return pruned


def check_shapes(graph: Graph, channels: Channels, kept: Kept, pruned: Graph) -> None:
    """Every tensor that is left has exactly the positions whose units stay; names and nodes are the same."""
    assert [n.name for n in pruned.model.graph] == [n.name for n in graph.model.graph]
    stays = np.ones(sum(group.channels for group in channels.groups) + 1, bool)
    for group, first in zip(channels.groups, channels.firsts, strict=True):
        units = kept.get(group.name, np.arange(group.channels))
        stays[first : first + group.channels] = np.isin(np.arange(group.channels), units)
    before = {v.name: v for v in graph.model.graph.initializers.values()}
    before |= {v.name: v for node in graph.model.graph for v in node.outputs if v.name}
    after = {v.name: v for v in pruned.model.graph.initializers.values()}
    after |= {v.name: v for node in pruned.model.graph for v in node.outputs if v.name}
    for name in before.keys() & after.keys():
        axes = channels.units[name]
        expected = [n if a is None else int(stays[a].sum()) for n, a in zip(before[name].shape, axes, strict=True)]
        assert list(after[name].shape) == expected, name
    assert {layer.name for layer in pruned.layers} == {layer.name for layer in graph.layers}


def unused(graph: Graph) -> set[str]:
    read = {v.name for node in graph.model.graph for v in node.inputs if v is not None}
    return set(graph.model.graph.initializers) - read


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", sorted(zoo.STATIC))
def test_pruned_is_masked_on_every_model(name: str, seed: int, tmp_path: Path) -> None:
    graph = load_model(zoo.STATIC[name](), tmp_path)
    channels = find_channels(graph)
    kept = some_kept(channels, seed, share=1.0)
    pruned = check_equal_to_masked(graph, channels, kept, seed)
    check_shapes(graph, channels, kept, pruned)
    assert not unused(pruned)


@given(model=channel_nets(), seed=st.integers(0, 2**16))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_pruned_is_masked_on_random_networks(model: onnx.ModelProto, seed: int, tmp_path: Path) -> None:
    graph = load_model(model, tmp_path)
    channels = find_channels(graph)
    kept = some_kept(channels, seed)
    pruned = check_equal_to_masked(graph, channels, kept, seed)
    check_shapes(graph, channels, kept, pruned)
    assert not unused(pruned)


@pytest.mark.slow
@given(model=st.one_of(channel_nets(), random_nets()), seed=st.integers(0, 2**16))
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
def test_pruned_is_masked_on_many_random_networks(model: onnx.ModelProto, seed: int, tmp_path: Path) -> None:
    graph = load_model(model, tmp_path)
    channels = find_channels(graph)
    check_equal_to_masked(graph, channels, some_kept(channels, seed), seed)


@given(model=channel_nets(), seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_pruned_model_loads_as_it_is(model: onnx.ModelProto, seed: int, tmp_path: Path) -> None:
    """It is in normal form but for what its new shapes allow, and its layers and edges are found again."""
    graph = load_model(model, tmp_path)
    channels = find_channels(graph)
    pruned = prune(graph, channels, some_kept(channels, seed))
    path = tmp_path / "pruned.onnx"
    path.write_bytes(to_bytes(pruned.model))
    feed = random_feed(graph, seed)
    for got, want in zip(run(to_bytes(load(path).model), feed), run(to_bytes(pruned.model), feed), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-4 * max(1.0, float(np.abs(want).max())), rtol=0)


@given(model=channel_nets(), seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_two_steps_come_to_the_same(model: onnx.ModelProto, seed: int, tmp_path: Path) -> None:
    """Some groups first, the others after: the groups of the smaller model are the ones that were left."""
    graph = load_model(model, tmp_path)
    channels = find_channels(graph)
    kept = some_kept(channels, seed)
    first = dict(list(kept.items())[::2])
    half = prune(graph, channels, first)
    between = find_channels(half)
    left = {group.name: group.channels for group in between.groups}
    wanted = {name: units for name, units in kept.items() if name not in first}
    sizes = {group.name: group.channels for group in channels.groups}
    if any(left.get(name) != sizes[name] for name in wanted):
        return  # what went has changed the choices: a group of one channel is none, say
    twice = prune(half, between, wanted)
    once = prune(graph, channels, kept)
    assert twice.layers == once.layers
    feed = random_feed(graph, seed)
    for got, want in zip(run(to_bytes(twice.model), feed), run(to_bytes(once.model), feed), strict=True):
        np.testing.assert_array_equal(got, want)


def test_pruning_nothing_changes_no_byte(tmp_path: Path) -> None:
    graph = load_model(zoo.transformer(), tmp_path)
    channels = find_channels(graph)
    everything = {group.name: np.arange(group.channels) for group in channels.groups}
    for kept in ({}, everything):
        assert to_bytes(prune(graph, channels, kept).model) == to_bytes(graph.model)


def test_the_original_stays_as_it_was(tmp_path: Path) -> None:
    graph = load_model(zoo.conv_transpose(), tmp_path)
    channels = find_channels(graph)
    before = to_bytes(graph.model)
    first, second = (to_bytes(prune(graph, channels, some_kept(channels, 3, 1.0)).model) for _ in range(2))
    assert to_bytes(graph.model) == before != first
    assert first == second


def test_layers_edges_and_macs_are_those_of_the_smaller_model(tmp_path: Path) -> None:
    graph = load_model(zoo.conv_net(), tmp_path)
    channels = find_channels(graph)
    pruned = prune(graph, channels, {"Conv_10": np.array([1, 5, 7, 15])})
    old, new = ({layer.name: layer for layer in g.layers} for g in (graph, pruned))
    assert new["Conv_10"].weight_elements * 4 == old["Conv_10"].weight_elements
    assert new["Conv_19"].macs * 4 == old["Conv_19"].macs
    assert new["Conv_2"] == old["Conv_2"]
    assert [e.elements for e in pruned.edges if e.consumer == "Conv_19"] == [4 * 16 * 16]


def shared_shape(net: Net) -> str:
    """One shape constant for two tensors of which only one loses channels."""
    shape = net.ints(1, 6, 16)
    y = net.conv(net.input("x", [1, 3, 4, 4]), 3, 6)
    stays = net.op("Softmax", net.op("Reshape", net.conv(y, 6, 6), shape), axis=1)
    loses = net.op("Relu", net.op("Reshape", net.conv(y, 6, 6), shape))
    a = net.op("MatMul", net.random(2, 6), loses)
    return str(net.op("Add", a, net.op("MatMul", net.random(2, 6), stays)))


def shared_weights(net: Net) -> str:
    """One convolution applied twice: its channels are coupled through it."""
    w = net.random(6, 6, 3, 3)
    y = net.conv(net.input("x", [1, 3, 4, 4]), 3, 6)
    y = net.op("Relu", net.op("Conv", y, w, pads=[1] * 4))
    return net.conv(net.op("Conv", y, w, pads=[1] * 4), 6, 2)


def down_to_one(net: Net) -> str:
    """Squeeze without axes, where channels may come down to one."""
    y = net.op("GlobalAveragePool", net.conv(net.input("x", [1, 3, 4, 4]), 3, 6))
    return str(net.op("MatMul", net.op("Relu", net.op("Squeeze", y)), net.random(6, 2)))


def equal_split(net: Net) -> str:
    """Halves that lose different channels."""
    a, b = net.op("Split", net.conv(net.input("x", [1, 3, 4, 4]), 3, 8), axis=1, outputs=2)
    return str(net.op("Add", net.conv(a, 4, 2), net.conv(net.op("Relu", b), 4, 2)))


def many_steps(net: Net) -> str:
    """A Slice of several axes, one of which loses channels before and inside the run."""
    y = net.conv(net.input("x", [1, 3, 4, 4]), 3, 8)
    cut = net.op("Slice", y, net.ints(-1, 2, 0), net.ints(-5, 7, 9), net.ints(3, 1, 2), net.ints(-1, 1, 2))
    pooled = net.op("GlobalAveragePool", net.conv(cut, 5, 2))
    return str(net.op("Add", pooled, net.conv(y, 8, 2)))


def gram(net: Net) -> str:
    """Channels on both axes of one tensor."""
    y = net.op("Reshape", net.conv(net.input("x", [1, 3, 4, 4]), 3, 6), net.ints(1, 6, 16))
    both = net.op("MatMul", y, net.op("Transpose", y, perm=[0, 2, 1]))
    both = net.op("MatMul", net.op("Tanh", both), net.random(6, 2))
    return str(net.op("MatMul", net.random(3, 6), both))


def weight_of_every_head(net: Net) -> str:
    """A batch of constant matrices, one a head."""
    y = net.op("Reshape", net.conv(net.input("x", [1, 3, 4, 4]), 3, 6), net.ints(1, 3, 2, 16))
    y = net.op("Relu", net.op("MatMul", net.random(3, 5, 2), y))
    return net.conv(y, 3, 2)


def layer_norm_of_two_axes(net: Net) -> str:
    y = net.op("Reshape", net.conv(net.input("x", [1, 3, 4, 4]), 3, 6), net.ints(1, 6, 16))
    y = net.op("LayerNormalization", y, net.random(6, 16), net.random(6, 16), axis=1)
    return str(net.op("MatMul", net.random(2, 6), y))


def padded_shortcut(net: Net) -> str:
    """Added channels that a residual sum joins with a convolution's."""
    y = net.conv(net.input("x", [1, 3, 4, 4]), 3, 6)
    return net.conv(net.op("Add", net.op("Pad", y, net.ints(0, 2, 0, 0, 0, 2, 0, 0)), net.conv(y, 6, 10)), 10, 2)


EDGES: tuple[Callable[[Net], str], ...] = (
    shared_shape,
    shared_weights,
    down_to_one,
    equal_split,
    many_steps,
    gram,
    weight_of_every_head,
    layer_norm_of_two_axes,
    padded_shortcut,
)


@pytest.mark.parametrize("build", EDGES, ids=lambda build: build.__name__)
def test_pruned_is_masked_at_the_edges(build: Callable[[Net], str], tmp_path: Path) -> None:
    net = Net()
    graph = load_model(net.model([build(net)]), tmp_path)
    channels = find_channels(graph)
    assert channels.groups
    for seed in range(8):
        kept = some_kept(channels, seed, 1.0) if seed else {g.name: np.array([g.channels - 1]) for g in channels.groups}
        pruned = check_equal_to_masked(graph, channels, kept, seed)
        check_shapes(graph, channels, kept, pruned)


def test_masks_are_felt(tmp_path: Path) -> None:
    """The reference that pruning is held against is not the original itself."""
    for name in ("conv_net", "grouped_conv", "transformer", "gru", "squeeze_excite"):
        graph = load_model(zoo.STATIC[name](), tmp_path)
        channels = find_channels(graph)
        feed = random_feed(graph, 0)
        plain = run(to_bytes(graph.model), feed)[0]
        for group in channels.groups:
            without = run(masked(graph, channels, {group.name: np.arange(group.channels - 1)}), feed)[0]
            assert np.abs(without - plain).max() > 1e-5, (name, group.name)


def test_control_flow_stays_and_what_it_reads(tmp_path: Path) -> None:
    net = Net()
    y = net.conv(net.op("Relu", net.conv(net.input("x", [1, 3, 4, 4]), 3, 6)), 6, 8)
    bodies = []
    for name, op in (("then", "Relu"), ("else", "Neg")):
        value = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [1, 8, 4, 4])
        bodies.append(helper.make_graph([helper.make_node(op, [y], [f"{name}_y"])], name, [], [value]))
    flag = net.op("Greater", net.op("ReduceMax", "x", keepdims=0), net.weight(np.float32(0)))
    y = net.op("If", flag, then_branch=bodies[0], else_branch=bodies[1])
    graph = load_model(net.model([net.conv(y, 8, 2)]), tmp_path)
    channels = find_channels(graph)
    assert [group.channels for group in channels.groups] == [6]
    check_equal_to_masked(graph, channels, {channels.groups[0].name: np.array([0, 4])})


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ({"nobody": np.array([0])}, "no channel group 'nobody'"),
        ({"Conv_10": np.array([], np.int64)}, "would lose all of its 16 channels"),
        ({"Conv_10": np.array([0, 16])}, "from 0 to 15"),
        ({"Conv_10": np.array([-1, 3])}, "from 0 to 15"),
        ({"Conv_10": np.array([3, 1])}, "ascending"),
        ({"Conv_10": np.array([3, 3])}, "ascending"),
        ({"Conv_10": np.ones(16, bool)}, "ascending numbers"),
        ({"Conv_10": np.array([[1]])}, "ascending numbers"),
        ({"Conv_10": np.array([0.5])}, "ascending numbers"),
    ],
)
def test_senseless_requests_are_refused(kept: Kept, says: str, tmp_path: Path) -> None:
    graph = load_model(zoo.conv_net(), tmp_path)
    with pytest.raises(ValueError, match=says):
        prune(graph, find_channels(graph), kept)
