"""A product's rows times its matrix are what the layer computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgekit.compress.parameters import weight_array
from edgekit.compress.products import matrix_of, product_of, rows_of, weight_of
from edgekit.compress.ranges import session_of
from edgekit.errors import InputError
from edgekit.graph import Graph, to_bytes
from tests.graph.nets import load_model
from tests.zoo import Net


def only_product(graph: Graph) -> Any:
    found = [p for node in graph.model.graph if (p := product_of(node)) is not None]
    assert len(found) == 1
    return found[0]


def check(graph: Graph, seed: int = 0) -> None:
    """The single layer of ``graph`` has no bias: its output is the product."""
    product = only_product(graph)
    feed = {t.name: np.random.default_rng(seed).standard_normal(t.shape).astype(np.float32) for t in graph.inputs}
    (output,) = session_of(to_bytes(graph.model), 1).run([product.output], feed)
    weight = weight_array(graph.model, product.weight)
    rows = rows_of(product.view, feed[product.view.source])
    assert rows.shape == (product.view.blocks, product.view.rows, product.view.columns)
    results = rows @ matrix_of(product, weight).transpose(0, 2, 1)  # [blocks, rows, outputs]
    expected = np.moveaxis(output, product.output_axis, -1).reshape(product.view.rows, -1)
    np.testing.assert_allclose(results.transpose(1, 0, 2).reshape(expected.shape), expected, atol=2e-4)
    assert np.array_equal(weight_of(product, matrix_of(product, weight)), weight)
    some = np.arange(0, product.view.rows, 3)
    assert np.array_equal(rows_of(product.view, feed[product.view.source], some), rows[:, some])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_convolutions(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    draw, net = data.draw, Net()
    rank, group = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 4]))
    transposed = draw(st.booleans())
    sizes = [draw(st.integers(4, 7)) for _ in range(rank)]
    kernel, strides, dilations = ([draw(st.integers(1, 3)) for _ in range(rank)] for _ in range(3))
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group, "kernel_shape": kernel}
    if draw(st.booleans()) and not transposed:
        assume(max(dilations) == 1)  # onnxruntime refuses automatic padding of dilated kernels
        attributes["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    else:
        attributes["pads"] = [draw(st.integers(0, 1)) for _ in range(2 * rank)]
    x = net.input("x", [2, 4, *sizes])
    op = "ConvTranspose" if transposed else "Conv"
    y = net.op(op, x, net.random(*((4, 6) if transposed else (6 * group, 4 // group)), *kernel), **attributes)
    try:
        graph = load_model(net.model([y]), tmp_path_factory.mktemp("net"))
    except InputError:
        assume(False)
    check(graph)


@pytest.mark.parametrize(
    "attributes", [{"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"output_shape": [9, 9]}]
)
def test_transposed_convolution_with_automatic_padding(tmp_path: Any, attributes: dict[str, Any]) -> None:
    net = Net()
    y = net.op("ConvTranspose", net.input("x", [1, 4, 5, 5]), net.random(4, 6, 3, 3), strides=[2, 2], **attributes)
    check(load_model(net.model([y]), tmp_path))


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(tmp_path: Any, trans_a: int, trans_b: int) -> None:
    net = Net()
    x = net.input("x", [5, 3] if trans_a else [3, 5])
    weight = net.random(*((4, 5) if trans_b else (5, 4)))
    check(load_model(net.model([net.op("Gemm", x, weight, transA=trans_a, transB=trans_b, alpha=0.5)]), tmp_path))


@pytest.mark.parametrize("shape", [[5], [3, 5], [2, 3, 5]])
def test_matmul_with_the_weight_behind(tmp_path: Any, shape: list[int]) -> None:
    net = Net()
    check(load_model(net.model([net.op("MatMul", net.input("x", shape), net.random(5, 4))]), tmp_path))


@pytest.mark.parametrize("shape", [[5, 3], [2, 5, 3]])
def test_matmul_with_the_weight_before(tmp_path: Any, shape: list[int]) -> None:
    net = Net()
    check(load_model(net.model([net.op("MatMul", net.random(4, 5), net.input("x", shape))]), tmp_path))


def test_products_of_activations_and_batched_weights_are_none(tmp_path: Any) -> None:
    net = Net()
    x = net.input("x", [2, 4, 4])
    y = net.op("MatMul", net.op("MatMul", x, x), net.random(2, 4, 4))
    graph = load_model(net.model([y]), tmp_path)
    assert len(graph.layers) == 2
    assert [product_of(node) for node in graph.model.graph] == [None, None]
