"""What every way to a device shares: what it does, the files that travel with a job, and what to make of its end."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgekit import catalog
from edgekit.errors import DeviceError, InputError, MissingToolError


class Transport(Protocol):
    """A way to run programs on a device."""

    def run_job(self, runner: Path, job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Start ``runner`` there with ``job`` and return the one JSON document that it prints. Files named in the job
        are files of this machine. Raises `DeviceError`, and `MissingToolError` for what is not installed there;
        nothing is left running then, nor after an interrupt.
        """
        ...


@dataclass(frozen=True)
class Parcel:
    """Files that lie in one folder of their own on a device, which is named after what they are."""

    files: Mapping[str, Path]  # name there -> file here
    sums: str  # as `sha256sum` writes them

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents: the name of the folder."""
        return hashlib.sha256(self.sums.encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """What must travel."""
        return sum(file.stat().st_size for file in self.files.values())


def parcel(files: Mapping[str, Path]) -> Parcel:
    """Wrap up files. Raises `InputError` for one that cannot be read, or whose name no device should see."""
    lines = []
    for name, file in sorted(files.items()):
        if not re.fullmatch(r"[\w.+@=,-][\w .+@=,/-]*", name) or ".." in name.split("/"):
            raise InputError(f"{file}: its name cannot travel to a device", "rename it: letters, digits and . _ - + =")
        try:
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}", "the run that wrote it may have been cleaned up") from None
        lines.append(f"{digest}  {name}\n")
    return Parcel(dict(files), "".join(lines))


def pack(runner: Path, job: Mapping[str, Any], place: Callable[[Parcel], str]) -> tuple[dict[str, Any], list[Parcel]]:
    """The job with every path rewritten to where ``place`` puts its parcel on the device, and the parcels, that of the
    runner and the modules beside it first.

    What travels: each model's ``files`` (or its ``path`` alone), ``inputs``, and everything in ``folder``.
    """
    parcels = [parcel({path.name: path for path in (runner, *catalog.runner_modules(runner))})]

    def travels(files: Mapping[str, Path]) -> str:
        parcels.append(parcel(files))
        return place(parcels[-1])

    there = dict(job)
    if "models" in job:
        there["models"] = []
        for model in job["models"]:
            path = Path(model["path"])
            files = [Path(file) for file in model.get("files", [path])]
            moved = f"{travels({file.name: file for file in files})}/{path.name}"
            there["models"].append({**model, "path": moved, "files": []})
    if job.get("inputs") is not None:
        inputs = Path(job["inputs"])
        there["inputs"] = f"{travels({inputs.name: inputs})}/{inputs.name}"
    if job.get("folder") is not None:
        folder = Path(job["folder"])
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        there["folder"] = travels({path.relative_to(folder).as_posix(): path for path in found})
    return there, list({one.digest: one for one in parcels}.values())


@dataclass(frozen=True)
class Ended:
    """How a runner ended. ``code``: exit status, or minus the number of the signal that killed it."""

    code: int
    output: str
    errors: str


def document_of(ended: Ended, action: str, place: str, install: str) -> dict[str, Any]:
    """The JSON document that a runner printed. ``place`` reads as in "on this machine"; ``install`` is the command that
    adds what its Python lacks. Raises `DeviceError` and `MissingToolError`.
    """
    if ended.code < 0:
        raise DeviceError(
            f"{action} was killed {place} by {_signal_name(-ended.code)}",
            "SIGKILL is what the kernel sends when memory runs out" if -ended.code == signal.SIGKILL else "",
        )
    if ended.code != 0:
        last = next(reversed(list(_lines(ended.errors))), f"exit status {ended.code}")
        if missing := re.search(r"No module named '([\w.]+)'", last):
            raise MissingToolError(f"{missing[1]} is not installed {place}", f"install it: {install}")
        if "MemoryError" in last or "bad_alloc" in last:
            raise DeviceError(f"{action} ran out of memory {place}", "end other programs there, or use a smaller model")
        raise DeviceError(f"{action} failed {place}: {last[:300]}")
    try:
        document = json.loads(ended.output)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise DeviceError(f"{action} printed no JSON document {place}")
    return document


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def printable(text: str) -> str:
    """What a device wrote, without what would steer a terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _lines(text: str) -> Iterator[str]:
    return (printable(line) for line in text.strip().splitlines() if line.strip())
