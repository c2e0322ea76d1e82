"""Jobs over a real sshd: files travel once, whole and only where they should; programs get what they were sent."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgekit.devices.lab import Board
from edgekit.devices.ssh import SshTransport
from edgekit.errors import DeviceError
from edgekit.progress import Silent
from tests.devices.sshd import TestBoard, busybox, require_namespaces, running_board

# Tells what it was given: its job, where it runs, and the contents of every file that the job names.
TELL = """
import hashlib, json, os, sys
job = json.load(open(sys.argv[1]))
seen = {}
for path in [m["path"] for m in job.get("models", [])] + [job.get("inputs"), job.get("folder")]:
    for folder, _, names in os.walk(path if path and os.path.isdir(path) else os.path.dirname(path or "")):
        for name in names:
            full = os.path.join(folder, name)
            seen[os.path.relpath(full, os.path.dirname(path))] = hashlib.sha256(open(full, "rb").read()).hexdigest()
group, beside = os.getpgid(0) == os.getpid(), sorted(os.listdir(sys.path[0]))
print(json.dumps({"job": job, "seen": seen, "group": group, "beside": beside}))
"""


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    @property
    def sent(self) -> list[str]:
        return [line for line in self.lines if line.startswith("send ")]


@contextmanager
def way_to(board: Board, **options: Any) -> Iterator[tuple[SshTransport, Notes]]:
    """A transport whose connection is closed afterwards."""
    notes = Notes()
    transport = SshTransport(board, ("openvino>=2025.2", "numpy"), notes, **options)
    try:
        yield transport, notes
    finally:
        transport._link = None


def program(folder: Path, text: str, name: str = "some_runner.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def bench() -> Iterator[TestBoard]:
    with running_board() as board:
        yield board


def test_the_document_comes_back_and_the_job_goes_there(bench: TestBoard, tmp_path: Path) -> None:
    job = {"action": "echo", "text": "µs ' \" \\ $HOME `id` \u2028 \U0001f600 %s \n", "numbers": [1, 2.5, None]}
    with way_to(bench.board) as (transport, _):
        document = transport.run_job(program(tmp_path, TELL), job, 20)
    assert document["job"] == job
    assert document["group"], "it leads a process group of its own"
    bench.await_quiet()


def test_files_travel_once_and_keep_together(bench: TestBoard, tmp_path: Path) -> None:
    contents = {"model.xml": b"<xml>", "model.bin": bytes(300_000), "inputs.npz": b"inputs"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    folder = tmp_path / "bundle"
    (folder / "deep").mkdir(parents=True)
    (folder / "a b.txt").write_bytes(b"spaces")
    (folder / "deep" / "c").write_bytes(b"")
    (tmp_path / "runner").mkdir()
    runner = program(tmp_path / "runner", TELL)
    program(tmp_path / "runner", "", "helper.py")
    program(tmp_path / "runner", "", "other_runner.py")
    files = [str(tmp_path / "model.xml"), str(tmp_path / "model.bin")]
    job = {
        "action": "race",
        "models": [{"name": name, "path": files[0], "files": files, "hint": "f32"} for name in ("a", "b")],
        "inputs": str(tmp_path / "inputs.npz"),
        "folder": str(folder),
    }
    expected = {name: digest(content) for name, content in contents.items()}
    with way_to(bench.board) as (transport, notes):
        first = transport.run_job(runner, job, 20)
        assert notes.sent == ["send 7 files, 0.3 MB to bench"]
        found = {name.rpartition("/")[2]: value for name, value in first["seen"].items()}
        assert found == expected | {"a b.txt": digest(b"spaces"), "c": digest(b"")}
        assert first["beside"] == ["helper.py", "some_runner.py"], "what a runner imports comes with it"
        assert first["job"]["models"][0]["path"] == first["job"]["models"][1]["path"]
        assert str(tmp_path) not in json.dumps(first["job"])

        assert transport.run_job(runner, job, 20) == first
        assert len(notes.sent) == 1, "nothing changed"
        (tmp_path / "model.bin").write_bytes(b"\1" * 300_000)
        again = transport.run_job(runner, job, 20)
        assert notes.sent[1:] == ["send 2 files, 0.3 MB to bench"], "only the pair that changed"
    assert digest(b"\1" * 300_000) in again["seen"].values()
    bench.await_quiet()


@pytest.mark.parametrize("odd", ["two words", "it's", "$(touch gone)", "`id`", "a;b", "-x", 'say "no"', "ü", "*"])
def test_no_text_becomes_a_command(odd: str, bench: TestBoard, tmp_path: Path) -> None:
    """A work folder of any name, and the same for the Python and the files."""
    work = bench.folder / f"odd {odd}"
    python = tmp_path / f"python {odd}"
    python.symlink_to(sys.executable)  # not what PATH calls python3: a shim there goes by the name it is called by
    board = Board("bench", bench.board.host, "", str(python), str(work), bench.board.ssh_config)
    with way_to(board) as (transport, _):
        document = transport.run_job(program(tmp_path, TELL), {"action": odd, "inputs": None}, 20)
    assert document["job"]["action"] == odd
    assert {path.name for path in work.iterdir()} == {"files", "lock"}
    assert not list(bench.folder.rglob("gone"))


def test_a_home_folder_is_that_of_the_board(bench: TestBoard, tmp_path: Path) -> None:
    require_namespaces()
    board = Board("bench", bench.board.host, "", bench.board.python, "~/deep/edgekit", bench.board.ssh_config)
    with way_to(board) as (transport, _):
        transport.run_job(program(tmp_path, TELL), {"action": "echo"}, 20)
    assert (bench.folder / "home/deep/edgekit/files").is_dir()


def test_the_users_configuration_holds(bench: TestBoard, tmp_path: Path) -> None:
    """A Host of the configuration, behind a jump host, with a command and a forwarded port that are in the way."""
    own = (bench.folder / "ssh_config").read_text()
    here = f"HostName 127.0.0.1\nPort {bench.port}\n"
    far = f"Host far\n{here}ProxyJump near\nRemoteCommand false\nLocalForward 127.0.0.1:{bench.port} 127.0.0.1:1\n"
    config = tmp_path / "config"
    config.write_text(f"{far}Host near\n{here}{own}")
    board = Board("far", "far", "", bench.board.python, str(bench.work), str(config))
    with way_to(board) as (transport, _):
        assert transport.run_job(program(tmp_path, TELL), {"action": "echo"}, 20)["job"] == {"action": "echo"}
    bench.await_quiet()


def test_progress_streams_and_the_document_is_apart_from_it(bench: TestBoard, tmp_path: Path) -> None:
    text = """
import sys
sys.stderr.write("warm up [/red] \\x1b[31m\\n" + "x" * 10**6 + "\\n")
print('{"big": "' + "y" * 10**6 + '"}')
"""
    with way_to(bench.board) as (transport, notes):
        document = transport.run_job(program(tmp_path, text), {"action": "echo"}, 20)
    assert len(document["big"]) == 10**6
    assert "bench: warm up [/red] \ufffd[31m" in notes.lines
    assert max(map(len, notes.lines)) < 300


def test_old_files_are_forgotten(bench: TestBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.devices.ssh.KEEP_KIB", 700)
    runner = program(tmp_path, TELL)
    work = bench.folder / "few"
    with way_to(bench.to(bench.port, work)) as (transport, _):
        for number in range(6):
            (tmp_path / "inputs").write_bytes(bytes([number]) * 200_000)
            transport.run_job(runner, {"action": "echo", "inputs": str(tmp_path / "inputs")}, 20)
        kept = [path for path in work.rglob("*") if path.is_file() and path.name == "inputs"]
    assert 2 <= len(kept) <= 4
    assert any(path.read_bytes()[0] == 5 for path in kept), "never those of the last job"


def test_a_new_file_does_not_drive_out_others_of_the_same_job(
    bench: TestBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.devices.ssh.KEEP_KIB", 300)
    runner = program(tmp_path, TELL)
    models = []
    for number in range(3):
        path = tmp_path / f"model-{number}"
        path.write_bytes(bytes([number]) * 200_000)
        models.append({"name": path.name, "path": str(path)})
    with way_to(bench.to(bench.port, bench.folder / "tight")) as (transport, _):
        transport.run_job(runner, {"action": "race", "models": models[:2]}, 20)
        transport.run_job(runner, {"action": "race", "models": models}, 20)


@pytest.mark.parametrize("name", ["a b", "50%h", "q'uote", "long" * 30])
def test_any_folder_for_temporary_files_will_do(
    name: str, bench: TestBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        (Path(short) / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(Path(short) / name))
        with way_to(bench.to(bench.port, bench.folder / "odd")) as (transport, _):
            transport.run_job(program(tmp_path, TELL), {"action": "echo"}, 20)


NOISY = '#!/bin/dash\necho "Welcome!"; echo \'{"not": "this"}\'; echo motd >&2\nexec /bin/dash "$@"\n'


def test_what_login_scripts_print_does_no_harm(tmp_path: Path) -> None:
    require_namespaces()
    with running_board() as board:
        shell = board.folder / "noisy"
        shell.write_text(NOISY)
        shell.chmod(0o755)
        board.switch_off()
        passwd = board.folder / "passwd"
        passwd.write_text(passwd.read_text().replace(f"{board.folder}/home:/bin/sh", f"{board.folder}/home:{shell}"))
        board.start()
        with way_to(board.board) as (transport, _):
            assert transport.run_job(program(tmp_path, TELL), {"action": "echo"}, 20)["job"] == {"action": "echo"}


APPLETS = ("cat", "dd", "df", "du", "ln", "ls", "mkdir", "mv", "readlink", "rm", "setsid", "sh", "sha256sum", "sleep")


@pytest.mark.parametrize("kind", ["bash", "busybox"])
def test_shells_and_tools_of_other_boards(kind: str, tmp_path: Path) -> None:
    """BusyBox's and bash's sh, and BusyBox's tools, without flock as it is in Debian."""
    require_namespaces()
    programs: dict[str, str | Path | None] = {"sh": Path("/bin/bash")}
    if kind == "busybox":
        programs = {**dict.fromkeys((*APPLETS, "tail", "tar", "touch"), busybox()), "flock": None}
    with running_board(programs) as board:
        (tmp_path / "inputs").write_bytes(bytes(100_000))
        job = {"action": "echo", "inputs": str(tmp_path / "inputs")}
        with way_to(board.board) as (transport, notes):
            for _ in range(2):
                assert transport.run_job(program(tmp_path, TELL), job, 20)["seen"]["inputs"] == digest(bytes(100_000))
            assert len(notes.sent) == 1
            hang = "import subprocess, time; subprocess.Popen(['sleep', '300']); time.sleep(300)"
            with pytest.raises(DeviceError, match="did not end within 1 s"):
                transport.run_job(program(tmp_path, hang), {"action": "race"}, 1)
        board.await_quiet()
