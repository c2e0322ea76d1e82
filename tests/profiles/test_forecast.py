"""Boards that nobody has at hand: what is said of them comes from their profiles, and never reads as measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from edgekit import catalog
from edgekit.cost.profile import predict_from_profile
from edgekit.cost.table import total_ms
from edgekit.graph import Graph, load
from edgekit.profiles.forecast import device_info, forecast_costs, forecast_floats
from edgekit.types import Precision
from tests import zoo
from tests.command import Desk

FP32, INT8 = Precision.FP32, Precision.INT8
BOARD = ("--target", "intel-n100")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """As much arithmetic as the networks that the Raspberry Pi 4's costs were fitted on."""
    net = zoo.Net()
    value = net.input("x", (1, 3, 224, 224))
    for cin, cout in ((3, 32), (32, 64), (64, 128), (128, 256)):
        value = net.op("Relu", net.conv(value, cin, cout, 3 if cin == 3 else 1, stride=2))
    path = tmp_path_factory.mktemp("forecast") / "model.onnx"
    onnx.save(net.model([value]), path)
    return load(path)


def test_costs_of_a_measured_board_have_an_interval_and_int8(graph: Graph) -> None:
    target = replace(catalog.target("host-tflite"), device_profile="raspberry-pi-4", transport="ssh")
    profile = catalog.device_profile("raspberry-pi-4")
    table = forecast_costs(graph, target, profile, 4, FP32, weight_only=True).table
    assert not table.unknown
    for layer in graph.layers:
        row = table.latency_ms[layer.name]
        assert set(row) >= {FP32, INT8, Precision.W8}
        assert row[Precision.W8] == row[FP32], "weights are unpacked when they are loaded"
    figure = table.figure(total_ms(table, graph.edges, dict.fromkeys(table.latency_ms, FP32)))
    assert figure.low is not None
    assert figure.high is not None
    assert 0 < figure.low < (figure.value or 0) < figure.high
    assert device_info(target, profile, 4).machine == "raspberry-pi-4"


def test_what_nobody_measured_on_a_board_is_not_offered(graph: Graph) -> None:
    """Weights in w8 are unpacked at load; LiteRT's kernels for w4 and int16x8 are slow, and how slow is not known."""
    target, profile = catalog.target("raspberry-pi-4"), catalog.device_profile("raspberry-pi-4")
    costs = forecast_costs(graph, target, profile, 4, FP32, weight_only=True)
    assert all(set(row) == {FP32, INT8, Precision.W8} for row in costs.table.latency_ms.values())
    assert [row.option for row in costs.dropped] == ["int16x8", "w4"]
    unsized = forecast_costs(graph, target, profile, 4, FP32, weight_only=False)
    assert all(set(row) == {FP32, INT8} for row in unsized.table.latency_ms.values())


def test_a_board_like_none_that_was_measured_compares_options_and_says_no_latency(graph: Graph) -> None:
    target, profile = catalog.target("intel-n100"), catalog.device_profile("intel-n100")
    table = forecast_costs(graph, target, profile, 4, FP32, weight_only=False).table
    assert "no float latencies of boards like intel-n100" in table.unknown
    assert table.figure(1.0).value is None
    for row in table.latency_ms.values():
        assert row[INT8] < row[FP32], "by what the processor was built for"
    ratios, _ = forecast_floats(graph, target, profile, 4)
    assert ratios == {FP32: 1.0}


def test_no_latency_is_promised_where_none_is_known(desk: Desk) -> None:
    done = desk.run("plan", "model.onnx", *BOARD, "--data", "data.npz", "--latency", "5ms")
    assert done.code == 2
    assert "--latency cannot be promised: no float latencies of boards like intel-n100" in done.err
    assert "--host" in done.err


@pytest.mark.slow
def test_a_deployment_without_the_board_measures_nothing_on_it(desk: Desk) -> None:
    done = desk.succeed("deploy", "model.onnx", *BOARD, "--data", "data.npz", "--json")
    document = done.document
    for candidate in document["candidates"]:
        assert candidate["kind"] == "none"
        assert candidate["latency_ms"]["p50"] is None
        assert candidate["latency_ms"]["n"] == 0
        assert candidate["speedup"]["value"] is None
    assert document["plan"]["predicted"]["latency_ms"]["kind"] == "none"
    assert document["conformance"]["matched"] == 0
    assert "was not at hand" in document["conformance"]["unknown"]
    assert document["prediction"] is None
    assert any("nothing was measured on it" in line for line in document["warnings"])
    assert {row["latency_kind"] for row in document["layers"]} == {"none"}
    assert "fastest" not in document["chosen_reason"]
    page = (desk.folder / "bundle/report.html").read_text()
    assert "Raced on" not in page
    assert "measured inside the network" not in page
    assert "read back from the compiled model" not in page
    assert "governor" not in page
    text = desk.succeed("report", "bundle").out
    assert "measured on this device" not in text
    assert "latencies none: no float latencies of boards like intel-n100" in " ".join(text.split())
    bench = desk.run("bench", "bundle")
    assert bench.code == 2
    assert "--host" in bench.err


@pytest.mark.slow
def test_a_bundle_for_a_board_is_verified_without_it(desk: Desk) -> None:
    """Its test vectors run here, as they did when they were made."""
    if not (desk.folder / "bundle").exists():
        desk.succeed("deploy", "model.onnx", *BOARD, "--data", "data.npz")
    assert "test vectors pass" in desk.succeed("verify", "bundle").out
    found = desk.succeed("verify", "bundle", "--json").document
    assert (found["ok"], found["vectors_run"]) == (True, True)


def test_what_is_predicted_names_its_evidence(desk: Desk) -> None:
    model = zoo.conv_net(size=224)
    onnx.save(model, desk.folder / "large.onnx")
    found = desk.succeed("predict", "large.onnx", *BOARD, "--precision", "int8", "--json").document
    figure = found["latency_ms"]
    assert figure["kind"] in ("predicted", "none")
    if figure["kind"] == "predicted":
        assert figure["low"] < figure["value"] < figure["high"]
    assert "intel-n100" in found["profile"]["evidence"] or "outside" in found["profile"]["evidence"]
    assert all(math.isfinite(row["latency_ms"]) for row in found["layers"] if row["latency_ms"] is not None)


def test_fp8_is_taken_to_be_as_fast_as_int8_and_is_for_products_alone(tmp_path: Path) -> None:
    """Where the profile names its peak; nobody has published a row of it."""
    net = zoo.Net()
    value = net.conv(net.input("x", (1, 16, 128, 384)), 16, 16)
    for _ in range(2):
        value = net.op("MatMul", value, net.random(384, 384))
    onnx.save(net.model([value]), tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    fp8, fp16 = Precision.FP8, Precision.FP16
    target, profile = catalog.target("jetson-thor"), catalog.device_profile("jetson-agx-thor")
    table = forecast_costs(graph, target, profile, 1, fp16, weight_only=False).table
    assert not table.unknown
    for layer in graph.layers:
        row = table.latency_ms[layer.name]
        assert (fp8 in row) == (layer.op_type == "MatMul")
        assert row.get(fp8, row[INT8]) == row[INT8]
    assert "fp8: taken to come as near its peak as int8: no published rows here" in table.evidence
    convolution, *products = (layer.name for layer in graph.layers)
    plans = [
        {convolution: fp16, **dict(zip(products, two, strict=True))} for two in ((INT8, INT8), (fp8, INT8), (fp8, fp8))
    ]
    whole, mixed, floats = (predict_from_profile(graph, plan, profile, "tensorrt") for plan in plans)
    assert whole.value == pytest.approx(mixed.value) == pytest.approx(floats.value)
    orin = catalog.device_profile("jetson-agx-orin")
    assert predict_from_profile(graph, plans[2], orin, "tensorrt").source.startswith("outside what was measured: fp8")
