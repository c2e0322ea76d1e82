"""The host side of the TensorRT backend: what it writes for each release, and what that computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit import backends, releases
from edgekit.backends import Artifact
from edgekit.backends.proxy import compile_proxy, compiled_types
from edgekit.backends.tensorrt import TensorRT
from edgekit.compress.half import label_types, magnitudes, unsafe_in_half
from edgekit.compress.qdq import apply_precisions
from edgekit.compress.symmetric import around_zero
from edgekit.errors import InputError
from edgekit.graph import to_bytes
from edgekit.toolchains import problem
from edgekit.types import Precision
from tests.quantized import CASES, Case, case, case_of, run, sqnr_db
from tests.zoo import Net

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
NANO, XAVIER, ORIN = ("jetpack-4.6", "jetpack-4.6.1"), ("jetpack-5.0.2", "jetpack-5.1"), ("jetpack-6.1",)


def adapter(*names: str) -> TensorRT:
    known = releases.releases()
    return TensorRT(tuple(known[name] for name in names), "8.7")


def hub(source: Case, plan: Mapping[str, Precision], single: Mapping[str, str] | None = None) -> bytes:
    """A plan as the backend takes it: ranges around zero, types in the metadata."""
    ranges = {name: around_zero(bounds) for name, bounds in source.ranges.items()}
    model = apply_precisions(source.graph, plan, ranges)
    if single is None:
        single = unsafe_in_half(source.graph, magnitudes(source.graph, source.data))
    label_types(model, source.names, plan, single)
    return to_bytes(model)


def able(source: Case) -> dict[str, Precision]:
    kinds = adapter(*ORIN).quantized_op_types[INT8]
    return {layer.name: INT8 for layer in source.graph.layers if layer.op_type in kinds}


def build_of(made: Artifact) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(made.path.with_name("build.json").read_text())
    return document


def answers(backend: TensorRT, made: Artifact, source: Case) -> dict[str, np.ndarray]:
    return backend.session(made, 1, [one.name for one in source.graph.outputs])(source.data.sample(0))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("names", [NANO, XAVIER, ORIN], ids=["nano", "xavier", "orin"])
def test_numerics_are_those_of_the_plan(name: str, names: tuple[str, ...], tmp_path: Path) -> None:
    source, backend = case(name), adapter(*names)
    exact = run(to_bytes(source.graph.model), source.data.sample(0))
    plain = backend.convert(hub(source, {}), tmp_path / "fp32", FP32)
    assert sqnr_db(answers(backend, plain, source), exact) > 100
    half = backend.convert(hub(source, {}, {}), tmp_path / "fp16", FP16)
    assert 40 < sqnr_db(answers(backend, half, source), exact) < 100
    mixed = backend.convert(hub(source, able(source), {}), tmp_path / "int8", FP16)
    pairs = run(hub(source, able(source)), source.data.sample(0))
    assert sqnr_db(answers(backend, mixed, source), pairs) > 25
    assert mixed.weight_bytes <= half.weight_bytes <= plain.weight_bytes
    build = build_of(mixed)
    assert {row["name"]: row["precision"] for row in build["layers"]} == {
        layer: able(source).get(layer, FP16).value for layer in source.names
    }
    assert build["flags"] == {"fp16": True, "int8": bool(able(source)), "sparsity": False}


@pytest.mark.parametrize("names", [NANO, XAVIER, ORIN], ids=["nano", "xavier", "orin"])
def test_what_is_in_the_file(names: tuple[str, ...], tmp_path: Path) -> None:
    source, backend = case("conv_net"), adapter(*names)
    made = backend.convert(hub(source, able(source)), tmp_path, FP16)
    model, build = onnx.load(made.path), build_of(made)
    onnx.checker.check_model(model, full_check=True)
    version = model.opset_import[0].version
    assert version == build["opset"] == {NANO: 13, XAVIER: 13, ORIN: 19}[names]
    assert model.ir_version <= {13: 7, 19: 9}[version]
    assert not any(node.metadata_props for node in model.graph.node)
    kinds = {w.data_type for w in model.graph.initializer}
    halves = {v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    strong = names is ORIN
    assert (onnx.TensorProto.FLOAT16 in kinds | halves) == strong
    assert onnx.TensorProto.UINT8 not in kinds | halves
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [row["name"] for row in build["releases"]] == list(names)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    source, backend = case("transformer"), adapter(*XAVIER)
    content = hub(source, able(source))
    first, second = (backend.convert(content, tmp_path / word, FP16) for word in "ab")
    assert [file.read_bytes() for file in first.files] == [file.read_bytes() for file in second.files]
    assert backend.artifact(tmp_path / "a", FP16) == first


def loud_net(scale: float = 3000.0) -> Case:
    """Two convolutions with values between them that a half can hold, but not four times as large."""
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", [1, 3, 8, 8]), 3, 4))
    loud = net.op("Mul", y, net.weight(np.array([scale * 20], np.float32)))
    return case_of(net.model([net.conv(net.op("Sigmoid", loud), 4, 4)]))


def test_nodes_that_would_overflow_stay_in_single(tmp_path: Path) -> None:
    source = loud_net()
    single = unsafe_in_half(source.graph, magnitudes(source.graph, source.data))
    assert single
    strong = adapter(*ORIN).convert(hub(source, {}), tmp_path / "strong", FP16)
    exact = run(to_bytes(source.graph.model), source.data.sample(0))
    assert sqnr_db(answers(adapter(*ORIN), strong, source), exact) > 40
    flags = build_of(adapter(*XAVIER).convert(hub(source, {}), tmp_path / "flags", FP16))
    assert flags["layer_precisions"] == dict.fromkeys(single, "fp32")
    with pytest.raises(InputError, match=r"8\.2\.1 cannot keep single layers in fp32.*fp16 holds 65504"):
        adapter(*NANO).convert(hub(source, {}), tmp_path / "nano", FP16)
    assert build_of(adapter(*NANO).convert(hub(source, {}), tmp_path / "fp32", FP32))["single"] == {}


def test_a_layer_that_the_plan_keeps_in_fp32(tmp_path: Path) -> None:
    source = case("conv_net")
    first = source.names[0]
    build = build_of(adapter(*ORIN).convert(hub(source, {first: FP32}), tmp_path, FP16))
    assert [row["precision"] for row in build["layers"]][:2] == ["fp32", "fp16"]
    assert list(build["single"]) == [first]


def test_operators_that_a_release_lacks(tmp_path: Path) -> None:
    net = Net()
    y = net.op("Mod", net.conv(net.input("x", [1, 3, 8, 8]), 3, 4), net.weight(np.array([2], np.float32)), fmod=1)
    source = case_of(net.model([net.conv(net.op("HardSwish", y), 4, 4)]))
    build = build_of(adapter(*XAVIER).convert(hub(source, {}), tmp_path, FP16))
    assert [row["name"] for row in build["releases"]] == ["jetpack-5.1"]
    (refused,) = build["refused"]
    assert refused["name"] == "jetpack-5.0.2"
    assert refused["reason"].startswith("TensorRT 8.4.1 is not known to read Mod (node Mod_")
    with pytest.raises(InputError, match=r"jetpack-4\.6: TensorRT 8\.0\.1 is not known to read Mod") as caught:
        adapter(*NANO).convert(hub(source, {}), tmp_path / "nano", FP16)
    assert "newer releases" in caught.value.hint
    assert not (tmp_path / "nano").exists()


@pytest.mark.parametrize(("names", "word"), [(NANO, "int32"), (ORIN, "int64")])
def test_integers_as_the_engine_binds_them(names: tuple[str, ...], word: str, tmp_path: Path) -> None:
    net = Net()
    ids = net.input("ids", [1, 4], onnx.TensorProto.INT64)
    source = case_of(net.model([net.op("MatMul", net.op("Gather", net.random(16, 8), ids), net.random(8, 3))]))
    build = build_of(adapter(*names).convert(hub(source, {}), tmp_path, FP16))
    assert build["inputs"] == [{"name": "ids", "dtype": word, "shape": [1, 4]}]
    assert [row["dtype"] for row in build["outputs"]] == ["float32"]


def test_odd_names(tmp_path: Path) -> None:
    source = case_of(_renamed())
    build = build_of(adapter(*NANO).convert(hub(source, {}), tmp_path, FP32))
    assert build["names"] == {"a_b": "a:b", "c__d": "c, d"}
    assert [row["name"] for row in build["layers"]] == ["a:b", "c, d"]


def _renamed() -> onnx.ModelProto:
    net = Net()
    y = net.conv(net.input("x", [1, 3, 8, 8]), 3, 4)
    model: onnx.ModelProto = net.model([net.conv(net.op("Relu", y), 4, 4)])
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for node, name in zip(convolutions, ["a:b", "c, d"], strict=True):
        node.name = name
    return model


def test_compressed_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be stored with compressed weights"):
        adapter(*NANO).compress(tmp_path)


def test_types_are_read_from_a_layer_table() -> None:
    rows = [
        {"kind": "kgen", "nodes": ["a"], "inputs": ["fp32"], "constants": []},
        {"kind": "correlation", "nodes": ["a", "relu"], "inputs": ["int8", "fp16"], "constants": ["int8"]},
        {"kind": "kgen", "nodes": ["b_c"], "inputs": ["int64", "fp32", "fp16"], "constants": []},
        {"kind": "kgen", "nodes": ["d_e/w/dequantize"], "inputs": [], "constants": ["fp16", "int4"]},
        {"kind": "runtime_fusion", "nodes": ["d_e"], "inputs": ["fp16", "fp16"], "constants": []},
        {"kind": "runtime_fusion", "nodes": ["f", "g"], "inputs": ["fp16"], "constants": ["int4", "fp16"]},
        {"kind": "kgen", "nodes": ["f/w", "h"], "inputs": ["fp16"], "constants": []},
    ]
    names = ("a", "b:c", "gone", "d:e", "f", "g", "h")
    build = {"names": {"b_c": "b:c", "d_e": "d:e"}, "layers": [{"name": name} for name in names]}
    assert compiled_types(rows, build) == {"a": "int8", "b:c": "fp16", "d:e": "w4", "f": "w4", "g": "w4", "h": "fp16"}


@pytest.mark.slow
@pytest.mark.skipif(bool(problem("tensorrt-rtx")), reason="the toolchain tensorrt-rtx is not installed")
@pytest.mark.parametrize("name", ["conv_net", "transformer", "inverted_residual"])
@pytest.mark.parametrize("names", [XAVIER, ORIN], ids=["xavier", "orin"])
def test_tensorrt_for_rtx_compiles_the_planned_types(name: str, names: tuple[str, ...], tmp_path: Path) -> None:
    source = case(name)
    half = dict(list(able(source).items())[::2])
    for word, plan in (("fp16", {}), ("int8", able(source)), ("mixed", half)):
        report = compile_proxy(adapter(*names).convert(hub(source, plan), tmp_path / word, FP16))
        assert report.accepted, report.reason
        assert not report.conformance.mismatches
        assert report.conformance.matched == report.conformance.planned > 0


def matrices(inner: int = 256, outer: int = 192) -> Case:
    """Two products, with the weights either way round; the second's inner size is the first's outer."""
    net = Net()
    y = net.op("Relu", net.op("MatMul", net.input("x", [4, inner]), net.random(inner, outer)))
    return case_of(net.model([net.op("Gemm", y, net.random(64, outer), net.random(64), transB=1)]))


def four_bits(source: Case) -> dict[str, Precision]:
    return dict.fromkeys(source.names, Precision.W4)


@pytest.mark.parametrize(("inner", "outer"), [(256, 192), (96, 40), (50, 6), (33, 8)])
@pytest.mark.parametrize("base", [FP32, FP16])
def test_four_bit_weights_keep_their_values(inner: int, outer: int, base: Precision, tmp_path: Path) -> None:
    source, backend = matrices(inner, outer), adapter(*ORIN)
    made = backend.convert(hub(source, four_bits(source), {}), tmp_path / "w4", base)
    pairs = run(hub(source, four_bits(source)), source.data.sample(0))
    assert sqnr_db(answers(backend, made, source), pairs) > (100 if base is FP32 else 45)
    model = onnx.load(made.path)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 21
    packed = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT4]
    assert [list(one.dims) for one in packed] == [[inner, outer], [64, outer]]
    assert [row["precision"] for row in build_of(made)["layers"]] == ["w4", "w4"]
    whole = backend.convert(hub(source, {}, {}), tmp_path / "float", base)
    if inner >= 96:
        bits = 32 if base is FP32 else 16
        assert made.weight_bytes < whole.weight_bytes * 5.5 / bits


def test_only_some_layers_in_four_bits(tmp_path: Path) -> None:
    source, backend = matrices(), adapter(*ORIN)
    first, second = source.names
    made = backend.convert(hub(source, {first: Precision.W4, second: INT8}, {}), tmp_path, FP16)
    assert [row["precision"] for row in build_of(made)["layers"]] == ["w4", "int8"]
    types = sorted(one.data_type for one in onnx.load(made.path).graph.initializer if len(one.dims) == 2)
    assert types == sorted([onnx.TensorProto.INT4, onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16])


def test_odd_columns_are_left_in_float() -> None:
    source = matrices(33, 7)  # [33, 7], and [64, 7] the other way round
    assert backends.able(source.graph, adapter(*ORIN), Precision.W4) == ()
    source = matrices(33, 6)
    assert backends.able(source.graph, adapter(*ORIN), Precision.W4) == tuple(source.names)


@pytest.mark.parametrize("names", [NANO, XAVIER], ids=["nano", "xavier"])
def test_releases_without_four_bits_refuse_them(names: tuple[str, ...], tmp_path: Path) -> None:
    source = matrices()
    with pytest.raises(InputError, match="has no 4-bit weights"):
        adapter(*names).convert(hub(source, four_bits(source), {}), tmp_path, FP16)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(bool(problem("tensorrt-rtx")), reason="the toolchain tensorrt-rtx is not installed")
@pytest.mark.parametrize(("inner", "outer"), [(256, 192), (96, 40), (50, 6), (33, 8)])
@pytest.mark.parametrize("base", [FP32, FP16])
def test_tensorrt_for_rtx_multiplies_by_four_bits(inner: int, outer: int, base: Precision, tmp_path: Path) -> None:
    source = matrices(inner, outer)
    report = compile_proxy(adapter(*ORIN).convert(hub(source, four_bits(source), {}), tmp_path, base))
    assert report.accepted, report.reason
    assert set(report.layers.values()) == {"w4"}
    assert report.conformance.matched == report.conformance.planned == 2


@pytest.mark.slow
@pytest.mark.skipif(bool(problem("tensorrt-rtx")), reason="the toolchain tensorrt-rtx is not installed")
def test_tensorrt_for_rtx_says_what_it_does_not_take(tmp_path: Path) -> None:
    source, backend = case("conv_net"), adapter(*ORIN)
    made = backend.convert(hub(source, {}), tmp_path, FP16)
    model = onnx.load(made.path)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Unknown"
    onnx.save(model, made.path)
    report = compile_proxy(made)
    assert not report.accepted
    assert "Unknown" in report.reason
    assert report.conformance.planned == 0
