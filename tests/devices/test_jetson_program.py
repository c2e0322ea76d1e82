"""The program that builds and measures on a Jetson, on a real sshd: from every shell, with trtexec of every release,
and what is read when something goes wrong. docs/jetson.md shows the messages.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.backends import trtexec_document
from edgekit.catalog import data_root
from edgekit.devices.ssh import SshTransport
from edgekit.errors import DeviceError, EdgekitError, MissingToolError, VerifyError
from tests.command import Desk
from tests.devices.sshd import busybox, cable_to, running_board
from tests.devices.test_ssh import Notes, program
from tests.trtexec.jetson import NANO, Jetson, Kind, busybox_tools, make_bundle, release, running_jetson

ORIN = replace(
    NANO,
    l4t="R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic",
    tensorrt="10.3.0",
    chip="tegra234",
    model="NVIDIA Jetson Orin Nano Developer Kit",
)
XAVIER = replace(
    NANO,
    l4t="R35 (release), REVISION: 4.1, GCID: 1, BOARD: t186ref",
    tensorrt="8.5.2",
    chip="tegra194",
    model="NVIDIA Jetson Xavier NX Developer Kit",
    settings={"dla_cores": 2},
)
RUNNER = data_root() / "targets/runners/tensorrt.sh"
LEFT = {"build.log", "engine.key", "lock", "model.engine", "result.json", "samples", "timing.cache"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "out")


@pytest.fixture(scope="module")
def shared() -> Iterator[Jetson]:
    with running_jetson() as board:
        yield board


@pytest.fixture
def jetson() -> Iterator[Jetson]:
    with running_jetson() as board:
        yield board


def over_ssh(
    board: Jetson, bundle: Path, seconds: float = 1.0, port: int = 0, notes: Notes | None = None
) -> dict[str, Any]:
    """One `bundle` job of the host, as `edgekit bench --host` has it run."""
    there = board.bench.to(port) if port else board.bench.board
    transport = SshTransport(there, (), notes or Notes())
    job = {"action": "bundle", "folder": str(bundle), "seconds": seconds}
    try:
        return trtexec_document.reading(transport.run_job)(RUNNER, job, 60)
    finally:
        transport._link = None


def refused(board: Jetson, bundle: Path) -> EdgekitError:
    with pytest.raises(EdgekitError) as caught:
        over_ssh(board, bundle)
    assert "\n" not in str(caught.value)
    board.bench.await_quiet()
    return caught.value


def by_hand(board: Jetson, there: Path, words: str = "build") -> tuple[int, str]:
    """Exit status and complaint of `run` on the board, without its notes."""
    ended = board.shell(f"sh {there}/run {words}")
    assert ended.returncode == 0 or not ended.stdout
    complaint = [line for line in ended.stderr.splitlines() if line.startswith(("edgekit:", "hint:"))]
    return ended.returncode, "\n".join(complaint)


# --- what it does -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox"])
def test_every_shell(shell: str, shared: Jetson, bundle: Path) -> None:
    """BusyBox with its own tools alone, in a folder that holds nothing else."""
    there = shared.put(bundle)
    start = shell
    if shell == "busybox":
        start = f"PATH={busybox_tools(shared)} {busybox()} sh"
    ended = shared.shell(f"{start} {there}/run --seconds 1")
    assert ended.returncode == 0, ended.stderr
    raw = json.loads(ended.stdout)
    assert (there / "built/result.json").read_text() == ended.stdout
    found = trtexec_document.document(raw, {"action": "bundle", "folder": str(bundle)})
    assert found["vectors"]["ok"]
    assert found["vectors"]["count"] == 2
    assert found["clocks"] == "locked"
    assert "highest" in raw["before"]["clocks"]
    assert shared.clocks == "dynamic", "they are as they were"
    assert {path.name for path in (there / "built").iterdir()} >= LEFT
    assert not list((there / "built").glob("*.part"))
    assert found["conditions"]["temperature_before_c"] == 41.5, "PMIC's 100 degrees are no temperature"
    assert found["conditions"]["throttled"] == 0, "a fan that turns throttles nothing"
    assert found["conditions"]["clock_mhz"] == 921.6


@pytest.mark.parametrize("version", ["8.0.1", "8.5.2", "10.3.0", "11.1.0"])
def test_every_release(version: str, tmp_path: Path) -> None:
    """Its options are taken, its reports understood, and the engine computes what the plan says (8.0 does not tell)."""
    kind = release(version)
    packed = make_bundle(tmp_path / "out", [NANO, kind] if version[0] == "8" else [kind], 1)
    with running_jetson(kind) as board:
        found = over_ssh(board, packed)
        assert found["release"] == f"jetpack-of-{version}"
        assert found["vectors"]["ok"]
        latency = found["results"][0]["latency_ms"]
        assert latency["n"] == 150, "the warm-up does not count"
        assert latency["p50"] == pytest.approx(4.2325, abs=0.02)
        executed = {name: row["precision"] for row in found["nodes"] if not row["moves"] for name in row["nodes"]}
        types = {"conv1": "fp16", "conv2": "int8", "fc": "fp32" if version[0] == "1" else "fp16"}
        if version == "8.0.1":
            types = dict.fromkeys(types, "")
        assert {name: executed[name] for name in types} == types
        assert all(row["latency_ms"] > 0 for row in found["nodes"] if not row["moves"])
        board.bench.await_quiet()
        assert board.clocks == "dynamic"


def test_on_the_accelerator(tmp_path: Path) -> None:
    """Its options are taken to build and to run; the layers are in one region, which shows no types."""
    packed = make_bundle(tmp_path / "out", [XAVIER], 1, "dla")
    with running_jetson(XAVIER) as board:
        found = over_ssh(board, packed)
        assert found["vectors"]["ok"]
        assert [row["name"] for row in found["nodes"] if not row["moves"]] == ["{ForeignNode[conv1...fc]}"]
        assert found["conformance"].unknown == "all layers are in regions that show no types"
        board.bench.await_quiet()


def test_a_board_without_an_accelerator_core(tmp_path: Path) -> None:
    packed = make_bundle(tmp_path / "out", [XAVIER], 1, "dla")
    with running_jetson(replace(XAVIER, settings={})) as board:
        error = refused(board, packed)
        assert str(error) == (
            "trtexec (build) failed with status 1 on the board: Cannot create DLA engine, 0 not available"
        )
        assert (error.exit_code, error.hint) == (5, "its words are in built/build.log there")
        assert not list(board.folder.rglob("model.engine"))


def test_an_engine_is_built_once(jetson: Jetson, bundle: Path) -> None:
    """The folder on the board keeps engine and timing cache; a damaged engine is built anew."""
    assert over_ssh(jetson, bundle, 0)["engine"]["built_now"] is True
    again = over_ssh(jetson, bundle, 0)
    assert again["engine"]["built_now"] is False
    assert "nodes" not in again, "0 seconds run the vectors alone"
    engine = next(jetson.bench.work.rglob("model.engine"))
    engine.write_bytes(engine.read_bytes()[:-1])
    assert over_ssh(jetson, bundle, 0)["engine"]["built_now"] is True
    log = next(jetson.bench.work.rglob("build.log")).read_text()
    assert "Loaded 19 bytes of timing cache" in log


def test_the_host_learns_what_the_board_is(shared: Jetson) -> None:
    shared.shell(f"rm -rf {shared.bench.work}")
    notes = Notes()
    transport = SshTransport(shared.bench.board, (), notes)
    found = trtexec_document.reading(transport.run_job)(RUNNER, {"action": "probe"}, 20)["device"]
    transport._link = None
    assert found["cpu"] == "NVIDIA Jetson Nano Developer Kit"
    assert (found["runtime"], found["l4t"], found["emulated"]) == ("tensorrt 8.2.1", "32.7.1", False)
    assert found["power_mode"] == "MAXN"
    assert notes.sent == ["send 3 files, 0.0 MB to bench"], "no module of the other runners goes along"


def test_wrong_outputs_are_told(jetson: Jetson, bundle: Path, tmp_path: Path) -> None:
    """The engine's outputs are compared with those that the bundle expects, on the host."""
    found = over_ssh(jetson, bundle, 0)
    assert found["vectors"]["worst_error_share"] < 0.01
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    raw = json.loads(next(jetson.bench.work.rglob("result.json")).read_text())
    raw["outputs"] = raw["outputs"][::-1]
    off = trtexec_document.document(raw, {"action": "bundle", "folder": str(other)})
    assert not off["ok"]
    assert off["vectors"]["worst_error_share"] > 1


@pytest.mark.slow
@pytest.mark.parametrize(("target", "kind"), [("jetson-nano", NANO), ("jetson-orin-nano", ORIN)])
def test_from_the_model_to_the_board(target: str, kind: Kind, desk: Desk) -> None:
    """deploy, verify and bench as commands: the outputs come from the board, and the engine runs what was planned."""
    with running_jetson(kind) as board:
        host = ("--host", "bench", "--lab", board.bench.lab())
        data = ("--data", "data.npz", "--eval", "eval.npz", "--out", "bundle")
        deployed = desk.succeed("deploy", "model.onnx", "--target", target, *data, *host, "--json").document
        assert deployed["vectors"]["count"] == 3
        assert deployed["vectors"]["runtime"] == f"tensorrt {kind.tensorrt}"
        assert {row["kind"] for row in deployed["candidates"]} <= {"predicted", "none"}, "nothing was measured"
        assert "test vectors pass" in desk.succeed("verify", "bundle").out
        found = desk.succeed("bench", "bundle", *host, "--seconds", "1", "--json").document
        assert found["conformance"]["matched"] == found["conformance"]["planned"] == len(deployed["plan"]["layers"])
        assert found["latency_ms"]["n"] == 150
        board.bench.await_quiet()


@pytest.mark.slow
def test_from_the_model_to_the_accelerator(desk: Desk) -> None:
    """What it computes in halves there is verified; in which types its regions do, nobody tells."""
    with running_jetson(XAVIER) as board:
        host = ("--host", "bench", "--lab", board.bench.lab())
        data = ("--data", "data.npz", "--eval", "eval.npz", "--out", "bundle")
        deployed = desk.succeed("deploy", "model.onnx", "--target", "jetson-xavier-nx-dla", *data, *host, "--json")
        assert deployed.document["vectors"]["runtime"] == "tensorrt 8.5.2"
        found = desk.succeed("bench", "bundle", *host, "--seconds", "1", "--json").document
        assert found["latency_ms"]["n"] == 150
        assert any("ForeignNode" in row["name"] for row in found["executed"])
        assert found["conformance"]["unknown"] == "all layers are in regions that show no types"
        assert "show no types" in desk.succeed("bench", "bundle", *host, "--seconds", "1").out
        board.bench.await_quiet()


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message", "code"),
    [
        (
            replace(NANO, l4t="R35 (release), REVISION: 4.1, GCID: 1, BOARD: t186ref", tensorrt="8.5.2"),
            "this board runs L4T 35.4.1 with TensorRT 8.5.2; "
            "the bundle is for jetpack-of-8.2.1 (TensorRT 8.2, L4T 32.7)",
            5,
        ),
        (
            replace(NANO, chip="tegra234", model="NVIDIA Jetson Orin Nano Developer Kit"),
            "this board is NVIDIA Jetson Orin Nano Developer Kit (tegra234); the bundle is for a board with tegra210",
            5,
        ),
        (replace(NANO, has_trtexec=False), "there is no trtexec on this board", 4),
        (replace(NANO, has_package=False), "TensorRT is not installed on this board", 4),
        (replace(NANO, l4t=""), "this is no Jetson: there is no /etc/nv_tegra_release", 5),
        (
            replace(NANO, memory_kib=500_000),
            "building needs about 1375 MB of memory by forecast, and 512 MB are free on the board",
            5,
        ),
    ],
)
def test_boards_that_it_is_not_for(kind: Kind, message: str, code: int, bundle: Path) -> None:
    with running_jetson(kind) as board:
        error = refused(board, bundle)
        assert (str(error), error.exit_code) == (message, code)
        assert error.hint
        assert isinstance(error, MissingToolError if code == 4 else DeviceError)
        assert by_hand(board, board.put(bundle)) == (code, f"edgekit: {message}\nhint: {error.hint}")
        assert not list(board.folder.rglob("model.engine"))


def test_a_changed_file_does_not_run(shared: Jetson, bundle: Path) -> None:
    """By hand it is refused; on its way through the host it is sent again."""
    for name in ("model.onnx", "board.txt", "vectors/0/0.bin"):
        there = shared.put(bundle)
        file = there / name
        file.write_bytes(file.read_bytes()[:-1] + b"!")
        code, complaint = by_hand(shared, there)
        assert code == 7
        assert f"edgekit: {name}: was changed (its sha256 is not the one in manifest.json)" in complaint
        assert not (there / "built").exists(), "nothing was started"
    manifest = shared.put(bundle) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"model.onnx"', '"model_onnx"'))
    assert by_hand(shared, manifest.parent)[1].startswith(
        "edgekit: manifest.json: does not match manifest.sha256: one of the two was changed"
    )
    over_ssh(shared, bundle, 0)
    there = next(shared.bench.work.rglob("model.onnx"))
    there.write_bytes(b"an intruder's")
    notes = Notes()
    assert over_ssh(shared, bundle, 0, notes=notes)["vectors"]["ok"]
    assert any(re.search("was damaged; it is sent again", line) for line in notes.lines)
    assert VerifyError.exit_code == 7


def test_full_disk_before_and_during_the_build(jetson: Jetson, bundle: Path) -> None:
    jetson.shell(f"mkdir {jetson.folder}/disk && mount -t tmpfs -o size=20m none {jetson.folder}/disk")
    jetson.shell(f"cp -a {bundle} {jetson.folder}/disk/bundle")
    there = jetson.folder / "disk/bundle"
    code, complaint = by_hand(jetson, there)
    assert code == 5
    assert re.match(
        r"edgekit: the disk of the board is full: building needs 67 MB in \S+/built, and 20 MB are free\nhint: free",
        complaint,
    )
    jetson.shell(f"mount -o remount,size=80m {jetson.folder}/disk")
    jetson.settings(fault="build:fill")
    code, complaint = by_hand(jetson, there)
    assert code == 5
    assert re.match(r"edgekit: the disk of the board is full: trtexec could not write to \S+/built\n", complaint)
    assert "model.engine" not in jetson.shell(f"ls {there}/built").stdout
    jetson.shell(f"rm {there}/built/filler")
    jetson.settings()
    assert by_hand(jetson, there) == (0, "")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("build:kill", "trtexec (build) was killed by SIGKILL on the board"),
        (
            "build:fail",
            "trtexec (build) failed with status 1 on the board: "
            '[TRT] ModelImporter.cpp:773: While parsing node number 3 [Foo -> "y"]:',
        ),
        (
            "time:power_mode=10W",
            "the power mode of the board changed during the measurement: MAXN before, 10W after",
        ),
    ],
)
def test_what_goes_wrong_on_the_way(fault: str, message: str, jetson: Jetson, bundle: Path) -> None:
    there = jetson.put(bundle)
    jetson.settings(fault=fault if "=" not in fault else fault.replace("time:", f"time:{jetson.folder}/"))
    error = refused(jetson, bundle)
    assert (str(error), error.exit_code) == (message, 5)
    (jetson.folder / "power_mode").write_text("MAXN\n")
    words = "build" if fault.startswith("build") else "bench --seconds 1"
    assert by_hand(jetson, there, words) == (5, f"edgekit: {message}\nhint: {error.hint}")
    assert jetson.clocks == "dynamic"
    jetson.settings()
    (jetson.folder / "power_mode").write_text("MAXN\n")
    assert over_ssh(jetson, bundle, 0)["vectors"]["ok"]
    assert by_hand(jetson, there) == (0, "")


def test_an_option_that_the_release_does_not_know(jetson: Jetson, bundle: Path) -> None:
    """The stand-in enforces the release's options: were one wrong, this is what would be read."""
    there = jetson.put(bundle)
    file = there / "board.txt"
    file.write_text(file.read_text().replace("build --workspace=512", "build --memPoolSize=workspace:512"))
    resign(there)
    code, complaint = by_hand(jetson, there)
    assert code == 5
    assert "status 1 on the board: Unknown option: --memPoolSize workspace:512" in complaint


def resign(there: Path) -> None:
    """Have the manifest fit the files, as somebody would who wants to pass."""
    import hashlib

    manifest = json.loads((there / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (there / name).read_bytes()
        entry |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    content = (json.dumps(manifest, indent=1) + "\n").encode()
    (there / "manifest.json").write_bytes(content)
    (there / "manifest.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  manifest.json\n")


class Moment(Notes):
    """Does something when the board says a word."""

    def __init__(self, word: str, then: Callable[[], object]) -> None:
        super().__init__()
        self.word, self.then = word, then

    def note(self, line: str) -> None:
        super().note(line)
        if self.word in line:
            time.sleep(0.7)  # trtexec has begun
            self.then()


@pytest.mark.parametrize("moment", ["build the engine", "measure for"])
def test_link_cut(moment: str, jetson: Jetson, bundle: Path) -> None:
    """Nothing runs on, the clocks are put back although the board's program was killed, and it works again."""
    jetson.settings(pause_s=30 * (moment == "build the engine"), fault="time:slow")
    with cable_to(jetson.bench.port) as cable:
        jetson.bench.know(cable.port)
        with pytest.raises(DeviceError, match="the link to bench was lost during bundle; the board is up, and ended"):
            over_ssh(jetson, bundle, port=cable.port, notes=Moment(moment, cable.cut))
        jetson.bench.await_quiet()
        assert jetson.clocks == "dynamic"
        assert not list(jetson.bench.work.rglob("engine.part")) or moment == "build the engine"
    jetson.bench.know(jetson.bench.port)
    jetson.settings()
    assert over_ssh(jetson, bundle, 0)["vectors"]["ok"]
    assert not list(jetson.bench.work.rglob("*.part"))
    jetson.bench.await_quiet()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_killed_half_way_then_run_again(number: signal.Signals, jetson: Jetson, bundle: Path) -> None:
    """While it measures, by hand: at a polite signal it puts the clocks back itself, at SIGKILL its guard does."""
    there = jetson.put(bundle)
    jetson.settings(fault="time:slow")
    with subprocess.Popen(
        jetson.command(f"echo $$; exec sh {there}/run --seconds 1"),
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
        time.sleep(0.3)
        assert by_hand(jetson, there) == (
            5,
            "edgekit: another run is building or measuring this bundle\nhint: wait until it has ended",
        )
        jetson.kill(process, number)
        running.communicate(timeout=10)
    awaited(lambda: jetson.clocks == "dynamic")
    jetson.bench.await_quiet()  # trtexec ends with it
    jetson.settings()
    assert by_hand(jetson, there, "bench --seconds 1") == (0, "")
    assert not list((there / "built").glob("*.part"))


def awaited(is_so: Callable[[], bool], limit_s: float = 8.0) -> None:
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_killed_while_it_builds_leaves_no_engine(jetson: Jetson, bundle: Path) -> None:
    there = jetson.put(bundle)
    jetson.settings(pause_s=30)
    with subprocess.Popen(jetson.command(f"exec sh {there}/run build"), stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("build"):
                break
        log = there / "built/build.log"
        awaited(lambda: log.exists() and "building" in log.read_text())
        jetson.bench.restart()  # with all that runs on it
        with suppress(subprocess.TimeoutExpired):
            running.communicate(timeout=10)
    assert not (there / "built/model.engine").exists()
    jetson.settings()
    assert by_hand(jetson, there) == (0, "")
    assert (there / "built/model.engine").exists()


def test_without_the_right_to_set_clocks(bundle: Path) -> None:
    """It measures all the same, and says that the clocks were left alone."""
    with running_jetson() as board:
        board.shell(f"rm {board.folder}/jetson/bin/jetson_clocks")
        found = over_ssh(board, bundle)
        assert found["clocks"] == "not locked: there is no jetson_clocks"
        assert found["conditions"]["power_mode"] == "nvpmodel MAXN, clocks not locked: there is no jetson_clocks"


def test_a_board_without_setsid(tmp_path: Path) -> None:
    """A shell program could not be ended with what it starts."""
    with running_board({"setsid": None}) as board:
        transport = SshTransport(board.board)
        with pytest.raises(DeviceError, match="there is no setsid on bench"):
            transport.run_job(program(tmp_path, "echo '{}'", "some.sh"), {"action": "probe"}, 20)
        transport._link = None


@pytest.mark.parametrize("words", ["--seconds", "--seconds x", "measure", "--seconds=1.2.3"])
def test_wrong_words(words: str, shared: Jetson, bundle: Path) -> None:
    ended = shared.shell(f"sh {shared.put(bundle)}/run {words}")
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: ")
