"""Builds the board's file system and keeps it in the user's cache folder, in a folder named after the versions of all
that is in it: ``root`` is the board's /, ``tools/qemu-aarch64`` emulates its processor.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.virtual_board.cpus import CORES
from tests.virtual_board.packages import Unavailable, download, host_architecture, unpack

SUITE = "bookworm"  # Python 3.11, as on Raspberry Pi OS of the same name
# Beside Python and sshd, what every Raspberry Pi has and Debian takes for granted.
PACKAGES = (
    *("python3", "openssh-server", "libstdc++6", "libgomp1"),
    *("bash", "coreutils", "dash", "debianutils", "findutils", "grep", "gzip", "hostname", "sed", "tar", "util-linux"),
)
WHEELS = ("ai-edge-litert>=2.3", "numpy")
USER = "pi"
# What the board's own scripts would make at installation. Account 1000 is the one that logs in.
_FILES = {
    "etc/passwd": f"root:x:0:0:root:/root:/bin/sh\n{USER}:x:1000:1000::/home/{USER}:/bin/bash\n",
    "etc/group": f"root:x:0:\n{USER}:x:1000:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/resolv.conf": "",
    # Without these two LiteRT counts no cores, and runs without XNNPACK.
    "sys/devices/system/cpu/possible": "0-3\n",
    "sys/devices/system/cpu/present": "0-3\n",
}
_FOLDERS = ("proc", "sys", "dev", "run", "tmp", "root", f"home/{USER}", "etc/board")
# Nothing on the board reads these.
_LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/perl", "usr/share/info", "usr/lib/udev")
# Programs of Python's that edgekit's runners never load, and files that are no valid Python.
_NOT_COMPILED = "lib2to3|idlelib|/tests?/|/aot/|/vendor_sdk"
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
_VERSION = 4  # raised when the same packages become another tree


@dataclass(frozen=True)
class Sysroot:
    """A board's files on this machine."""

    folder: Path

    @property
    def root(self) -> Path:
        """What is / on the board."""
        return self.folder / "root"

    @property
    def qemu(self) -> Path:
        """A static emulator of one arm64 process."""
        return self.folder / "tools" / "qemu-aarch64"

    def prefix(self, core: str) -> Path:
        """``root`` with the /proc/cpuinfo of a core, for ``qemu -L``."""
        return self.folder / "prefixes" / core


def cache_folder() -> Path:
    """Where built boards are."""
    import platformdirs

    return platformdirs.user_cache_path("edgekit") / "virtual-board"


def built() -> Sysroot:
    """The board that was built last. Raises `Unavailable` where there is none."""
    if platform.machine() == "aarch64":
        raise Unavailable("this machine is an arm64 one itself: nothing on it would tell that the board is emulated")
    latest = cache_folder() / "latest"
    if not latest.is_dir():
        raise Unavailable("no virtual board was built: make virtual-board")
    return Sysroot(latest.resolve())


def build() -> Sysroot:
    """The board with today's versions of its packages: downloads them, and makes what is not there yet. Raises
    `Unavailable`.
    """
    place = cache_folder()
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix=".new-") as name:
        new = Path(name)
        packages = download(PACKAGES, "arm64", SUITE, new / "arm64")
        tools = download(("qemu-user-static",), host_architecture(), SUITE, new / "host")
        wheels = _download_wheels(new / "wheels")
        parts = [f"{_VERSION}", *(path.name for path in (*packages, *tools, *wheels))]
        made = place / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        if not made.is_dir():
            _assemble(new / "made", packages, tools, wheels)
            (new / "made" / "contents.txt").write_text("\n".join(parts[1:]) + "\n")
            with suppress(OSError):  # another build was first
                (new / "made").rename(made)
        link = new / "latest"
        link.symlink_to(made.name)
        link.replace(place / "latest")
    return Sysroot(made)


def _download_wheels(folder: Path) -> list[Path]:
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    asked = ["--only-binary=:all:", "--python-version", "311", *platforms, "--dest", str(folder), *WHEELS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"pip cannot download aarch64 wheels: {done.stderr.strip().splitlines()[-1:]}")
    return sorted(folder.glob("*.whl"))


def _assemble(folder: Path, packages: list[Path], tools: list[Path], wheels: list[Path]) -> None:
    made = Sysroot(folder)
    for name in ("bin", "sbin", "lib"):  # as Debian's base-files has it
        (made.root / "usr" / name).mkdir(parents=True)
        (made.root / name).symlink_to(f"usr/{name}")
    unpack(packages, made.root)
    for name in _LEFT_OUT:
        shutil.rmtree(made.root / name, ignore_errors=True)
    for name in _FOLDERS:
        (made.root / name).mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        (made.root / name).parent.mkdir(parents=True, exist_ok=True)
        (made.root / name).write_text(text)
    packed = made.root / "usr/lib/python3/dist-packages"
    for wheel in wheels:
        shutil.unpack_archive(wheel, packed, "zip")
    unpack(tools, folder / "unpacked")
    made.qemu.parent.mkdir()
    (folder / "unpacked/usr/bin/qemu-aarch64-static").rename(made.qemu)
    shutil.rmtree(folder / "unpacked")
    (made.root / "usr/bin/sh").unlink(missing_ok=True)
    (made.root / "usr/bin/sh").symlink_to("dash")
    for core in CORES.values():
        (made.root / "etc/board" / core.name).write_text(core.cpuinfo())
        _link_prefix(made, core.name)
    _compile_python(made)


def _compile_python(made: Sysroot) -> None:
    """Once, as Debian's scripts would: else every start of a runner takes seconds more."""
    folders = (made.root / "usr/lib/python3.11", made.root / "usr/lib/python3/dist-packages")
    arguments = ["python3", "-m", "compileall", "-q", "-x", _NOT_COMPILED, *folders]
    core = next(iter(CORES))
    done = subprocess.run(emulated(made, core, arguments), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"the emulated Python fails: {(done.stdout + done.stderr).strip()[-300:]}")


def emulated(board: Sysroot, core: str, arguments: Sequence[str | Path]) -> list[str]:
    """A program of the board as a command for this machine, without namespaces and without root. QEMU looks for
    libraries and /proc/cpuinfo among the board's files first; programs that it starts are not emulated.
    """
    program = str(arguments[0])
    if "/" not in program:
        program = str(board.root / "usr/bin" / program)
    # Python finds its own folders by its name.
    home = [
        "-E",
        f"PYTHONHOME={board.root / 'usr'}",
        "-E",
        f"PYTHONPATH={board.root / 'usr/lib/python3/dist-packages'}",
    ]
    return [str(board.qemu), "-cpu", core, "-L", str(board.prefix(core)), *home, program, *map(str, arguments[1:])]


def _link_prefix(made: Sysroot, core: str) -> None:
    prefix = made.prefix(core)
    (prefix / "proc").mkdir(parents=True)
    up = os.path.relpath(made.root, prefix)
    for name in ("bin", "lib", "usr", "etc"):
        (prefix / name).symlink_to(f"{up}/{name}")
    (prefix / "proc" / "cpuinfo").symlink_to(f"../{up}/etc/board/{core}")
