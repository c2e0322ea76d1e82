"""Models for Jetson boards that nobody has at hand: planned, judged here and packed; nothing reads as measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit import catalog
from edgekit.graph import Graph, load
from edgekit.profiles.forecast import forecast_costs, forecast_floats
from edgekit.types import Precision
from tests import zoo
from tests.command import Desk

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
DATA = ("--data", "data.npz", "--eval", "eval.npz", "--no-prune", "--json")


def test_a_nano_is_planned_without_int8_and_says_why(desk: Desk) -> None:
    planned = desk.succeed("plan", "model.onnx", "--target", "jetson-nano", *DATA).document
    assert {layer["precision"] for layer in planned["plan"]["layers"]} == {"fp16"}
    dropped = {row["option"]: row["reason"] for row in planned["options_dropped"]}
    assert dropped["int8"] == "TensorRT has no int8 for compute capability 5.3 (its support matrix)"
    assert planned["plan"]["predicted"]["latency_ms"]["kind"] in ("predicted", "none")


@pytest.mark.slow
@pytest.mark.parametrize(("target", "typing"), [("jetson-xavier-nx", "flags"), ("jetson-orin-nano", "strong")])
def test_a_bundle_without_the_board(desk: Desk, target: str, typing: str) -> None:
    done = desk.succeed(
        "deploy", "model.onnx", "--target", target, *DATA, "--max-drop", "20%", "--out", "bundle"
    ).document
    assert {candidate["kind"] for candidate in done["candidates"]} <= {"predicted", "none"}
    assert {"float", "fp16", "int8"} <= {candidate["name"] for candidate in done["candidates"]}
    assert done["conformance"]["matched"] == 0
    assert "not at hand" in done["conformance"]["unknown"]
    bundle = desk.folder / "bundle"
    build = json.loads((bundle / "build.json").read_text())
    assert build["typing"] == typing
    chosen = {layer["name"]: layer["precision"] for layer in done["plan"]["layers"]}
    assert {layer["name"]: layer["precision"] for layer in build["layers"]} == chosen
    onnx.checker.check_model(onnx.load(bundle / "model.onnx"), full_check=True)


@pytest.mark.slow
def test_two_of_four_weights_zero_where_only_halves_are_left(desk: Desk) -> None:
    """Matrices that are nearly so, and large enough for the kernels that skip zeros; the small one is left alone."""
    net = zoo.Net()
    value = net.input("x", [16, 256])
    for outer in (256, 512, 32):
        inner = {256: 256, 512: 256, 32: 512}[outer]
        weight = net.rng.standard_normal((inner, outer)) / 16
        weight[np.arange(inner) % 4 >= 2] *= 0.03
        value = net.op("Relu", net.op("MatMul", value, net.weight(weight)))
    onnx.save(net.model([value]), desk.folder / "matrices.onnx")
    np.savez(desk.folder / "rows.npz", x=net.rng.standard_normal((24, 16, 256)).astype(np.float32))
    overlay = desk.folder / "boards" / "targets" / "halves"
    overlay.mkdir(parents=True)
    (overlay / "target.toml").write_text('extends = "jetson-orin-nano"\nprecisions = ["fp32", "fp16"]\n')
    asked = ("--target", "halves", "--overlay", "boards", "--data", "rows.npz", "--max-drop", "20%", "--no-prune")
    done = desk.succeed("deploy", "matrices.onnx", *asked, "--json", "--out", "bundle").document
    assert [layer["mask"] for layer in done["plan"]["layers"]] == ["2:4", "2:4", "none"]
    held = {
        one.name: onnx.numpy_helper.to_array(one)
        for one in onnx.load(desk.folder / "bundle/model.onnx").graph.initializer
    }
    masked = [array for array in held.values() if array.ndim == 2 and min(array.shape) >= 256]
    assert len(masked) == 2
    for array in masked:
        assert (np.count_nonzero(array.reshape(-1, 4, array.shape[1]), axis=1) <= 2).all()
    assert "build --sparsity=enable" in (desk.folder / "bundle/board.txt").read_text().splitlines()


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """As large as the networks that the boards' costs were fitted on."""
    net = zoo.Net()
    value = net.input("x", (1, 3, 224, 224))
    for cin, cout in ((3, 64), (64, 128), (128, 256), (256, 512)):
        value = net.op("Relu", net.conv(value, cin, cout, 3, stride=2))
    onnx.save(net.model([value]), tmp_path / "model.onnx")
    return load(tmp_path / "model.onnx")


def test_layers_that_must_be_single_cost_what_they_cost_in_fp32(graph: Graph) -> None:
    target, profile = catalog.target("jetson-orin-nano"), catalog.device_profile("jetson-orin-nano")
    ratios, _ = forecast_floats(graph, target, profile, 1)
    assert next(iter(ratios)) is FP16
    names = [layer.name for layer in graph.layers]
    half = forecast_costs(graph, target, profile, 1, FP16, weight_only=False).table
    whole = forecast_costs(graph, target, profile, 1, FP32, weight_only=False).table
    mixed = forecast_costs(graph, target, profile, 1, FP16, weight_only=False, single=names[:1]).table
    assert mixed.floats == {names[0]: FP32, **dict.fromkeys(names[1:], FP16)}
    assert set(mixed.latency_ms[names[0]]) == {FP32}
    assert INT8 in mixed.latency_ms[names[1]]
    assert mixed.latency_ms[names[0]][FP32] == whole.latency_ms[names[0]][FP32]
    total = sum(mixed.latency_ms[name][mixed.floats[name]] for name in names)
    assert mixed.anchors_ms[FP16] == pytest.approx(total)
    assert half.anchors_ms[FP16] < mixed.anchors_ms[FP16] < whole.anchors_ms[FP32]


def test_half_precision_is_tried_where_only_arithmetic_compares(tmp_path: Path) -> None:
    """A network so small that no published fp32 latency reaches it: no latency, but fp16 halves the arithmetic."""
    net = zoo.Net()
    onnx.save(net.model([net.conv(net.input("x", (1, 3, 16, 16)), 3, 8)]), tmp_path / "model.onnx")
    target, profile = catalog.target("jetson-nano"), catalog.device_profile("jetson-nano")
    small = load(tmp_path / "model.onnx")
    ratios, dropped = forecast_floats(small, target, profile, 1)
    assert ratios[FP16] == pytest.approx(0.5)
    assert not dropped
    assert forecast_costs(small, target, profile, 1, FP16, weight_only=False).table.unknown


@pytest.mark.slow
def test_thor_takes_fp8_where_int8_is_too_coarse(desk: Desk) -> None:
    """Inputs of which a few are a thousand times larger: one step of int8 for all of them loses the small ones."""
    net = zoo.Net()
    value = net.input("x", [16, 64])
    loud = np.where(np.arange(64) % 16, 1.0, 1000.0)
    value = net.op("MatMul", value, net.weight(net.rng.standard_normal((64, 64)) / loud[:, None]))
    value = net.op("MatMul", net.op("Relu", value), net.random(64, 32))
    onnx.save(net.model([value]), desk.folder / "matrices.onnx")
    np.savez(desk.folder / "rows.npz", x=(net.rng.standard_normal((24, 16, 64)) * loud).astype(np.float32))
    asked = ("--target", "jetson-thor", "--data", "rows.npz", "--max-drop", "20%", "--no-prune", "--json")
    done = desk.succeed("deploy", "matrices.onnx", *asked, "--out", "bundle").document
    assert [layer["precision"] for layer in done["plan"]["layers"]] == ["fp8", "int8"]
    build = json.loads((desk.folder / "bundle/build.json").read_text())
    assert [layer["precision"] for layer in build["layers"]] == ["fp8", "int8"]
    refused = desk.run("predict", "matrices.onnx", "--target", "jetson-agx-orin", "--precision", "fp8")
    assert refused.code == 2
    assert "fp8" in refused.complaint[0]
