"""`--host local`: this machine as a board, with a shell in ssh's place. On a Jetson: test_jetson_python.py."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from edgekit.devices.lab import find_boards, open_lab
from edgekit.devices.ssh import SshTransport
from edgekit.errors import DeviceError, MissingToolError
from tests.devices.test_ssh import TELL, Notes, program, way_to

LAB = """
[[board]]
name = "local"
host = "10.0.0.2"
[[board]]
name = "mine"
host = "local"
target = "jetson-thor"
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """And no ssh to be found."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for tool in Path(folder).iterdir():
            if tool.name != "ssh":
                with suppress(FileExistsError):
                    (tools / tool.name).symlink_to(tool)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "my cache"))
    return tmp_path / "my cache"


def test_the_word(tmp_path: Path, cache: Path) -> None:
    (board,) = find_boards("local", "", {})
    assert (board.is_here, board.python, board.work_dir) == (True, sys.executable, str(cache / "boards"))
    (tmp_path / "lab.toml").write_text(LAB)
    lab = open_lab(tmp_path / "lab.toml")
    assert [board.is_here for board in find_boards("local,mine", "", lab)] == [False, True], "a lab's name comes first"
    assert [board.name for board in find_boards(None, "jetson-thor", lab)] == ["mine"]


def test_a_job_here(tmp_path: Path, cache: Path) -> None:
    """As on any board: files are copied once and checked, nothing else is left."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "some file").write_text("content")
    (board,) = find_boards("local", "", {})
    (tmp_path / "runner").mkdir()
    runner = program(tmp_path / "runner", TELL)
    for sent in (2, 0):
        with way_to(board) as (transport, notes):
            found = transport.run_job(runner, {"action": "echo", "folder": str(folder)}, 20)
        assert len(found["seen"]) == 1
        assert found["group"]
        assert bool(notes.sent) == bool(sent)
    assert {path.name for path in (cache / "boards").iterdir()} == {"files", "lock"}


def test_a_shell_program_is_told_which_python(tmp_path: Path) -> None:
    (board,) = find_boards("local", "", {})
    with way_to(board) as (transport, _):
        found = transport.run_job(program(tmp_path, 'cat "$1"', "tell.sh"), {"action": "echo"}, 20)
    assert found == {"action": "echo", "python": sys.executable}


def test_faults_here(tmp_path: Path) -> None:
    (board,) = find_boards("local", "", {})
    slow = program(
        tmp_path, "import os, sys, time\nopen(sys.path[0] + '/../pid', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    with way_to(board) as (transport, _):
        with pytest.raises(DeviceError, match="race did not end within 1 s on local, and was ended there"):
            transport.run_job(slow, {"action": "race"}, 1)
        process = int(next(Path(board.work_dir).rglob("pid")).read_text())
        end = time.monotonic() + 5
        while Path(f"/proc/{process}").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        missing = program(tmp_path, "import no_such_module", "other_runner.py")
        transport.install = ["numpy"]
        with pytest.raises(MissingToolError, match="no_such_module is not installed on local") as caught:
            transport.run_job(missing, {"action": "race"}, 20)
    assert caught.value.hint == f"install it: sh -c '{sys.executable} -m pip install numpy'"


def test_nobody_s_end_ends_edgekit() -> None:
    """A board's program that hears nothing from the host ends its parent: here that is a shell of its own."""
    (board,) = find_boards("local", "", {})
    transport = SshTransport(board, (), Notes())
    process = transport._connected().start("exec sh -c 'kill $PPID; sleep 5'")
    assert process.wait(3) == -signal.SIGTERM
    assert transport._connected().is_up
    transport._link = None
