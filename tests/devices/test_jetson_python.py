"""A Jetson without trtexec that has TensorRT's Python module: the same bundle is built, checked and measured there,
with the same words and the same document. A real sshd; CUDA there computes on the CPU (tests/trtexec/cudart.c).
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.backends import trtexec_document
from edgekit.errors import DeviceError, MissingToolError
from tests.command import EDGEKIT, Desk
from tests.devices.sshd import busybox, cable_to
from tests.devices.test_jetson_program import ORIN, Moment, awaited, by_hand, over_ssh, refused, resign
from tests.trtexec.jetson import Jetson, Kind, busybox_tools, make_bundle, release, running_jetson

NO_TRTEXEC = "there is no trtexec on this board"
HINT = (
    "install it there: sudo apt install libnvinfer-bin; or TensorRT 10 for Python: sudo apt install python3-libnvinfer"
)


def with_module(version: str = "10.3.0") -> Kind:
    return replace(release(version), has_trtexec=False, module=version)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "out", [release("10.3.0")])


@pytest.fixture
def jetson() -> Iterator[Jetson]:
    with running_jetson(with_module()) as board:
        yield board


def shape(document: Any) -> Any:
    """A document without its values; an interval may have no end."""
    if isinstance(document, dict):
        return {key: shape(value) for key, value in document.items()}
    if isinstance(document, list) and document:
        return [shape(document[0])]
    return "float" if document is None else type(document).__name__


@pytest.mark.parametrize("version", ["10.3.0", "11.1.0"])
def test_it_stands_where_trtexec_stood(version: str, tmp_path: Path) -> None:
    """The same document: other times, another builder. The vectors are computed, not made up."""
    packed = make_bundle(tmp_path / "out", [release(version)])
    with running_jetson(release(version)) as board:
        usual = over_ssh(board, packed)
    with running_jetson(with_module(version)) as board:
        found = over_ssh(board, packed)
        assert shape(found) == shape(usual)
        assert (usual["device"]["builder"], found["device"]["builder"]) == ("trtexec", "tensorrt_runner.py")
        assert found["device"]["runtime"] == f"tensorrt {version} (Python)"
        assert found["vectors"]["count"] == 2
        assert found["vectors"]["worst_error_share"] < 0.01
        assert {"matched": 3, "planned": 3}.items() <= vars(found["conformance"]).items()
        total, computing = (found["results"][0][key] for key in ("latency_ms", "compute_ms"))
        assert total["n"] > 20
        assert 0 < computing["p50"] < total["p50"] < 100
        assert all(row["latency_ms"] > 0 for row in found["nodes"] if not row["moves"])
        assert found["clocks"] == "locked"
        board.bench.await_quiet()
        assert board.clocks == "dynamic"
        built = next(board.bench.work.rglob("model.engine")).parent
        assert "Successfully" not in (built / "time.log").read_text()
        assert "CUDA graph capture failed" not in (built / "time.log").read_text()
        rows = json.loads((built / "times.json").read_text())
        assert rows[0].keys() == USUAL_TIMES
        assert all(row["startComputeMs"] >= 500 for row in rows), "the warm-up does not count"
        (board.folder / "jetson/bin/python3").unlink()  # that of the lab file is asked first
        again = over_ssh(board, packed, 0)
        assert again["engine"]["built_now"] is False
        assert again["vectors"]["ok"]


USUAL_TIMES = {f"{edge}{part}Ms" for edge in ("start", "end") for part in ("Enq", "H2d", "Compute", "D2h")} | {
    *("h2dMs", "computeMs", "d2hMs", "latencyMs")
}


@pytest.mark.parametrize("shell", ["dash", "busybox"])
def test_by_hand(shell: str, jetson: Jetson, bundle: Path) -> None:
    there = jetson.put(bundle)
    start = f"PATH={busybox_tools(jetson)} {busybox()} sh" if shell == "busybox" else shell
    ended = jetson.shell(f"{start} {there}/run --seconds 1")
    assert ended.returncode == 0, ended.stderr
    raw = json.loads(ended.stdout)
    assert raw["device"]["builder"] == "tensorrt_runner.py"
    found = trtexec_document.document(raw, {"action": "bundle", "folder": str(bundle)})
    assert found["vectors"]["ok"]
    assert not [path.name for path in there.rglob("*") if path.suffix == ".part" or path.name == "__pycache__"]


def test_trtexec_comes_first_and_its_engine_is_its_own(bundle: Path) -> None:
    with running_jetson(replace(with_module(), has_trtexec=True)) as board:
        there = board.put(bundle)
        assert by_hand(board, there) == (0, "")
        first = json.loads((there / "built/result.json").read_text())
        board.shell("rm /usr/src/tensorrt/bin/trtexec")
        assert by_hand(board, there) == (0, "")
        second = json.loads((there / "built/result.json").read_text())
        assert [one["device"]["builder"] for one in (first, second)] == ["trtexec", "tensorrt_runner.py"]
        assert second["engine"]["built_now"] is True
        log = (there / "built/build.log").read_text()
        assert "Loaded 19 bytes of timing cache" in log, "the timing cache serves both"


def test_without_the_package_the_module_says_its_version(bundle: Path) -> None:
    with running_jetson(replace(with_module(), has_package=False)) as board:
        assert over_ssh(board, bundle, 0)["device"]["tensorrt"] == "10.3.0"
    with running_jetson(replace(with_module("10.7.0"), tensorrt="10.3.0")) as board:
        message = r"this board runs L4T 40\.7\.0 with TensorRT 10\.7\.0; the bundle is for jetpack-of-10\.3\.0 "
        with pytest.raises(DeviceError, match=message):
            over_ssh(board, bundle, 0)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (replace(with_module(), module=""), "Python cannot import tensorrt: No module named 'tensorrt'"),
        (
            replace(with_module(), gpus=0),
            "Python has TensorRT 10.3.0.30, but no GPU: Cuda failure: no CUDA-capable device is detected",
        ),
        (
            replace(with_module(), module="8.5.2"),
            "Python has TensorRT 8.5.2.30, and only trtexec can build with one before 10",
        ),
    ],
)
def test_where_neither_can_build(kind: Kind, why: str, bundle: Path) -> None:
    with running_jetson(kind) as board:
        error = refused(board, bundle)
        assert (str(error), error.hint, error.exit_code) == (NO_TRTEXEC, f"{HINT} ({why})", 4)
        assert isinstance(error, MissingToolError)
        assert by_hand(board, board.put(bundle)) == (4, f"edgekit: {NO_TRTEXEC}\nhint: {HINT} ({why})")
        assert not list(board.folder.rglob("model.engine"))


def test_without_cuda_s_library(bundle: Path) -> None:
    with running_jetson(with_module()) as board:
        (board.folder / "jetson/lib/libcudart.so").unlink()
        why = r"but no GPU: (CUDA's runtime library is not here|Cuda failure: )"  # another may be installed
        assert re.search(why, refused(board, bundle).hint)


def test_programs_that_are_changed_or_not_listed_do_not_run(jetson: Jetson, bundle: Path) -> None:
    there = jetson.put(bundle)
    program = there / "tensorrt_inference.py"
    text = program.read_text()
    program.write_text(text + "\n")
    assert by_hand(jetson, there)[0] == 7
    program.write_text(text)
    manifest = json.loads((there / "manifest.json").read_text())
    del manifest["files"]["tensorrt_runner.py"]
    (there / "manifest.json").write_text(json.dumps(manifest))
    resign(there)
    assert by_hand(jetson, there) == (4, f"edgekit: {NO_TRTEXEC}\nhint: {HINT}")


def test_what_goes_wrong_on_the_way(jetson: Jetson, bundle: Path) -> None:
    there = jetson.put(bundle)
    jetson.settings(fault="build:fail")
    assert by_hand(jetson, there)[1].startswith(
        "edgekit: tensorrt_runner.py (build) failed with status 1 on the board: "
        '[TRT] ModelImporter.cpp:773: While parsing node number 3 [Foo -> "y"]:\n'
    )
    jetson.settings(fault="build:kill")
    assert "edgekit: tensorrt_runner.py (build) was killed by SIGKILL on the board" in by_hand(jetson, there)[1]
    jetson.settings()
    file = there / "board.txt"
    file.write_text(file.read_text().replace("time --useSpinWait", "time --noSpinWait"))
    resign(there)
    code, complaint = by_hand(jetson, there, "bench --seconds 1")
    assert code == 5
    assert "tensorrt_runner.py (time) failed with status 1 on the board: Unknown option: --noSpinWait" in complaint
    assert jetson.clocks == "dynamic"


@pytest.mark.parametrize("moment", ["build the engine", "measure for"])
def test_link_cut(moment: str, jetson: Jetson, bundle: Path) -> None:
    jetson.settings(pause_s=30 * (moment == "build the engine"))
    with cable_to(jetson.bench.port) as cable:
        jetson.bench.know(cable.port)
        with pytest.raises(DeviceError, match="the link to bench was lost during bundle; the board is up, and ended"):
            over_ssh(jetson, bundle, 40, port=cable.port, notes=Moment(moment, cable.cut))
        jetson.bench.await_quiet()
        assert jetson.clocks == "dynamic"
    jetson.bench.know(jetson.bench.port)
    jetson.settings()
    assert over_ssh(jetson, bundle, 0)["vectors"]["ok"]
    assert not list(jetson.bench.work.rglob("*.part"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_while_it_measures(number: signal.Signals, jetson: Jetson, bundle: Path) -> None:
    there = jetson.put(bundle)
    with subprocess.Popen(
        jetson.command(f"echo $$; exec sh {there}/run --seconds 40"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        process = int(running.stdout.readline())
        for line in running.stderr:
            if line.startswith("measure"):
                break
        awaited(lambda: jetson.clocks == "highest")
        time.sleep(0.7)
        jetson.kill(process, number)
        running.communicate(timeout=10)
    awaited(lambda: jetson.clocks == "dynamic")
    jetson.bench.await_quiet()


@pytest.mark.slow
def test_edgekit_on_the_board_itself(desk: Desk) -> None:
    """`--host local`: no ssh, the same program, and this Python; the bundle stays as it was packed."""
    data = ("--data", "data.npz", "--eval", "eval.npz", "--no-prune", "--out", "bundle")
    desk.succeed("deploy", "model.onnx", "--target", "jetson-orin-nano", *data)
    missing = desk.run("bench", "bundle")
    assert missing.code == 2
    assert "hint: pass --host user@address, or --host local where this machine is the board" in missing.err
    elsewhere = desk.run("bench", "bundle", "--host", "local")
    assert elsewhere.code == 5
    assert elsewhere.complaint[-2:] == [
        "edgekit: this is no Jetson: there is no /etc/nv_tegra_release",
        "  hint: run it on the board that it is for",
    ]
    with running_jetson(replace(ORIN, has_trtexec=False, module="10.3.0")) as board:
        words = f"cd {desk.folder} && EDGEKIT_CACHE={desk.cache} EDGEKIT_DATA={desk.folder}/data exec {EDGEKIT}"
        ended = board.shell(f"{words} bench bundle --host local --seconds 1 --json", 120)
        assert ended.returncode == 0, ended.stderr
        found = json.loads(ended.stdout)
        assert found["conformance"]["matched"] == found["conformance"]["planned"] > 0
        assert found["device"]["after"]["builder"] == "tensorrt_runner.py"
        assert found["latency_ms"]["n"] > 20
        told = board.shell(f"{words} bench bundle --host local --seconds 1", 120)
        assert "tensorrt 10.3.0 (Python)" in told.stdout
        assert "the engine is there" in told.stderr
        assert board.shell(f"{words} verify bundle", 120).returncode == 0
        ended_by_hand(board, f"{words} bench bundle --host local --seconds 60")


def ended_by_hand(board: Jetson, words: str) -> None:
    """By Ctrl-C while it measures: nothing of it runs on."""
    with subprocess.Popen(board.command(f"echo $$; {words}"), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        process = int(running.stdout.readline())
        awaited(lambda: board.clocks == "highest", 60)
        board.kill(process, signal.SIGINT)
        assert running.wait(30) == 130
    board.bench.await_quiet()
    assert board.clocks == "dynamic"
