from __future__ import annotations

from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.compress import codebooks
from edgekit.compress.codebooks import Book, can_take_codebook, codebook, hold_to_codebook, round_to_codebook
from edgekit.compress.grams import collect_grams
from edgekit.compress.masks import compressed_bytes, put_masked
from edgekit.compress.parameters import weight_array
from edgekit.compress.rounding import importance_of, largest_weights
from edgekit.compress.weights import quantize_weights
from tests import zoo
from tests.compress.noise import output_noise
from tests.compress.test_masks import prepared
from tests.compress.test_rounding import gram_of, related_rows, squared_error
from tests.quantized import case
from tests.zoo import Net

BOOKS: tuple[Book, ...] = get_args(Book)
MOST = {"16 values": 16, "15 steps": 15, "4 values": 4, "powers of two": 15, "ternary": 3, "binary": 2}


def floats_of(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.asarray(codes * scale.astype(np.float64))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    blocks=st.integers(1, 2),
    outputs=st.integers(1, 6),
    columns=st.integers(1, 40),
    book=st.sampled_from(BOOKS),
    count=st.integers(2, 80),
    has_bias=st.booleans(),
    data=st.data(),
)
def test_few_codes_that_come_back_and_no_output_worse_than_by_the_nearest(
    seed: int, blocks: int, outputs: int, columns: int, book: Book, count: int, has_bias: bool, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_t(3, (blocks, outputs, columns)) * 10.0 ** rng.integers(-4, 3, (blocks, outputs, 1))
    matrix[:, : data.draw(st.integers(0, outputs))] *= data.draw(st.sampled_from([0, 1, 1e-30]))
    rows = related_rows(rng, blocks, count, columns)
    gram = gram_of(rows)
    codes, scale = round_to_codebook(matrix, book, gram, has_bias)
    assert scale.shape == (blocks, outputs, 1)
    silent = ~matrix.any(axis=2)
    assert not codes[silent].any()
    assert len(np.unique(codes[~silent])) <= MOST[book]

    made = floats_of(codes, scale).astype(np.float32).reshape(-1, columns)
    again, _ = quantize_weights(made, 0)
    assert np.array_equal(again, codes.reshape(-1, columns)), "a runtime that takes the floats finds the same codes"

    # The codebook that all outputs share was found with the importance of the columns.
    own = importance_of(gram, has_bias)[:, None]
    importance = own + 1e-3 * own.mean() if own.any() else np.ones_like(own)
    nearest_of = codebooks._nearest_of(codebook(matrix, book, importance))
    plain = codebooks._nearest_values(matrix, importance, largest_weights(matrix, columns) * 127, nearest_of)
    found = squared_error(floats_of(codes, scale) - matrix, rows, has_bias)
    nearest = squared_error(floats_of(*plain) - matrix, rows, has_bias)
    slack = 1e-12 * np.square(matrix).sum(axis=2) * np.square(rows).mean()
    assert (found <= nearest * (1 + 1e-6) + slack)[~silent].all()


@pytest.mark.parametrize("book", BOOKS)
def test_inputs_that_tell_of_each_other_make_up_for_few_values(book: Book) -> None:
    """And on rows that were not there when the codes were chosen."""
    rng = np.random.default_rng(3)
    matrix, rows = rng.standard_normal((1, 24, 64)), related_rows(rng, 1, 4000, 64)
    seen, unseen = rows[:, :2000], rows[:, 2000:]
    codes, plain = round_to_codebook(matrix, book, gram_of(seen)), round_to_codebook(matrix, book)
    errors = [squared_error(floats_of(*one) - matrix, unseen, True).sum() for one in (plain, codes)]
    assert 10 * np.log10(errors[0] / errors[1]) > 3


def huffman_bits(counts: np.ndarray) -> int:
    """Of all symbols together, by the shortest code of whole bits, in which the end of a block has a word as well."""
    heap = [0, *counts.tolist()]
    heapify(heap)
    bits = 0
    while len(heap) > 1:
        both = heappop(heap) + heappop(heap)
        bits += both
        heappush(heap, both)
    return bits


@pytest.mark.parametrize(
    ("book", "most_bits"),
    [
        ("16 values", 3.9),
        ("powers of two", 3.7),
        ("15 steps", 3.6),
        ("4 values", 2.2),
        ("ternary", 1.9),
        ("binary", 1.55),
    ],
)
def test_codes_take_what_their_entropy_allows(book: Book, most_bits: float) -> None:
    codes, _ = round_to_codebook(np.random.default_rng(0).standard_normal((1, 200, 500)), book)
    counts = np.unique(codes, return_counts=True)[1]
    shares = counts / codes.size
    entropy = -float((shares * np.log2(shares)).sum()) * codes.size
    stored = 8 * compressed_bytes([codes])
    assert entropy < huffman_bits(counts) < stored < huffman_bits(counts) + 0.03 * codes.size
    assert stored < most_bits * codes.size


@pytest.mark.parametrize("book", ["16 values", "4 values"])
def test_weights_that_are_few_values_stay_as_they_are(book: Book) -> None:
    rng = np.random.default_rng(1)
    levels = np.array([3, 11, 24, 40, 61, 80, 99, 127]) if book == "16 values" else np.array([40, 127])
    row = np.tile(np.concatenate([-levels, levels]), 20)
    matrix = np.stack([rng.permutation(row) * size for size in (1e-3, 0.1, 7.0)])[None]
    codes, scale = round_to_codebook(matrix, book)
    np.testing.assert_allclose(floats_of(codes, scale), matrix, rtol=1e-6)


def test_one_and_two_bits_are_those_of_the_papers() -> None:
    matrix = np.random.default_rng(2).standard_normal((1, 30, 400))
    size = np.abs(matrix).mean(axis=2, keepdims=True)
    codes, scale = round_to_codebook(matrix, "binary")
    assert np.array_equal(codes, np.where(matrix > 0, 127, -127))
    np.testing.assert_allclose(127 * scale, size, rtol=1e-6)

    kept = np.abs(matrix) > 0.7 * size
    twn = (
        np.where(kept, np.sign(matrix), 0) * (np.abs(matrix) * kept).sum(2, keepdims=True) / kept.sum(2, keepdims=True)
    )
    found = floats_of(*round_to_codebook(matrix, "ternary"))
    assert np.square(found - matrix).sum() <= 1.001 * np.square(twn - matrix).sum()


def test_more_values_lose_less() -> None:
    matrix = np.random.default_rng(5).standard_normal((1, 16, 4000))
    order: tuple[Book, ...] = ("16 values", "powers of two", "4 values", "ternary", "binary")
    errors = [np.square(floats_of(*round_to_codebook(matrix, book)) - matrix).sum() for book in order]
    assert errors == sorted(errors)
    # Lloyd and Max: 20.2 dB and 9.3 dB for normal values.
    power = np.square(matrix).sum()
    assert 10 * np.log10(power / errors[0]) == pytest.approx(20.2, abs=0.3)
    assert 10 * np.log10(power / errors[2]) == pytest.approx(9.3, abs=0.3)


def test_the_same_moments_give_the_same_codes() -> None:
    rng = np.random.default_rng(4)
    matrix, gram = rng.standard_normal((2, 6, 70)), gram_of(related_rows(rng, 2, 300, 70))
    once, again = (round_to_codebook(matrix, "16 values", gram) for _ in range(2))
    assert np.array_equal(once[0], again[0])
    assert np.array_equal(once[1], again[1])


@pytest.mark.parametrize("name", ["inverted_residual", "grouped_conv", "conv_transpose", "transformer"])
def test_layers_of_every_kind(name: str) -> None:
    graph = case(name).graph
    grams = collect_grams(graph, [layer.name for layer in graph.layers], case(name).data)
    names = can_take_codebook(graph)
    assert names
    for layer in graph.layers:
        if layer.name in names:
            for book in BOOKS:
                made = hold_to_codebook(graph, layer.name, book, grams.get(layer.name)).weight
                assert made.shape == weight_array(graph.model, layer.weights[0]).shape
                assert len(np.unique(quantize_weights(made, layer.weight_axis)[0])) <= MOST[book]


@pytest.mark.parametrize("name", ["conv_net", "transformer", "conv_transpose"])
def test_moments_help_whole_models(tmp_path: Path, name: str) -> None:
    graph, grams = prepared(zoo.STATIC[name](), tmp_path)
    noise = []
    for known in ({}, grams):
        held = {n: hold_to_codebook(graph, n, "4 values", known.get(n)) for n in can_take_codebook(graph)}
        noise.append(output_noise(graph, put_masked(graph, held), case(name).data))
    assert noise[1] < 0.8 * noise[0]


def test_layers_that_cannot_take_one_are_refused(tmp_path: Path) -> None:
    net = Net()
    shared = net.random(6, 3, name="shared")
    x, z = net.input("x", [4, 6]), net.input("z", [4, 6])
    graph, _ = prepared(net.model([net.op("MatMul", x, shared), net.op("MatMul", z, shared)]), tmp_path)
    assert not can_take_codebook(graph)
    with pytest.raises(ValueError, match="no weight of its own"):
        hold_to_codebook(graph, graph.layers[0].name, "binary", None)
