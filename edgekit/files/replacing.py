"""Writing a folder or a file whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekit.errors import InputError


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new hidden folder beside ``out`` (absolute) that takes its place when the block ends well, else is removed.

    Raises:
        InputError: the folder cannot be written, or the disk is full. Nothing is left behind.
    """
    made = [parent for parent in out.parents if not parent.exists()]
    folder = out.parent / f".{out.name}.edgekit-{os.getpid()}"
    old = folder.with_name(folder.name + ".old")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_remains(out)
        folder.mkdir()
        yield folder
        if os.path.lexists(out):
            out.rename(old)
        folder.rename(out)
    except BaseException as error:
        if old.exists() and not os.path.lexists(out):
            old.rename(out)
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            hint = "free some space, or choose another folder with --out" if full else ""
            raise InputError(f"--out {out}: cannot write the bundle: {error.strerror or error}", hint) from error
        raise
    finally:
        if os.path.lexists(out):  # else what was there could not be put back: it stays beside
            shutil.rmtree(old, ignore_errors=True)


def require_folder(folder: Path) -> None:
    """Raise the `OSError` that keeps new files out of ``folder``. Permissions alone do not tell: root has them all, and
    /proc refuses.
    """
    for path in folder.iterdir() if os.access(folder, os.R_OK) else ():
        killed = re.fullmatch(r"\.edgekit-(\d+)", path.name)
        if killed and not _is_running_elsewhere(int(killed[1])):
            with suppress(OSError):  # another process was quicker, or it is no probe
                path.rmdir()
    probe = folder / f".edgekit-{os.getpid()}"
    probe.mkdir(exist_ok=True)
    probe.rmdir()


def require_writable(path: Path) -> None:
    """Check, before any long work, that `write_text` can write ``path``. Raises `InputError`."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        require_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}", "choose another place") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file that is complete or not there. Raises `InputError` when it cannot be written."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is complete or not there. Raises `InputError` when it cannot be written."""
    temporary = path.with_name(f".{path.name}.edgekit-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}", "choose another place") from error


def _remove_remains(out: Path) -> None:
    """Tidy what killed runs left beside ``out``: hidden folders of processes that are no more. An old ``out`` whose
    successor never came goes back in place.
    """
    for path in out.parent.iterdir():
        number = re.fullmatch(rf"\.{re.escape(out.name)}\.edgekit-(\d+)(\.old)?", path.name)
        if number is None or _is_running_elsewhere(int(number[1])):
            continue
        if number[2] and not os.path.lexists(out):
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running_elsewhere(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
