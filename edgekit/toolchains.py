"""Converters in environments of their own: created on first use, called as subprocesses with JSON in and out.

A toolchain is a folder of ``targets/toolchains``: ``toolchain.toml``, ``requirements.txt`` with every package at one
version, and the program that runs inside and imports nothing of edgekit. Its environment lies in the cache folder; it
is complete there, or it is not there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import catalog
from edgekit.errors import InputError, MissingToolError
from edgekit.files import cache
from edgekit.progress import Progress, Silent

_NEW = ".new-"  # what is not complete; a killed process leaves it behind
_STALE_S = 86_400
_STAMP = "edgekit-toolchain.json"
_PROBE_S = 20.0
_INSTALL_S = 3600.0  # of a slow line
_CHECK_S = 180.0


@dataclass(frozen=True)
class Toolchain:
    """What ``toolchain.toml`` says. ``python_least`` <= interpreter < ``python_below``; ``disk_bytes`` is its size."""

    name: str
    folder: Path
    description: str
    python_least: tuple[int, ...]
    python_below: tuple[int, ...]
    disk_bytes: int
    program: str

    @property
    def digest(self) -> str:
        """SHA-256 of what the environment is made from; another one is another environment."""
        files = ("toolchain.toml", "requirements.txt")
        return hashlib.sha256(b"\0".join((self.folder / name).read_bytes() for name in files)).hexdigest()

    @property
    def version(self) -> str:
        """SHA-256 of the environment and of the program: another one may write other files."""
        programs = (path.read_bytes() for path in sorted(self.folder.glob("*.py")))
        return hashlib.sha256(self.digest.encode() + b"\0".join(programs)).hexdigest()

    @property
    def environment(self) -> Path:
        """Where its environment is, or will be."""
        return cache.root() / "toolchains" / self.name

    @property
    def locked(self) -> dict[str, str]:
        """Package -> version, names as pip normalises them."""
        lines = (self.folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
        pairs = (line.split("==") for line in lines if line.strip() and not line.startswith("#"))
        return {_normal(name): version.strip() for name, version in pairs}


def known() -> dict[str, Toolchain]:
    """The toolchains that edgekit has, by name."""
    found = {}
    for file in sorted((catalog.data_root() / "targets" / "toolchains").glob("*/toolchain.toml")):
        entry = tomllib.loads(file.read_text(encoding="utf-8"))
        for key in ("python_least", "python_below"):
            entry[key] = _version(entry[key])
        found[file.parent.name] = Toolchain(name=file.parent.name, folder=file.parent, **entry)
    return found


def toolchain(name: str) -> Toolchain:
    """The toolchain of that name. Raises `InputError` for one that does not exist."""
    toolchains = known()
    if name not in toolchains:
        raise InputError(f"unknown toolchain {name!r}", f"the toolchains are: {', '.join(toolchains)}")
    return toolchains[name]


def problem(name: str) -> str:
    """Why the environment cannot be used as it is: "" where it can, else "not installed" or what is wrong with it."""
    chain = toolchain(name)
    place = chain.environment
    if not place.is_dir():
        return "not installed"
    try:
        stamp = json.loads((place / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "damaged: it has no stamp"
    if not isinstance(stamp, dict) or stamp.get("digest") != chain.digest:
        return "made for other versions"
    if not os.access(_python(place), os.X_OK):
        return "damaged: its interpreter is gone"
    paths = [str(path) for path in place.glob("lib*/python3*/site-packages")]
    installed = {_normal(one.name): one.version for one in importlib.metadata.distributions(path=paths)}
    wrong = [package for package, version in chain.locked.items() if installed.get(package) != version]
    return f"damaged: {wrong[0]} is not what its lock file says" if wrong else ""


def ensure(name: str, progress: Progress | None = None, wheels: Path | None = None, again: bool = False) -> Path:
    """The environment's interpreter; where there is no sound environment, one is made first.

    ``wheels`` is a folder of wheels to install from, without any network; ``again`` makes it anew. Raises
    `MissingToolError` where there is no interpreter for it, its packages cannot be had, or it does not work.
    """
    chain = toolchain(name)
    wrong = problem(name)
    if wrong or again:
        progress = progress or Silent()
        if wrong not in ("", "not installed"):
            progress.note(f"toolchain {name} is {wrong}; it is made again")
        _create(chain, progress, wheels)
    return _python(chain.environment)


def run(name: str, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Run the toolchain's program on a job and return the document that it prints.

    Nothing is left running after a timeout or an interrupt. Raises `InputError` where the program refuses the job or
    fails on it, `MissingToolError` where the environment itself is broken.
    """
    chain = toolchain(name)
    python = ensure(name)
    ended, output, errors = _call([str(python), "-IB", str(chain.folder / chain.program)], timeout_s, json.dumps(job))
    if ended is None:
        raise InputError(f"toolchain {name} did not end within {timeout_s:.0f} s", "look at the load of the machine")
    try:
        document = json.loads(output) if ended == 0 else None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        _require_sound(chain, python)
        said = signal.Signals(-ended).name if ended < 0 else _last_line(errors) or f"exit status {ended}"
        raise InputError(f"toolchain {name} failed on the model: {said}")
    if "error" in document:
        raise InputError(f"toolchain {name}: {document['error']}")
    return document


def find_python(least: tuple[int, ...], below: tuple[int, ...]) -> Path:
    """An interpreter of a version in [``least``, ``below``) that really runs and can make environments.

    ``EDGEKIT_PYTHON`` counts before PATH, pyenv's and uv's interpreters. Raises `MissingToolError` that says where it
    was looked for.
    """
    wanted = f"Python {_dotted(least)} or newer, below {_dotted(below)}"
    own = os.environ.get("EDGEKIT_PYTHON")
    if own:
        found = _interpreter(Path(own).expanduser())
        if found is None or not least <= found < below:
            is_what = "does not run" if found is None else f"is Python {_dotted(found)}"
            raise MissingToolError(
                f"EDGEKIT_PYTHON={own} {is_what}; {wanted} is needed", "set it to another interpreter"
            )
        return Path(own).expanduser()
    looked: list[str] = []
    for path in _candidates(least, below):
        found = _interpreter(path)
        if found is not None and least <= found < below:
            return path
        looked.append(f"{path} ({'does not run' if found is None else _dotted(found)})")
    raise MissingToolError(
        f"no {wanted}: looked at EDGEKIT_PYTHON (not set), PATH, pyenv and uv; found {', '.join(looked) or 'none'}",
        f"install one (uv python install {_dotted(least)}, or pyenv install {_dotted(least)}), or set EDGEKIT_PYTHON",
    )


def _candidates(least: tuple[int, ...], below: tuple[int, ...]) -> Iterator[Path]:
    """Interpreters worth a try, the likely ones first, each once."""
    minors = range(below[1] - 1, least[1] - 1, -1)
    names = [f"python3.{minor}" for minor in minors] + ["python3", "python"]
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    seen: set[Path] = set()
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        for name in names:
            yield from _once(Path(folder or ".") / name, seen)
    for minor in minors:
        for path in sorted(pyenv.glob(f"3.{minor}*/bin/python3"), reverse=True):
            yield from _once(path, seen)
        for path in sorted(uv.glob(f"*-3.{minor}.*/bin/python3"), reverse=True):
            yield from _once(path, seen)


def _once(path: Path, seen: set[Path]) -> Iterator[Path]:
    if path not in seen and os.access(path, os.X_OK) and path.is_file():
        seen.add(path)
        yield path


def _interpreter(path: Path) -> tuple[int, ...] | None:
    """The version of an interpreter that runs and can make environments; a shim without its version does not."""
    script = "import sys, venv, ensurepip; print(*sys.version_info[:3])"
    ended, output, _ = _call([str(path), "-I", "-c", script], _PROBE_S)
    numbers = output.split()
    return tuple(map(int, numbers)) if ended == 0 and len(numbers) == 3 and all(map(str.isdecimal, numbers)) else None


def _create(chain: Toolchain, progress: Progress, wheels: Path | None) -> None:
    """Make the environment under a temporary name; it gets its own when it was seen to work."""
    if wheels is not None and not wheels.is_dir():
        raise InputError(f"{wheels}: no such folder", "--wheels names a folder of .whl files")
    base = find_python(chain.python_least, chain.python_below)
    parent = chain.environment.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        free_bytes = shutil.disk_usage(parent).free
        if free_bytes < chain.disk_bytes:
            raise InputError(
                f"toolchain {chain.name} takes {chain.disk_bytes / 1e6:.0f} MB, {parent} has {free_bytes / 1e6:.0f} MB",
                "free some space, or set EDGEKIT_CACHE to a folder on another disk",
            )
        new = Path(tempfile.mkdtemp(prefix=f"{_NEW}{chain.name}-", dir=parent))
    except OSError as error:
        raise InputError(f"cannot write to the cache {parent}: {error.strerror or error}") from None
    try:
        title = f"create toolchain {chain.name} ({chain.disk_bytes / 1e6:.0f} MB, once)"
        with progress.stage(title, 3) as advance:
            _step(chain, [str(base), "-I", "-m", "venv", str(new)], _CHECK_S, wheels)
            advance()
            source = ["--no-index", "--find-links", str(wheels)] if wheels else []
            lock = str(chain.folder / "requirements.txt")
            pip = [str(_python(new)), "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
            _step(chain, [*pip, "--only-binary", ":all:", *source, "-r", lock], _INSTALL_S, wheels)
            advance()
            _require_sound(chain, _python(new))
            advance()
        stamp = {"digest": chain.digest, "python": str(base)}
        (new / _STAMP).write_text(json.dumps(stamp), encoding="utf-8")
        _take_place(new, chain.environment)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _step(chain: Toolchain, command: list[str], timeout_s: float, wheels: Path | None) -> None:
    ended, output, errors = _call(command, timeout_s)
    if ended == 0:
        return
    lines = [line.strip() for line in (errors + output).splitlines() if "error" in line.lower()]
    said = "it took too long" if ended is None else (lines or [_last_line(errors or output)])[0][:300]
    hint = f"a folder with all its wheels does without network: edgekit toolchain install {chain.name} --wheels DIR"
    if wheels is not None:
        hint = (
            f"fill {wheels} with: pip download --only-binary :all: -d {wheels} -r {chain.folder / 'requirements.txt'}"
        )
    raise MissingToolError(f"toolchain {chain.name} cannot be installed: {said}", hint)


def _require_sound(chain: Toolchain, python: Path) -> None:
    """Raise `MissingToolError` unless the program starts in the environment and finds what it needs."""
    command = [str(python), "-IB", str(chain.folder / chain.program)]
    ended, _, errors = _call(command, _CHECK_S, json.dumps({"action": "check"}))
    if ended != 0:
        raise MissingToolError(
            f"toolchain {chain.name} does not work: {_last_line(errors) or 'it does not start'}",
            f"make it again: edgekit toolchain install {chain.name}",
        )


def _take_place(new: Path, place: Path) -> None:
    """Move a complete environment to its place; what was there goes."""
    old = place.with_name(f"{_NEW}old-{place.name}-{os.getpid()}")
    with suppress(FileNotFoundError):
        place.rename(old)
    try:
        new.rename(place)
    except OSError:  # another process was first: its environment is as good
        if not place.is_dir():
            raise
    shutil.rmtree(old, ignore_errors=True)


def _sweep(parent: Path) -> None:
    for left in parent.glob(f"{_NEW}*"):
        if time.time() - left.stat().st_mtime > _STALE_S:
            shutil.rmtree(left, ignore_errors=True)


def _call(command: list[str], timeout_s: float, text: str = "") -> tuple[int | None, str, str]:
    """Exit status (None after ``timeout_s``), stdout and stderr. The process group ends with the call in any case."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    try:
        process = subprocess.Popen(  # noqa: S603 - a list, no shell
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            env=kept,
        )
    except OSError as error:
        return 127, "", str(error.strerror or error)
    with process:
        try:
            output, errors = process.communicate(text, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None, "", ""
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output, errors


def _python(place: Path) -> Path:
    return place / "bin" / "python"


def _last_line(text: str) -> str:
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "")


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
