from __future__ import annotations

import math
from pathlib import Path

import onnx
import openvino
import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks.arena import arena_bytes
from edgekit.errors import MissingToolError
from edgekit.graph import Graph, peak_activation_bytes, planning_steps, to_bytes
from edgekit.graph.buffers import VIEW_OPS, Buffer, allocate
from edgekit.graph.flow import flow_of
from edgekit.graph.layers import elements_of
from edgekit.graph.passes import ELEMENTWISE_OPS
from edgekit.types import Precision
from tests import zoo
from tests.graph.nets import load_model, random_nets

FLOAT: dict[str, Precision] = {}
AREA = 64 * 64
SLACK = 4096  # bytes that this process itself allocates or frees while OpenVINO's arena is measured


def uniform(graph: Graph, precision: Precision) -> dict[str, Precision]:
    return {layer.name: precision for layer in graph.layers}


def peak_elements(net: zoo.Net, outputs: list[str], tmp_path: Path) -> tuple[float, float]:
    """Elements at the peak: of the model's inputs and outputs, and of what is between them at that time.

    The second is what OpenVINO really allocates, which this checks.
    """
    graph = load_model(net.model(outputs), tmp_path)
    outside = sum(math.prod(tensor.shape) for tensor in (*graph.inputs, *graph.outputs))
    inside = peak_activation_bytes(graph, FLOAT) - 4 * outside
    assert abs(measured_arena(graph) - inside) <= SLACK
    return outside, inside / 4


def measured_arena(graph: Graph, precision_hint: str = "f32") -> int:
    try:
        return arena_bytes(to_bytes(graph.model), precision_hint)
    except MissingToolError as error:
        pytest.skip(str(error))


def test_chain_holds_input_and_output_of_the_largest_step(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.conv(net.input("x", [1, 2, 64, 64]), 2, 6)
    y = net.conv(net.op("Relu", y), 6, 3)
    # the output, laid out as the convolution makes it, then as the caller wants it
    assert peak_elements(net, [y], tmp_path) == ((2 + 3) * AREA, (6 + 3) * AREA)


@pytest.mark.parametrize("activation", ["relu", "hard_swish", "silu", "gelu"])
def test_elementwise_functions_take_the_place_of_their_source(activation: str, tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.conv(net.input("x", [1, 2, 64, 64]), 2, 6)
    if activation == "relu":
        y = net.op("Relu", y)
    elif activation == "hard_swish":
        y = net.hard_swish(y)
    elif activation == "silu":
        y = net.op("Mul", y, net.op("Sigmoid", y))
    else:
        erf = net.op("Erf", net.op("Div", y, net.weight([1.4142135])))
        y = net.op("Mul", y, net.op("Mul", net.op("Add", erf, net.weight([1.0])), net.weight([0.5])))
    assert peak_elements(net, [net.conv(y, 6, 3)], tmp_path)[1] == (6 + 3) * AREA


def test_source_that_is_read_again_is_not_written_over(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.conv(net.input("x", [1, 2, 64, 64]), 2, 6)
    z = net.conv(net.op("Relu", y), 6, 6)
    y = net.op("Concat", z, y, axis=1)
    assert peak_elements(net, [net.conv(y, 12, 2)], tmp_path)[1] == (6 + 6 + 12) * AREA


def test_model_input_is_there_throughout_and_not_written_over(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.op("MatMul", net.op("Relu", net.input("x", [4096, 8])), net.random(8, 2))
    assert peak_elements(net, [y], tmp_path) == (4096 * (8 + 2), 4096 * 8)


def test_convolutions_read_a_copy_of_the_input_in_another_layout(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.conv(net.conv(net.input("x", [1, 8, 64, 64]), 8, 6), 6, 2)
    assert peak_elements(net, [y], tmp_path) == ((8 + 2) * AREA, (8 + 6) * AREA)
    net = zoo.Net()
    y = net.conv(net.conv(net.input("x", [1, 1, 64, 64]), 1, 6), 6, 2)  # one channel has no layout
    assert peak_elements(net, [y], tmp_path) == ((1 + 2) * AREA, (6 + 2) * AREA)


def test_views_share_memory(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.op("MatMul", net.input("x", [256, 16]), net.random(16, 128))
    y = net.op("Reshape", net.op("Unsqueeze", y, net.ints(0)), net.ints(512, 64))
    y = net.op("MatMul", net.op("MatMul", y, net.random(64, 16)), net.random(16, 2))
    assert peak_elements(net, [y], tmp_path)[1] == 512 * 64 + 512 * 16


def test_residual_add_is_done_by_the_convolution_before_it(tmp_path: Path) -> None:
    net = zoo.Net()
    stem = net.conv(net.input("x", [1, 1, 64, 64]), 1, 4)
    wide = net.op("Relu", net.conv(stem, 4, 9))
    y = net.op("Relu", net.op("Add", stem, net.conv(wide, 9, 4)))
    assert peak_elements(net, [net.conv(y, 4, 1)], tmp_path)[1] == (4 + 9) * AREA


def test_residual_add_cannot_be_done_by_a_convolution_that_reads_the_other_operand(tmp_path: Path) -> None:
    net = zoo.Net()
    stem = net.conv(net.input("x", [1, 1, 64, 64]), 1, 4)
    y = net.op("Add", net.conv(stem, 4, 4), stem)
    assert peak_elements(net, [net.conv(y, 4, 1)], tmp_path)[1] == (4 + 4 + 4) * AREA


def test_all_that_one_pass_reads_is_there_until_it_is_done(tmp_path: Path) -> None:
    net = zoo.Net()
    x = net.input("x", [4096, 8])
    a, b, c = (net.op("MatMul", x, net.random(8, 8)) for _ in range(3))
    y = net.op("Mul", net.op("Add", a, b), c)  # the sum takes no memory, the product the place of a
    assert peak_elements(net, [net.op("MatMul", y, net.random(8, 1))], tmp_path)[1] == 3 * 4096 * 8


def test_slices_that_a_tensor_falls_into_are_cut_at_once(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.op("MatMul", net.input("x", [4096, 4]), net.random(4, 16))
    ends = ((0, 8), (8, 16))
    left, right = (net.op("Slice", y, net.ints(a), net.ints(b), net.ints(1)) for a, b in ends)
    y = net.op("MatMul", left, net.random(8, 2))
    y = net.op("Add", y, net.op("MatMul", right, net.random(8, 2)))
    assert peak_elements(net, [net.op("MatMul", y, net.random(2, 1))], tmp_path)[1] == 4096 * (16 + 8 + 8)


def test_softmax_of_rows_takes_the_place_of_its_source(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.op("Softmax", net.op("MatMul", net.input("x", [4096, 4]), net.random(4, 16)))
    assert peak_elements(net, [y], tmp_path) == (4096 * (4 + 16), 0)  # the scores are where the output will be


def test_attention_keeps_no_scores(tmp_path: Path) -> None:
    net = zoo.Net()
    x = net.input("x", [1, 256, 8])
    q, k, v = (net.op("MatMul", x, net.random(8, 8)) for _ in range(3))
    heads = [net.op("Reshape", t, net.ints(1, 256, 2, 4)) for t in (q, k, v)]
    q, k, v = (
        net.op("Transpose", t, perm=p) for t, p in zip(heads, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    scores = net.op("Mul", net.op("MatMul", q, k), net.weight([0.5]))
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    graph = load_model(net.model([net.op("MatMul", y, net.random(4, 1))]), tmp_path)
    inside = peak_activation_bytes(graph, FLOAT) // 4 - 256 * 8 - 512
    assert inside == 4 * 256 * 8  # and not 2 * 256 * 256 for the scores
    assert measured_arena(graph) <= 4 * inside + SLACK


def test_execution_order_is_of_the_graph_not_of_the_file(tmp_path: Path) -> None:
    net = zoo.Net()
    x = net.input("x", [1, 4, 64, 64])
    branches = [net.conv(net.conv(x, 4, 16), 16, 2) for _ in range(3)]
    graph = load_model(net.model([net.conv(net.op("Concat", *branches, axis=1), 6, 1)]), tmp_path)
    before = peak_activation_bytes(graph, FLOAT)
    nodes = sorted(graph.model.graph, key=lambda node: -math.prod(node.outputs[0].shape.numpy()))  # all wide ones first
    graph.model.graph.remove(nodes)
    graph.model.graph.extend(nodes)
    assert peak_activation_bytes(graph, FLOAT) == before
    assert measured_arena(graph) <= before


@pytest.mark.parametrize("base", [Precision.BF16, Precision.FP16])
def test_half_precision_base(base: Precision, tmp_path: Path) -> None:
    graph = load_model(zoo.inverted_residual(), tmp_path)
    outside = 4 * sum(math.prod(tensor.shape) for tensor in (*graph.inputs, *graph.outputs))  # the caller's stay float
    full = peak_activation_bytes(graph, FLOAT) - outside
    for chosen in (uniform(graph, base), uniform(graph, base) | {graph.layers[0].name: Precision.W8}, FLOAT):
        assert (peak_activation_bytes(graph, chosen, base) - outside) * 2 == full
    assert peak_activation_bytes(graph, uniform(graph, Precision.W8)) - outside == full
    # What a plan left in float runs in the base, also where it left nothing.
    int8 = uniform(graph, Precision.INT8)
    assert peak_activation_bytes(graph, int8, base) < peak_activation_bytes(graph, int8)


def test_half_precision_base_is_what_openvino_takes(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.op("Relu", net.conv(net.input("x", [1, 16, 64, 64]), 16, 32))
    graph = load_model(net.model([net.conv(y, 32, 16)]), tmp_path)
    outside = 4 * sum(math.prod(tensor.shape) for tensor in (*graph.inputs, *graph.outputs))
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    arena = measured_arena(graph, "bf16")
    assert abs(arena - (peak_activation_bytes(graph, FLOAT, Precision.BF16) - outside)) <= SLACK


def test_integers_keep_their_width(tmp_path: Path) -> None:
    graph = load_model(zoo.transformer(), tmp_path)
    widths = {tensor.name: (tensor.large_bytes, tensor.deciders) for tensor in planning_steps(graph)[0]}
    assert widths["ids"] == widths["mask"] == (8, ())


@given(model=random_nets())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_between_what_one_step_needs_and_sharing_nothing(model: onnx.ModelProto, tmp_path: Path) -> None:
    graph = load_model(model, tmp_path)
    flow = flow_of(graph.model)
    nodes = flow.nodes
    peak = peak_activation_bytes(graph, FLOAT)
    layers = {layer.name for layer in graph.layers}
    for step, node in enumerate(nodes):
        if node.name in layers or node.op_type == "Concat":
            needed = sum(elements_of(flow.values[n]) for n in flow.reads[step])
            assert peak >= 4 * (needed + elements_of(node.outputs[0]))
    inputs = {tensor.name for tensor in graph.inputs}
    outside = sum(elements_of(flow.values[name]) for name in {*inputs, *flow.outputs})
    sharing_nothing = sum(elements_of(value) for value in flow.values.values()) + outside  # and a copy of those
    assert 4 * outside <= peak <= 4 * sharing_nothing


@given(model=random_nets())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_executing_in_these_buffers_never_reads_overwritten_memory(model: onnx.ModelProto, tmp_path: Path) -> None:
    """Plays the execution: a fused elementwise function reads its source when its last value is written."""
    graph = load_model(model, tmp_path)
    flow = flow_of(graph.model)
    buffers = allocate(flow, tuple(tensor.name for tensor in graph.inputs))
    home: dict[str, Buffer] = {}
    for buffer in buffers:
        for name in buffer.members:
            home.setdefault(name, buffer)  # what comes later are copies of inputs and outputs in another layout
    inside = {name: buffer for buffer in buffers for name in buffer.inside}
    assert set(home) | set(inside) == set(flow.values)
    content = {id(buffer): {t.name} for t in graph.inputs for buffer in [home[t.name]]}

    def sources(name: str) -> set[str]:
        """The values in memory that the value is computed from when it is computed in one pass."""
        if name in home:
            return {name}
        step = next(s for s, node in enumerate(flow.nodes) if name in [o.name for o in node.outputs])
        return set().union(*(sources(read) for read in flow.reads[step]))

    added: dict[int, str] = {}  # what a convolution has added to already: step of the Add, tensor
    for step, node in enumerate(flow.nodes):
        for output in (o.name for o in node.outputs if o.name):
            read_now = [*flow.reads[step]]
            if output in inside and node.op_type == "Conv":
                add, peer = flow.sums[step]
                added[add] = peer
                read_now.append(peer)
                home[output] = inside[output]
            elif output in inside:
                assert node.op_type in ELEMENTWISE_OPS
                continue
            for read in set().union(*(sources(n) for n in read_now if n != added.get(step))):
                buffer = home[read]
                assert buffer.first <= step <= buffer.last
                assert read in content[id(buffer)], f"{read} was overwritten before step {step}"
            buffer = home[output]
            assert buffer.first <= step <= buffer.last
            if node.op_type in VIEW_OPS and id(buffer) in content:  # else it is laid out again, in a buffer of its own
                content[id(buffer)].add(output)
            else:
                content[id(buffer)] = {output}
    for name in flow.outputs:
        assert name in content[id(home[name])]
