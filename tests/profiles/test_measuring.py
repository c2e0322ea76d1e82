"""`edgekit profile` on this machine: measured, fitted, written, found again, compared."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgekit import catalog, results
from edgekit.backends import openvino
from edgekit.cost import micro
from edgekit.cost.board import Fit
from edgekit.cost.profile import predict_from_profile
from edgekit.entries import Anchor
from edgekit.errors import DeviceError, InputError
from edgekit.graph import load
from edgekit.job import open_device
from edgekit.profiles import own as own_profile
from edgekit.profiles.measuring import _Bench, _complete, _floats, _measured, _mixed, measure_profile
from edgekit.progress import Silent
from edgekit.types import Kind, Precision
from tests.command import Desk
from tests.devices.sshd import running_board
from tests.quantized import host

FEW = ("call/empty", "conv3x3/32x56", "depthwise/192x28", "attention/4x40x32")
FP32, INT8 = Precision.FP32, Precision.INT8


@pytest.mark.slow
def test_a_board_is_profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session_cache: Path) -> None:
    """This machine, over ssh."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(session_cache))
    monkeypatch.setattr(micro, "STEP_CHANNELS", (48, 49, 64))
    overlay = tmp_path / "overlay" / "targets" / "quick"
    overlay.mkdir(parents=True)
    (overlay / "target.toml").write_text('extends = "host"\nprecisions = ["fp32", "int8"]\n', encoding="utf-8")
    target = catalog.target("quick", [tmp_path / "overlay"])
    with running_board() as board:
        device = open_device(target, None, "bench", board.lab())
        found = measure_profile(target, catalog.device_profile("host"), device, FEW)

    measured = {(row.network, row.precision): row.latency_ms for row in found.networks}
    assert set(measured) >= {(name, FP32) for name in FEW} | {(name, INT8) for name in FEW[1:3]}
    assert measured["call/empty", FP32] < min(measured[name, FP32] for name in FEW[1:3])
    assert [(c.runtime, c.precision, c.threads) for c in found.profile.costs] == [
        ("openvino", FP32, 1),
        ("openvino", INT8, 1),
    ]
    assert set(found.channel_steps) == {FP32, INT8}
    assert found.boundary_ms_per_element >= 0
    assert "networks on" in found.profile.costs[0].evidence
    assert all(len(cost.kernels) > 5 for cost in found.profile.costs)
    assert "each left out in turn: median error" in found.profile.costs[0].evidence
    assert found.device.runtime in found.profile.evidence
    results.unstructure(found)

    path = own_profile.save(found.profile)
    assert catalog.device_profile("host") == found.profile
    onnx.save(micro.build("block/inverted40x28"), tmp_path / "net.onnx")
    graph = load(tmp_path / "net.onnx")
    for precision in (FP32, INT8):
        plan = {layer.name: precision for layer in graph.layers}
        figure = predict_from_profile(graph, plan, catalog.device_profile("host"), "openvino", 1)
        assert figure.kind is Kind.PREDICTED
        assert 0.05 < figure.value < 50
    assert path.stat().st_size < 20_000  # a line for each kernel


def test_what_another_run_measured_stays() -> None:
    """Costs of other runtimes and thread counts, and their anchors, are none of this run's business."""
    pi = catalog.device_profile("raspberry-pi-4")
    mine = tuple(cost for cost in pi.costs if (cost.runtime, cost.threads) == ("tflite", 4))
    others = tuple(cost for cost in pi.costs if cost not in mine)
    assert mine
    assert others
    rows = [
        Anchor("tflite", "cpu", FP32, "m", 1.0, 2.0, "2026-01-01", threads)
        for threads in (1, 4)
    ]  # fmt: skip
    made = _complete(pi, replace(pi, anchors=tuple(rows)), Fit(mine, ()), {FP32: 8, INT8: None}, None, "on a board")
    assert made.costs == (*others, *mine)
    assert made.anchors == (rows[0],)
    assert made.channel_step == 8
    again = _complete(made, made, Fit(mine, ()), {FP32: None}, None, "on a board")
    assert (again.channel_step, len(again.sources)) == (8, len(made.sources))


@pytest.mark.slow
def test_networks_that_the_converter_refuses_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    lab = _Bench(open_device(catalog.target("host"), None), "test")
    names, left_out = ["conv3x3/32x56", "depthwise/192x28", "attention/4x40x32"], dict[str, str]()
    really = openvino.convert

    def convert(content: bytes, folder: Path, base: Precision) -> Any:
        if any(
            attribute.i == 192 for node in onnx.load_from_string(content).graph.node for attribute in node.attribute
        ):
            raise InputError("it misreads groups")
        return really(content, folder, base)

    monkeypatch.setattr(openvino, "convert", convert)
    timed = _measured(lab, names, [FP32], left_out, Silent())
    assert left_out == {"depthwise/192x28": "it misreads groups"}
    assert [row.network for row in timed] == [names[0], names[2]]
    with pytest.raises(InputError, match="it misreads groups"):
        _measured(lab, [names[1]], [FP32], {}, Silent())


def test_int8_networks_are_timed_as_deployments_write_them(session_cache: Path) -> None:
    """Products of activations compute in float whatever pairs stand before them: what is timed has none there."""
    lab, name = _Bench(host(), "test"), "block/encoder64x128"
    graph = lab.network(micro.build(name))
    apart = frozenset(layer.name for layer in graph.layers if not layer.weights)
    assert apart
    paired = lab.artifact(graph, lab.int8(graph), Precision.FP32)
    key = name, Precision.INT8
    mixed = _mixed(lab, {name: graph}, {key: apart, (name, Precision.FP32): frozenset()}, Precision.FP32)
    assert list(mixed) == [key]
    before, after = (lab.profile({key: one}, {name: graph})[key] for one in (paired, mixed[key]))
    assert len(after) < len(before), "nothing is converted around them"
    assert _floats(lab, graph, after) == _floats(lab, graph, before) == apart
    everything = frozenset(layer.name for layer in graph.layers)
    assert not _mixed(lab, {name: graph}, {key: everything}, Precision.FP32)


def test_an_emulated_board_is_refused() -> None:
    real = open_device(catalog.target("host"), None)

    def run(job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        found = real.run_job(job, timeout_s)
        return {**found, "device": {**found["device"], "emulated": True}}

    with pytest.raises(InputError, match="its times mean nothing"):
        measure_profile(catalog.target("host"), catalog.device_profile("host"), replace(real, job_runner=run))


def test_usage_is_told_in_one_line(desk: Desk) -> None:
    for arguments, told in (
        ((), "profile needs --target"),
        (("a.toml", "--target", "host"), "profile takes no file a.toml"),
        (("--diff", "a.toml"), "profile --diff with 1 files"),
        (("--diff", "a.toml", "b.toml", "--target", "host"), "profile --diff with 2 files and --target"),
        (("--diff", "a.toml", "b.toml"), "a.toml"),
        (("--diff", "--target", "host"), "there is no device profile 'host' of your own"),
        (("--target", "hots"), "there is no target 'hots'"),
        (("--target", "host", "--out", "no/such/place.toml"), "cannot write no/such/place.toml"),
    ):
        done = desk.run("profile", *arguments)
        assert done.code == 2, arguments
        assert told in done.err.splitlines()[0]
        assert len(done.complaint) <= 2


def test_diff_tells_what_the_own_profile_changes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_DATA", str(desk.folder / "data"))
    path = own_profile.save(replace(catalog.device_profile("host"), channel_step=32))
    done = desk.succeed("profile", "--diff", "--target", "host", "--json").document
    assert done["schema"] == "edgekit/profile-diff/1"
    assert (done["name"], done["a"], done["b"], done["same"]) == ("host", "shipped", str(path), False)
    assert done["facts"] == [{"name": "channel_step", "a": 16, "b": 32}]
    printed = desk.succeed("profile", "--diff", str(path), str(path)).out
    assert "no difference" in printed


@pytest.mark.slow
def test_an_interrupt_leaves_nothing(desk: Desk) -> None:
    with desk.start("profile", "--target", "host") as process:
        time.sleep(6)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert not list((desk.folder / "data" / "device_profiles").iterdir())
    assert not list(desk.temporary.iterdir())


def test_a_board_that_is_not_there_leaves_no_file(desk: Desk) -> None:
    done = desk.run("profile", "--target", "host", "--host", "nobody@127.0.0.1:1", "--out", "host.toml")
    assert done.code == DeviceError.exit_code
    assert not (desk.folder / "host.toml").exists()
