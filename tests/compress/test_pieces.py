"""Tails of changed models run alone and answer as the whole model does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.compress.observers import choose_range
from edgekit.compress.pieces import drifted_values, tail_of
from edgekit.compress.qdq import apply_precisions, quantization_points
from edgekit.compress.ranges import collect_ranges, observed
from edgekit.graph import to_bytes
from edgekit.types import Precision
from tests.quantized import CASES, Case, case, run


def single(source: Case) -> list[str]:
    """Points that their node computes alone."""
    makers = {value.name: node for node in source.graph.model.graph for value in node.outputs}
    points = quantization_points(source.graph)
    return [name for name in points if name in makers and len(makers[name].outputs) == 1]


def with_layer(source: Case, name: str, results: bool = False) -> ir.Model:
    return apply_precisions(source.graph, {name: Precision.INT8}, source.ranges, results)


@pytest.mark.parametrize("results", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_tail_answers_as_the_whole_model(name: str, results: bool) -> None:
    source = case(name)
    if results:
        seen = collect_ranges(source.graph, quantization_points(source.graph, results), source.data)
        source = replace(source, ranges={key: choose_range(one, "min-max") for key, one in seen.items()})
    sample = source.data.sample(0)
    points = single(source)
    values = sample | run(observed(source.graph.model, points), sample)
    for layer in source.names:
        model = with_layer(source, layer, results)
        whole, drifted = run(to_bytes(model), sample), drifted_values(source.graph, model)
        for held in ((), points[::2], points):
            tail = tail_of(source.graph, model, held)
            assert tail is not None
            assert set(tail.reads) <= {*held, *sample} - drifted
            assert set(tail.results) == drifted & set(whole)
            found = run(tail.model, {key: values[key] for key in tail.reads})
            for result in tail.results:
                np.testing.assert_allclose(found[result], whole[result], rtol=1e-3, atol=1e-4)


def test_what_does_not_change_is_left_out() -> None:
    source = case("inverted_residual")
    last = source.names[-1]
    model = with_layer(source, last)
    whole = {node.name for node in onnx.load_from_string(to_bytes(model)).graph.node}
    tail = tail_of(source.graph, model, single(source))
    assert tail is not None
    left = {node.name for node in onnx.load_from_string(tail.model).graph.node}
    assert last in left
    assert left < whole
    assert not left & set(source.names[:-1])


def test_an_unchanged_copy_has_no_tail() -> None:
    source = case("conv_net")
    assert tail_of(source.graph, source.graph.model.clone(), single(source)) is None
