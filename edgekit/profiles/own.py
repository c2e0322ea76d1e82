"""Writes device profiles as files that the catalog reads: those that a user's own measurements make."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from edgekit import catalog
from edgekit.entries import DeviceProfile
from edgekit.errors import InputError
from edgekit.files.replacing import require_writable

_HEADER = "# Written by edgekit. Delete this file to go back to the profile that edgekit ships.\n"
_NO_PLACE = f"set {catalog.OWN_VARIABLE} to a folder that can be written"


def to_toml(profile: DeviceProfile) -> str:
    """The profile as its file's text: the catalog reads the same profile from it, given the file's name."""
    import tomli_w

    document = {key: value for key, value in _plain(profile).items() if key != "name"}
    # TOML wants what belongs to no block before the blocks.
    ordered = sorted(document, key=lambda key: isinstance(document[key], dict) or _is_blocks(document[key]))
    return _HEADER + tomli_w.dumps({key: document[key] for key in ordered}, multiline_strings=False)


def place_for(name: str, out: Path | None = None) -> Path:
    """Where the profile ``name`` goes: ``out``, or its file among the user's own. Raises `InputError`, before any long
    work, where nothing can be written there.
    """
    if out is not None:
        require_writable(out)
        return out
    path = catalog.own_profiles() / f"{name}.toml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_writable(path)
    except (OSError, InputError) as error:
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', error)}", _NO_PLACE) from error
    return path


def save(profile: DeviceProfile, path: Path | None = None) -> Path:
    """Write the profile to ``path``, or among the user's own, whole or not at all, after the catalog has read it back.
    Raises `InputError` where the file cannot be written.
    """
    path = catalog.own_profiles() / f"{profile.name}.toml" if path is None else path
    folder = path.parent / f".{path.name}.edgekit-{os.getpid()}"
    temporary = folder / f"{profile.name}.toml"  # the catalog takes the name from the file's
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(to_toml(profile), encoding="utf-8")
        if catalog.read_profile(temporary) != profile:
            raise AssertionError(f"the profile {profile.name} does not survive being written")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}", _NO_PLACE) from error
    finally:
        temporary.unlink(missing_ok=True)
        if folder.is_dir():
            folder.rmdir()
    return path


def change(
    name: str, update: Callable[[DeviceProfile], DeviceProfile], overlays: Sequence[str | Path] = ()
) -> DeviceProfile:
    """Replace the user's own profile by what ``update`` makes of it (or of the shipped one, where there is none of his
    own yet). Others that do the same at the same time wait. Raises `InputError`.
    """
    with _alone(catalog.own_profiles()):
        before = catalog.device_profile(name, overlays)
        after = update(before)
        if after != before:
            save(after)
        return after


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}", _NO_PLACE) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    """What TOML has words for. Fields that hold their default are left out, so that files stay short."""
    if is_dataclass(value):
        found = {field.name: (getattr(value, field.name), field.default) for field in fields(value)}
        return {name: _plain(held) for name, (held, default) in found.items() if held is not None and held != default}
    if isinstance(value, dict):
        return {_plain(key): _plain(held) for key, held in value.items()}
    if isinstance(value, tuple):
        return [_plain(held) for held in value]
    return value.value if isinstance(value, Enum) else value


def _is_blocks(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
