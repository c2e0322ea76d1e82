from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends import Artifact, ExecutedNode, backend, openvino
from edgekit.errors import InputError
from edgekit.graph import Graph
from edgekit.types import Precision
from tests.quantized import CASES, Case, case, case_of, host, run, sqnr_db
from tests.zoo import Net, conv_net

FP32, INT8, W8 = Precision.FP32, Precision.INT8, Precision.W8
INT8_WORDS = {"i8", "u8"}


def plans(source: Case) -> dict[str, dict[str, Precision]]:
    """The uniform models; in int8 the layers that the backend offers it for."""
    names = [one.name for one in source.graph.layers if one.op_type in openvino.quantized_op_types[INT8]]
    return {"fp32": {}, "int8": dict.fromkeys(names, INT8), "w8": dict.fromkeys(names, W8)}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Artifact, list[dict[str, Any]]]]:
    """Every zoo model in every uniform precision: its artifact, and what the runner saw it execute."""
    folder = tmp_path_factory.mktemp("artifacts")
    artifacts = {
        f"{name} {kind}": openvino.convert(case(name).write(plan), folder / name / kind, FP32)
        for name in CASES
        for kind, plan in plans(case(name)).items()
    }
    rows = host().profile(artifacts, 0.01, compiles=1)
    return {(key.split()[0], key.split()[1]): (artifacts[key], list(rows[key])) for key in artifacts}


def executed(nodes: tuple[ExecutedNode, ...]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in nodes:
        for name in node.layers if node.computes else ():
            found.setdefault(name, set()).add(node.precision)
    return found


# The CPU plugin generates one kernel for the whole of an attention, in float; transposed convolutions with groups run
# in float as well.
FLOAT_ALL_THE_SAME = {
    ("transformer", "MatMul_24"),
    ("transformer", "MatMul_36"),
    ("conv_transpose_grouped", "ConvTranspose_6"),
}


@pytest.mark.parametrize("kind", ["fp32", "int8", "w8"])
@pytest.mark.parametrize("name", CASES)
class TestZoo:
    def test_every_layer_is_found_and_executes_as_planned(self, name: str, kind: str, compiled: Any) -> None:
        source = case(name)
        plan = plans(source)[kind]
        nodes = openvino.executed_nodes(compiled[name, kind][1], source.graph)
        found = executed(nodes)
        assert set(found) == set(source.names)
        assert {layer for layer, words in found.items() if len(words) > 1} == set(), "one precision a layer"
        for layer, (word,) in found.items():
            planned = plan.get(layer, FP32)
            if planned is INT8 and (name, layer) in FLOAT_ALL_THE_SAME:
                assert word == "f32"
            else:
                assert openvino.executes_as(planned, word), f"{layer}: planned {planned}, executes {word}"
        assert {layer for node in nodes for layer in node.layers} == set(source.names)
        assert sum(node.latency_ms for node in nodes) > 0

    def test_each_layer_is_computed_by_one_node(self, name: str, kind: str, compiled: Any) -> None:
        nodes = openvino.executed_nodes(compiled[name, kind][1], case(name).graph)
        computed = [layer for node in nodes if node.computes for layer in node.layers]
        assert sorted(computed) == sorted(case(name).names)

    def test_outputs(self, name: str, kind: str, compiled: Any) -> None:
        source = case(name)
        names = [tensor.name for tensor in source.graph.outputs]
        session = openvino.session(compiled[name, kind][0], 1, names)
        for index in range(len(source.data)):
            sample = source.data.sample(index)
            reference = run(source.write({}), sample)
            outputs = session(sample)
            assert list(outputs) == names
            if kind == "fp32":
                for output in names:
                    np.testing.assert_allclose(outputs[output], reference[output], rtol=1e-4, atol=1e-4)
            else:
                # Closer to what the pairs say than the pairs are to float: ties may round the other way.
                simulated = run(source.write(plans(source)[kind]), sample)
                assert sqnr_db(outputs, simulated) > 5 + sqnr_db(simulated, reference)

    def test_the_same_model_gives_the_same_bytes(self, name: str, kind: str, compiled: Any, tmp_path: Path) -> None:
        artifact = compiled[name, kind][0]
        again = openvino.convert(case(name).write(plans(case(name))[kind]), tmp_path, FP32)
        assert [file.name for file in again.files] == ["model.xml", "model.bin"]
        for ours, theirs in zip(again.files, artifact.files, strict=True):
            assert ours.read_bytes() == theirs.read_bytes()
        assert again.weight_bytes == again.files[1].stat().st_size
        assert openvino.artifact(tmp_path, FP32) == again


def test_random_mixes_compile_and_execute_as_planned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mixes: dict[str, dict[str, Precision]] = {}
    for name in CASES:
        for number in range(3):
            mix = mixes[f"{name} {number}"] = {}
            for layer in case(name).graph.layers:
                options = [FP32]
                for precision in (INT8, W8):
                    offered = layer.op_type in openvino.quantized_op_types[precision]
                    if offered and (name, layer.name) not in FLOAT_ALL_THE_SAME:
                        options.append(precision)
                mix[layer.name] = options[rng.integers(len(options))]
    artifacts = {
        key: openvino.convert(case(key.split()[0]).write(mix), tmp_path / key, FP32) for key, mix in mixes.items()
    }
    rows = host().profile(artifacts, 0.005, compiles=1)
    for key, mix in mixes.items():
        found = executed(openvino.executed_nodes(rows[key], case(key.split()[0]).graph))
        assert set(found) == set(mix), key
        for layer, precision in mix.items():
            assert all(openvino.executes_as(precision, word) for word in found[layer]), (key, layer, found[layer])


def test_int8_really_is_smaller(compiled: Any) -> None:
    for name in ("conv_net", "inverted_residual", "transformer"):
        sizes = {kind: compiled[name, kind][0].weight_bytes for kind in ("fp32", "int8", "w8")}
        assert sizes["int8"] < 0.6 * sizes["fp32"]
        assert sizes["w8"] < 0.6 * sizes["fp32"]


@pytest.mark.parametrize("kind", ["fp32", "int8", "w8"])
def test_a_pointwise_convolution_that_becomes_a_matrix_product_is_found(kind: str, tmp_path: Path) -> None:
    """Weight-only models exported from channels-last frameworks: the heads run as FullyConnected."""
    net = Net()
    y = net.op("Relu", net.conv(net.op("Transpose", net.input("x", [1, 8, 8, 4]), perm=[0, 3, 1, 2]), 4, 16))
    heads = [net.op("Transpose", net.conv(y, 16, width, 1), perm=[0, 2, 3, 1]) for width in (2, 6)]
    source = case_of(net.model(heads))
    artifact = openvino.convert(source.write(plans(source)[kind]), tmp_path, FP32)
    found = executed(openvino.executed_nodes(host().profile({"m": artifact}, 0.01, 1)["m"], source.graph))
    assert set(found) == set(source.names)
    assert all(openvino.executes_as(plans(source)[kind].get(name, FP32), word) for name, (word,) in found.items())


def control_flow(kind: str) -> onnx.ModelProto:
    """A convolution followed by an If or a Loop, whose bodies hold constants."""
    net = Net()
    y = net.conv(net.input("x", [1, 3, 6, 6]), 3, 4)

    def body(name: str, op_type: str, value: str) -> tuple[list[onnx.NodeProto], str]:
        constant = helper.make_node("Constant", [], [f"{name}_c"], value=numpy_helper.from_array(np.float32(0.5)))
        nodes = [constant, helper.make_node("Mul", [value, f"{name}_c"], [f"{name}_m"])]
        return [*nodes, helper.make_node(op_type, [f"{name}_m"], [f"{name}_y"])], f"{name}_y"

    def value(name: str, shape: list[int] | None = None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    if kind == "If":
        graphs = []
        for name, op_type in (("a", "Sin"), ("b", "Cos")):
            nodes, out = body(name, op_type, y)
            graphs.append(helper.make_graph(nodes, name, [], [value(out)]))
        positive = net.op("Greater", net.op("ReduceMean", y, keepdims=0), net.weight(np.float32(0)))
        return net.model([net.op("If", positive, then_branch=graphs[0], else_branch=graphs[1])])
    nodes, out = body("a", "Sin", "state")
    nodes.append(helper.make_node("Identity", ["go"], ["go_on"]))
    loop = helper.make_graph(
        nodes,
        "loop",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("state", [1, 4, 6, 6])],
        [value("go_on", [], TensorProto.BOOL), value(out, [1, 4, 6, 6])],
    )
    count, go = net.weight(np.int64(3)), net.weight(np.array(True))
    return net.model([net.op("Loop", count, go, y, body=loop)])


@pytest.mark.parametrize("kind", ["If", "Loop"])
def test_bytes_are_steady_with_control_flow(kind: str, tmp_path: Path) -> None:
    content = control_flow(kind).SerializeToString()
    first, second = (openvino.convert(content, tmp_path / name, FP32) for name in ("a", "b"))
    assert [file.read_bytes() for file in first.files] == [file.read_bytes() for file in second.files]
    image = {"x": np.random.default_rng(0).random((1, 3, 6, 6), np.float32)}
    (name,) = (output.name for output in onnx.load_model_from_string(content).graph.output)
    np.testing.assert_allclose(openvino.session(first, 1, [name])(image)[name], run(content, image)[name], atol=1e-5)


def test_names_like_those_that_openvino_invents_are_kept(tmp_path: Path) -> None:
    """A node that is called exactly what OpenVINO's counter would call it next is still found by its name."""

    def product(name: str) -> bytes:
        net = Net()
        y = net.op("MatMul", net.op("Sin", net.input("x", [2, 6])), net.random(6, 6))
        net.nodes[-1].name = name
        return net.model([net.op("Cos", y)]).SerializeToString()

    def counter() -> int:
        nodes = ov.Core().read_model(product("product")).get_ordered_ops()
        return next(int(node.get_name().split("_")[1]) for node in nodes if node.get_type_name() == "MatMul")

    first, second = counter(), counter()
    name = f"MatMul_{second + second - first}"
    assert f'name="{name}"' in openvino.convert(product(name), tmp_path, FP32).path.read_text()


@pytest.mark.parametrize(
    "content",
    [b"", b"this is no model", case("conv_net").write({})[:200]],
    ids=["empty", "text", "truncated"],
)
def test_what_cannot_be_read_is_an_input_error(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="OpenVINO cannot read the model") as caught:
        openvino.convert(content, tmp_path / "out", FP32)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="example.com")
    model = helper.make_model(
        helper.make_graph([node], "g", [value], [made]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("example.com", 1)],
    )
    with pytest.raises(InputError, match="Frobnicate"):
        openvino.convert(model.SerializeToString(), tmp_path, FP32)


def test_what_cannot_be_compiled_is_an_input_error(tmp_path: Path) -> None:
    artifact = openvino.convert(case("conv_net").write({}), tmp_path, FP32)
    artifact.path.write_text(artifact.path.read_text().replace('type="Convolution"', 'type="Convulsion"'))
    with pytest.raises(InputError, match="OpenVINO cannot compile the model") as caught:
        openvino.session(artifact, 1, ["y"])
    assert "\n" not in str(caught.value)


def row(kind: str, precision: str, *names: str, own: str = "n") -> Mapping[str, Any]:
    return {"name": own, "type": kind, "precision": precision, "original_names": list(names), "latency_ms": 1.0}


class TestAttribution:
    """Rows as the CPU plugin was seen to print them."""

    @pytest.fixture
    def graph(self) -> Graph:
        net = Net()
        x = net.input("x", [2, 6])
        first = net.op("MatMul", x, net.random(6, 6))
        net.nodes[-1].name = "fc"
        second = net.op("Gemm", net.op("Sin", first), net.random(6, 6), net.random(2, 1))
        net.nodes[-1].name, net.nodes[-2].name = "gemm", "sin"
        third = net.op("MatMul", first, net.op("Transpose", second, perm=[1, 0]))
        net.nodes[-1].name, net.nodes[-2].name = "product", "view"
        scaled = net.op("Mul", third, net.weight(np.float32(0.1)))
        net.nodes[-1].name = "scale"
        return case_of(net.model([scaled])).graph

    def test_a_bias_that_was_not_fused_does_not_count_as_the_layer(self, graph: Graph) -> None:
        rows = [
            row("FullyConnected", "u8", "fc"),
            row("FullyConnected", "u8", "gemm/WithoutBiases"),
            row("Eltwise", "f32", "gemm"),
            row("MatMul", "f32", "product"),
        ]
        nodes = openvino.executed_nodes(rows, graph)
        assert [node.computes for node in nodes] == [True, True, False, True]
        assert nodes[2].layers == ("gemm",)

    def test_a_kernel_without_a_name_takes_the_layer_that_nobody_claimed(self, graph: Graph) -> None:
        rows = [
            row("FullyConnected", "f32", "FullyConnected_77"),
            row("FullyConnected", "u8", "gemm"),
            row("MatMul", "f32", "MatMul_99"),
        ]
        assert [node.layers for node in openvino.executed_nodes(rows, graph)] == [("fc",), ("gemm",), ("product",)]

    def test_a_kernel_that_kept_only_a_fused_operators_name_is_the_layer_before_it(self, graph: Graph) -> None:
        rows = [row("FullyConnected", "u8", "?", own="?"), row("MatMul", "f32", "MatMul_9", own="scale")]
        nodes = openvino.executed_nodes([*rows, row("FullyConnected", "u8", "x_1", "sin")], graph)
        assert [node.layers for node in nodes] == [("fc",), ("product",), ("gemm",)]

    def test_constant_products_are_not_given_to_products_of_activations(self, graph: Graph) -> None:
        rows = [row("FullyConnected", "f32", "fc"), row("Subgraph", "f32", "scale"), row("FullyConnected", "u8", "?")]
        nodes = openvino.executed_nodes(rows, graph)
        assert [node.layers for node in nodes] == [("fc",), ("product",), ("gemm",)]
        assert [node.precision for node in nodes if node.layers == ("product",)] == ["f32"]

    def test_a_product_of_activations_is_never_a_matrix_product_by_a_constant(self, graph: Graph) -> None:
        rows = [row("FullyConnected", "f32", name) for name in ("fc", "gemm", "?")]
        nodes = openvino.executed_nodes([*rows, row("Subgraph", "f32", "scale")], graph)
        assert [node.computes for node in nodes] == [True, True, False, True]
        assert nodes[-1].layers == ("product",)

    def test_other_nodes_belong_to_the_layer_upstream_or_to_the_one_before(self, graph: Graph) -> None:
        rows = [
            row("Input", "f32", "x"),
            row("FullyConnected", "f32", "fc"),
            row("Math", "f32", "sin"),
            row("FullyConnected", "f32", "gemm"),
            row("Reorder", "f32"),
            row("MatMul", "f32", "product"),
            row("Eltwise", "f32", f"{graph.layers[0].output}/quantize"),
        ]
        nodes = openvino.executed_nodes(rows, graph)
        assert [node.layers for node in nodes] == [(), ("fc",), ("fc",), ("gemm",), ("gemm",), ("product",), ("fc",)]
        assert [node.computes for node in nodes] == [False, True, False, True, False, True, False]


def test_words_for_precisions() -> None:
    assert [openvino.hint(p) for p in (FP32, Precision.BF16, Precision.FP16)] == ["f32", "bf16", "f16"]
    assert not openvino.executes_as(INT8, "f32")
    assert not openvino.executes_as(FP32, "bf16")
    assert not openvino.executes_as(INT8, "")
    assert all(openvino.executes_as(INT8, word) for word in INT8_WORDS)


def test_recurrent_int8_is_not_what_the_pairs_say(tmp_path: Path) -> None:
    """Why the backend does not offer it: when this fails, OpenVINO has learnt it, and `quantized_op_types` may grow."""
    source = case("gru")
    plan = {one.name: INT8 for one in source.graph.layers if one.op_type == "GRU"}
    names = [tensor.name for tensor in source.graph.outputs]
    sample = source.data.sample(0)
    try:
        session = openvino.session(openvino.convert(source.write(plan), tmp_path, FP32), 1, names)
    except InputError:
        return
    assert sqnr_db(session(sample), run(source.write(plan), sample)) < 30


def test_recurrent_weight_only_does_not_compile_beside_int8(tmp_path: Path) -> None:
    """Why w8 is not offered for it either: when this fails, it may be."""
    source = case("lstm")
    plan = {one.name: W8 if one.op_type == "LSTM" else INT8 for one in source.graph.layers}
    artifact = openvino.convert(source.write(plan), tmp_path, FP32)
    with pytest.raises(InputError, match="OpenVINO cannot compile the model: LSTMSequence"):
        openvino.session(artifact, 1, [tensor.name for tensor in source.graph.outputs])


def test_backends_by_name() -> None:
    assert backend("openvino") is openvino  # type: ignore[comparison-overlap]
    with pytest.raises(InputError, match="unknown backend 'openwine'") as caught:
        backend("openwine")
    assert "openvino" in caught.value.hint


def test_converting_tells_nobody_of_it(tmp_path: Path) -> None:
    """OpenVINO sends a note home when it is first imported; other libraries may load what it sends it with."""
    told = tmp_path / "told"
    (tmp_path / "openvino_telemetry.py").write_text(f"open({str(told)!r}, 'w').close()\n")
    (tmp_path / "model.onnx").write_bytes(conv_net().SerializeToString())
    program = """if True:
        import sys
        from pathlib import Path
        from edgekit.backends import openvino
        from edgekit.types import Precision
        here = Path(sys.argv[1])
        openvino.convert((here / "model.onnx").read_bytes(), here / "out", Precision.FP32)
        assert not (here / "told").exists()
        import openvino_telemetry
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=True, timeout=120)
    assert told.exists()
