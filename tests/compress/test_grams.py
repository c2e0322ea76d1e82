from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.compress import grams as module
from edgekit.compress.grams import DAMPINGS, Gram, Moments, collect_grams, drawn_rows, fold_of
from edgekit.compress.products import View, product_of, rows_of
from edgekit.compress.ranges import observe
from edgekit.errors import InputError
from edgekit.graph import Graph
from edgekit.recipes.samples import synthetic
from tests import zoo
from tests.graph.nets import load_model
from tests.zoo import Net

MANY = 1 << 30


class NoSamples:
    def __len__(self) -> int:
        return 0

    def sample(self, i: int) -> dict[str, np.ndarray]:
        raise AssertionError


def names(graph: Graph) -> list[str]:
    return [layer.name for layer in graph.layers]


def explicit_rows(graph: Graph, layer: str, data: Any) -> np.ndarray:
    """All rows of a layer over all samples, with the constant column: [blocks, rows, columns + 1]."""
    product = next(p for n in graph.model.graph if n.name == layer and (p := product_of(n)) is not None)
    rows = [
        rows_of(product.view, values[product.view.source]) for *_, values in observe(graph, [product.view.source], data)
    ]
    found = np.concatenate(rows, axis=1).astype(np.float64)
    return np.concatenate([found, np.ones((*found.shape[:2], 1))], axis=2)


@pytest.mark.parametrize("name", ["conv_net", "grouped_conv", "conv_transpose", "transformer", "gru", "lstm"])
def test_equals_the_explicit_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(module, "_ROWS", MANY)
    graph = load_model(zoo.STATIC[name](), tmp_path)
    data = synthetic(graph.inputs, 3)
    found = collect_grams(graph, names(graph), data)
    assert found
    for layer, gram in found.items():
        rows = explicit_rows(graph, layer, data)
        assert gram.rows == rows.shape[1]
        np.testing.assert_allclose(gram.second, rows.transpose(0, 2, 1) @ rows / gram.rows, rtol=1e-9, atol=1e-9)


def test_depthwise_and_products_of_activations_have_none(tmp_path: Path) -> None:
    graph = load_model(zoo.inverted_residual(), tmp_path)
    found = collect_grams(graph, names(graph), synthetic(graph.inputs, 2))
    depthwise = {n.name for n in graph.model.graph if n.op_type == "Conv" and n.attributes.get_int("group", 1) > 1}
    assert depthwise
    assert set(found) == set(names(graph)) - depthwise
    graph = load_model(zoo.transformer(), tmp_path)
    found = collect_grams(graph, names(graph), synthetic(graph.inputs, 2))
    assert set(found) == {layer.name for layer in graph.layers if layer.weights}


def test_layers_that_read_the_same_rows_share_one(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", [4, 6])
    graph = load_model(
        net.model([net.op("MatMul", x, net.random(6, 3)), net.op("MatMul", x, net.random(6, 2))]), tmp_path
    )
    first, second = collect_grams(graph, names(graph), synthetic(graph.inputs, 2)).values()
    assert first is second


def test_wide_products_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COLUMNS", 20)
    graph = load_model(zoo.transformer(), tmp_path)
    found = collect_grams(graph, names(graph), synthetic(graph.inputs, 2))
    assert {gram.second.shape[1] - 1 for gram in found.values()} == {16}


def test_draws_rows_of_large_tensors_the_same_each_time() -> None:
    view = View("x", 1, (1, 3, 500, 500))
    drawn = drawn_rows(view, 0, 32)
    assert drawn is not None
    assert 32 * drawn.size >= module._ROWS
    assert np.unique(drawn).size == drawn.size
    assert np.array_equal(drawn, drawn_rows(view, 0, 32))
    assert not np.array_equal(drawn, drawn_rows(view, 1, 32))
    assert drawn_rows(View("x", 1, (1, 3, 4, 4)), 0, 32) is None


def test_folds_are_runs_of_neighbours() -> None:
    assert [fold_of(index, 8) for index in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert [fold_of(index, 2) for index in range(2)] == [0, 1]
    assert {fold_of(index, 3) for index in range(3)} == {0, 1}


def test_broken_rows_do_not_count() -> None:
    moments = Moments(1, 2)
    moments.add(0, np.array([[[1, 2], [np.nan, 1], [np.inf, 0]]], np.float32))
    gram = moments.gram()
    assert gram.rows == 1
    assert np.array_equal(gram.second[0], np.outer([1, 2, 1], [1, 2, 1]))


def test_the_inverse_is_that_of_the_matrix_with_its_ridge() -> None:
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.standard_normal((200, 6)) @ rng.standard_normal((6, 6)) + 5, np.ones(200)])
    second = rows.T @ rows / 200
    variance = rows[:, :-1].var(axis=0)
    floor = module._FLOOR * np.diagonal(second)[:-1].mean()
    ridged = second + np.diag(np.append(0.1 * variance + floor, 0))
    gram = Gram(second[None], 200, damping=0.1)
    np.testing.assert_allclose(gram.inverse[0] @ ridged, np.eye(7), atol=1e-8)


@pytest.mark.parametrize("fill", [0.0, 3.0])
def test_constant_data_has_an_inverse(fill: float) -> None:
    moments = Moments(1, 4)
    for index in range(4):
        moments.add(index % 2, np.full((1, 5, 4), fill, np.float32))
    assert np.isfinite(moments.gram().inverse).all()


def test_the_ridge_is_small_where_data_say_much_and_large_where_they_say_little() -> None:
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((4, 40))
    much, little = Moments(1, 40), Moments(1, 40)
    for index in range(20):
        much.add(index % 2, (rng.standard_normal((1, 400, 4)) @ mix).astype(np.float32))
        little.add(index % 2, rng.standard_normal((1, 1, 40)).astype(np.float32))
    assert much.gram().damping == DAMPINGS[0]
    assert little.gram().damping == DAMPINGS[-1]


def test_regression_finds_a_linear_law_and_no_law_in_noise() -> None:
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((3, 8))
    lawful, noise = Moments(1, 8, 3), Moments(1, 8, 3)
    for index in range(8):
        rows = rng.standard_normal((1, 100, 8)) + 2
        lawful.add(index % 2, rows, rows @ truth.T + 7)
        noise.add(index % 2, rows[:, :2], rng.standard_normal((1, 2, 3)))
    found = lawful.regression(intercept=True)
    np.testing.assert_allclose(found[0, :, :-1], truth, atol=0.02)
    np.testing.assert_allclose(found[0, :, -1], 7, atol=0.1)
    assert np.abs(lawful.regression(intercept=False)[0, :, -1]).max() < 1e-9
    assert np.abs(noise.regression(intercept=False)).max() < 0.5


@pytest.mark.parametrize("intercept", [True, False])
def test_a_regression_is_the_cross_moments_times_the_damped_inverse(intercept: bool) -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12)) + 3
    second = np.column_stack([rows, np.ones(200)]).T @ np.column_stack([rows, np.ones(200)]) / 200
    gram, cross = Gram(second[None], 200), rng.standard_normal((1, 5, 13))
    inverse = gram.damped(0.1)
    if not intercept:  # the constant's weight is held at zero
        inverse = inverse - inverse[:, :, -1:] @ inverse[:, -1:] / inverse[:, -1:, -1:]
    np.testing.assert_allclose(module._regress(gram, cross, 0.1, intercept), cross @ inverse, rtol=1e-9, atol=1e-9)


def test_some_columns_of_a_wide_matrix_tell_its_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((30, 200))
    moments = Moments(1, 200)
    for index in range(10):
        noise = rng.standard_normal((1, 30, 200))
        moments.add(index % 2, (rng.standard_normal((1, 30, 30)) @ mix + noise).astype(np.float32))
    every = moments.gram().damping
    monkeypatch.setattr(module, "_ASKED", 40)
    assert moments.gram().damping == every
    assert every in DAMPINGS[1:-1]  # neither end, where any columns would do


def test_no_samples(tmp_path: Path) -> None:
    graph = load_model(zoo.conv_net(), tmp_path)
    with pytest.raises(InputError, match="no samples"):
        collect_grams(graph, names(graph), NoSamples())
