from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.backends import openvino
from edgekit.devices.local import run_job
from edgekit.errors import DeviceError
from edgekit.types import Precision
from tests.quantized import RUNNER, case, host


def program(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "runner.py"
    path.write_text("import json, os, subprocess, sys, time\n" + textwrap.dedent(body))
    return path


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def await_end(*pids: int) -> None:
    end = time.monotonic() + 5
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end, f"{[pid for pid in pids if alive(pid)]} still run"
        time.sleep(0.02)


def pids_in(path: Path, count: int, limit_s: float = 10) -> list[int]:
    end = time.monotonic() + limit_s
    while not path.exists() or len(path.read_text().split()) < count:
        assert time.monotonic() < end
        time.sleep(0.02)
    return [int(word) for word in path.read_text().split()]


# A runner that starts a child, writes both process ids, and then hangs or ends.
PARENT = """
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open({path!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
    {then}
"""


def test_the_document_comes_back_and_the_job_goes_there(tmp_path: Path) -> None:
    runner = program(tmp_path, 'print(json.dumps({"got": json.load(open(sys.argv[1]))}))')
    job = {"action": "echo", "text": "µs \u2028 \U0001f600", "numbers": [1, 2.5, None]}
    assert run_job(runner, job, 20) == {"got": job}


def test_a_runner_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    runner = program(tmp_path, PARENT.format(path=str(tmp_path / "pids"), then="time.sleep(60)"))
    started = time.monotonic()
    with pytest.raises(DeviceError, match="race did not end within 2 s") as caught:
        run_job(runner, {"action": "race"}, 2)
    assert time.monotonic() - started < 6
    assert caught.value.hint
    await_end(*pids_in(tmp_path / "pids", 2))


def test_children_that_outlive_the_runner_are_killed(tmp_path: Path) -> None:
    """They hold the pipes open, so that waiting for the output would last as long as they do."""
    runner = program(tmp_path, PARENT.format(path=str(tmp_path / "pids"), then='print("{}")'))
    with pytest.raises(DeviceError, match="did not end"):
        run_job(runner, {"action": "race"}, 2)
    await_end(*pids_in(tmp_path / "pids", 2))


def test_children_with_pipes_of_their_own_are_killed_too(tmp_path: Path) -> None:
    runner = program(
        tmp_path,
        """
        quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], **quiet)
        print(json.dumps({"child": child.pid}))
        """,
    )
    await_end(run_job(runner, {"action": "race"}, 20)["child"])


def test_an_interrupt_leaves_nothing_running(tmp_path: Path) -> None:
    runner = program(tmp_path, PARENT.format(path=str(tmp_path / "pids"), then="time.sleep(60)"))
    script = f"""
        from pathlib import Path
        from edgekit.devices.local import run_job
        try:
            run_job(Path({str(runner)!r}), {{"action": "race"}}, 60)
        except KeyboardInterrupt:
            print("interrupted")
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as caller:
        pids = pids_in(tmp_path / "pids", 2)
        os.kill(caller.pid, signal.SIGINT)
        assert caller.communicate(timeout=10)[0] == "interrupted\n"
    await_end(*pids)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('raise ValueError("no such\\nmodel: x.xml")', "race failed on this machine: model: x.xml"),
        ("sys.exit(3)", "race failed on this machine: exit status 3"),
        ('sys.stderr.write("\\n" * 5); sys.exit(3)', "race failed on this machine: exit status 3"),
        (
            'sys.stderr.buffer.write(b"\\xff\\xfe broken"); sys.exit(1)',
            "race failed on this machine: \ufffd\ufffd broken",
        ),
        ("os.kill(os.getpid(), 9)", "race was killed on this machine by SIGKILL"),
        ("os.kill(os.getpid(), 11)", "race was killed on this machine by SIGSEGV"),
        ('print("hello")', "race printed no JSON document on this machine"),
        ("", "race printed no JSON document on this machine"),
        ('print("3")', "race printed no JSON document on this machine"),
        ('print("[]")', "race printed no JSON document on this machine"),
        ('print("{}"); print("{}")', "race printed no JSON document on this machine"),
        ('sys.stdout.buffer.write(b"\\xff")', "race printed no JSON document on this machine"),
    ],
)
def test_what_goes_wrong_is_one_line(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        run_job(program(tmp_path, body), {"action": "race"}, 20)
    assert str(caught.value) == message


def test_a_runner_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="probe failed on this machine"):
        run_job(tmp_path / "none.py", {"action": "probe"}, 20)


def test_much_on_stderr_neither_blocks_nor_matters(tmp_path: Path) -> None:
    runner = program(tmp_path, 'sys.stderr.write("noise\\n" * 10**6); print(json.dumps({"big": "x" * 10**6}))')
    assert len(run_job(runner, {"action": "race"}, 30)["big"]) == 10**6
    failing = program(tmp_path, 'sys.stderr.write("y" * 10**7); sys.exit(1)')
    with pytest.raises(DeviceError) as caught:
        run_job(failing, {"action": "race"}, 30)
    assert len(str(caught.value)) < 400


class TestRealRunner:
    def test_probe(self) -> None:
        info, capabilities = host().probe()
        assert info.cpu
        assert info.threads == 1
        assert info.runtime.startswith("openvino 20")
        assert info.machine == os.uname().machine
        assert "FP32" in capabilities

    def test_race(self, tmp_path: Path) -> None:
        small, large = (
            openvino.convert(case(name).write({}), tmp_path / name, Precision.FP32) for name in ("gru", "conv_net")
        )
        raced = host().race({"large": large, "small": small, "again": large}, 0.5)
        assert list(raced) == ["large", "small", "again"]
        assert raced["large"].ratio == raced["large"].ratio_low == raced["large"].ratio_high == 1.0
        for row in raced.values():
            assert 0 < row.latency_ms.p50 <= row.latency_ms.p90 <= row.latency_ms.p99
            assert row.latency_ms.n >= 20
            assert 0 < row.ratio_low <= row.ratio <= row.ratio_high
        assert 0.4 < raced["again"].ratio < 2.5, "the same model is as fast as itself"

    def test_race_on_given_inputs(self, tmp_path: Path) -> None:
        source = case("transformer")
        artifact = openvino.convert(source.write({}), tmp_path, Precision.FP32)
        np.savez(tmp_path / "inputs.npz", **source.data.sample(0))
        assert host().race({"float": artifact}, 0.05, tmp_path / "inputs.npz")["float"].latency_ms.p50 > 0
        np.savez(tmp_path / "bad.npz", ids=np.zeros((1, 3), np.int64))
        with pytest.raises(DeviceError, match="race failed on this machine"):
            host().race({"float": artifact}, 0.05, tmp_path / "bad.npz")

    def test_profile(self, tmp_path: Path) -> None:
        artifact = openvino.convert(case("conv_net").write({}), tmp_path, Precision.FP32)
        rows = host().profile({"float": artifact}, 0.05, compiles=2)["float"]
        assert {"Convolution", "FullyConnected"} <= {row["type"] for row in rows}
        assert all(row["latency_ms"] >= 0 for row in rows)
        assert len({row["name"] for row in rows}) == len(rows)

    def test_a_model_that_is_not_there(self, tmp_path: Path) -> None:
        artifact = openvino.convert(case("conv_net").write({}), tmp_path, Precision.FP32)
        artifact.path.unlink()
        with pytest.raises(DeviceError) as caught:
            host().race({"float": artifact}, 0.1)
        assert "\n" not in str(caught.value)


def test_the_runner_stands_alone() -> None:
    """It is copied to devices: it may import numpy and openvino, and nothing of edgekit."""
    script = f"import runpy, sys; runpy.run_path({str(RUNNER)!r}); print([m for m in sys.modules if 'edgekit' in m])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_measurement_tells_nobody_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO sends a note home at each import, by a process of its own, beside what is being measured."""
    told = tmp_path / "told"
    (tmp_path / "openvino_telemetry.py").write_text(f"open({str(told)!r}, 'w').close()\nraise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_job(RUNNER, {"action": "probe"}, 120)["capabilities"]
    assert not told.exists()
