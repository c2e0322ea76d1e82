from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from edgekit.graph import Graph, to_bytes
from edgekit.types import Edge, Layer
from tests import zoo
from tests.graph.nets import load_model, random_nets


def one_layer(net: zoo.Net, output: str, tmp_path: Path) -> Layer:
    layers = load_model(net.model([output]), tmp_path).layers
    assert len(layers) == 1
    return layers[0]


@pytest.mark.parametrize(
    ("cin", "cout", "group", "stride", "macs"),
    [
        (4, 8, 1, 1, 8 * 8 * 8 * 4 * 9),
        (4, 8, 2, 1, 8 * 8 * 8 * 2 * 9),
        (4, 4, 4, 1, 4 * 8 * 8 * 9),
        (4, 8, 1, 2, 8 * 4 * 4 * 4 * 9),
    ],
)
def test_conv(cin: int, cout: int, group: int, stride: int, macs: int, tmp_path: Path) -> None:
    net = zoo.Net()
    layer = one_layer(net, net.conv(net.input("x", [1, cin, 8, 8]), cin, cout, group=group, stride=stride), tmp_path)
    assert (layer.op_type, layer.inputs, layer.weight_axis, layer.macs) == ("Conv", ("x",), 0, macs)
    assert layer.weight_elements == cout * cin // group * 9
    assert (layer.bias_elements, layer.input_elements) == (cout, cin * 64)
    assert layer.output_elements == cout * 64 // stride**2


def test_conv_transpose(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.op("ConvTranspose", net.input("x", [1, 4, 5, 5]), net.random(4, 3, 2, 2), strides=[2, 2], group=2)
    layer = one_layer(net, y, tmp_path)
    assert (layer.weight_axis, layer.macs, layer.output_elements) == (1, 4 * 25 * 3 * 4, 6 * 100)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(trans_b: int, tmp_path: Path) -> None:
    net = zoo.Net()
    weight = net.random(5, 7) if trans_b else net.random(7, 5)
    y = net.op("Gemm", net.input("x", [3, 7]), weight, net.random(5), transB=trans_b)
    layer = one_layer(net, y, tmp_path)
    assert (layer.weight_axis, layer.macs, layer.bias_elements) == (0 if trans_b else 1, 3 * 7 * 5, 5)


def test_matmul_with_constant_right_side(tmp_path: Path) -> None:
    net = zoo.Net()
    layer = one_layer(net, net.op("MatMul", net.input("x", [2, 3, 7]), net.random(7, 5)), tmp_path)
    assert (layer.inputs, layer.weights, layer.weight_axis, layer.macs) == (("x",), ("w1",), 1, 2 * 3 * 7 * 5)


def test_matmul_with_constant_left_side(tmp_path: Path) -> None:
    net = zoo.Net()
    layer = one_layer(net, net.op("MatMul", net.random(5, 7), net.input("x", [2, 7, 3])), tmp_path)
    assert (layer.inputs, layer.weights, layer.weight_axis, layer.macs) == (("x",), ("w1",), 0, 2 * 3 * 7 * 5)


def test_matmul_with_a_constant_vector_has_no_channel_axis(tmp_path: Path) -> None:
    net = zoo.Net()
    layer = one_layer(net, net.op("MatMul", net.input("x", [2, 3, 7]), net.random(7)), tmp_path)
    assert (layer.weights, layer.weight_axis, layer.macs) == (("w1",), -1, 2 * 3 * 7)


def test_attention_matmul_quantizes_both_sides(tmp_path: Path) -> None:
    net = zoo.Net()
    a, b = net.input("a", [2, 3, 7]), net.input("b", [2, 7, 5])
    layer = one_layer(net, net.op("MatMul", a, b), tmp_path)
    assert (layer.inputs, layer.weights, layer.weight_axis) == (("a", "b"), (), -1)
    assert (layer.macs, layer.input_elements, layer.weight_elements) == (2 * 3 * 7 * 5, 42 + 70, 0)


def test_matmul_of_a_tensor_with_itself(tmp_path: Path) -> None:
    net = zoo.Net()
    x = net.input("x", [4, 4])
    layer = one_layer(net, net.op("MatMul", x, x), tmp_path)
    assert (layer.inputs, layer.input_elements) == (("x",), 16)


def test_lstm_and_gru(tmp_path: Path) -> None:
    layer = load_model(zoo.lstm(), tmp_path).layers[0]
    assert (layer.op_type, layer.inputs, layer.weight_axis) == ("LSTM", ("x", "h"), 1)
    assert layer.weight_elements == 4 * 12 * (8 + 12)
    assert layer.macs == 6 * layer.weight_elements
    assert layer.bias_elements == 8 * 12
    gru = load_model(zoo.gru(), tmp_path).layers[1]
    assert (gru.op_type, len(gru.inputs), len(gru.weights)) == ("GRU", 1, 2)
    assert gru.macs == 6 * 2 * 3 * 12 * (8 + 12)


def test_integer_matmul_is_no_layer(tmp_path: Path) -> None:
    net = zoo.Net()
    ids = net.input("ids", [2, 2], onnx.TensorProto.INT64)
    y = net.op("Cast", net.op("MatMul", ids, ids), to=onnx.TensorProto.FLOAT)
    layer = one_layer(net, net.op("MatMul", y, net.random(2, 2)), tmp_path)
    assert layer.inputs == (y,)


def test_layers_inside_subgraphs_are_not_decided_on(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.conv(net.input("x", [1, 4, 4, 4]), 4, 4, 1)
    weight = net.random(4, 4, 1, 1)
    branches = []
    for name, inputs in (("then", [y, weight]), ("else", [y])):
        out = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4, 4, 4])
        node = onnx.helper.make_node("Conv" if len(inputs) > 1 else "Relu", inputs, [name], name=f"{name}_node")
        branches.append(onnx.helper.make_graph([node], name, [], [out]))
    flag = net.input("flag", [], onnx.TensorProto.BOOL)
    y = net.op("If", flag, then_branch=branches[0], else_branch=branches[1])
    graph = load_model(net.model([net.conv(y, 4, 2, 1)]), tmp_path)
    assert len(graph.layers) == 2
    first, last = (layer.name for layer in graph.layers)
    assert {(e.producer, e.consumer) for e in graph.edges} == {("", first), ("", last), (first, last)}


def test_edges_of_a_residual_network(tmp_path: Path) -> None:
    graph = load_model(zoo.conv_net(), tmp_path)
    stem, first, second, down, head = (layer.name for layer in graph.layers)
    pairs = [(e.producer, e.consumer) for e in graph.edges]
    expected = [("", stem), (stem, first), (first, second), (stem, down), (second, down), (down, head)]
    assert pairs == expected
    assert [e.elements for e in graph.edges] == [768, 4096, 4096, 1024, 1024, 24]


def test_edges_of_a_long_residual_stream_stay_few(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.input("x", [1, 4, 4, 4])
    for _ in range(60):
        y = net.op("Add", net.conv(y, 4, 4, 1), y)
    graph = load_model(net.model([y]), tmp_path)
    assert len(graph.layers) == 60
    assert len(graph.edges) <= 2 * 60


def edges_by_definition(graph: Graph) -> list[Edge]:
    """Walks every path back in the serialised model, with no memory of what it has seen."""
    model = onnx.load_from_string(to_bytes(graph.model))
    producer = {o: node for node in model.graph.node for o in node.output}
    inputs = {v.name for v in model.graph.input}
    constants = {t.name for t in model.graph.initializer}
    shapes: dict[str, Any] = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    rank = {layer.name: place for place, layer in enumerate(graph.layers)} | {"": -1}

    def back(value: str) -> set[str]:
        if value in inputs:
            return {""}
        node = producer[value]
        if node.name in rank:
            return {node.name}
        names = [n for n in dict.fromkeys(node.input) if n and n not in constants]
        if len(names) == 1:
            return back(names[0])
        return {max(back(name), key=rank.__getitem__) for name in names}

    return [
        Edge(p, layer.name, tensor, int(np.prod(shapes[tensor])))
        for layer in graph.layers
        for tensor in layer.inputs
        for p in sorted(back(tensor), key=rank.__getitem__)
    ]


@given(model=random_nets())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_edges_equal_the_definition(model: onnx.ModelProto, tmp_path: Path) -> None:
    graph = load_model(model, tmp_path)
    assert list(graph.edges) == edges_by_definition(graph)


@given(model=random_nets())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_layers_are_in_execution_order_and_their_tensors_exist(model: onnx.ModelProto, tmp_path: Path) -> None:
    graph = load_model(model, tmp_path)
    order = [node.name for node in graph.model.graph]
    places = [order.index(layer.name) for layer in graph.layers]
    assert places == sorted(places)
    made = {v.name for v in graph.model.graph.inputs}
    for node in graph.model.graph:
        for layer in graph.layers:
            if layer.name == node.name:
                assert set(layer.inputs) <= made
                assert set(layer.weights) <= set(graph.model.graph.initializers)
        made |= {o.name for o in node.outputs}
