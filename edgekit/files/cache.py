"""Content-addressed results that are dear to make: an entry is complete, or it is not there.

Entries live in ``<root>/<kind>/<key>``, where the key is the digest of everything the entry depends on. The root is
``EDGEKIT_CACHE``, or the user's cache folder. Any number of processes may share it: each writes under a name of its own
and renames when done. A damaged entry counts as absent and is removed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import InputError

_NEW = ".new-"  # prefix of what is not complete; a killed process leaves it behind
_CONTENTS = ".sha256"  # inside a folder: the digest of its other files
_STALE_SECONDS = 86_400


def root() -> Path:
    """The folder that holds the cache; it need not exist."""
    import platformdirs

    return Path(os.environ.get("EDGEKIT_CACHE") or platformdirs.user_cache_dir("edgekit")).expanduser().absolute()


def key(**parts: object) -> str:
    """SHA-256 (hexadecimal) of the named parts: None, bool, int, float, str, bytes, and lists, tuples and dicts of
    them. The order of names does not matter. Any other type is a TypeError.
    """
    return hashlib.sha256(json.dumps(_canonical(parts), separators=(",", ":")).encode()).hexdigest()


def read_json(kind: str, key: str) -> Any | None:
    """The document that was written under that key, or None."""
    content = _read(root() / kind / f"{key}.json")
    return None if content is None else json.loads(content)


def write_json(kind: str, key: str, document: object) -> None:
    """Store a JSON document. Raises InputError when the cache cannot be written."""
    _write(root() / kind / f"{key}.json", json.dumps(document).encode())


def read_arrays(kind: str, key: str) -> dict[str, np.ndarray] | None:
    """The arrays that were written under that key, or None."""
    content = _read(root() / kind / f"{key}.arrays")
    if content is None:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return {str(name): stored[f"arr_{i}"] for i, name in enumerate(stored["names"])}


def write_arrays(kind: str, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Store named arrays. Raises InputError when the cache cannot be written, ValueError for arrays of objects."""
    if any(array.dtype.hasobject for array in arrays.values()):
        raise ValueError("arrays of objects cannot be stored")
    content = io.BytesIO()
    np.savez(content, *arrays.values(), names=np.array(list(arrays), np.str_))  # names may be any text: not file names
    _write(root() / kind / f"{key}.arrays", content.getvalue())


def folder(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder under that key; where there is none, ``build`` fills a temporary one, which is renamed when complete.
    Nothing is left when ``build`` raises. Raises InputError when the cache cannot be written.
    """
    path = root() / kind / key
    with _room(path):
        if path.is_dir():
            if _is_whole(path):
                return path
            shutil.rmtree(path)
        temporary = Path(tempfile.mkdtemp(prefix=_NEW, dir=path.parent))
    try:
        with _room(path, only_full=True):
            build(temporary)
        with _room(path):
            (temporary / _CONTENTS).write_text(_digest_of(temporary), encoding="ascii")
            for file in filter(Path.is_file, temporary.rglob("*")):
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            try:
                temporary.rename(path)
            except OSError as error:  # another process was first: its folder is as good
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _is_whole(folder: Path) -> bool:
    try:
        return (folder / _CONTENTS).read_bytes() == _digest_of(folder).encode()
    except OSError:
        return False


def _digest_of(folder: Path) -> str:
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for name in files:
        if name != _CONTENTS:
            with (folder / name).open("rb") as content:
                digest.update(f"{name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _canonical(part: object) -> object:
    if part is None or isinstance(part, str | int | float):
        return part
    if isinstance(part, bytes):
        return ["bytes", hashlib.sha256(part).hexdigest()]
    if isinstance(part, list | tuple):
        return ["list", *map(_canonical, part)]
    if isinstance(part, dict) and all(isinstance(name, str) for name in part):
        return ["dict", *([name, _canonical(part[name])] for name in sorted(part))]
    raise TypeError(f"{type(part).__name__} cannot be part of a cache key")


def _read(path: Path) -> bytes | None:
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest().encode() == digest:
        return content
    with suppress(OSError):
        path.unlink()
    return None


def _write(path: Path, content: bytes) -> None:
    with _room(path):
        handle, temporary = tempfile.mkstemp(prefix=_NEW, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def _room(path: Path, only_full: bool = False) -> Iterator[None]:
    """Make sure of the folder around ``path``, without what killed processes left, and say clearly when it is no use
    (``only_full``: when the disk is full; other errors are the caller's own).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{_NEW}*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if only_full and not full:
            raise
        hint = "free some space, or set EDGEKIT_CACHE to a folder on another disk"
        raise InputError(
            f"cannot write to the cache {path.parent}: {error.strerror or error}",
            hint if full else "set EDGEKIT_CACHE to a folder that can be written",
        ) from error
