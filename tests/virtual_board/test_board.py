"""edgekit against an emulated arm64 board: results are taken from it, and never a time."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import catalog
from edgekit.backends import tflite
from edgekit.devices import local
from edgekit.devices.race import Device
from edgekit.errors import GuardError
from tests.command import Desk, Finished
from tests.virtual_board import sysroot
from tests.virtual_board.cpus import CORE_OF_TARGET, CORES
from tests.virtual_board.server import Running
from tests.virtual_board.sysroot import Sysroot

RUNNER = catalog.data_root() / "targets" / "runners" / tflite.RUNNER


def run_there(board: Sysroot, core: str, job: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = sysroot.emulated(board, core, ["python3", str(RUNNER), "/dev/stdin"])
    return subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)


def on_board(running: Running, command: str) -> str:
    there = ["ssh", "-F", str(running.ssh_config), "-p", str(running.port), f"pi@{running.address}", command]
    return subprocess.run(there, capture_output=True, text=True, check=True).stdout


def values_of(document: Any, key: str) -> list[Any]:
    """What stands under that key anywhere in a document."""
    rows = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    here = [document[key]] if isinstance(document, dict) and key in document else []
    return here + [value for row in rows for value in values_of(row, key)]


def test_every_raspberry_pi_has_a_target_whose_core_can_be_emulated() -> None:
    names = {path.name for path in catalog.data_root().glob("targets/raspberry-pi-*")}
    assert names == set(CORE_OF_TARGET)
    for name in names:
        target = catalog.target(name)
        profile = catalog.device_profile(target.device_profile)
        assert CORE_OF_TARGET[name] in {part.architecture for part in profile.processors}


@pytest.mark.slow
def test_a_deployment_pushes_runs_and_fetches_and_takes_no_time(on_pi5: Finished, pi5_desk: Desk, pi5: Running) -> None:
    found = on_pi5.document
    assert found["vectors"]["emulated"]
    assert found["vectors"]["count"] == 3
    assert found["vectors"]["worst_error_share"] < 1e-3, "the host's outputs, but for the last bits"
    assert found["conformance"]["matched"] == found["conformance"]["planned"] > 0
    assert any("emulated" in warning for warning in found["warnings"])
    # The plan's own table of costs is not a measurement of the board either.
    assert "measured" not in [candidate["kind"] for candidate in found["candidates"]]
    assert found["prediction"] is None
    assert found["conditions"] is None
    assert "measured" not in values_of(found["plan"], "kind")
    written = json.loads((pi5_desk.folder / "bundle" / "measurements.json").read_text())
    assert written["vectors"] == found["vectors"]
    assert "incoming" not in on_board(pi5, "ls ~/.cache/edgekit")
    assert "tflite_runner" not in on_board(pi5, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")


@pytest.mark.slow
@pytest.mark.parametrize("command", [("bench", "bundle"), ("profile", "--target", "raspberry-pi-5")])
def test_what_needs_times_says_that_there_are_none(
    on_pi5: Finished, pi5_desk: Desk, pi5: Running, command: tuple[str, ...]
) -> None:
    done = pi5_desk.run(*command, "--host", "virtual", "--lab", pi5.lab)
    assert done.code in (2, 5)
    assert "emulate" in " ".join(done.complaint)
    assert done.out == ""


@pytest.mark.slow
def test_a_race_on_an_emulated_machine_is_refused_by_the_runner_itself(
    virtual: Sysroot, on_pi5: Finished, pi5_desk: Desk
) -> None:
    models = [{"name": "one", "path": str(pi5_desk.folder / "bundle" / "model.tflite"), "hint": ""}]
    for job in (
        {"action": "race", "models": models, "threads": 1, "seconds": 0.1},
        {"action": "profile", "models": models, "threads": 1, "seconds": 0.1, "compiles": 1},
    ):
        done = run_there(virtual, "cortex-a76", job)
        assert done.returncode == 1
        assert done.stdout == ""
        assert "no time that it takes means anything" in done.stderr


@pytest.mark.slow
def test_every_core_computes_the_bundle_as_this_machine_does(
    virtual: Sysroot, on_pi5: Finished, pi5_desk: Desk
) -> None:
    job = {"action": "bundle", "folder": str(pi5_desk.folder / "bundle"), "seconds": 0}
    found = {}
    for core in CORES:
        done = run_there(virtual, core, job)
        assert done.returncode == 0, done.stderr
        found[core] = json.loads(done.stdout)
        assert found[core]["device"]["machine"] == "aarch64"
        assert found[core]["device"]["emulated"]
        assert found[core]["vectors"]["worst_error_share"] < 1e-3
    there = found["cortex-a76"]["vectors"]["outputs_sha256"]
    assert there == on_pi5.document["vectors"]["outputs_sha256"], "over ssh and directly it is the same board"


@pytest.mark.slow
def test_a_board_whose_cores_cannot_be_told_runs_without_xnnpack_and_is_refused(
    virtual: Sysroot, on_pi5: Finished, pi5_desk: Desk, tmp_path: Path
) -> None:
    prefix = tmp_path / "prefix"
    shutil.copytree(virtual.prefix("cortex-a76"), prefix, symlinks=True)
    for link in prefix.iterdir():
        if link.is_symlink():
            target = virtual.prefix("cortex-a76") / link.readlink()
            link.unlink()
            link.symlink_to(target)
    (prefix / "proc" / "cpuinfo").unlink()
    (prefix / "proc" / "cpuinfo").write_text("")
    for name in ("possible", "present"):
        (prefix / "sys/devices/system/cpu").mkdir(parents=True, exist_ok=True)
        (prefix / "sys/devices/system/cpu" / name).write_text("")
    command = sysroot.emulated(virtual, "cortex-a76", ["python3", str(RUNNER), "/dev/stdin"])
    command[command.index("-L") + 1] = str(prefix)
    job = {"action": "bundle", "folder": str(pi5_desk.folder / "bundle"), "seconds": 0}
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "XNNPACK is not in use" in done.stderr


@pytest.mark.slow
def test_outputs_that_differ_are_refused(on_pi5: Finished, pi5_desk: Desk, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(pi5_desk.folder / "bundle", bundle)
    with np.load(bundle / "vectors.npz") as arrays:
        vectors = {name: arrays[name] for name in arrays.files}
    vectors = {name: array + 1 if name.startswith("output/") else array for name, array in vectors.items()}
    np.savez(bundle / "vectors.npz", **vectors)
    device = Device(tflite, lambda job, timeout_s: local.run_job(RUNNER, job, timeout_s), 1)
    with pytest.raises(GuardError, match=r"vectors\.npz is missing or not what the manifest says"):
        device.check_bundle(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    digest = hashlib.sha256((bundle / "vectors.npz").read_bytes()).hexdigest()
    manifest["files"]["vectors.npz"]["sha256"] = digest
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(GuardError, match="times the tolerance"):
        device.check_bundle(bundle)
    assert device.check_bundle(pi5_desk.folder / "bundle").worst_error_share == 0
    assert not device.emulated


@pytest.mark.slow
def test_the_board_is_an_arm_board_to_everything_that_runs_on_it(pi5: Running) -> None:
    assert on_board(pi5, "uname -m; id -un; hostname").split() == ["aarch64", "pi", "cortex-a76"]
    assert on_board(pi5, "grep -c 0xd0b /proc/cpuinfo").strip() == "4"
    told = on_board(pi5, "touch /etc/here 2>&1 || true; touch ~/here && ls ~")
    assert "Read-only file system" in told
    assert "here" in told.split()


def test_the_wrapper_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.virtual_board", "run", "--", "python3", "-V"]
    place = catalog.data_root()
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "no virtual board was built: make virtual-board\n"
