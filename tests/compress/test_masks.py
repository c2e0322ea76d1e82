from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.compress import grams as grams_module
from edgekit.compress.grams import Gram, collect_grams
from edgekit.compress.masks import apply_mask, compressed_bytes, make_masks
from edgekit.compress.parameters import weight_array
from edgekit.graph import Graph, to_bytes
from edgekit.recipes.samples import synthetic
from tests import zoo
from tests.compress.noise import output_noise
from tests.graph.nets import load_model
from tests.zoo import Net

NETS = ("conv_net", "grouped_conv", "conv_transpose", "transformer", "lstm")


def prepared(model: Any, folder: Path) -> tuple[Graph, dict[str, Gram]]:
    graph = load_model(model, folder)
    return graph, collect_grams(graph, [layer.name for layer in graph.layers], synthetic(graph.inputs, 16))


def weighted(graph: Graph) -> list[Any]:
    return [layer for layer in graph.layers if layer.weights]


@pytest.mark.parametrize("score", ["magnitude", "wanda", "obs"])
@pytest.mark.parametrize("name", NETS)
def test_as_many_zeros_as_asked_for_and_a_valid_model(tmp_path: Path, name: str, score: Any) -> None:
    graph, grams = prepared(zoo.STATIC[name](), tmp_path)
    masks = make_masks(graph, {layer.name: 0.5 for layer in graph.layers}, score, grams)
    assert set(masks) == {layer.name for layer in weighted(graph)}
    for made in (apply_mask(graph, masks), apply_mask(graph, masks, grams)):
        onnx.checker.check_model(onnx.load_from_string(to_bytes(made.model)), full_check=True)
        for layer in weighted(graph):
            weight = weight_array(made.model, layer.weights[0])
            assert weight.shape == masks[layer.name].shape
            assert not weight[~masks[layer.name]].any()
            assert abs((~masks[layer.name]).mean() - 0.5) <= 0.5 / min(weight.shape[1:] or weight.shape) + 0.01


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.sampled_from([1, 3]), st.sampled_from(["Conv", "Gemm", "MatMul", "ConvTranspose"]))
def test_two_of_four_along_the_input_channels(
    tmp_path_factory: pytest.TempPathFactory, channels: int, k: int, op: str
) -> None:
    net = Net()
    if "Conv" in op:
        shape = (5, channels, k, k) if op == "Conv" else (channels, 5, k, k)
        y = net.op(op, net.input("x", [1, channels, 6, 6]), net.random(*shape), kernel_shape=[k, k])
    else:
        y = net.op(op, net.input("x", [6, channels]), net.random(channels, 5))
    graph, grams = prepared(net.model([y]), tmp_path_factory.mktemp("net"))
    (layer,) = graph.layers
    masks = make_masks(graph, {layer.name: "2:4"}, "obs", grams)
    weight = weight_array(apply_mask(graph, masks, grams).model, layer.weights[0])
    by_channel = weight if op == "Conv" else np.swapaxes(weight, 0, 1)
    for start in range(0, channels, 4):
        four = by_channel[:, start : start + 4] != 0
        assert (four.sum(axis=1) == min(2, four.shape[1])).all()


@pytest.mark.parametrize("pattern", [0.6, "2:4"])
def test_least_squares_on_the_survivors(tmp_path: Path, pattern: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams_module, "_ROWS", 1 << 30)
    net = Net()
    y = net.op("Gemm", net.input("x", [16, 12]), net.random(12, 4, name="w"), net.random(4, name="b"))
    graph, grams = prepared(net.model([y]), tmp_path)
    (layer,) = graph.layers
    masks = make_masks(graph, {layer.name: pattern}, "wanda", grams)
    made = apply_mask(graph, masks, grams)
    weight, bias = weight_array(graph.model, "w").astype(np.float64), weight_array(graph.model, "b")
    inverse = grams[layer.name].inverse[0]
    ridged = np.linalg.inv(inverse)
    for output in range(4):
        stay = np.append(masks[layer.name][:, output], True)
        whole = np.append(weight[:, output], bias[output])
        # The minimum of the damped error over the weights that stay: ridged[S, S] w' = ridged[S] w.
        expected = np.linalg.solve(ridged[np.ix_(stay, stay)], ridged[stay] @ whole)
        found = np.append(weight_array(made.model, "w")[:, output], weight_array(made.model, "b")[output])
        np.testing.assert_allclose(found[stay], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["conv_net", "transformer", "conv_transpose"])
def test_resolving_and_second_order_scores_help(tmp_path: Path, name: str) -> None:
    graph, grams = prepared(zoo.STATIC[name](), tmp_path)
    fresh = synthetic(graph.inputs, 8, seed=1)
    half = {layer.name: 0.5 for layer in weighted(graph)}
    by_size = make_masks(graph, half, "magnitude")
    plain = output_noise(graph, apply_mask(graph, by_size), fresh)
    solved = output_noise(graph, apply_mask(graph, by_size, grams), fresh)
    best = output_noise(graph, apply_mask(graph, make_masks(graph, half, "obs", grams), grams), fresh)
    assert solved < 0.7 * plain
    assert best < 0.7 * plain


def test_shared_weights_are_masked_together_or_not_at_all(tmp_path: Path) -> None:
    net = Net()
    shared = net.random(6, 3, name="shared")
    x, z = net.input("x", [4, 6]), net.input("z", [4, 6])
    graph, grams = prepared(net.model([net.op("MatMul", x, shared), net.op("MatMul", z, shared)]), tmp_path)
    masks = make_masks(graph, {layer.name: 0.5 for layer in graph.layers}, "obs", grams)
    first, second = masks
    both = weight_array(apply_mask(graph, masks, grams).model, "shared")
    whole = weight_array(graph.model, "shared")
    assert np.array_equal(both, np.where(masks[first] | masks[second], whole, 0))
    assert np.array_equal(weight_array(apply_mask(graph, {first: masks[first]}).model, "shared"), whole)


def test_zeros_compress(tmp_path: Path) -> None:
    graph, _ = prepared(zoo.transformer(), tmp_path)
    masks = make_masks(graph, {layer.name: 0.75 for layer in weighted(graph)}, "magnitude")
    made = apply_mask(graph, masks)
    sizes = [compressed_bytes(weight_array(g.model, layer.weights[0]) for layer in weighted(g)) for g in (graph, made)]
    assert sizes[1] < 0.45 * sizes[0]
    assert compressed_bytes([]) == 0


def test_bad_requests(tmp_path: Path) -> None:
    graph, _ = prepared(zoo.conv_net(), tmp_path)
    name = graph.layers[0].name
    with pytest.raises(ValueError, match="Gram"):
        make_masks(graph, {name: 0.5}, "obs")
    with pytest.raises(ValueError, match="no layer 'nowhere'"):
        make_masks(graph, {"nowhere": 0.5}, "magnitude")
    with pytest.raises(ValueError, match="between 0 and 1"):
        make_masks(graph, {name: 1.5}, "magnitude")
