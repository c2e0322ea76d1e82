from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import memory
from benchmarks.peers.torch_pruning_groups import _layers_of
from edgekit.errors import MissingToolError
from tests import zoo
from tests.graph.nets import load_model


def test_prediction_is_what_openvino_allocates(tmp_path: Path) -> None:
    net = zoo.Net()  # large enough that what the process itself allocates meanwhile does not show
    y = net.clip6(net.conv(net.input("x", [1, 3, 64, 64]), 3, 16, stride=2))
    for _ in range(2):
        wide = net.clip6(net.conv(net.clip6(net.conv(y, 16, 96, 1)), 96, 96, group=96))
        y = net.op("Add", net.conv(wide, 96, 16, 1), y)
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", y), 16, 16, 1))
    y = net.op("Flatten", net.op("GlobalAveragePool", net.conv(net.op("Mul", y, gate), 16, 64, 1)))
    graph = load_model(net.model([y]), tmp_path)
    try:
        rows = memory.rows_of("inverted residuals", graph, mixes=1)
    except MissingToolError as error:
        pytest.skip(str(error))
    assert [row.variant for row in rows][:4] == ["float", "half the channels", "int8", "int8 for 90%, 1"]
    assert rows[1].predicted_bytes < rows[0].predicted_bytes
    for row in rows[:3]:
        assert abs(row.error) < 0.05, row
    for row in rows[3:]:  # widths that meet leave holes
        assert -0.1 < row.error < 0.05, row


def test_transformer_within_its_blocks(tmp_path: Path) -> None:
    graph = load_model(zoo.transformer(tokens=128, width=64, heads=4), tmp_path)
    try:
        row = memory.rows_of("transformer", graph)[0]
    except MissingToolError as error:
        pytest.skip(str(error))
    assert abs(row.error) < 0.05, row


def test_nodes_of_a_torch_module_are_found_by_the_exporter_s_scopes() -> None:
    known = {"/layer1/layer1.0/conv1/Conv", "/layer1/layer1.0/conv2/Conv", "/features/features.0/features.0.0/Conv"}
    known |= {"/1/query/MatMul", "/conv1/Conv"}
    assert _layers_of("layer1.0.conv1", known) == ["/layer1/layer1.0/conv1/Conv"]
    assert _layers_of("features.0.0", known) == ["/features/features.0/features.0.0/Conv"]
    assert _layers_of("1.query", known) == ["/1/query/MatMul"]
    assert _layers_of("conv1", known) == ["/conv1/Conv"]
    assert _layers_of("layer2.0.conv1", known) == []
