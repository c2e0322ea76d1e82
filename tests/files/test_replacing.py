"""Whole or not at all: a folder or a file takes its place in one step, or what was there stays."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit.errors import InputError
from edgekit.files import replacing

ROOT = Path(__file__).resolve().parents[2]


def content(folder: Path) -> dict[str, bytes]:
    """Everything below ``folder``, hidden or not."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(out: Path, text: str, then: Callable[[Path], object] = lambda folder: None) -> None:
    with replacing.replacing(out) as folder:
        (folder / "a").write_text(text)
        (folder / "b").write_text(text)
        then(folder)


def fail_with(error: BaseException) -> Callable[[Path], None]:
    def fail(folder: Path) -> None:
        raise error

    return fail


@pytest.fixture
def dead() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


class TestFolder:
    def test_new_and_again(self, tmp_path: Path) -> None:
        out = tmp_path / "deep" / "er" / "out"
        for text in ("one", "two"):
            write(out, text)
            assert content(tmp_path) == {"deep/er/out/a": text.encode(), "deep/er/out/b": text.encode()}

    @pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
    @pytest.mark.parametrize("there_before", [False, True])
    def test_anything_raised_inside_leaves_what_was_there(
        self, tmp_path: Path, error: BaseException, there_before: bool
    ) -> None:
        out = tmp_path / "deep" / "out"
        if there_before:
            write(out, "old")
        before = content(tmp_path)
        with pytest.raises(type(error)) as caught:
            write(out, "new", fail_with(error))
        assert caught.value is error
        assert content(tmp_path) == before
        assert names(tmp_path) == (["deep"] if there_before else [])

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_full_disk_says_so_with_a_hint(self, tmp_path: Path, number: int) -> None:
        with pytest.raises(InputError, match="cannot write the bundle") as caught:
            write(tmp_path / "out", "new", fail_with(OSError(number, os.strerror(number))))
        assert os.strerror(number) in str(caught.value)
        assert "free some space" in caught.value.hint
        assert names(tmp_path) == []

    def test_parents_with_other_files_stay(self, tmp_path: Path) -> None:
        def meddle(folder: Path) -> None:
            (folder.parent / "mine").write_text("mine")
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            write(tmp_path / "new" / "out", "new", meddle)
        assert content(tmp_path) == {"new/mine": b"mine"}

    def test_parent_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InputError, match="cannot write the bundle"):
            write(tmp_path / "file" / "out", "new")
        assert content(tmp_path) == {"file": b"mine"}

    def test_when_the_new_one_cannot_take_its_place_the_old_comes_back(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        write(out, "old")
        with pytest.raises(InputError):
            write(out, "new", shutil.rmtree)  # a folder that is gone cannot be renamed; the old one stepped aside
        assert content(tmp_path) == {"out/a": b"old", "out/b": b"old"}
        assert names(tmp_path) == ["out"]

    def test_old_one_that_cannot_come_back_is_not_deleted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        write(out, "old")
        rename = Path.rename

        def failing(self: Path, target: Path) -> Path:
            if target == out:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            write(out, "new")
        monkeypatch.undo()
        assert b"old" in content(tmp_path).values()
        write(out, "newer")  # the next run tidies
        assert content(tmp_path) == {"out/a": b"newer", "out/b": b"newer"}

    def test_remains_of_the_dead_go_and_of_the_living_stay(self, tmp_path: Path, dead: int) -> None:
        living = os.getppid()
        for process in (dead, living):
            (tmp_path / f".out.edgekit-{process}").mkdir()
            (tmp_path / f".out.edgekit-{process}" / "half").write_text("half")
        (tmp_path / f".other.edgekit-{dead}").mkdir()
        write(tmp_path / "out", "new")
        assert names(tmp_path) == sorted([f".other.edgekit-{dead}", f".out.edgekit-{living}", "out"])

    def test_old_one_of_a_killed_run_comes_back_even_if_this_run_fails(self, tmp_path: Path, dead: int) -> None:
        out = tmp_path / "out"
        write(out, "old")
        out.rename(tmp_path / f".out.edgekit-{dead}.old")
        with pytest.raises(ValueError, match="no"):
            write(out, "new", fail_with(ValueError("no")))
        assert content(tmp_path) == {"out/a": b"old", "out/b": b"old"}

    def test_names_with_pattern_letters(self, tmp_path: Path, dead: int) -> None:
        (tmp_path / f".ouut.edgekit-{dead}").mkdir()
        write(tmp_path / "o.*u+t", "new")
        assert f".ouut.edgekit-{dead}" in names(tmp_path)

    def test_killed_at_any_moment_leaves_one_whole_folder(self, tmp_path: Path) -> None:
        """A process that replaces the folder without end is killed ten times; a reader sees all old or all new."""
        out = tmp_path / "out"
        write(out, "0")
        program = (
            "import sys, itertools\n"
            "from pathlib import Path\n"
            "from tests.files.test_replacing import write\n"
            "print('ready', flush=True)\n"
            "for n in itertools.count():\n"
            "    write(Path(sys.argv[1]), str(n))\n"
        )
        for round_ in range(10):
            with subprocess.Popen(
                [sys.executable, "-c", program, str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                time.sleep(0.01 + 0.007 * round_)
                process.kill()
            assert process.returncode == -signal.SIGKILL
            if out.exists():
                assert len({path.read_bytes() for path in out.iterdir()}) == 1
                assert names(out) == ["a", "b"]
            else:
                assert any(name.endswith(".old") for name in names(tmp_path))
            write(out, "after")
            assert names(tmp_path) == ["out"]


class TestFile:
    def test_new_and_again(self, tmp_path: Path) -> None:
        for text in ("one", "zwei ü\n"):
            replacing.write_text(tmp_path / "file", text)
            assert content(tmp_path) == {"file": text.encode()}

    def test_missing_folder_and_folder_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        for path in (tmp_path / "none" / "file", tmp_path / "folder"):
            with pytest.raises(InputError, match=f"cannot write {path}"):
                replacing.write_text(path, "new")
        assert names(tmp_path) == ["folder"]
        assert names(tmp_path / "folder") == []

    def test_limit_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

        program = (
            "import sys\nfrom pathlib import Path\n"
            "from edgekit.files import replacing\nfrom edgekit.errors import InputError\n"
            "try:\n    replacing.write_text(Path(sys.argv[1]), 'x' * 5000)\n"
            "except InputError as error:\n    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-B", "-c", program, str(path)],
            cwd=ROOT,
            preexec_fn=limit,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"cannot write {path}: {os.strerror(errno.EFBIG)}\n"
        assert content(tmp_path) == {"file": b"old"}


class TestRequire:
    @pytest.fixture
    def no_rights(self, tmp_path: Path) -> Iterator[Path]:
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        yield folder
        folder.chmod(0o700)

    def test_folder_without_rights(self, no_rights: Path) -> None:
        with pytest.raises(PermissionError):
            replacing.require_folder(no_rights)
        with pytest.raises(InputError, match="cannot write"):
            replacing.require_writable(no_rights / "file")

    @pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that takes no files")
    def test_file_system_that_takes_no_files(self) -> None:
        with pytest.raises(OSError, match=r"."):
            replacing.require_folder(Path("/proc"))
        with pytest.raises(InputError, match="cannot write /proc/file"):
            replacing.require_writable(Path("/proc/file"))

    def test_good_places_stay_as_they_are(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        replacing.require_folder(tmp_path)
        replacing.require_writable(tmp_path / "file")
        replacing.require_writable(tmp_path / "new")
        assert content(tmp_path) == {"file": b"mine"}
        assert names(tmp_path) == ["file"]

    def test_bad_places(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        for path in (tmp_path, tmp_path / "none" / "file", tmp_path / "file" / "file"):
            with pytest.raises(InputError, match="cannot write"):
                replacing.require_writable(path)

    def test_probes_of_the_dead_go_unless_they_hold_something(self, tmp_path: Path, dead: int) -> None:
        (tmp_path / f".edgekit-{dead}").mkdir()
        (tmp_path / f".edgekit-{dead}0000000").mkdir()
        (tmp_path / f".edgekit-{dead}0000000" / "file").write_text("mine")
        replacing.require_folder(tmp_path)
        assert content(tmp_path) == {f".edgekit-{dead}0000000/file": b"mine"}
        assert names(tmp_path) == [f".edgekit-{dead}0000000"]
