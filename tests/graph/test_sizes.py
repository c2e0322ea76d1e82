from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.compress.prune import prune
from edgekit.graph import Graph
from edgekit.graph.channels import find_channels
from edgekit.graph.layers import elements_of
from edgekit.graph.sizes import Size, constant, sizes_of
from tests.quantized import CASES, case


def test_products_and_sums_are_those_of_polynomials() -> None:
    a, b = Size({(): 2.0, (0,): 3.0}), Size({(1,): 5.0})
    assert a.times(b).terms == {(1,): 10.0, (0, 1): 15.0}
    assert a.plus(b).at([10, 100]) == 2 + 30 + 500
    assert a.times(a).at([10, 0]) == 32**2
    assert a.times(2.0).terms == {(): 4.0, (0,): 6.0}
    assert a.times(b).groups == {0, 1}
    assert constant(7).at([]) == 7
    with pytest.raises(ValueError, match="degree three"):
        a.times(b).times(a)


@pytest.mark.parametrize("name", CASES)
def test_whole_graphs_have_the_sizes_of_their_layers(name: str) -> None:
    graph = case(name).graph
    channels = find_channels(graph)
    compare(graph, graph, [group.channels for group in channels.groups])


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_pruned_graphs_have_the_sizes_that_were_promised(name: str, data: st.DataObject) -> None:
    graph = case(name).graph
    channels = find_channels(graph)
    kept = [data.draw(st.integers(1, group.channels)) for group in channels.groups]
    named = {group.name: np.arange(count) for group, count in zip(channels.groups, kept, strict=True)}
    compare(graph, prune(graph, channels, named), kept)


def compare(graph: Graph, smaller: Graph, kept: list[int]) -> None:
    sizes = sizes_of(graph, find_channels(graph))
    for layer in smaller.layers:
        promised = sizes.layers[layer.name]
        assert promised.macs.at(kept) == pytest.approx(layer.macs), layer.name
        assert promised.weights.at(kept) == pytest.approx(layer.weight_elements), layer.name
        assert promised.biases.at(kept) == pytest.approx(layer.bias_elements), layer.name
        assert promised.inputs.at(kept) == pytest.approx(layer.input_elements), layer.name
        assert promised.outputs.at(kept) == pytest.approx(layer.output_elements), layer.name
    for node in smaller.model.graph:
        for value in node.outputs:
            if value.name and value.shape is not None:
                assert sizes.tensors[value.name].at(kept) == pytest.approx(elements_of(value)), value.name
