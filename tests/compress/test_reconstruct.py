from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.compress import grams as grams_module
from edgekit.compress.grams import collect_grams
from edgekit.compress.importance import kept_units, ranking
from edgekit.compress.prune import prune
from edgekit.compress.ranges import observe
from edgekit.compress.reconstruct import reconstruct, reconstruct_alone
from edgekit.errors import InputError
from edgekit.graph import Graph, to_bytes
from edgekit.graph.channels import Channels, find_channels
from edgekit.recipes.samples import synthetic
from tests import zoo
from tests.compress.noise import output_noise
from tests.graph.channel_nets import channel_nets
from tests.graph.nets import load_model
from tests.zoo import Net

NETS = [name for name in zoo.STATIC if name != "lstm"]  # its hidden units are the model's states


def prepared(model: Any, folder: Path, keep: float = 0.7) -> tuple[Graph, Channels, dict[str, np.ndarray]]:
    graph = load_model(model, folder)
    channels = find_channels(graph)
    counts = {group.name: max(1, int(group.channels * keep)) for group in channels.groups}
    return graph, channels, kept_units(ranking("random", graph, channels), counts)


def layer_names(graph: Graph) -> list[str]:
    return [layer.name for layer in graph.layers]


def array(graph: Graph, name: str) -> np.ndarray:
    constant = graph.model.graph.initializers[name].const_value
    assert constant is not None
    return np.asarray(constant.numpy())


def weights_of(graph: Graph) -> dict[str, np.ndarray]:
    return {name: array(graph, name) for name in graph.model.graph.initializers}


@pytest.mark.parametrize("name", NETS)
def test_better_than_removal_alone_and_a_valid_model(tmp_path: Path, name: str) -> None:
    graph, channels, kept = prepared(zoo.STATIC[name](), tmp_path)
    data, fresh = synthetic(graph.inputs, 32), synthetic(graph.inputs, 8, seed=1)
    before = weights_of(graph)
    plain = prune(graph, channels, kept)
    alone = reconstruct_alone(graph, channels, kept, collect_grams(graph, layer_names(graph), data))
    solved: list[str] = []
    whole = reconstruct(graph, channels, kept, data, solved.append)
    assert solved == [layer for layer in layer_names(graph) if layer in solved]
    for made in (alone, whole):
        onnx.checker.check_model(onnx.load_from_string(to_bytes(made.model)), full_check=True)
        assert [node.name for node in made.model.graph] == [node.name for node in graph.model.graph]
        assert made.outputs == graph.outputs
        assert made.sha256 == graph.sha256
        for layer in made.layers:
            constants = made.model.graph.initializers
            assert layer.weight_elements == sum(
                array(made, weight).size for weight in layer.weights if weight in constants
            )
        assert output_noise(graph, made, fresh) < 0.9 * output_noise(graph, plain, fresh)
    assert all(np.array_equal(values, weights_of(graph)[key]) for key, values in before.items())


def test_equals_ridge_regression_on_the_explicit_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams_module, "_ROWS", 1 << 30)
    net = Net()
    y = net.op("Relu", net.op("MatMul", net.input("x", [16, 6]), net.random(6, 10)))
    graph, channels, kept = prepared(net.model([net.op("Gemm", y, net.random(10, 4), net.random(4))]), tmp_path)
    data = synthetic(graph.inputs, 20)
    grams = collect_grams(graph, layer_names(graph), data)
    made = reconstruct_alone(graph, channels, kept, grams)
    (units,) = kept.values()
    source, layer = graph.layers[1].inputs[0], graph.layers[1]
    x = np.concatenate([values[source] for *_, values in observe(graph, [source], data)]).astype(np.float64)
    weight, bias = array(graph, layer.weights[0]), array(graph, "w5")
    assert bias.shape == (4,)
    target = x @ weight + bias
    gram = grams[layer.name]
    ridge = gram.damping * x.var(axis=0) + grams_module._FLOOR * np.diagonal(gram.second[0])[:-1].mean()
    # The ridge as rows of its own: sqrt(n d_i) (w_i - pruned w_i) is to be 0.
    pull = np.diag(np.sqrt(len(x) * ridge[units]))
    rows = np.block([[x[:, units], np.ones((len(x), 1))], [pull, np.zeros((len(units), 1))]])
    expected = np.linalg.lstsq(rows, np.vstack([target, pull @ weight[units]]), rcond=None)[0]
    np.testing.assert_allclose(array(made, layer.weights[0]), expected[:-1], atol=1e-5)
    np.testing.assert_allclose(array(made, "w5"), expected[-1], atol=1e-5)


@pytest.mark.parametrize("name", ["conv_net", "transformer", "gru", "conv_transpose", "grouped_conv"])
def test_no_layer_is_worse_than_by_removal_on_the_calibration_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(grams_module, "_ROWS", 1 << 30)
    graph, channels, kept = prepared(zoo.STATIC[name](), tmp_path)
    data = synthetic(graph.inputs, 8)
    grams = collect_grams(graph, layer_names(graph), data)
    outputs = {layer.name: layer.output for layer in graph.layers if layer.op_type != "GRU"}
    for node in graph.model.graph:  # a MatMul's bias is what is added behind it
        if node.op_type == "MatMul" and [reader.op_type for reader in node.outputs[0].consumers()] == ["Add"]:
            outputs[node.name or ""] = next(iter(node.outputs[0].consumers())).outputs[0].name or ""
    compared = 0
    for group in channels.groups:
        if group.normalised:
            continue  # its other channels change as well
        one = {group.name: kept[group.name]}
        plain, made = prune(graph, channels, one), reconstruct_alone(graph, channels, one, grams)
        for output in (outputs[name] for name in group.consumers if name in grams and name in outputs):
            runs = [list(observe(one_of, [output], data)) for one_of in (graph, plain, made)]
            results = [np.stack([values[output] for *_, values in run]) for run in runs]
            if results[0].shape == results[1].shape:  # else its own outputs are fewer
                compared += 1
                by_removal, solved = (float(np.square(r - results[0]).sum()) for r in results[1:])
                assert solved <= by_removal * (1 + 1e-5)
    assert compared


def test_biases_go_where_they_belong(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", [1, 4, 8, 8])
    y = net.op("Relu", net.conv(x, 4, 12))
    y = net.op("Relu", net.conv(y, 12, 8, bias=False))  # gets none
    y = net.op("Transpose", net.op("Reshape", y, net.ints(1, 8, 64)), perm=[0, 2, 1])
    y = net.op("Relu", net.op("Add", net.op("MatMul", y, net.random(8, 12)), net.random(12, name="added")))
    y = net.op("MatMul", y, net.random(12, 6))  # can have none
    graph, channels, kept = prepared(net.model([net.op("Tanh", y)]), tmp_path)
    data = synthetic(graph.inputs, 16)
    for made in (
        reconstruct_alone(graph, channels, kept, collect_grams(graph, layer_names(graph), data)),
        reconstruct(graph, channels, kept, data),
    ):
        assert [layer.bias_elements for layer in made.layers][:2] == [8, 0]
        plain = prune(graph, channels, kept)
        assert not np.allclose(array(made, "added"), array(plain, "added"))
        assert [node.op_type for node in made.model.graph] == [node.op_type for node in graph.model.graph]
        assert output_noise(graph, made, data) < output_noise(graph, plain, data)


def test_shared_weights_stay(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", [8, 4])
    shared = net.random(12, 3, name="shared")
    a, b = (net.op("Relu", net.op("MatMul", x, net.random(4, 12))) for _ in range(2))
    model = net.model([net.op("Tanh", net.op("MatMul", a, shared)), net.op("Tanh", net.op("MatMul", b, shared))])
    graph, channels, kept = prepared(model, tmp_path)
    assert channels.groups
    data = synthetic(graph.inputs, 8)
    plain = prune(graph, channels, kept)
    for made in (
        reconstruct_alone(graph, channels, kept, collect_grams(graph, layer_names(graph), data)),
        reconstruct(graph, channels, kept, data),
    ):
        assert np.array_equal(array(made, "shared"), array(plain, "shared"))


def test_a_bias_that_another_node_reads_is_copied(tmp_path: Path) -> None:
    net = Net()
    bias = net.random(6, name="bias")
    y = net.op("Relu", net.op("Conv", net.input("x", [1, 4, 8, 8]), net.random(12, 4, 1, 1)))
    first = net.op("Conv", y, net.random(6, 12, 1, 1), bias)
    second = net.op("Add", net.input("z", [1, 4, 8, 6]), bias)
    graph, channels, kept = prepared(net.model([net.op("Tanh", first), net.op("Tanh", second)]), tmp_path)
    made = reconstruct(graph, channels, kept, synthetic(graph.inputs, 8))
    assert np.array_equal(array(made, "bias"), array(graph, "bias"))
    onnx.checker.check_model(onnx.load_from_string(to_bytes(made.model)), full_check=True)


@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("name", ["conv_net", "squeeze_excite", "gru"])
def test_constant_data_does_no_harm(tmp_path: Path, name: str, fill: float) -> None:
    graph, channels, kept = prepared(zoo.STATIC[name](), tmp_path)

    class Constant:
        def __len__(self) -> int:
            return 4

        def sample(self, i: int) -> dict[str, np.ndarray]:
            return {t.name: np.full(t.shape, fill, t.dtype) for t in graph.inputs}

    fresh = synthetic(graph.inputs, 8)
    plain = output_noise(graph, prune(graph, channels, kept), fresh)
    for made in (
        reconstruct_alone(graph, channels, kept, collect_grams(graph, layer_names(graph), Constant())),
        reconstruct(graph, channels, kept, Constant()),
    ):
        assert all(np.isfinite(values).all() for values in weights_of(made).values() if values.dtype == np.float32)
        assert output_noise(graph, made, fresh) < 3 * plain


def test_nothing_removed_changes_nothing(tmp_path: Path) -> None:
    graph, channels, _ = prepared(zoo.conv_net(), tmp_path)
    data = synthetic(graph.inputs, 2)
    assert to_bytes(reconstruct(graph, channels, {}, data).model) == to_bytes(graph.model)
    assert to_bytes(reconstruct_alone(graph, channels, {}, {}).model) == to_bytes(graph.model)


def test_the_same_each_time(tmp_path: Path) -> None:
    graph, channels, kept = prepared(zoo.conv_net(), tmp_path)
    data = synthetic(graph.inputs, 8)
    first, second = (to_bytes(reconstruct(graph, channels, kept, data).model) for _ in range(2))
    assert first == second


def test_memory_bounds_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.compress.walk._LIVE_BYTES", 200_000)
    graph, channels, kept = prepared(zoo.conv_net(), tmp_path)
    asked = set()

    class Counted:
        def __len__(self) -> int:
            return 1000

        def sample(self, i: int) -> dict[str, np.ndarray]:
            asked.add(i)
            return synthetic(graph.inputs, 1000).sample(i)

    made = reconstruct(graph, channels, kept, Counted())
    assert 1 < len(asked) < 20
    assert max(asked) == 999
    assert output_noise(graph, made, synthetic(graph.inputs, 4, seed=1)) < 1


def test_no_samples(tmp_path: Path) -> None:
    graph, channels, kept = prepared(zoo.conv_net(), tmp_path)

    class Nothing:
        def __len__(self) -> int:
            return 0

        def sample(self, i: int) -> dict[str, np.ndarray]:
            raise AssertionError

    with pytest.raises(InputError, match="no samples"):
        reconstruct(graph, channels, kept, Nothing())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(channel_nets(), st.floats(0.2, 0.9))
def test_any_network_stays_valid_and_finite(
    tmp_path_factory: pytest.TempPathFactory, model: onnx.ModelProto, keep: float
) -> None:
    graph, channels, kept = prepared(model, tmp_path_factory.mktemp("net"), keep)
    data, fresh = synthetic(graph.inputs, 6), synthetic(graph.inputs, 2, seed=1)
    grams = collect_grams(graph, layer_names(graph), data)
    activation = kept_units(ranking("activation", graph, channels, grams), {n: len(units) for n, units in kept.items()})
    for units in (kept, activation):
        for made in (reconstruct_alone(graph, channels, units, grams), reconstruct(graph, channels, units, data)):
            onnx.checker.check_model(onnx.load_from_string(to_bytes(made.model)), full_check=True)
            assert {t.name: t.shape for t in made.outputs} == {t.name: t.shape for t in graph.outputs}
            assert output_noise(graph, made, fresh) < 1000  # what broken values count as
