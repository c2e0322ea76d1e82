"""What goes wrong between here and a board, on a real sshd: what the user reads, that nothing is left behind on either
side, and that the same job then succeeds. docs/faults.md shows the messages.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.catalog import data_root
from edgekit.devices.lab import Board
from edgekit.errors import DeviceError, EdgekitError, MissingToolError
from tests.devices.sshd import TestBoard, cable_to, free_port, require_namespaces, running_board
from tests.devices.test_ssh import Notes, program, way_to

# Writes that it has begun, and what it is asked to do then.
WORK = """
import json, os, subprocess, sys, time
job = json.load(open(sys.argv[1]))
if job.get("child"):
    subprocess.Popen(["sleep", "300"])
sys.stderr.write("begun\\n")
sys.stderr.flush()
exec(job.get("do", ""))
time.sleep(job.get("sleep", 0))
print(json.dumps({"done": True}))
"""
HANG = {"action": "race", "sleep": 300, "child": True}
FINE = {"action": "race"}
BIG = 3_000_000


class Begun(Notes):
    """Calls back when the program on the board has begun."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__()
        self.then = then

    def note(self, line: str) -> None:
        super().note(line)
        if line.endswith(": begun"):
            self.then()


@pytest.fixture
def bench() -> Iterator[TestBoard]:
    with running_board() as board:
        yield board


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    return program(tmp_path, WORK)


@pytest.fixture
def big(tmp_path: Path) -> dict[str, Any]:
    """A job with a file that does not compress."""
    (tmp_path / "big").write_bytes(os.urandom(BIG))
    return {"action": "race", "inputs": str(tmp_path / "big")}


def refused(
    board: Board, runner: Path, job: dict[str, Any], *, notes: Notes | None = None, limit_s: float = 30
) -> EdgekitError:
    """The error of a job. No ssh of it is left on this side."""
    with way_to(board) as (transport, _):
        transport.progress = notes or Notes()
        with pytest.raises(EdgekitError) as caught:
            transport.run_job(runner, job, limit_s)
    await_no_ssh(board)
    error = caught.value
    assert "\n" not in str(error)
    assert "\n" not in error.hint
    assert error.hint
    print(f"{type(error).__name__} {error.exit_code}: {error}\n  hint: {error.hint}")
    return error


def succeeds(board: Board, runner: Path, job: dict[str, Any]) -> Notes:
    with way_to(board) as (transport, notes):
        assert transport.run_job(runner, job, 30) == {"done": True}
    return notes


def await_no_ssh(board: Board) -> None:
    """No ssh of ours talks to the board any more."""
    end = time.monotonic() + 5
    while True:
        commands = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has just ended
                commands.append(path.read_bytes())
        left = [one for one in commands if one.startswith(b"ssh\0") and board.ssh_config.encode() in one]
        if not left:
            return
        assert time.monotonic() < end, left
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("host key", "shows another host key than the one that is known"),
        ("unknown host key", "the host key of .* is not known"),
        ("user key", "lets nobody in with these keys: permission denied"),
        ("user", "lets nobody in with these keys: permission denied"),
        ("port", "no ssh server answers at"),
        ("name", "there is no host called no-such-host.invalid"),
    ],
)
def test_who_is_not_let_in(change: str, message: str, bench: TestBoard, runner: Path) -> None:
    board = bench.board
    known = bench.folder / "known_hosts"
    config = bench.folder / "ssh_config"
    before = known.read_text(), config.read_text()
    if change == "host key":
        known.write_text(f"[127.0.0.1]:{bench.port} {(bench.folder / 'other_host_key.pub').read_text()}")
    elif change == "unknown host key":
        known.write_text("")
    elif change == "user key":
        config.write_text(before[1].replace("user_key", "other_key"))
    elif change == "user":
        board = bench.to(bench.port, user="nobody-like-this")
    elif change == "port":
        board = bench.to(free_port())
    else:
        board = replace(board, host="no-such-host.invalid")
    found = known.read_text()
    error = refused(board, runner, FINE)
    assert error.exit_code == 5
    assert re.search(message, str(error))
    assert known.read_text() == found, "a host key is never taken over by itself"
    assert not bench.work.exists()
    known.write_text(before[0])
    config.write_text(before[1])
    succeeds(bench.board, runner, FINE)


def test_link_cut_while_files_travel(bench: TestBoard, runner: Path, big: dict[str, Any]) -> None:
    with cable_to(bench.port, cut_after=BIG // 2) as cable:
        bench.know(cable.port)
        error = refused(bench.to(cable.port), runner, big)
        assert "the link to bench was lost during the transfer of files; the board is up" in str(error)
        assert error.exit_code == 5
        bench.await_quiet()
        assert not list((bench.work / "files").iterdir()), "nothing half-sent"
        succeeds(bench.to(cable.port), runner, big)


def test_link_cut_while_a_job_runs(bench: TestBoard, runner: Path) -> None:
    with cable_to(bench.port) as cable:
        bench.know(cable.port)
        error = refused(bench.to(cable.port), runner, HANG, notes=Begun(cable.cut))
        assert str(error) == "the link to bench was lost during race; the board is up, and ended the work"
        bench.await_quiet()
        succeeds(bench.to(cable.port), runner, FINE)


@pytest.mark.slow
def test_link_that_falls_silent(bench: TestBoard, runner: Path) -> None:
    """A pulled plug sends nothing: both sides must notice by themselves."""
    with cable_to(bench.port) as cable:
        bench.know(cable.port)
        started = time.monotonic()
        error = refused(bench.to(cable.port), runner, HANG, notes=Begun(lambda: setattr(cable, "frozen", True)))
        assert "the link to bench was lost during race, and the board does not answer now" in str(error)
        assert time.monotonic() - started < 80
        bench.await_quiet(30)
        bench.know(bench.port)
        succeeds(bench.board, runner, FINE)


def test_board_restarts_while_a_job_runs(bench: TestBoard, runner: Path) -> None:
    require_namespaces()
    error = refused(bench.board, runner, HANG, notes=Begun(bench.restart))
    assert str(error) == "bench restarted during race"
    assert error.exit_code == 5
    succeeds(bench.board, runner, FINE)
    bench.await_quiet()


def test_board_goes_off_while_a_job_runs(bench: TestBoard, runner: Path) -> None:
    require_namespaces()
    error = refused(bench.board, runner, HANG, notes=Begun(bench.switch_off))
    assert str(error) == "the link to bench was lost during race, and the board does not answer now"
    bench.start()
    succeeds(bench.board, runner, FINE)
    bench.await_quiet()


def test_disk_full(bench: TestBoard, runner: Path, big: dict[str, Any]) -> None:
    require_namespaces()
    small = bench.to(bench.port, bench.folder / "small" / "work")
    error = refused(small, runner, big)
    where = r"the disk of bench is full: 3\.0 MB have to go to \S+/small/work, where \d MB are free"
    assert re.fullmatch(where, str(error))
    assert error.exit_code == 5
    succeeds(small, runner, FINE)
    succeeds(bench.board, runner, big)


def test_disk_that_is_full_although_it_said_otherwise(runner: Path, big: dict[str, Any], tmp_path: Path) -> None:
    """Quotas and other writers: the archive itself meets the end of the disk."""
    with running_board({"df": "#!/bin/sh\necho none 9999999 0 9999999 0% /\n"}) as bench:
        small = bench.to(bench.port, bench.folder / "small" / "work")
        error = refused(small, runner, big)
        assert re.fullmatch(r"the disk of bench is full: 3\.0 MB have to go to \S+/small/work", str(error))
        succeeds(small, runner, FINE)
        (tmp_path / "fits").write_bytes(os.urandom(1_500_000))
        succeeds(small, runner, {**FINE, "inputs": str(tmp_path / "fits")})


def test_file_damaged_on_the_board(bench: TestBoard, runner: Path, big: dict[str, Any]) -> None:
    succeeds(bench.board, runner, big)
    there = next(bench.work.rglob("big"))
    with there.open("r+b") as file:
        file.seek(BIG // 2)
        file.write(b"\0" * 8)
    notes = succeeds(bench.board, runner, big)
    assert "big on bench was damaged; it is sent again" in notes.lines
    bench.await_quiet()


def test_program_damaged_on_the_board_does_not_run(bench: TestBoard, runner: Path) -> None:
    succeeds(bench.board, runner, FINE)
    next(bench.work.rglob("some_runner.py")).write_text('print(\'{"done": "by an intruder"}\')')
    succeeds(bench.board, runner, FINE)


def test_storage_that_damages_files(runner: Path, big: dict[str, Any], tmp_path: Path) -> None:
    """A `tar` that writes, and then the storage forgets a few bytes."""
    require_namespaces()
    forgetful = f"""#!{sys.executable}
import sys, tarfile, os
tarfile.open(fileobj=sys.stdin.buffer, mode="r|").extractall(sys.argv[4], filter="data")
for folder, _, names in os.walk(sys.argv[4]):
    for name in names:
        if name == "big":
            os.truncate(os.path.join(folder, name), 100)
"""
    with running_board({"tar": forgetful}) as bench:
        error = refused(bench.board, runner, big)
        assert str(error) == "big arrived on bench damaged: the SHA-256 there is not that of the file here"
        assert error.exit_code == 5
        bench.await_quiet()
        assert not list(bench.work.rglob("big"))
        succeeds(bench.board, runner, FINE)


def test_job_that_hangs(bench: TestBoard, runner: Path) -> None:
    started = time.monotonic()
    error = refused(bench.board, runner, HANG, limit_s=2)
    assert str(error) == "race did not end within 2 s on bench, and was ended there"
    assert time.monotonic() - started < 10
    bench.await_quiet()
    succeeds(bench.board, runner, FINE)


def test_children_that_outlive_a_job_are_ended(bench: TestBoard, runner: Path) -> None:
    succeeds(bench.board, runner, {**FINE, "child": True, "do": "sys.stdout.flush()"})
    bench.await_quiet()


@pytest.mark.parametrize("has_flock", [True, False])
def test_two_runs_at_once(has_flock: bool, runner: Path) -> None:
    with running_board({} if has_flock else {"flock": None}) as bench:
        begun = threading.Event()
        hung: list[EdgekitError] = []

        def hold() -> None:
            hung.append(refused(bench.board, runner, HANG, limit_s=5, notes=Begun(begun.set)))

        other = threading.Thread(target=hold)
        other.start()
        assert begun.wait(20)
        with way_to(bench.board, wait_s=1.0) as (transport, notes), pytest.raises(DeviceError) as caught:
            transport.run_job(runner, FINE, 30)
        assert re.fullmatch(r"bench is in use by \S+@\S+ \(process \d+, race\)", str(caught.value))
        assert any("waiting up to" in line for line in notes.lines)
        assert not hung, "the first one was not disturbed"
        succeeds(bench.board, runner, FINE)  # waits for its turn
        other.join()
        assert "did not end within 5 s" in str(hung[0])
        bench.await_quiet()


@pytest.mark.parametrize("has_flock", [True, False])
def test_lock_of_a_run_that_was_killed(has_flock: bool, runner: Path) -> None:
    """The board's shell dies without cleaning up, or the board does: the lock does not outlive it."""
    require_namespaces()
    with running_board({} if has_flock else {"flock": None}) as bench:
        refused(bench.board, runner, HANG, notes=Begun(bench.switch_off))
        bench.start()
        succeeds(bench.board, runner, FINE)
        bench.await_quiet()


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("os.kill(os.getpid(), 9)", "race was killed on bench by SIGKILL"),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29)); bytearray(2**30)",
            "race ran out of memory on bench",
        ),
        ("os.kill(os.getpid(), 11)", "race was killed on bench by SIGSEGV"),
        ("raise ValueError('no such\\nmodel: x.xml')", "race failed on bench: model: x.xml"),
        ("print('Hello')", "race printed no JSON document on bench"),
        ("os._exit(3)", "race failed on bench: begun"),
    ],
)
def test_job_that_fails(do: str, message: str, bench: TestBoard, runner: Path) -> None:
    with way_to(bench.board) as (transport, _), pytest.raises(DeviceError) as caught:
        transport.run_job(runner, {**HANG, "sleep": 0, "do": do}, 30)
    assert str(caught.value) == message
    if "SIGKILL" in message:
        assert "memory runs out" in caught.value.hint
    bench.await_quiet()
    succeeds(bench.board, runner, FINE)


def test_what_is_missing_on_the_board(bench: TestBoard, runner: Path) -> None:
    error = refused(bench.to(bench.port, python="/opt/no/python3"), runner, FINE)
    assert str(error) == "there is no /opt/no/python3 on bench"
    assert error.exit_code == 5
    missing = refused(bench.board, runner, {**FINE, "do": "import openvino_that_is_not_there"})
    assert isinstance(missing, MissingToolError)
    assert missing.exit_code == 4
    assert str(missing) == "openvino_that_is_not_there is not installed on bench"
    assert f"-p {bench.port}" in missing.hint
    assert "-m pip install" in missing.hint
    succeeds(bench.board, runner, FINE)


def test_folder_that_cannot_be_written(bench: TestBoard, runner: Path) -> None:
    (bench.folder / "file").write_text("")
    error = refused(bench.to(bench.port, bench.folder / "file" / "work"), runner, FINE)
    assert str(error).startswith(f"cannot write to {bench.folder}/file/work on bench: mkdir: ")
    assert error.exit_code == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("when", ["run", "push"])
def test_this_side_is_interrupted_or_killed(
    when: str, number: signal.Signals, bench: TestBoard, runner: Path, tmp_path: Path
) -> None:
    """The program that waits for the board gets a Ctrl-C, or has no chance to do anything."""
    job = HANG
    if when == "push":
        (tmp_path / "big").write_bytes(os.urandom(60_000_000))
        job = {**FINE, "inputs": str(tmp_path / "big")}
    script = f"""
        import sys
        from pathlib import Path
        from edgekit.devices.lab import Board
        from edgekit.devices.ssh import SshTransport
        from edgekit.progress import Silent
        class Loud(Silent):
            def note(self, line):
                print(line, flush=True)
        try:
            SshTransport({bench.board!r}, (), Loud()).run_job(Path({str(runner)!r}), {job!r}, 100)
        except KeyboardInterrupt:
            print("interrupted")
    """
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as caller:
        assert caller.stdout is not None
        awaited = "send" if when == "push" else "bench: begun"
        for line in caller.stdout:
            if line.startswith(awaited):
                break
        time.sleep(0.1)
        caller.send_signal(number)
        out = caller.stdout.read()
    if number == signal.SIGINT:
        assert out == "interrupted\n"
        assert not list(temporary.iterdir())
    await_no_ssh(bench.board)
    bench.await_quiet()
    assert not list(bench.work.rglob("big"))
    succeeds(bench.board, runner, FINE)


def test_limits_hold_when_clocks_jump(bench: TestBoard, runner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits are counted in sleeps there and by the monotonic clock here."""
    real = time.time
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 10**6)
    succeeds(bench.board, runner, FINE)
    refused(bench.board, runner, HANG, limit_s=1)
    text = (data_root() / "targets/runners/board.sh").read_text()
    code = [line.partition(" #")[0] for line in text.splitlines() if not line.startswith("#")]
    assert not [line for line in code if re.search(r"\bdate\b|SECONDS|-newer|-mtime", line)]
    for module in ("link", "ssh", "transport", "local"):
        assert "time.time(" not in (data_root() / f"edgekit/devices/{module}.py").read_text()


def test_a_reset_before_the_job_is_tried_again(bench: TestBoard, runner: Path) -> None:
    with cable_to(bench.port, cut_after=100) as cable:  # in the middle of the first key exchange
        bench.know(cable.port)
        succeeds(bench.to(cable.port), runner, FINE)
        assert cable.cut_after is None, "it was cut"
