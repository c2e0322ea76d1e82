"""Targets that put the network on a Jetson's deep learning accelerator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from edgekit import catalog, releases
from edgekit.errors import InputError
from edgekit.types import Precision
from tests import zoo
from tests.command import Desk

ON_DLA = {name: one for name, one in catalog.targets().items() if one.accelerator}
NX = ("--target", "jetson-xavier-nx-dla")
DATA = ("--data", "data.npz", "--eval", "eval.npz", "--no-prune", "--json")


def test_every_board_that_can_has_one() -> None:
    """And the board's other target names it."""
    able = {board for one in releases.releases().values() if one.typing == "flags" for board in one.dla}
    assert set(ON_DLA) == {f"{board}-dla" for board in able}
    for name, target in ON_DLA.items():
        assert target.accelerator == "dla"
        named = releases.releases_of(target)
        assert all(target.device_profile in one.dla and one.typing == "flags" for one in named)
        board = catalog.target(name.removesuffix("-dla"))
        assert name in releases.lacking(board, catalog.device_profile(target.device_profile))["dla"]
    without = catalog.target("jetson-orin-nano")
    assert "dla" not in releases.lacking(without, catalog.device_profile("jetson-orin-nano"))


@pytest.mark.parametrize("name", ON_DLA)
def test_it_computes_halves_and_says_why_no_int8(name: str) -> None:
    known, target = releases.accelerator("dla"), ON_DLA[name]
    assert known.sources
    assert set(target.precisions) == {Precision.FP32, *known.precisions}
    assert releases.offered(replace(target, precisions=(*target.precisions, Precision.INT8))) == target
    why = releases.lacking(target, catalog.device_profile(target.device_profile))
    assert why["int8"].startswith("up to TensorRT 8 the accelerator takes no Q/DQ pairs")
    assert set(why) <= {"int8", "w4"}, "what the GPU lacks is not asked for"


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ('extends = "jetson-nano"', "jetpack-4.6 has no dla to use on jetson-nano", "leave out the key"),
        (
            'extends = "jetson-orin-nx"\nreleases = ["jetpack-5.0.2"]',
            "jetpack-5.0.2 has no dla to use on jetson-orin-nx",
            'releases = ["jetpack-5.1"]',
        ),
        (
            'extends = "jetson-agx-orin"',
            "networks for jetpack-6.1 (TensorRT 10.3.0) carry their own types",
            'releases = ["jetpack-5.0.2", "jetpack-5.1"]',
        ),
        (
            'extends = "jetson-agx-orin"\nreleases = ["jetpack-7.2.2"]',
            "networks for jetpack-7.2.2 (TensorRT 11.4.1) carry their own types",
            'releases = ["jetpack-5.0.2", "jetpack-5.1"]',
        ),
        ('extends = "host"', "does not go with the backend openvino", "examples"),
        (
            'extends = "jetson-xavier-nx"\nsparsity = ["2:4"]',
            'sparsity: "2:4": nothing says what the dla gains from zeros in fp16',
            "examples",
        ),
    ],
)
def test_what_does_not_go_together(text: str, problem: str, hint: str, desk: Desk) -> None:
    folder = desk.folder / "boards/targets/mine"
    folder.mkdir(parents=True)
    (folder / "target.toml").write_text(f'{text}\naccelerator = "dla"\n')
    for command in (("targets", "mine"), ("predict", "model.onnx", "--target", "mine")):
        done = desk.run(*command, "--overlay", "boards")
        assert done.code == 2
        assert len(done.complaint) == 2, "what is wrong, and a hint"
        assert problem in done.complaint[0]
        assert hint in done.complaint[1]


def test_an_accelerator_that_nobody_knows(tmp_path: Path) -> None:
    folder = tmp_path / "targets/mine"
    folder.mkdir(parents=True)
    (folder / "target.toml").write_text('extends = "jetson-xavier-nx"\naccelerator = "npu"\n')
    with pytest.raises(InputError, match="accelerator: must be one of dla, not 'npu'"):
        catalog.target("mine", [tmp_path])


def test_a_target_tells_where_it_runs_and_what_is_missing(desk: Desk) -> None:
    told = " ".join(desk.succeed("targets", "jetson-orin-nx-dla").out.split())
    assert "runs on dla; what that does not compute, on the GPU" in told
    assert "int8: up to TensorRT 8 the accelerator takes no Q/DQ pairs" in told
    document = desk.succeed("targets", "jetson-nano", "--json").document
    assert document["lacking"]["int8"].startswith("TensorRT has no int8 for compute capability 5.3")
    assert document["target"]["accelerator"] == ""


def test_no_latency_of_the_gpu_is_said(desk: Desk) -> None:
    """Of a network that the GPU's costs reach."""
    onnx.save(zoo.conv_net(size=224), desk.folder / "large.onnx")
    on_gpu = desk.succeed("predict", "large.onnx", "--target", "jetson-xavier-nx", "--precision", "fp16", "--json")
    assert on_gpu.document["latency_ms"]["kind"] == "predicted"
    found = desk.succeed("predict", "large.onnx", *NX, "--precision", "fp16", "--json").document
    assert found["latency_ms"]["kind"] == "none"
    assert found["latency_ms"]["source"] == "outside what was measured: tensorrt on the dla of jetson-xavier-nx"
    assert "deep learning accelerator of jetson-xavier-nx" in found["profile"]["evidence"]
    refused = desk.run("plan", "model.onnx", *NX, *DATA, "--latency", "5ms")
    assert refused.code == 2
    assert "--latency cannot be promised: no float latencies of boards like jetson-xavier-nx" in refused.err
    assert "with tensorrt on the dla are known" in refused.err


def test_a_plan_that_would_not_run_there_is_none(desk: Desk) -> None:
    done = desk.run("plan", "model.onnx", *NX, *DATA[:-1], "--metric", "cosine", "--max-drop", "0%")
    assert done.code == 3
    assert "nothing would run on the dla, which has no fp32: fp16 drops the metric" in done.err
    assert "raise --max-drop to 0.1%, or take the target that runs on the board's GPU" in done.err


@pytest.mark.slow
def test_a_bundle_for_it(desk: Desk) -> None:
    done = desk.succeed("deploy", "model.onnx", *NX, *DATA, "--max-drop", "20%", "--out", "bundle").document
    assert {layer["precision"] for layer in done["plan"]["layers"]} == {"fp16"}
    assert {candidate["kind"] for candidate in done["candidates"]} == {"none"}
    assert done["device"]["cpu"] == "deep learning accelerator of jetson-xavier-nx"
    assert any(row["option"] == "int8" and "Q/DQ" in row["reason"] for row in done["options_dropped"])
    bundle = desk.folder / "bundle"
    assert json.loads((bundle / "build.json").read_text())["accelerator"] == "dla"
    lines = (bundle / "board.txt").read_text().splitlines()
    told = [line for line in lines if "DLA" in line or "Fallback" in line]
    one = ["build --useDLACore=0", "build --allowGPUFallback"]
    one += [f"{word} --useDLACore=0" for word in ("check", "time", "profile")]
    assert told == one * len(ON_DLA["jetson-xavier-nx-dla"].releases)
    assert "build --fp16" in lines
    assert "deep learning accelerator of jetson-xavier-nx" in (bundle / "report.html").read_text()
    assert "test vectors pass" in desk.succeed("verify", "bundle").out
