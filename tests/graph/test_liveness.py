from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph, live_steps, peak_activation_bytes
from edgekit.graph.buffers import ELEMENTWISE_OPS, VIEW_OPS, allocate, flow_of
from edgekit.graph.layers import elements_of
from edgekit.types import Precision
from tests import zoo
from tests.graph.nets import load_model, random_nets

FLOAT: dict[str, Precision] = {}


def uniform(graph: Graph, precision: Precision) -> dict[str, Precision]:
    return {layer.name: precision for layer in graph.layers}


def peak_elements(net: zoo.Net, outputs: list[str], tmp_path: Path) -> float:
    return peak_activation_bytes(load_model(net.model(outputs), tmp_path), FLOAT) / 4


def test_chain_holds_input_and_output_of_the_largest_step(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.conv(net.input("x", [1, 2, 8, 8]), 2, 6)
    y = net.conv(net.op("Relu", y), 6, 3)
    assert peak_elements(net, [y], tmp_path) == (6 + 3) * 64


@pytest.mark.parametrize("activation", ["relu", "hard_swish", "silu", "gelu"])
def test_elementwise_functions_take_the_place_of_their_source(activation: str, tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.conv(net.input("x", [1, 2, 8, 8]), 2, 6)
    if activation == "relu":
        y = net.op("Relu", y)
    elif activation == "hard_swish":
        y = net.hard_swish(y)
    elif activation == "silu":
        y = net.op("Mul", y, net.op("Sigmoid", y))
    else:
        erf = net.op("Erf", net.op("Div", y, net.weight([1.4142135])))
        y = net.op("Mul", y, net.op("Mul", net.op("Add", erf, net.weight([1.0])), net.weight([0.5])))
    assert peak_elements(net, [net.conv(y, 6, 3)], tmp_path) == (6 + 3) * 64


def test_source_that_is_read_again_is_not_written_over(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.conv(net.input("x", [1, 2, 8, 8]), 2, 6)
    z = net.conv(net.op("Relu", y), 6, 6)
    assert peak_elements(net, [net.op("Concat", z, y, axis=1)], tmp_path) == (6 + 6 + 12) * 64


def test_model_input_is_not_written_over(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.conv(net.op("Relu", net.input("x", [1, 2, 8, 8])), 2, 1)
    assert peak_elements(net, [y], tmp_path) == (2 + 2) * 64


def test_model_input_is_there_from_the_start_and_output_to_the_end(tmp_path: Path) -> None:
    net = zoo.Net()
    x, late = net.input("x", [1, 2, 8, 8]), net.input("late", [1, 1, 8, 8])
    early = net.conv(x, 2, 5)
    z = net.conv(net.conv(early, 5, 7), 7, 1)
    tail = net.op("Concat", z, late, axis=1)
    # while the middle layer runs: late 1, early (an output) 5, 7 made; then 7 -> 1; then 1 + 1 -> 2
    assert peak_elements(net, [early, tail], tmp_path) == (1 + 5 + 7 + 1) * 64


def test_views_share_memory(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.conv(net.input("x", [1, 1, 8, 8]), 1, 8)
    y = net.op("Reshape", net.op("Unsqueeze", y, net.ints(0)), net.ints(8, 64))
    y = net.op("MatMul", y, net.random(64, 16))
    assert peak_elements(net, [y], tmp_path) == 8 * 64 + 8 * 16


def test_residual_add_writes_over_its_own_branch(tmp_path: Path) -> None:
    net = zoo.Net()
    stem = net.conv(net.input("x", [1, 1, 8, 8]), 1, 4)
    y = net.op("Add", net.conv(stem, 4, 4), stem)
    # stem, the branch, and nothing for the sum; then the sum and the head's output
    assert peak_elements(net, [net.conv(y, 4, 1)], tmp_path) == (4 + 4) * 64


def test_int8_needs_every_reader(tmp_path: Path) -> None:
    net = zoo.Net()
    stem = net.op("Relu", net.conv(net.input("x", [1, 1, 8, 8]), 1, 8))
    a, b = net.conv(stem, 8, 8), net.conv(net.op("MaxPool", stem, kernel_shape=[1, 1]), 8, 8)
    graph = load_model(net.model([net.conv(a, 8, 1), net.conv(b, 8, 1)]), tmp_path)
    names = [layer.name for layer in graph.layers]
    tensors, _ = live_steps(graph)
    (shared,) = [tensor for tensor in tensors if len(tensor.deciders) == 2]
    readers = {layer.name for layer in graph.layers if layer.input_elements == 8 * 64 and layer.output_elements != 64}
    assert set(shared.deciders) == readers
    full, all_int8 = (peak_activation_bytes(graph, uniform(graph, p)) for p in (Precision.FP32, Precision.INT8))
    assert full == (8 + 8 + 8) * 64 * 4
    assert all_int8 < full
    for name in names:
        one_float = uniform(graph, Precision.INT8) | {name: Precision.FP32}
        assert all_int8 <= peak_activation_bytes(graph, one_float) <= full


def test_a_float_reader_or_being_an_output_keeps_float(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.conv(net.input("x", [1, 1, 8, 8]), 1, 8)
    kept = net.conv(y, 8, 8)
    soft = net.op("Softmax", net.conv(kept, 8, 8), axis=1)
    graph = load_model(net.model([kept, net.conv(soft, 8, 1)]), tmp_path)
    deciders = {tensor.name: tensor.deciders for tensor in live_steps(graph)[0]}
    names = [layer.name for layer in graph.layers]
    assert deciders["x"] == (names[0],)
    assert deciders[y] == (names[1],)
    assert deciders[kept] == ()
    assert deciders[soft] == (names[3],)
    assert next(d for name, d in deciders.items() if name == graph.layers[2].output) == ()


def test_concat_passes_the_decision_on(tmp_path: Path) -> None:
    graph = load_model(zoo.conv_transpose(), tmp_path)
    deciders = {tensor.name: tensor.deciders for tensor in live_steps(graph)[0]}
    first, _, last = (layer.name for layer in graph.layers)
    assert deciders["x"] == (first, last)


def test_lstm_cell_state_stays_float(tmp_path: Path) -> None:
    graph = load_model(zoo.lstm(), tmp_path)
    deciders = {tensor.name: tensor.deciders for tensor in live_steps(graph)[0]}
    assert deciders["x"] == deciders["h"] == (graph.layers[0].name,)
    assert deciders["c"] == ()


def test_half_precision_base(tmp_path: Path) -> None:
    graph = load_model(zoo.inverted_residual(), tmp_path)
    full = peak_activation_bytes(graph, FLOAT)
    assert peak_activation_bytes(graph, uniform(graph, Precision.FP16)) * 2 == full
    assert peak_activation_bytes(graph, uniform(graph, Precision.BF16)) * 2 == full
    assert peak_activation_bytes(graph, uniform(graph, Precision.W8)) == full
    one_float = uniform(graph, Precision.FP16) | {graph.layers[0].name: Precision.FP32}
    assert peak_activation_bytes(graph, one_float) == full


def test_integers_keep_their_width(tmp_path: Path) -> None:
    graph = load_model(zoo.transformer(), tmp_path)
    widths = {tensor.name: (tensor.element_bytes, tensor.deciders) for tensor in live_steps(graph)[0]}
    assert widths["ids"] == widths["mask"] == (8, ())


@given(model=random_nets(), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_precisions_only_ever_save_memory(model: onnx.ModelProto, data: st.DataObject, tmp_path: Path) -> None:
    graph = load_model(model, tmp_path)
    chosen = {layer.name: data.draw(st.sampled_from([Precision.INT8, Precision.FP32])) for layer in graph.layers}
    before = peak_activation_bytes(graph, chosen)
    for name in chosen:
        assert peak_activation_bytes(graph, chosen | {name: Precision.INT8}) <= before


@given(model=random_nets())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_between_what_one_step_needs_and_sharing_nothing(model: onnx.ModelProto, tmp_path: Path) -> None:
    graph = load_model(model, tmp_path)
    flow = flow_of(graph.model)
    nodes = list(graph.model.graph)
    peak = peak_activation_bytes(graph, FLOAT)
    layers = {layer.name for layer in graph.layers}
    for step, node in enumerate(nodes):
        if node.name in layers or node.op_type == "Concat":
            needed = sum(elements_of(flow.values[n]) for n in flow.reads[step])
            assert peak >= 4 * (needed + elements_of(node.outputs[0]))
    last = len(nodes) - 1
    naive = [0] * len(nodes)
    made = dict.fromkeys((t.name for t in graph.inputs), 0)
    made |= {o.name: step for step, node in enumerate(nodes) for o in node.outputs if o.name}
    for name, first in made.items():
        end = last if name in flow.outputs else max([first, *flow.readers[name]])
        for step in range(first, end + 1):
            naive[step] += 4 * elements_of(flow.values[name])
    assert peak <= max(naive)


@given(model=random_nets())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_executing_in_these_buffers_never_reads_overwritten_memory(model: onnx.ModelProto, tmp_path: Path) -> None:
    """Plays the execution: a fused elementwise function reads its source when its last value is written."""
    graph = load_model(model, tmp_path)
    flow = flow_of(graph.model)
    buffers = allocate(flow, tuple(tensor.name for tensor in graph.inputs))
    home = {name: buffer for buffer in buffers for name in buffer.members}
    inside = {name: buffer for buffer in buffers for name in buffer.inside}
    assert set(home) | set(inside) == set(flow.values)
    content = {id(buffer): {t.name} for t in graph.inputs for buffer in [home[t.name]]}

    def sources(name: str) -> set[str]:
        """The values in memory that the value is computed from when it is computed in one pass."""
        if name in home:
            return {name}
        step = next(s for s, node in enumerate(flow.nodes) if name in [o.name for o in node.outputs])
        return set().union(*(sources(read) for read in flow.reads[step]))

    for step, node in enumerate(flow.nodes):
        for output in (o.name for o in node.outputs if o.name):
            if output in inside:
                assert node.op_type in ELEMENTWISE_OPS
                continue
            for read in set().union(*(sources(n) for n in flow.reads[step])):
                buffer = home[read]
                assert buffer.first <= step <= buffer.last
                assert read in content[id(buffer)], f"{read} was overwritten before step {step}"
            buffer = home[output]
            assert buffer.first <= step <= buffer.last
            if node.op_type in VIEW_OPS:
                content[id(buffer)].add(output)
            else:
                content[id(buffer)] = {output}
    for name in flow.outputs:
        assert name in content[id(home[name])]
