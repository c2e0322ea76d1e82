"""Clocks of a Jetson set by somebody who is not root: by sudo where it asks for no password, else left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.devices.test_jetson_program import awaited
from tests.trtexec.jetson import Jetson, make_bundle, running_jetson

NOBODY = 65534
_UNPRIVILEGED = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups"
# Becomes root indeed: a setpriv that has root's setuid bit stands where sudo keeps its own.
_SUDO = """#!/bin/sh
[ "$1" = -n ] || { echo "sudo: would ask for a password" >&2; exit 1; }
shift
echo "$*" >>FOLDER/sudo.log
exec FOLDER/become --reuid 0 --regid 0 --clear-groups "$@"
"""
# trtexec's stand-in is Python's, which may lie in a home folder that nobody else may enter.
_PYTHON_FOR_ALL = f"""set -e
mkdir /run/python /run/packages
mount --bind {sys.base_prefix} /run/python
mount --bind {sysconfig.get_path("purelib")} /run/packages
cd /usr/src/tensorrt/bin
mv trtexec trtexec.py
cat >trtexec <<'END'
#!/bin/sh
PYTHONPATH=/run/packages exec /run/python/bin/python{sys.version_info.major}.{sys.version_info.minor} "$0.py" "$@"
END
chmod 755 trtexec
"""
_NEEDS_ROOT = '#!/bin/sh\n[ "$(id -u)" = 0 ] || { echo "Error: must be run as root" >&2; exit 1; }\n'


@pytest.fixture
def jetson() -> Iterator[Jetson]:
    """Its jetson_clocks refuses whoever is not root, as the real one does."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv of util-linux")
    with running_jetson() as board:
        board.folder.chmod(0o755)
        program = board.folder / "jetson/bin/jetson_clocks"
        program.write_text(_NEEDS_ROOT + program.read_text())
        made = board.shell(_PYTHON_FOR_ALL)
        assert made.returncode == 0, made.stderr
        yield board


@pytest.fixture
def there(jetson: Jetson, tmp_path: Path) -> Path:
    """A bundle on it that belongs to nobody."""
    found = jetson.put(make_bundle(tmp_path / "out"))
    found.parent.chmod(0o755)
    for path in (found, *found.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    return found


def give_sudo(jetson: Jetson) -> None:
    become = jetson.folder / "become"
    shutil.copy(shutil.which("setpriv") or "", become)
    become.chmod(0o4755)
    sudo = jetson.folder / "jetson/bin/sudo"
    sudo.write_text(_SUDO.replace("FOLDER", str(jetson.folder)))
    sudo.chmod(0o755)
    (jetson.folder / "sudo.log").touch()
    (jetson.folder / "sudo.log").chmod(0o666)
    if jetson.shell(f"{_UNPRIVILEGED} sudo -n id -u").stdout.strip() != "0":
        pytest.skip("setuid bits do not count where temporary files are")
    (jetson.folder / "sudo.log").write_text("")


def measured(jetson: Jetson, there: Path) -> dict[str, Any]:
    ended = jetson.shell(f"{_UNPRIVILEGED} sh {there}/run --seconds 1")
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_sudo_without_a_password_locks_the_clocks_and_puts_them_back(jetson: Jetson, there: Path) -> None:
    give_sudo(jetson)
    found = measured(jetson, there)
    assert found["clocks"] == "locked"
    assert "highest" in found["before"]["clocks"]
    assert jetson.clocks == "dynamic"
    assert not (there / "built/clocks").exists()
    asked = [line for line in (jetson.folder / "sudo.log").read_text().splitlines() if "clocks" in line]
    stored = f"{there}/built/clocks"
    assert [line for line in asked if "--show" not in line] == [
        f"jetson_clocks --store {stored}",
        "jetson_clocks",
        f"jetson_clocks --restore {stored}",
    ]


@pytest.mark.parametrize("has_sudo", [False, True], ids=["no sudo", "sudo with a password"])
def test_without_root_it_measures_with_the_clocks_left_alone(jetson: Jetson, there: Path, has_sudo: bool) -> None:
    sudo = jetson.folder / "jetson/bin/sudo"
    sudo.write_text('#!/bin/sh\necho "sudo: a password is required" >&2\nexit 1\n')
    sudo.chmod(0o755 if has_sudo else 0o644)
    found = measured(jetson, there)
    assert found["clocks"] == "not locked: jetson_clocks needs root, or sudo without a password"
    assert found["times"]
    assert jetson.clocks == "dynamic"


def test_a_store_that_fails_leaves_the_clocks_alone(jetson: Jetson, there: Path) -> None:
    give_sudo(jetson)
    program = jetson.folder / "jetson/bin/jetson_clocks"
    program.write_text('#!/bin/sh\n[ "$1" != --store ] || exit 1\n' + program.read_text())
    assert measured(jetson, there)["clocks"] == "not locked: jetson_clocks could not store them"
    assert jetson.clocks == "dynamic"


def test_the_guard_puts_them_back_by_sudo_after_a_kill(jetson: Jetson, there: Path) -> None:
    give_sudo(jetson)
    jetson.settings(fault="time:slow")
    command = jetson.command(f"echo $$; exec {_UNPRIVILEGED} sh {there}/run --seconds 1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        process = int(running.stdout.readline())
        awaited(lambda: jetson.clocks == "highest", 20)
        jetson.kill(process, signal.SIGKILL)
        running.communicate(timeout=10)
    awaited(lambda: jetson.clocks == "dynamic")
    awaited(lambda: not (there / "built/clocks").exists())
    jetson.bench.await_quiet()
