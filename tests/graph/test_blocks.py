from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.graph.blocks import blocks_of
from tests.graph.nets import load_model
from tests.quantized import CASES, case
from tests.zoo import Net


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_the_whole_model_in_order(name: str) -> None:
    """Each reads nothing but the model's inputs and what blocks before it put out; no layer is lost."""
    graph = case(name).graph
    blocks = blocks_of(graph.model, set(case(name).names))
    known = {tensor.name for tensor in graph.inputs}
    ends = {tensor.name for tensor in graph.outputs}
    parts = {o.name for node in graph.model.graph if len(node.outputs) > 1 for o in node.outputs}
    for block in blocks:
        assert set(block.inputs) <= known
        assert not known & set(block.outputs)
        assert not parts & (set(block.outputs) - ends), "cut between the results of one node"
        assert len(block.layers) <= 3
        known |= set(block.outputs)
    assert sorted(layer for block in blocks for layer in block.layers) == sorted(case(name).names)
    assert ends <= known


def test_residual_blocks_stay_whole(tmp_path: Path) -> None:
    net = Net(1)
    y, channels = net.op("Relu", net.conv(net.input("x", [1, 3, 8, 8]), 3, 8)), 8
    for wider in (8, 16, 16):
        inner = net.conv(net.op("Relu", net.conv(y, channels, wider)), wider, wider)
        y = net.op("Relu", net.op("Add", inner, y if wider == channels else net.conv(y, channels, wider, 1)))
        channels = wider
    graph = load_model(net.model([y]), tmp_path)
    blocks = blocks_of(graph.model, {layer.name for layer in graph.layers})
    assert [len(block.layers) for block in blocks] == [3, 3, 2]
    assert [len(block.outputs) for block in blocks] == [1, 1, 1]


def test_without_layers_there_is_one_block() -> None:
    graph = case("conv_net").graph
    (block,) = blocks_of(graph.model, set())
    assert block.layers == ()
    assert block.outputs == tuple(tensor.name for tensor in graph.outputs)
