from __future__ import annotations

import json
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import toolchains
from edgekit.errors import InputError, MissingToolError

PROGRAM = """
import json, os, subprocess, sys, time
job = json.load(sys.stdin)
import tinydep
if job["action"] == "sleep":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(job["pids"], "w").write(f"{os.getpid()} {child.pid}")
    time.sleep(60)
if job["action"] == "crash":
    raise RuntimeError("out of ideas")
if job["action"] == "refuse":
    print(json.dumps({"error": "not this one"}))
elif job["action"] == "babble":
    print("hello")
else:
    print(json.dumps({"said": job.get("say"), "from": tinydep.NAME}))
"""
SETTINGS = """description = "for tests"
python_least = "3.11"
python_below = "3.99"
disk_bytes = 1
program = "program.py"
"""


def wheel(folder: Path, version: str = "1.0") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"tinydep-{version}-py3-none-any.whl"
    info = f"tinydep-{version}.dist-info"
    files = {
        "tinydep.py": "NAME = 'tinydep'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tinydep\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD")))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder with the toolchain ``tiny``, its wheels, and a cache of its own."""
    root = tmp_path_factory.mktemp("tiny")
    folder = root / "data" / "targets" / "toolchains" / "tiny"
    folder.mkdir(parents=True)
    (folder / "toolchain.toml").write_text(SETTINGS)
    (folder / "requirements.txt").write_text("# exact\ntinydep==1.0\n")
    (folder / "program.py").write_text(PROGRAM)
    wheel(root / "wheels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.catalog.data_root", lambda: root / "data")
        patch.setenv("EDGEKIT_CACHE", str(root / "cache"))
        patch.setenv("EDGEKIT_PYTHON", sys.executable)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens: there is no network
        patch.setenv("PIP_RETRIES", "0")
        yield root


@pytest.fixture
def tiny(place: Path) -> Path:
    """``place`` with a sound environment."""
    toolchains.ensure("tiny", wheels=place / "wheels")
    return place


def left_behind(place: Path) -> list[str]:
    return [path.name for path in (place / "cache" / "toolchains").glob(".new-*")]


@pytest.mark.slow
class TestEnvironment:
    def test_is_made_from_a_folder_of_wheels_without_network(self, tiny: Path) -> None:
        assert toolchains.problem("tiny") == ""
        assert toolchains.run("tiny", {"action": "talk", "say": "é"}, 60) == {"said": "é", "from": "tinydep"}
        assert left_behind(tiny) == []

    def test_is_made_once(self, tiny: Path) -> None:
        stamp = tiny / "cache" / "toolchains" / "tiny" / "edgekit-toolchain.json"
        before = stamp.stat().st_mtime_ns
        toolchains.ensure("tiny")
        assert stamp.stat().st_mtime_ns == before

    def test_a_damaged_one_is_seen_and_made_again(self, tiny: Path) -> None:
        (info,) = (tiny / "cache" / "toolchains" / "tiny").glob("lib/python3*/site-packages/tinydep*.dist-info")
        shutil.rmtree(info)
        assert toolchains.problem("tiny") == "damaged: tinydep is not what its lock file says"
        toolchains.ensure("tiny", wheels=tiny / "wheels")
        assert toolchains.problem("tiny") == ""

    def test_one_whose_module_is_gone_says_so_when_it_is_used(self, tiny: Path) -> None:
        (module,) = (tiny / "cache" / "toolchains" / "tiny").glob("lib/python3*/site-packages/tinydep.py")
        text = module.read_text()
        module.unlink()
        shutil.rmtree(module.parent / "__pycache__", ignore_errors=True)
        with pytest.raises(MissingToolError, match=r"does not work.*tinydep") as caught:
            toolchains.run("tiny", {"action": "talk"}, 60)
        assert "toolchain install tiny" in caught.value.hint
        module.write_text(text)

    def test_without_network_it_names_the_way_out_and_keeps_what_was_there(self, tiny: Path) -> None:
        stamp = tiny / "cache" / "toolchains" / "tiny" / "edgekit-toolchain.json"
        text = stamp.read_text()
        stamp.write_text(json.dumps({"digest": "another"}))
        assert toolchains.problem("tiny") == "made for other versions"
        with pytest.raises(MissingToolError, match="cannot be installed") as caught:
            toolchains.ensure("tiny")
        assert caught.value.exit_code == 4
        assert "--wheels" in caught.value.hint
        assert left_behind(tiny) == []
        assert stamp.is_file(), "an environment goes only when another takes its place"
        stamp.write_text(text)

    def test_a_folder_that_lacks_a_wheel_is_told(self, place: Path, tmp_path: Path) -> None:
        with pytest.raises(MissingToolError, match="tinydep") as caught:
            toolchains.ensure("tiny", wheels=wheel(tmp_path / "wheels", "2.0"), again=True)
        assert "pip download" in caught.value.hint
        with pytest.raises(InputError, match="no such folder"):
            toolchains.ensure("tiny", wheels=tmp_path / "nowhere", again=True)

    def test_an_unknown_name(self, place: Path) -> None:
        with pytest.raises(InputError, match="unknown toolchain 'tyni'"):
            toolchains.ensure("tyni")


@pytest.mark.slow
class TestRun:
    def test_what_it_refuses_and_where_it_fails(self, tiny: Path) -> None:
        with pytest.raises(InputError, match="not this one"):
            toolchains.run("tiny", {"action": "refuse"}, 60)
        with pytest.raises(InputError, match="RuntimeError: out of ideas"):
            toolchains.run("tiny", {"action": "crash"}, 60)
        with pytest.raises(InputError, match="failed on the model"):
            toolchains.run("tiny", {"action": "babble"}, 60)

    def test_nothing_is_left_running_after_a_timeout(self, tiny: Path, tmp_path: Path) -> None:
        file = tmp_path / "pids"
        with pytest.raises(InputError, match="did not end within"):
            toolchains.run("tiny", {"action": "sleep", "pids": str(file)}, 3)
        deadline = time.monotonic() + 5
        pids = [int(pid) for pid in file.read_text().split()]
        while any(map(running, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(running, pids))


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def interpreter(path: Path, answer: str) -> Path:
    """A program in the place of an interpreter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return path


class TestFindPython:
    @pytest.fixture(autouse=True)
    def nothing_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("EDGEKIT_PYTHON", "PYENV_ROOT", "UV_PYTHON_INSTALL_DIR", "XDG_DATA_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def test_none_says_where_it_looked(self) -> None:
        with pytest.raises(MissingToolError, match=r"no Python 3\.12 .*EDGEKIT_PYTHON.*PATH, pyenv and uv") as caught:
            toolchains.find_python((3, 12), (3, 14))
        assert caught.value.exit_code == 4
        assert "EDGEKIT_PYTHON" in caught.value.hint

    def test_one_that_does_not_run_is_passed_over(self, tmp_path: Path) -> None:
        interpreter(tmp_path / "bin" / "python3.12", "echo 'python3.12: command not found' >&2; exit 127")
        interpreter(tmp_path / "bin" / "python3", "echo 3 11 7")
        found = interpreter(tmp_path / ".pyenv" / "versions" / "3.12.1" / "bin" / "python3", "echo 3 12 1")
        assert toolchains.find_python((3, 12), (3, 14)) == found

    def test_too_new_and_too_old_are_named(self, tmp_path: Path) -> None:
        interpreter(tmp_path / "bin" / "python3", "echo 3 14 0")
        interpreter(tmp_path / "bin" / "python", "echo 3 11 7")
        with pytest.raises(MissingToolError, match=r"python3 \(3\.14\.0\).*python \(3\.11\.7\)"):
            toolchains.find_python((3, 12), (3, 14))

    def test_uv(self, tmp_path: Path) -> None:
        folder = tmp_path / ".local" / "share" / "uv" / "python" / "cpython-3.13.2-linux-x86_64-gnu"
        found = interpreter(folder / "bin" / "python3", "echo 3 13 2")
        assert toolchains.find_python((3, 12), (3, 14)) == found

    def test_the_variable_counts_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        interpreter(tmp_path / "bin" / "python3.12", "echo 3 12 1")
        own = interpreter(tmp_path / "own", "echo 3 13 0")
        monkeypatch.setenv("EDGEKIT_PYTHON", str(own))
        assert toolchains.find_python((3, 12), (3, 14)) == own
        monkeypatch.setenv("EDGEKIT_PYTHON", str(tmp_path / "missing"))
        with pytest.raises(MissingToolError, match=r"EDGEKIT_PYTHON=.*does not run"):
            toolchains.find_python((3, 12), (3, 14))
        monkeypatch.setenv("EDGEKIT_PYTHON", str(own))
        with pytest.raises(MissingToolError, match=r"is Python 3\.13\.0"):
            toolchains.find_python((3, 12), (3, 13))


def test_lock_files_name_every_package_at_one_version() -> None:
    for chain in toolchains.known().values():
        lines = (chain.folder / "requirements.txt").read_text().splitlines()
        assert all(line.startswith("#") or line.count("==") == 1 for line in lines)
        assert chain.locked
        assert (chain.folder / chain.program).is_file()
