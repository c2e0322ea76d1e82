"""A whole emulated machine, Debian's arm64 kernel with the board's files in memory, which counts instructions.

QEMU's ``-icount shift=0`` makes the machine's clock count them, repeatably. It knows no caches and no pipelines: it
says how much work a model is on a core, never how long it takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.virtual_board.packages import download, host_architecture, unpack
from tests.virtual_board.sysroot import SUITE, Sysroot, built, cache_folder

GUEST = Path(__file__).with_name("guest.py")
_VERSION = 1
_MEMORY_MB = 2048
_LIMIT_S = 3600.0
# What the guest's Python needs of the board.
_FILES = ("usr/bin/python3.11", "usr/lib", "lib", "etc/passwd")
_LEFT_OUT = ("perl", "git-core", "gcc", "openssh", "systemd", "vendor_sdk", "aot", "tests", "test", "lib2to3")


@dataclass(frozen=True)
class System:
    """The emulator with its own libraries, and what it boots."""

    folder: Path

    def qemu(self) -> list[str]:
        """The command that starts it on this machine, whatever libraries that has."""
        root = self.folder / "root"
        loader = next(path for path in sorted(root.glob("lib*/**/ld-linux-*.so.*")) if path.exists())
        libraries = ":".join(str(path) for path in sorted(root.glob("**/lib/*-linux-gnu")) if path.is_dir())
        data = root / "usr/share/qemu"
        return [str(loader), "--library-path", libraries, str(root / "usr/bin/qemu-system-aarch64"), "-L", str(data)]

    @property
    def kernel(self) -> Path:
        """Debian's kernel."""
        return next((self.folder / "boot").glob("vmlinuz-*"))

    @property
    def files(self) -> Path:
        """The board's files as the kernel unpacks them."""
        return self.folder / "board.cpio"


def place_of(board: Sysroot) -> System:
    """Where the emulated machine of a board is, built or not."""
    key = hashlib.sha256(f"{_VERSION} {board.folder.name}".encode()).hexdigest()[:16]
    return System(cache_folder() / f"system-{key}")


def build() -> System:
    """The emulated machine for the board that was built last: in the cache, or downloaded. Raises `Unavailable`."""
    board = built()
    made = place_of(board).folder
    if made.is_dir():
        return System(made)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".new-") as name:
        new = Path(name) / "made"
        unpack(download(("qemu-system-arm",), host_architecture(), SUITE, Path(name) / "host"), new / "root")
        packages = download(("linux-image-cloud-arm64",), "arm64", SUITE, Path(name) / "arm64")
        kernel = Path(name) / "kernel"
        unpack([path for path in packages if path.name.startswith("linux-image")], kernel)
        shutil.copytree(kernel / "boot", new / "boot")
        with (new / "board.cpio").open("wb") as file:
            file.writelines(_board_files(board))
        with suppress(OSError):  # another build was first
            new.rename(made)
    return System(made)


def count(system: System, core: str, models: Mapping[str, Path]) -> dict[str, dict[str, object]]:
    """For each TFLite model the instructions of one inference on one core of that kind, and the digest of its outputs.

    Raises:
        RuntimeError: the guest says why it cannot run a model, or says nothing.
    """
    with tempfile.TemporaryDirectory(prefix="ekc-") as name:
        initrd = Path(name) / "initrd"
        payload = {"counted/guest.py": GUEST, **{f"counted/{title}.tflite": path for title, path in models.items()}}
        with initrd.open("wb") as file:
            with system.files.open("rb") as board:
                shutil.copyfileobj(board, file)
            file.writelines(cpio({"counted": b"", **{title: path.read_bytes() for title, path in payload.items()}}))
        done = subprocess.run(
            [*system.qemu(), *_machine(core), "-kernel", str(system.kernel), "-initrd", str(initrd)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
        )
    answers = [line.partition("@counted ")[2] for line in done.stdout.splitlines() if "@counted " in line]
    if not answers:
        raise RuntimeError(f"the emulated {core} says nothing: {(done.stdout + done.stderr).strip()[-600:]}")
    found: dict[str, dict[str, object]] = json.loads(answers[-1])
    if "error" in found:
        raise RuntimeError(f"the emulated {core} fails: {found['error']}")
    return found


def _machine(core: str) -> list[str]:
    # Nothing random: no seeds for the kernel, no addresses by chance, no clock but the counted one.
    words = "console=ttyAMA0 quiet panic=-1 nokaslr norandmaps rdinit=/usr/bin/python3.11 PYTHONHASHSEED=0"
    return [
        *("-M", "virt,dtb-randomness=off", "-cpu", core, "-smp", "1", "-m", f"{_MEMORY_MB}M"),
        *("-icount", "shift=0,sleep=off", "-rtc", "clock=vm,base=2026-01-01"),
        *("-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot"),
        *("-append", f"{words} -- /counted/guest.py"),
    ]


def cpio(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """An archive for the kernel (Documentation/driver-api/early-userspace/buffer-format.rst): files by name; an empty
    one without a dot in its name is a folder.
    """
    for name, content in files.items():
        folder = not content and "." not in name
        yield from _entry(name, stat.S_IFDIR | 0o755 if folder else stat.S_IFREG | 0o644, content)
    yield from _entry("TRAILER!!!", 0, b"")


def _board_files(board: Sysroot) -> Iterator[bytes]:
    for name in ("proc", "sys", "dev", "tmp", "etc", "usr", "usr/bin"):
        yield from _entry(name, stat.S_IFDIR | 0o755, b"")
    for top in _FILES:
        start = board.root / top
        inside = sorted(start.rglob("*")) if start.is_dir() and not start.is_symlink() else []
        for path in (start, *inside):
            parts = path.relative_to(board.root).parts
            if any(part.startswith(_LEFT_OUT) for part in parts):
                continue
            name = "/".join(parts)
            mode = path.lstat().st_mode
            if path.is_symlink():
                yield from _entry(name, mode, os.fsencode(path.readlink()))
            elif path.is_dir():
                yield from _entry(name, stat.S_IFDIR | 0o755, b"")
            else:
                yield from _entry(name, mode, path.read_bytes())
    yield from _entry("TRAILER!!!", 0, b"")


def _entry(name: str, mode: int, content: bytes) -> Iterator[bytes]:
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    yield _padded(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
    yield _padded(content)


def _padded(block: bytes) -> bytes:
    return block + bytes(-len(block) % 4)
