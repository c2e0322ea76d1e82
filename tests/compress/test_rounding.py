from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.compress.grams import Gram, Moments, collect_grams
from edgekit.compress.products import matrix_of, product_of
from edgekit.compress.rounding import Bits, round_layer, round_matrix
from edgekit.compress.weights import WEIGHT_LIMIT, dequantize_weights, quantize_weights
from tests.quantized import case


def gram_of(rows: np.ndarray) -> Gram:
    """The moments of rows [blocks, rows, columns]."""
    moments = Moments(rows.shape[0], rows.shape[2])
    half = rows.shape[1] // 2
    moments.add(0, rows[:, :half])
    moments.add(1, rows[:, half:])
    return moments.gram()


def related_rows(rng: np.random.Generator, blocks: int, count: int, columns: int) -> np.ndarray:
    """Rows as activations are: of unlike size, not centred, and telling of each other."""
    few = max(1, columns // 4)
    mixing = rng.standard_normal((few, columns)) * rng.uniform(0.05, 2.0, columns)
    rows = np.maximum(rng.standard_normal((blocks, count, few)) @ mixing + 0.5, 0)
    return np.asarray(rows, np.float32)


def squared_error(off: np.ndarray, rows: np.ndarray, has_bias: bool) -> np.ndarray:
    """Mean squared error of the outputs [blocks, outputs] over the rows, less its mean where a bias takes that."""
    results = rows.astype(np.float64) @ off.transpose(0, 2, 1)
    return np.asarray(results.var(axis=1) if has_bias else np.square(results).mean(axis=1))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    blocks=st.integers(1, 3),
    outputs=st.integers(1, 5),
    groups=st.integers(1, 3),
    size=st.integers(1, 30),
    count=st.integers(2, 80),
    bits=st.sampled_from([8, 4]),
    has_bias=st.booleans(),
)
def test_no_output_is_worse_than_by_rounding_to_the_nearest(
    seed: int, blocks: int, outputs: int, groups: int, size: int, count: int, bits: Bits, has_bias: bool
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((blocks, outputs, groups * size)).astype(np.float32) * rng.choice([0, 1, 1e-3, 10.0])
    rows = related_rows(rng, blocks, count, groups * size)
    codes, scale = round_matrix(matrix, gram_of(rows), bits, has_bias, size)
    assert codes.dtype == np.int8
    assert scale.shape == (blocks, outputs, groups)
    assert np.abs(codes).max(initial=0) <= WEIGHT_LIMIT[bits]

    flat = matrix.reshape(-1, size)
    nearest, steps = quantize_weights(flat, 0, "max-abs" if bits == 8 else "mse", bits=bits)
    plain = squared_error((nearest * steps[:, None].astype(np.float64)).reshape(matrix.shape) - matrix, rows, has_bias)
    found = squared_error(codes * np.repeat(scale, size, axis=2).astype(np.float64) - matrix, rows, has_bias)
    assert (found <= plain * (1 + 1e-6) + 1e-12 * np.square(matrix).sum(axis=2) * np.square(rows).mean()).all()


@pytest.mark.parametrize(("bits", "least_db"), [(8, 3.0), (4, 3.0)])
def test_inputs_that_tell_of_each_other_make_up_for_rounding(bits: Bits, least_db: float) -> None:
    """And on rows that were not there when the codes were chosen."""
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((1, 24, 64))
    rows = related_rows(rng, 1, 4000, 64)
    seen, unseen = rows[:, :2000], rows[:, 2000:]
    codes, scale = round_matrix(matrix, gram_of(seen), bits)
    off = codes * scale.astype(np.float64) - matrix
    nearest = dequantize_weights(*quantize_weights(matrix[0], 0, "max-abs" if bits == 8 else "mse", bits=bits), 0)
    plain = squared_error(nearest[None] - matrix, unseen, True).sum()
    assert 10 * np.log10(plain / squared_error(off, unseen, True).sum()) > least_db


def test_the_same_moments_give_the_same_codes() -> None:
    rng = np.random.default_rng(4)
    matrix, gram = rng.standard_normal((2, 6, 70)), gram_of(related_rows(rng, 2, 300, 70))
    once, again = round_matrix(matrix, gram, 4), round_matrix(matrix, gram, 4)
    assert np.array_equal(once[0], again[0])
    assert np.array_equal(once[1], again[1])


def test_smaller_groups_are_closer() -> None:
    rng = np.random.default_rng(5)
    matrix, rows = rng.standard_normal((1, 8, 128)), related_rows(rng, 1, 1000, 128)
    errors = []
    for group in (128, 32, 16):
        codes, scale = round_matrix(matrix, gram_of(rows), 4, group=group)
        errors.append(squared_error(codes * np.repeat(scale, group, axis=2) - matrix, rows, True).sum())
    assert errors[0] > errors[1] > errors[2]


def test_a_group_must_divide_the_columns() -> None:
    with pytest.raises(ValueError, match="groups of 5"):
        round_matrix(np.ones((1, 2, 12)), gram_of(np.ones((1, 4, 12), np.float32)), group=5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["inverted_residual", "grouped_conv", "conv_transpose", "transformer", "gru", "lstm"])
def test_layers_of_every_kind_are_rounded_where_the_writer_puts_the_codes(name: str, bits: Bits) -> None:
    """Codes and scales stand for the weight that they were made of, whatever its layout; the same floats, quantized
    again by their largest, have the same codes.
    """
    graph = case(name).graph
    grams = collect_grams(graph, [layer.name for layer in graph.layers], case(name).data, depthwise=True)
    nodes = {node.name: node for node in graph.model.graph}
    for layer in graph.layers:
        if layer.name not in grams or (made := round_layer(graph, layer, grams[layer.name], bits)) is None:
            continue
        product = product_of(nodes[layer.name])
        assert product is not None
        weight = graph.model.graph.initializers[product.weight].const_value.numpy()  # type: ignore[union-attr]
        assert made.weight.codes.shape == weight.shape
        floats = dequantize_weights(made.weight.codes, made.weight.scale, layer.weight_axis)
        matrix = matrix_of(product, weight)
        off = np.abs(matrix_of(product, floats) - matrix).max()
        assert off < np.abs(matrix).max() * (0.03 if bits == 8 else 0.6)
        if bits == 8:
            assert np.array_equal(quantize_weights(floats, layer.weight_axis)[0], made.weight.codes)
        assert made.shift is None or made.shift.size == product.view.blocks * product.outputs
