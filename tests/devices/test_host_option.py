"""The commands that take --host, whole, on a board behind a real sshd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import Desk, fill
from tests.devices.sshd import TestBoard, running_board
from tests.devices.test_ssh_faults import await_no_ssh

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench() -> Iterator[TestBoard]:
    with running_board() as board:
        yield board


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    fill(folder)
    return Desk(folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def deployed(desk: Desk, bench: TestBoard) -> Any:
    """What deploy said about the bundle that all tests use; it was measured on the board."""
    done = desk.succeed(*DEPLOY, "--host", "bench", "--lab", bench.lab(), "--out", "bundle", "--json", timeout_s=500)
    return done.document


DEPLOY = ("deploy", "model.onnx", "--target", "quick", "--overlay", "overlay", "--data", "data.npz", "--no-prune")
BENCH = ("bench", "bundle", "--overlay", "overlay", "--seconds", "0.2")


def left_alone(bench: TestBoard) -> None:
    await_no_ssh(bench.board)
    bench.await_quiet()


def test_deploy_measures_there_and_runs_the_bundle_there(desk: Desk, bench: TestBoard, deployed: Any) -> None:
    assert (desk.folder / "bundle" / "manifest.json").exists()
    (row,) = deployed["hosts"]
    assert row["host"] == "bench"
    assert row["exit_code"] == 0
    assert row["result"]["latency_ms"]["p50"] > 0
    assert deployed["chosen"]
    assert list((bench.work / "files").rglob("model.xml")), "what was raced was raced there"
    left_alone(bench)


def test_bench_on_one_board(desk: Desk, bench: TestBoard) -> None:
    found = desk.succeed(*BENCH, "--host", "bench", "--lab", bench.lab(), "--json").document
    assert found["schema"] == "edgekit/bench/1"
    assert found["latency_ms"]["n"] > 0
    left_alone(bench)


def test_bench_on_several_boards_of_which_one_is_off(desk: Desk, bench: TestBoard) -> None:
    options = ("--host", "bench,dead", "--lab", bench.lab())
    done = desk.run(*BENCH, *options, "--json")
    assert done.code == 5
    first, second = done.document["hosts"]
    assert first["result"]["latency_ms"]["p50"] > 0
    assert second["result"] is None
    assert second["exit_code"] == 5
    assert "no ssh server answers at 127.0.0.1:" in second["error"]
    assert done.complaint[-2] == "edgekit: 1 of 2 boards failed: dead"
    table = desk.run(*BENCH, *options)
    assert table.code == 5
    assert "failed: no ssh server answers" in table.out.replace("\n", " ")
    left_alone(bench)


def test_predict_there(desk: Desk, bench: TestBoard) -> None:
    options = ("--overlay", "overlay", "--host", "bench", "--lab", bench.lab(), "--json")
    assert desk.succeed("predict", "model.onnx", "--target", "quick", *options).document["latency_ms"]["value"] > 0
    left_alone(bench)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--host", "-oProxyCommand=x"), 2, "is no address of a board"),
        (("--host", "bench", "--lab", "none.toml"), 2, "none.toml: cannot be read"),
        (("--host", "dead", "--lab", "LAB"), 5, "no ssh server answers at"),
    ],
)
def test_what_is_refused(options: tuple[str, ...], code: int, message: str, desk: Desk, bench: TestBoard) -> None:
    done = desk.run(*BENCH, *(bench.lab() if word == "LAB" else word for word in options))
    assert done.code == code
    assert message in done.err
    assert done.err.count("hint:") == 1


def test_a_python_without_the_runtime(desk: Desk, bench: TestBoard, tmp_path: Path) -> None:
    """The system's Python of a board that nothing was installed on."""
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\nexec /usr/bin/env python3 -I -S "$@"\n')
    bare.chmod(0o755)
    done = desk.run(*BENCH, "--host", "bench", "--lab", bench.lab(str(bare)))
    bench.lab()
    assert done.code == 4
    assert "is not installed on bench" in done.err
    assert "-m pip install 'openvino>=" in done.err.replace("'\"'\"'", "'")
    left_alone(bench)
