from __future__ import annotations

import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import toolchains
from edgekit.backends import Artifact, tflite
from edgekit.compress.qdq import apply_precisions
from edgekit.cost import measured
from edgekit.devices import local
from edgekit.devices.race import Device
from edgekit.errors import DeviceError, InputError
from edgekit.graph import to_bytes
from edgekit.job import prepare
from edgekit.types import Precision
from edgekit.workbench.stages import Workbench
from tests.backends.tflite_cases import (
    FP16,
    FP32,
    INT8,
    INT16X8,
    RUNNER,
    W4,
    W8,
    expected,
    gated,
    glued,
    hub,
    misnamed,
    offered,
    rows_of,
    words,
)
from tests.command import fill
from tests.graph.nets import load_model
from tests.quantized import Case, case, case_of, run, sqnr_db
from tests.zoo import Net


def runner_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tflite_runner", RUNNER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    kept = sys.dont_write_bytecode
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = kept
    return module


@pytest.mark.parametrize("name", ["inverted_residual", "conv_net", "transformer"])
class TestTakeApart:
    def test_weights_are_the_floats_that_their_codes_stand_for(self, name: str) -> None:
        source = case(name)
        content = hub(source, offered(source, W8))
        parts = tflite.take_apart(content)
        sample = source.data.sample(0)
        assert sqnr_db(run(to_bytes(parts.model), sample), run(content, sample)) > 100
        assert not {node.op_type for node in parts.model.graph} & {"QuantizeLinear", "DequantizeLinear"}
        assert parts.nodes == offered(source, W8)

    def test_nothing_of_the_float_graph_is_lost_or_doubled(self, name: str) -> None:
        source = case(name)
        parts = tflite.take_apart(hub(source, offered(source, INT8)))
        kinds = sorted(node.op_type for node in parts.model.graph)
        assert kinds == sorted(node.op_type for node in source.graph.model.graph)
        assert {node.name for node in parts.model.graph} >= set(source.names)
        assert [one.name for one in parts.model.graph.outputs] == [one.name for one in source.graph.outputs]
        for low, high in parts.ranges.values():
            assert low <= 0 <= high


class TestRunnerRefuses:
    """What a runtime is known to compute wrongly, it is not asked to."""

    @pytest.mark.parametrize(
        ("row", "package", "version", "refused"),
        [
            ({"op": "BATCH_MATMUL", "precision": "int8"}, "ai-edge-litert", "2.1.2", True),
            ({"op": "BATCH_MATMUL", "precision": "int8"}, "ai-edge-litert", "2.3.0", False),
            ({"op": "BATCH_MATMUL", "precision": "fp32"}, "ai-edge-litert", "2.1.2", False),
            ({"op": "BATCH_MATMUL", "precision": "int8"}, "tflite-runtime", "2.14.0", False),
            ({"op": "DEPTHWISE_CONV_2D", "precision": "int8 by ranges at run time"}, "tflite-runtime", "2.14.0", True),
            ({"op": "DEPTHWISE_CONV_2D", "precision": "int8"}, "tflite-runtime", "2.14.0", False),
            ({"op": "CONV_2D", "precision": "w4"}, "tflite-runtime", "2.14.0", True),
            ({"op": "CONV_2D", "precision": "w4"}, "ai-edge-litert", "2.3.0", False),
        ],
    )
    def test_known_cases(self, row: dict[str, str], package: str, version: str, refused: bool) -> None:
        assert (runner_module().refusal([row], package, version) is not None) is refused


def test_compressed_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="compressed"):
        tflite.compress(tmp_path)


@pytest.fixture(scope="session")
def converter() -> None:
    """The toolchain in the cache of whoever runs the tests, made where it is not there."""
    toolchains.ensure("tflite")


@pytest.fixture(scope="module")
def mixed(converter: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, dict[str, Precision], Artifact]:
    """A small MobileNet whose layers take turns in fp32, int8 and w8."""
    source = case("inverted_residual")
    plan = {name: (FP32, INT8, W8)[place % 3] for place, name in enumerate(source.names)}
    return source, plan, tflite.convert(hub(source, plan), tmp_path_factory.mktemp("mixed"), FP32)


@pytest.mark.slow
class TestConvert:
    @pytest.mark.parametrize(
        "name",
        ["conv_net", "inverted_residual", "grouped_conv", "conv_transpose", "squeeze_excite", "transformer", "lstm"],
    )
    def test_int8_conforms_and_computes_what_its_pairs_say(self, name: str, converter: None, tmp_path: Path) -> None:
        source = case(name)
        plan = offered(source, INT8)
        made = tflite.convert(hub(source, plan), tmp_path, FP32)  # refuses what computes otherwise
        assert words(made, source) == expected(source, plan)
        sample = source.data.sample(0)
        names = [one.name for one in source.graph.outputs]
        assert sqnr_db(tflite.session(made, 1, names)(sample), run(hub(source, plan), sample)) > 20

    def test_an_output_that_is_next_to_nothing_is_no_misreading(self, converter: None, tmp_path: Path) -> None:
        """A detector that sees nothing says 1e-8: two libraries' sigmoids differ by as much."""
        net = Net()
        y = net.op("Add", net.conv(net.input("x", [1, 3, 16, 16]), 3, 1), net.weight(np.float32(-16)))
        graph = load_model(net.model([net.op("Sigmoid", y)]), tmp_path)
        tflite.convert(to_bytes(graph.model), tmp_path / "made", FP32)

    def test_an_int8_region_is_left_once(self, converter: None, tmp_path: Path) -> None:
        """The residual sum and the padding between int8 convolutions stay in 8 bits."""
        source = case("inverted_residual")
        rows = rows_of(tflite.convert(hub(source, offered(source, INT8)), tmp_path, FP32))
        by_op = {op: [row["precision"] for row in rows if row["op"] == op] for op in ("ADD", "PAD", "TRANSPOSE")}
        assert by_op == {"ADD": ["int8", "fp32"], "PAD": ["int8"], "TRANSPOSE": ["int8"]}  # no layer reads the last sum
        ends = [row["op"] for row in rows if row["op"] in ("QUANTIZE", "DEQUANTIZE")]
        assert ends == ["QUANTIZE", "DEQUANTIZE", "DEQUANTIZE"]

    def test_glue_stays_in_eight_bits(self, converter: None, tmp_path: Path) -> None:
        """Joining, resizing, averaging and summing between int8 layers leave the region nowhere."""
        source = glued()
        plan = offered(source, INT8)
        made = tflite.convert(hub(source, plan), tmp_path, FP32)
        rows = rows_of(made)
        kinds = {"ADD", "CONCATENATION", "RESIZE_NEAREST_NEIGHBOR", "MEAN", "MAX_POOL_2D"}
        assert {row["op"] for row in rows} >= kinds
        assert {row["precision"] for row in rows if row["op"] in kinds} == {"int8"}
        ops = [row["op"] for row in rows]
        assert ops.count("DEQUANTIZE") == 1
        # What the converter leaves around joins, and activations behind transposes, is tidied away.
        beside = {ops[place + step] for place, op in enumerate(ops) if op == "CONCATENATION" for step in (-1, 1)}
        assert "TRANSPOSE" not in beside
        assert "RELU" not in ops
        sample = source.data.sample(0)
        names = [one.name for one in source.graph.outputs]
        assert sqnr_db(tflite.session(made, 1, names)(sample), run(hub(source, plan), sample)) > 30

    def test_gates_stay_in_eight_bits_and_transposes_move_behind_them(self, converter: None, tmp_path: Path) -> None:
        """Functions of one tensor stay float between conversions: XNNPACK makes one table of the whole chain."""
        source = gated()
        plan = offered(source, INT8)
        made = tflite.convert(hub(source, plan), tmp_path, FP32)
        rows = rows_of(made)
        found = {op: {row["precision"] for row in rows if row["op"] == op} for op in ("MEAN", "HARD_SWISH")}
        assert found == {"MEAN": {"int8"}, "HARD_SWISH": {"fp32"}}
        products = [row["precision"] for row in rows if row["op"] == "MUL" and len(row["inputs"]) == 2]
        assert products == ["int8", "int8"]
        turns = [row for row in rows if row["op"] == "TRANSPOSE"]
        assert len(turns) == 2, "the input's and the output's"
        assert words(made, source) == expected(source, plan)
        sample = source.data.sample(0)
        names = [one.name for one in source.graph.outputs]
        assert sqnr_db(tflite.session(made, 1, names)(sample), run(hub(source, plan), sample)) > 30

    def test_glue_beside_a_float_layer_stays_float(self, converter: None, tmp_path: Path) -> None:
        source = glued()
        plan = offered(source, INT8)
        del plan[source.names[1]]  # one of those that the sum adds
        rows = rows_of(tflite.convert(hub(source, plan), tmp_path, FP32))
        assert {row["precision"] for row in rows if row["op"] == "ADD"} == {"fp32"}

    def test_each_layer_gets_its_own_precision(self, mixed: tuple[Case, dict[str, Precision], Artifact]) -> None:
        source, plan, made = mixed
        assert words(made, source) == expected(source, plan)

    def test_names_do_not_mislead(self, converter: None, tmp_path: Path) -> None:
        source = misnamed()
        for turn in (0, 1):
            plan = {name: INT8 for place, name in enumerate(source.names) if place % 2 == turn}
            made = tflite.convert(hub(source, plan), tmp_path / str(turn), FP32)
            assert words(made, source) == expected(source, plan)
            run_it = tflite.session(made, 1, ["n9_out0"])
            assert sqnr_db(run_it(source.data.sample(0)), run(hub(source, plan), source.data.sample(0))) > 20

    def test_a_constant_matrix_has_a_scale_for_each_channel(self, converter: None, tmp_path: Path) -> None:
        """One for each channel ruins an int8 BATCH_MATMUL in silence; as FULLY_CONNECTED it does not."""
        source = case("transformer")
        plan = {layer.name: INT8 for layer in source.graph.layers if layer.op_type == "MatMul" and layer.weights}
        rows = rows_of(tflite.convert(hub(source, plan), tmp_path, FP32))
        found = [row for row in rows if row["layer"] in plan]
        assert {row["op"] for row in found} == {"FULLY_CONNECTED"}
        assert all(row["scales"] > 1 for row in found)
        assert all(row["scales"] <= 1 for row in rows if row["op"] == "BATCH_MATMUL")

    def test_no_program_from_path_is_needed(
        self, converter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """onnx2tf calls ``onnxsim`` from PATH, and goes on with another graph where it is not there."""
        source = case("conv_net")
        content = hub(source, {})
        first = tflite.convert(content, tmp_path / "first", FP32)
        monkeypatch.setenv("PATH", str(tmp_path))
        second = tflite.convert(content, tmp_path / "second", FP32)
        assert first.path.read_bytes() == second.path.read_bytes()
        assert {row["precision"] for row in rows_of(second)} == {"fp32"}

    @pytest.mark.parametrize("name", ["inverted_residual", "transformer"])
    @pytest.mark.parametrize("precision", [INT16X8, W4, None])
    def test_the_rarer_precisions_compute_what_their_pairs_say(
        self, name: str, precision: Precision | None, converter: None, tmp_path: Path
    ) -> None:
        """16-bit activations, 4-bit weights, and (None) both beside int8, tensors read in two widths among them."""
        source = case(name)
        plan = offered(source, precision or INT8)
        if precision is None:
            in_w4 = offered(source, W4)
            turns = {one: (INT8, INT16X8, W4, INT16X8)[place % 4] for place, one in enumerate(plan)}
            plan = {one: p for one, p in turns.items() if p is not W4 or one in in_w4}
        made = tflite.convert(hub(source, plan), tmp_path, FP32)
        assert words(made, source) == expected(source, plan)
        sample = source.data.sample(0)
        names = [one.name for one in source.graph.outputs]
        assert sqnr_db(tflite.session(made, 1, names)(sample), run(hub(source, plan), sample)) > 50

    def test_fp16_stores_half_the_bytes(self, converter: None, tmp_path: Path) -> None:
        source = case("inverted_residual")
        whole = tflite.convert(hub(source, {}), tmp_path / "fp32", FP32)
        half = tflite.convert(hub(source, {}), tmp_path / "fp16", FP16)
        assert words(half, source) == {name: {"fp16"} for name in source.names}
        assert half.weight_bytes < 0.65 * whole.weight_bytes


@pytest.mark.slow
class TestGuards:
    def test_a_file_that_computes_something_else_is_refused(
        self, mixed: tuple[Case, dict[str, Precision], Artifact]
    ) -> None:
        source, plan, made = mixed
        wrong = onnx.load_model_from_string(hub(source, plan))
        for tensor in wrong.graph.initializer:
            if tensor.name.endswith("/scale") and len(tensor.dims) == 1:  # of weights
                array = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(np.flip(array).copy() * np.float32(-1.7), tensor.name))
        content = wrong.SerializeToString()
        parts = tflite.take_apart(content)
        with pytest.raises(InputError, match="computes otherwise than the plan says"):
            tflite._require_numerics(made, content, to_bytes(parts.model), parts)

    def test_an_output_that_the_probe_leaves_silent_proves_nothing(self, converter: None, tmp_path: Path) -> None:
        """As a detector's map does, where the random probe holds nothing to detect."""

        def detector(bias: float) -> bytes:
            net = Net()
            x = net.op("Conv", net.input("x", [1, 3, 8, 8]), net.random(1, 3, 3, 3), net.weight(np.float32([bias])))
            return hub(case_of(net.model([net.op("Sigmoid", x)])), {})

        for bias, silent in ((-12.0, True), (0.0, False)):
            content, other = detector(bias), detector(bias + 1)  # 2.7 times as much, where it is silent
            made = tflite.convert(content, tmp_path / str(bias), FP32)
            with nullcontext() if silent else pytest.raises(InputError, match="computes otherwise"):
                tflite._require_numerics(made, other, other, tflite.take_apart(other))

    def test_a_runtime_without_its_fast_kernels_is_refused(
        self, mixed: tuple[Case, dict[str, Precision], Artifact]
    ) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        made = mixed[2]
        slow = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = Interpreter(str(made.path), experimental_op_resolver_type=slow)
        interpreter.allocate_tensors()
        with pytest.raises(DeviceError, match="without XNNPACK"):
            tflite._require_delegate(interpreter, made)

    def test_what_does_not_run_is_refused(self, converter: None, tmp_path: Path) -> None:
        source = case("gru")
        with pytest.raises(InputError, match="the converted model does not run"):
            tflite.convert(hub(source, {}), tmp_path, FP32)
        assert not (tmp_path / "model.tflite").exists()

    def test_control_flow_is_refused_by_name(self, converter: None, tmp_path: Path) -> None:
        branch = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["r"])], "b", [], [helper.make_empty_tensor_value_info("r")]
        )
        node = helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch, else_branch=branch)
        graph = helper.make_graph(
            [node],
            "g",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]),
                helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        with pytest.raises(InputError, match="If choice: control flow"):
            tflite.convert(model.SerializeToString(), tmp_path, FP32)


@pytest.mark.slow
class TestRunner:
    def test_race_and_profile(self, mixed: tuple[Case, dict[str, Precision], Artifact]) -> None:
        source, _, made = mixed
        device = Device(tflite, lambda job, timeout_s: local.run_job(RUNNER, job, timeout_s), 1)
        info, _ = device.probe()
        assert info.runtime.startswith("ai-edge-litert ")
        raced = device.race({"one": made, "again": made}, 0.4, footprint=True)
        assert raced["again"].latency_ms.p50 > 0
        document = device.run_job(
            {"action": "profile", "models": device._models({"m": made}), "threads": 1, "seconds": 0.01, "compiles": 1},
            120,
        )
        (row,) = document["results"]
        assert sum(node["latency_ms"] for node in row["nodes"]) == pytest.approx(row["whole_ms"])
        nodes = tflite.executed_nodes(row["nodes"], source.graph)
        assert {name for node in nodes if node.computes and node.latency_ms > 0 for name in node.layers} == set(
            source.names
        )


@pytest.mark.parametrize("name", ["conv_net", "inverted_residual", "squeeze_excite"])
def test_results_of_int8_layers_are_quantized_whoever_reads_them(name: str) -> None:
    """At most 256 values, the model's own outputs included; a float layer's stay what they are."""
    source = case(name)
    sample = source.data.sample(0)
    whole = onnx.load_model_from_string(hub(source, offered(source, INT8)))
    made = {value for node in whole.graph.node if node.op_type == "DequantizeLinear" for value in node.output}
    for output in whole.graph.output:
        layer = next((one for one in source.graph.layers if one.output == output.name), None)
        if layer is not None:
            assert output.name in made
            assert len(np.unique(run(whole.SerializeToString(), sample)[output.name])) <= 256
    one = source.names[0]
    alone = run(hub(source, {one: INT8}), sample)
    plain = run(to_bytes(apply_precisions(source.graph, {one: INT8}, source.ranges)), sample)
    reference = run(to_bytes(source.graph.model), sample)
    assert sqnr_db(alone, reference) < sqnr_db(plain, reference) + 3  # its result's noise is in it


@pytest.mark.slow
def test_a_model_in_fp16_is_another_artifact_than_in_fp32(
    converter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come from the same hub model: the cache must not take one for the other."""
    cached = toolchains.toolchain("tflite").environment
    fill(tmp_path)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "toolchains").symlink_to(cached.parent)
    job = prepare(tmp_path / "model.onnx", "host-tflite", data=tmp_path / "data.npz")
    bench = Workbench(job)
    whole, half = (bench.artifact({}, base) for base in (FP32, FP16))
    assert {row["precision"] for row in rows_of(half) if row["layer"]} == {"fp16"}
    assert half.weight_bytes < whole.weight_bytes


@pytest.mark.slow
@pytest.mark.parametrize("sized", [True, False])
def test_rarer_precisions_are_offered_where_bytes_are_asked_for(
    sized: bool, converter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "_PROFILE_S", 0.02)
    monkeypatch.setattr(measured, "_RACE_S", 0.2)
    source = case("inverted_residual")
    place = (tmp_path / str(number) for number in range(99))
    device = Device(tflite, lambda job, timeout_s: local.run_job(RUNNER, job, timeout_s), 1)
    costs = measured.measure_costs(
        source.graph,
        device,
        lambda plan, base: tflite.convert(hub(source, plan), next(place), base),
        FP32,
        offered=(FP32, INT8, INT16X8, W8, W4),
        weight_only=sized,
        interval=0.1,
    )
    found = {p: {name for name, row in costs.table.latency_ms.items() if p in row} for p in (INT16X8, W4)}
    refused = {option.option: option.reason for option in costs.dropped if option.scope == "model"}
    if sized:
        assert found == {p: set(offered(source, p)) for p in (INT16X8, W4)}
        assert found[W4] < found[INT16X8], "depthwise convolutions have no 4-bit weights"
        for precision, names in found.items():
            total = sum(row.get(precision, row[FP32]) for row in costs.table.latency_ms.values())
            assert 0 < total <= costs.table.anchors_ms[precision] + costs.table.anchors_ms[FP32]
            assert all(costs.table.latency_ms[name][precision] >= 0 for name in names)
    else:
        assert found == {INT16X8: set(), W4: set()}
        assert "the time of fp32 on this device, and no budget of bytes asks for it" in refused["int16x8"]
