"""A Jetson that is not at hand, where a stand-in for its compiler is installed: the report says so, and what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.toolchains import problem, toolchain
from tests.command import Desk


@pytest.mark.slow
@pytest.mark.skipif(bool(problem("tensorrt-rtx")), reason="the toolchain tensorrt-rtx is not installed")
@pytest.mark.parametrize(
    ("target", "compute"), [("jetson-nano", "8.6"), ("jetson-orin-nano", "8.6"), ("jetson-thor", "12.0")]
)
def test_a_bundle_for_nobody_s_board_was_compiled_by_the_proxy(
    desk: Desk, tmp_path: Path, target: str, compute: str
) -> None:
    desk = replace(desk, cache=tmp_path / "cache")  # the others' has no such toolchain
    place = desk.cache / "toolchains/tensorrt-rtx"
    place.parent.mkdir(parents=True)
    place.symlink_to(toolchain("tensorrt-rtx").environment)
    data = ("--data", "data.npz", "--eval", "eval.npz", "--no-prune", "--max-drop", "20%")
    done = desk.succeed("deploy", "model.onnx", "--target", target, *data, "--out", "bundle", "--json").document
    found = done["conformance"]
    assert found["matched"] == 0, "a proxy is no board"
    count = len(done["plan"]["layers"])
    assert found["unknown"] == (
        f"no device returned what it executes: {target} was not at hand; TensorRT for RTX, a proxy (compiled for "
        f"compute capability {compute}, run by nobody), took the model, {count} of {count} layers in the planned type"
    )
    assert "TensorRT for RTX, a proxy" in (desk.folder / "bundle/report.html").read_text()
    assert json.loads((desk.folder / "bundle/build.json").read_text())["layers"]
