"""The graph that is left once some layers are int8: which tensors are held in 8 bit, and who makes them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.graph import Graph, peak_activation_bytes, to_bytes
from edgekit.graph.lowering import Lowered, lowered
from edgekit.graph.passes import QUANTIZE
from edgekit.types import Precision
from tests import zoo
from tests.graph.nets import load_model, random_nets

FLOAT, BIT = ir.DataType.FLOAT, ir.DataType.UINT8


def held(low: Lowered) -> dict[str, ir.DataType | None]:
    return {name: value.dtype for name, value in low.flow.values.items()}


def kinds(low: Lowered) -> Counter[str]:
    return Counter(node.op_type for node in low.flow.nodes)


def names(graph: Graph) -> list[str]:
    return [layer.name for layer in graph.layers]


def joined(tmp_path: Path, *, read_twice: bool) -> Graph:
    """Two layers and their concatenation; where the first is read twice, the second reads it too."""
    net = zoo.Net()
    x = net.input("x", [1, 4, 16, 16])
    first = net.op("Relu", net.conv(x, 4, 8))
    second = net.op("Relu", net.conv(first, 8, 8) if read_twice else net.conv(x, 4, 8))
    y = net.conv(net.op("Concat", first, second, axis=1), 16, 8)
    return load_model(net.model([net.op("GlobalAveragePool", y)]), tmp_path)


def residual(tmp_path: Path, *, pooled: bool) -> Graph:
    """A residual block; its sum is read by a layer, or concatenated to what is pooled and convolved of it as well."""
    net = zoo.Net()
    stem = net.op("Relu", net.conv(net.input("x", [1, 4, 16, 16]), 4, 8))
    inner = net.conv(net.op("Relu", net.conv(stem, 8, 8)), 8, 8)
    y = net.op("Relu", net.op("Add", inner, stem))
    out = net.conv(y, 8, 8)
    if pooled:
        out = net.conv(net.op("Concat", net.op("Relu", out), y, axis=1), 16, 8)
    return load_model(net.model([net.op("GlobalAveragePool", out)]), tmp_path)


def test_without_int8_it_is_the_model(tmp_path: Path) -> None:
    graph = residual(tmp_path, pooled=False)
    assert {node.name for node in lowered(graph, []).flow.nodes} == {node.name for node in graph.model.graph}


def test_quantizing_is_a_part_of_an_int8_layer_that_has_one_reader(tmp_path: Path) -> None:
    low = lowered(residual(tmp_path, pooled=False), names(residual(tmp_path, pooled=False)))
    assert kinds(low)[QUANTIZE] == 1  # of the model's input
    widths = held(low)
    assert {widths[f"{op}_out"] for op in widths_of(low, "Relu")} == {BIT}
    assert kinds(low)["Cast"] == 0


def widths_of(low: Lowered, op_type: str) -> list[str]:
    return [node.name or "" for node in low.flow.nodes if node.op_type == op_type]


def test_operands_of_a_concat_have_quantizers_of_their_own(tmp_path: Path) -> None:
    alone = joined(tmp_path, read_twice=False)
    assert kinds(lowered(alone, names(alone)))[QUANTIZE] == 1  # of the model's input: both layers put out 8 bit
    shared = joined(tmp_path, read_twice=True)
    low = lowered(shared, names(shared))
    assert kinds(low)[QUANTIZE] == 3  # that, and the first layer's result twice, which stays float therefore
    first = next(node for node in low.flow.nodes if node.op_type == "Relu")
    assert first.outputs[0].dtype == FLOAT
    assert [v.dtype for v in next(n for n in low.flow.nodes if n.op_type == "Concat").outputs] == [BIT]


def test_a_sum_in_float_makes_what_it_adds_to_float(tmp_path: Path) -> None:
    graph = residual(tmp_path, pooled=True)
    low = lowered(graph, names(graph))
    assert kinds(low)["Cast"] == 1
    assert [n.outputs[0].dtype for n in low.flow.nodes if n.op_type == "Add"] == [FLOAT]


@given(model=random_nets(), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_layers_read_what_they_should_and_the_model_stays_as_it_was(
    model: onnx.ModelProto, data: st.DataObject, tmp_path: Path
) -> None:
    graph = load_model(model, tmp_path)
    before = to_bytes(graph.model)
    int8 = [name for name in names(graph) if data.draw(st.booleans())]
    low = lowered(graph, int8)
    made = {node.name: node for node in low.flow.nodes}
    for layer in graph.layers:
        read = [v.dtype for v in made[layer.name].inputs[:1] if v is not None]
        assert read == [BIT if layer.name in int8 else FLOAT]
    assert {name: held(low)[name] for name in low.flow.outputs} == dict.fromkeys(low.flow.outputs, FLOAT)
    assert set(low.origins.values()) <= {v.name for n in graph.model.graph for v in (*n.inputs, *n.outputs) if v}
    first = peak_activation_bytes(graph, dict.fromkeys(int8, Precision.INT8))
    assert first == peak_activation_bytes(graph, dict.fromkeys(int8, Precision.INT8))
    assert to_bytes(graph.model) == before
