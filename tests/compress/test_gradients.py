"""Needs the torch extra for all but the message that it is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.compress.gradients import _gated, gate_curvatures
from edgekit.compress.importance import ranking
from edgekit.compress.prune import prune
from edgekit.compress.ranges import session_of
from edgekit.errors import InputError, MissingToolError
from edgekit.graph import to_bytes
from edgekit.graph.channels import find_channels
from edgekit.recipes.samples import synthetic
from tests import zoo
from tests.compress.noise import output_noise
from tests.graph.nets import load_model
from tests.zoo import Net


def needs_torch() -> None:
    for name in ("torch", "onnx2torch"):
        pytest.importorskip(name, exc_type=Exception)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["conv_net", "inverted_residual", "grouped_conv", "transformer", "squeeze_excite", "gru"]
)
def test_a_closed_gate_is_a_removed_unit(tmp_path: Path, name: str) -> None:
    """Gates stand where the units are read: at 0 the outputs are those of the pruned model."""
    graph = load_model(zoo.STATIC[name](), tmp_path)
    channels = find_channels(graph)
    model, gates = _gated(graph, channels)
    session = session_of(to_bytes(model), 1)
    sample = synthetic(graph.inputs, 1).sample(0)
    names = [value.name or "" for value in model.graph.inputs][len(graph.inputs) :]
    open_gates = {n: np.ones(shape, np.float32) for n, (_, shape) in zip(names, gates, strict=True)}
    whole = session_of(to_bytes(graph.model), 1).run(None, sample)
    for ours, theirs in zip(session.run(None, sample | open_gates), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for group, first in zip(channels.groups, channels.firsts, strict=True):
        if group.normalised or group.name.startswith("GRU"):
            continue  # gates stand behind the LayerNormalization, and behind what hidden units tell each other
        shut = {
            n: np.where(units == first, 0, 1).astype(np.float32).reshape(shape)
            for n, (units, shape) in zip(names, gates, strict=True)
        }
        smaller = prune(graph, channels, {group.name: np.arange(1, group.channels)})
        expected = session_of(to_bytes(smaller.model), 1).run(None, sample)
        for ours, theirs in zip(session.run(None, sample | shut), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_exact_where_the_outputs_are_linear_in_the_gates(tmp_path: Path) -> None:
    needs_torch()
    net = Net(2)
    y = net.op("Relu", net.conv(net.input("x", [1, 4, 8, 8]), 4, 12))
    graph = load_model(net.model([net.conv(y, 12, 6, 3)]), tmp_path)
    channels = find_channels(graph)
    data = synthetic(graph.inputs, 24)
    (group,) = channels.groups
    found = gate_curvatures(graph, channels, data)[group.name]
    exact = np.array(
        [
            output_noise(graph, prune(graph, channels, {group.name: np.delete(np.arange(12), unit)}), data)
            for unit in range(12)
        ]
    )
    assert np.corrcoef(np.log(found + 1e-9), np.log(exact + 1e-9))[0, 1] > 0.9
    assert 0.5 < found.sum() / exact.sum() < 2


def test_ranks_every_unit_once_and_the_same_each_time(tmp_path: Path) -> None:
    needs_torch()
    graph = load_model(zoo.transformer(), tmp_path)
    channels = find_channels(graph)
    data = synthetic(graph.inputs, 4)
    order = ranking("fisher", graph, channels, dataset=data)
    again = ranking("fisher", graph, channels, dataset=data)
    for group in channels.groups:
        assert np.array_equal(np.sort(order[group.name]), np.arange(group.channels))
        assert np.array_equal(order[group.name], again[group.name])


def test_recurrent_layers_cannot_be_differentiated(tmp_path: Path) -> None:
    needs_torch()
    graph = load_model(zoo.gru(), tmp_path)
    with pytest.raises(InputError, match="GRU"):
        gate_curvatures(graph, find_channels(graph), synthetic(graph.inputs, 2))


def test_without_torch_the_command_that_adds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    graph = load_model(zoo.conv_net(), tmp_path)
    with pytest.raises(MissingToolError, match="fisher") as caught:
        ranking("fisher", graph, find_channels(graph), dataset=synthetic(graph.inputs, 2))
    assert "edgekit-sdk[torch]" in caught.value.hint


def test_needs_samples(tmp_path: Path) -> None:
    graph = load_model(zoo.conv_net(), tmp_path)
    with pytest.raises(ValueError, match="samples"):
        ranking("fisher", graph, find_channels(graph))
