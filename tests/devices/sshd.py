"""A board for tests: a real sshd on a loopback port, with keys, known hosts and an ssh configuration of its own.

Where namespaces can be had (root), the board is a machine of its own as far as processes, boot id and file systems go,
so that it can be switched off with all that runs on it, restarted, and its disk be full.
Nobody's ~/.ssh is read or written.
"""

from __future__ import annotations

import functools
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgekit.devices.lab import Board

_PACKAGES = ("openssh-server", "libwrap0", "busybox-static")
_CACHE = Path(tempfile.gettempdir()) / f"edgekit-test-sshd-{getpass.getuser()}"

# In the namespaces: a user table with the account that sshd separates its privileges with, the folder that it needs,
# a boot id, and a small disk, and what a test's boot.sh does. Then sshd, as the first process: all others end with it.
_BOOT = """
set -e
mount --make-rprivate /
mount --bind "$1/passwd" /etc/passwd
mount -t tmpfs -o mode=755 none /run
mkdir -p /run/sshd
mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id
mount -t tmpfs -o size=2m none "$1/small"
for program in "$1"/bin/*; do
    there=$(command -v "${program##*/}") && mount --bind "$program" "$there"
done
[ ! -f "$1/boot.sh" ] || . "$1/boot.sh"
exec "$2" -D -e -f "$1/sshd_config"
"""


@functools.cache
def sshd_program() -> tuple[Path, dict[str, str]]:
    """sshd and the environment that it runs in: the system's, or one from Debian's packages, unpacked without root."""
    for place in (shutil.which("sshd"), "/usr/sbin/sshd"):
        if place and Path(place).exists():
            return Path(place), {}
    program = _CACHE / "root" / "usr/sbin/sshd"
    if not program.exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            pytest.skip("no sshd here, and no apt-get to get one with")
        _CACHE.mkdir(mode=0o700, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=_CACHE))
        got = subprocess.run(["apt-get", "download", *_PACKAGES], cwd=new, capture_output=True, text=True, check=False)
        if got.returncode != 0:
            shutil.rmtree(new)
            pytest.skip(f"no sshd here, and apt-get cannot download it: {got.stderr.strip().splitlines()[-1:]}")
        for package in new.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, new / "root"], check=True)
        with suppress(OSError):  # another test process was first
            (new / "root").rename(_CACHE / "root")
        shutil.rmtree(new)
    libraries = ":".join(str(path.parent) for path in (_CACHE / "root").rglob("libwrap.so.0"))
    return program, {"LD_LIBRARY_PATH": libraries}


def busybox() -> Path:
    """BusyBox, as small boards have it in place of everything else."""
    for place in (shutil.which("busybox"), _CACHE / "root/bin/busybox"):
        if place and Path(place).exists():
            return Path(place)
    pytest.skip("no busybox here")


@functools.cache
def has_namespaces() -> bool:
    """Whether a board can be a machine of its own."""
    attempt = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "mount", "--make-rprivate", "/"]
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(attempt, capture_output=True, check=False).returncode == 0


def require_namespaces() -> None:
    if not has_namespaces():
        pytest.skip("needs namespaces: run as root")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class TestBoard:
    """A running sshd. ``folder`` holds everything of it; ``work`` is where edgekit may put files."""

    __test__ = False
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    work: Path = field(init=False)

    def __post_init__(self) -> None:
        self.work = self.folder / "work"

    @property
    def board(self) -> Board:
        return self.to(self.port)

    def to(self, port: int, work: Path | None = None, python: str = sys.executable, user: str = "") -> Board:
        """The board as a lab file would have it, through another port or with something else changed."""
        host = f"{user or getpass.getuser()}@127.0.0.1:{port}"
        return Board("bench", host, "", python, str(work or self.work), str(self.folder / "ssh_config"))

    def know(self, port: int) -> None:
        """Have its host key known for this port alone."""
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(self.folder / 'host_key.pub').read_text()}")

    def lab(self, python: str = sys.executable) -> Path:
        """A lab file with this board as ``bench`` and one that does not answer as ``dead``."""
        path = self.folder / "lab.toml"
        common = f'python = "{python}"\nwork_dir = "{self.work}"\nssh_config = "ssh_config"\n'
        path.write_text(
            f'[[board]]\nname = "bench"\nhost = "127.0.0.1:{self.port}"\n{common}'
            f'[[board]]\nname = "dead"\nhost = "127.0.0.1:{free_port()}"\n{common}'
        )
        return path

    def start(self) -> None:
        program, environment = sshd_program()
        command = [str(program), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        if has_namespaces():
            boot = ["sh", "-c", _BOOT, "sh", str(self.folder), str(program)]
            command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *boot]
        elif os.geteuid() == 0:
            pytest.skip("as root, sshd needs a user called sshd, or namespaces to make one up in")
        (self.folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        log = (self.folder / "sshd.log").open("ab")
        self.process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **environment}, start_new_session=True
        )
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert self.process.poll() is None, (self.folder / "sshd.log").read_text()
            time.sleep(0.05)
        raise AssertionError("sshd does not answer")

    def switch_off(self) -> None:
        """At once, with everything that runs on it (where it is a machine of its own)."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        self.switch_off()
        self.start()

    def processes(self) -> list[str]:
        """Command lines of what runs on the board beside sshd itself."""
        if self.process is None or not has_namespaces():
            return []
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        if not children:
            return []
        inside = Path(f"/proc/{children[0]}/ns/pid").readlink()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (entry / "ns/pid").readlink() == inside and "State:\tZ" not in (entry / "status").read_text():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
        return [line for line in found if "sshd" not in line]

    def await_quiet(self, limit_s: float = 8.0) -> None:
        """Nothing runs on the board any more, nothing is half-written, and nobody holds it."""
        end = time.monotonic() + limit_s
        while (left := self.processes()) or (self.work / "holder").exists() or (self.work / "incoming").exists():
            assert time.monotonic() < end, (left, sorted(self.work.iterdir()))
            time.sleep(0.05)
        if self.work.exists():
            assert {path.name for path in self.work.iterdir()} <= {"files", "lock"}


def make_board(folder: Path) -> TestBoard:
    """Keys and configuration in ``folder``. Nothing runs yet: a program in ``bin`` there takes the place of the one of
    that name on the board; one that cannot be executed takes it away.
    """
    sshd_program()
    for name in ("small", "bin", "home"):
        (folder / name).mkdir()
    for name in ("host_key", "user_key", "other_key", "other_host_key"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
        subprocess.run(key, check=True)
    port = free_port()
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    lines = Path("/etc/passwd").read_text().splitlines()
    mine = [line for line in lines if line.startswith(f"{getpass.getuser()}:")]
    others = [line for line in lines if line not in mine and not line.startswith("sshd:")]
    home = [":".join([*line.split(":")[:5], str(folder / "home"), "/bin/sh"]) for line in mine]
    account = f"sshd:x:65533:65534::{folder / 'home'}:/usr/sbin/nologin"
    (folder / "passwd").write_text("\n".join([*home, *others, account, ""]))
    (folder / "sshd_config").write_text(
        f"""
        ListenAddress 127.0.0.1
        Port {port}
        HostKey {folder}/host_key
        AuthorizedKeysFile {folder}/authorized_keys
        PidFile none
        UsePAM no
        StrictModes no
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        PermitRootLogin yes
        PermitUserRC no
        PrintMotd no
        MaxStartups 100
        """
    )
    (folder / "ssh_config").write_text(
        f"""
        Host *
        IdentityFile {folder}/user_key
        IdentitiesOnly yes
        IdentityAgent none
        UserKnownHostsFile {folder}/known_hosts
        GlobalKnownHostsFile none
        """
    )
    board = TestBoard(folder, port)
    board.know(port)
    return board


@contextmanager
def running_board(programs: Mapping[str, str | Path | None] | None = None) -> Iterator[TestBoard]:
    """A board that is switched off afterwards. ``programs``: scripts or files in place of its own, None for none."""
    with tempfile.TemporaryDirectory(prefix="ekb-") as folder:
        board = make_board(Path(folder))
        for name, program in (programs or {}).items():
            require_namespaces()
            place = board.folder / "bin" / name
            if isinstance(program, Path):
                shutil.copy(program, place)
            else:
                place.write_text(program or "")
                place.chmod(0o755 if program else 0o644)
        board.start()
        try:
            yield board
        finally:
            board.switch_off()


@dataclass
class Cable:
    """A way to a board that can be cut: by hand, or once after so many bytes. ``frozen`` carries nothing."""

    port: int
    cut_after: int | None = None
    carried: int = 0
    frozen: bool = False
    _sockets: list[socket.socket] = field(default_factory=list)

    def cut(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def carry(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while block := source.recv(16384):
                while self.frozen:
                    time.sleep(0.05)
                sink.sendall(block)
                self.carried += len(block) * counted
                if self.cut_after is not None and self.carried > self.cut_after:
                    self.cut_after = None
                    self.cut()
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextmanager
def cable_to(port: int, cut_after: int | None = None) -> Iterator[Cable]:
    """A cable to the ssh server at ``port``; its near end is ``Cable.port``."""
    with socket.create_server(("127.0.0.1", 0)) as near:
        cable = Cable(near.getsockname()[1], cut_after)

        def plug() -> None:
            with suppress(OSError):
                while True:
                    mine, _ = near.accept()
                    try:
                        theirs = socket.create_connection(("127.0.0.1", port))
                    except OSError:
                        mine.close()
                        continue
                    cable._sockets += [mine, theirs]
                    for pair in ((mine, theirs, True), (theirs, mine, False)):
                        threading.Thread(target=cable.carry, args=pair, daemon=True).start()

        threading.Thread(target=plug, daemon=True).start()
        try:
            yield cable
        finally:
            cable.frozen = False
            with suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)
            cable.cut()
