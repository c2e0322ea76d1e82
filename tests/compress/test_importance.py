from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.compress.grams import Gram, collect_grams
from edgekit.compress.importance import Method, kept_units, ranking, weight_norms
from edgekit.compress.reconstruct import reconstruct_alone
from edgekit.graph import Graph
from edgekit.graph.channels import Channels, find_channels
from edgekit.recipes.samples import synthetic
from tests import zoo
from tests.compress.noise import output_noise
from tests.graph.nets import load_model
from tests.zoo import Net

METHODS: tuple[Method, ...] = ("activation", "l1", "l2", "random")  # `fisher` needs the torch extra: test_gradients
NETS = ("conv_net", "inverted_residual", "conv_transpose", "squeeze_excite", "transformer", "gru")


def prepared(model: Any, folder: Path) -> tuple[Graph, Channels, dict[str, Gram]]:
    graph = load_model(model, folder)
    return (
        graph,
        find_channels(graph),
        collect_grams(graph, [x.name for x in graph.layers], synthetic(graph.inputs, 16)),
    )


def twins(copies: int = 3, channels: int = 6) -> Any:
    """A convolution whose channels all come ``copies`` times, and a layer that reads each kind into its own output."""
    net = Net(3)
    weight = net.rng.standard_normal((channels, 4, 1, 1))
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    y = net.op("Tanh", net.op("Conv", net.input("x", [1, 4, 8, 8]), net.weight(np.concatenate([weight] * copies))))
    reader = np.tile(np.eye(channels), copies)[:, :, None, None]
    return net.model([net.op("Tanh", net.op("Conv", y, net.weight(reader)))])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("method", METHODS)
def test_orders_every_unit_once_and_nests(tmp_path: Path, method: Any, name: str) -> None:
    graph, channels, grams = prepared(zoo.STATIC[name](), tmp_path)
    order = ranking(method, graph, channels, grams)
    assert list(order) == [group.name for group in channels.groups]
    for group in channels.groups:
        assert np.array_equal(np.sort(order[group.name]), np.arange(group.channels))
        before: set[int] = set()
        for count in range(1, group.channels + 1):
            kept = kept_units(order, {group.name: count})[group.name]
            assert len(kept) == count
            assert (np.diff(kept) > 0).all()
            assert before < set(kept.tolist())
            before = set(kept.tolist())
    again = ranking(method, graph, channels, grams)
    assert all(np.array_equal(order[name], again[name]) for name in order)


def test_of_channels_that_say_the_same_only_the_superfluous_go(tmp_path: Path) -> None:
    graph, channels, grams = prepared(twins(), tmp_path)
    group = channels.groups[0]
    assert group.channels == 18
    first = ranking("activation", graph, channels, grams)[group.name][:12]
    assert np.array_equal(np.bincount(first % 6), [2] * 6)


def test_batched_removal_spares_the_last_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.compress.importance._STEPS", 3)
    graph, channels, grams = prepared(twins(), tmp_path)
    first = ranking("activation", graph, channels, grams)[channels.groups[0].name][:12]
    assert np.array_equal(np.bincount(first % 6), [2] * 6)


def test_the_first_choice_is_the_cheapest_by_brute_force(tmp_path: Path) -> None:
    net = Net(1)
    y = net.op("Relu", net.conv(net.input("x", [1, 4, 8, 8]), 4, 10))
    graph, channels, grams = prepared(net.model([net.conv(y, 10, 6, 3)]), tmp_path)
    (group,) = channels.groups
    weight = graph.model.graph.initializers[graph.layers[1].weights[0]].const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
    inverse = grams[group.consumers[0]].inverse[0]
    matrix = np.linalg.inv(inverse)
    rows = np.column_stack([weight.reshape(6, -1), np.zeros(6)])
    left = list(range(group.channels))
    for unit in ranking("activation", graph, channels, grams)[group.name][:6]:
        costs = {}
        for candidate in left:
            gone = np.isin(np.arange(91) // 9, [u for u in range(10) if u not in left or u == candidate])
            gone[-1] = False
            kept = ~gone
            best = rows @ matrix[:, kept] @ np.linalg.inv(matrix[np.ix_(kept, kept)])
            error = rows.copy()
            error[:, kept] -= best
            costs[candidate] = np.trace(error @ matrix @ error.T)
        assert costs[unit] == pytest.approx(min(costs.values()), rel=1e-6)
        left.remove(unit)


def test_norms_are_those_of_the_producers(tmp_path: Path) -> None:
    graph = load_model(zoo.conv_net(), tmp_path)
    channels = find_channels(graph)
    (place,) = (i for i, group in enumerate(channels.groups) if len(group.producers) == 1 and group.channels == 24)
    (layer,) = (layer for layer in graph.layers if layer.name == channels.groups[place].name)
    weight = graph.model.graph.initializers[layer.weights[0]].const_value.numpy()  # type: ignore[union-attr]
    l1, l2 = np.abs(weight).sum(axis=(1, 2, 3)), np.sqrt(np.square(weight).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(weight_norms(graph, channels, place, 1), l1 / l1.mean(), rtol=1e-5)
    np.testing.assert_allclose(weight_norms(graph, channels, place, 2), l2 / l2.mean(), rtol=1e-5)


def test_groups_without_moments_are_ranked_by_their_norm(tmp_path: Path) -> None:
    graph = load_model(zoo.conv_net(), tmp_path)
    channels = find_channels(graph)
    by_norm = ranking("l2", graph, channels)
    assert all(np.array_equal(units, by_norm[n]) for n, units in ranking("activation", graph, channels, {}).items())


def test_activation_beats_norms_and_chance(tmp_path: Path) -> None:
    noise: dict[str, list[float]] = {method: [] for method in METHODS}
    for place, name in enumerate(("conv_net", "inverted_residual", "squeeze_excite", "gru")):
        (tmp_path / name).mkdir()
        graph, channels, grams = prepared(zoo.STATIC[name](), tmp_path / name)
        fresh = synthetic(graph.inputs, 8, seed=place + 1)
        counts = {group.name: max(1, group.channels * 5 // 8) for group in channels.groups}
        for method in METHODS:
            kept = kept_units(ranking(method, graph, channels, grams), counts)
            smaller = reconstruct_alone(graph, channels, kept, grams)
            noise[method].append(np.log(output_noise(graph, smaller, fresh)))
    mean = {method: float(np.mean(values)) for method, values in noise.items()}
    assert mean["activation"] < min(mean["l1"], mean["l2"], mean["random"]) - np.log(2)


def test_unknown_methods_and_missing_moments(tmp_path: Path) -> None:
    graph = load_model(zoo.conv_net(), tmp_path)
    channels = find_channels(graph)
    with pytest.raises(ValueError, match="no importance 'magic'"):
        ranking("magic", graph, channels, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Gram"):
        ranking("activation", graph, channels)
