"""A board that can be reached: the arm64 sshd of the sysroot, every process on it emulated. It has an address of its
own, at the other end of a veth pair, where this user may make one (root outside); else it is a loopback port.

In namespaces of its own, which need no root, the kernel starts arm64 programs by QEMU (a user namespace has its own
binfmt_misc since Linux 6.7), and / is the sysroot, read-only. What is written there is gone when the board is off.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.virtual_board.packages import Unavailable
from tests.virtual_board.sysroot import USER, Sysroot

_BOOT_S = 30.0
_PAIR = ("ip", "link", "add")
_ISOLATE = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
# BOARD_ADDRESS: where the other end of the veth pair will be, '' for none.
# $1: the sysroot, $2: the folder that becomes /etc/ssh, $3: the emulator, $4: the core, from $5 on: the
# program, which runs as account 1000: whoever runs this here.
_BOOT = r"""
set -e
if [ -n "$BOARD_ADDRESS" ]; then
    tries=0
    until ip link show board0 >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 200 ]
        sleep 0.05
    done
    ip address add "$BOARD_ADDRESS/30" dev board0
    ip link set board0 up
    ip link set lo up
fi
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t binfmt_misc none "$root/proc/sys/fs/binfmt_misc"
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":arm64:M::$magic:$mask:$3:F" >"$root/proc/sys/fs/binfmt_misc/register"
mount --bind "$root/etc/board/$4" "$root/proc/cpuinfo"
mount --rbind /dev "$root/dev"
mount --bind "$2" "$root/etc/ssh"
for folder in tmp run home/pi; do
    mount -t tmpfs -o mode=755,size=512m none "$root/$folder"
done
mount -o remount,bind,ro "$root"
hostname "$4"
shift 4
exec unshare --user --map-user=1000 --map-group=1000 --root="$root" --wd=/home/pi "$@"
"""
_SSHD_CONFIG = """\
Port {port}
ListenAddress {address}
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/user_key.pub
PidFile none
StrictModes no
PasswordAuthentication no
UsePAM no
SetEnv QEMU_CPU={core}
"""
_SSH_CONFIG = """\
Host *
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"""


@dataclass(frozen=True)
class Running:
    """A board that is switched on. ``lab`` is a lab file in which it is called ``virtual``."""

    core: str
    address: str
    port: int
    lab: Path
    ssh_config: Path


@functools.cache
def require_namespaces() -> None:
    """Raise `Unavailable` where this kernel gives no namespaces with a binfmt_misc of their own."""
    for program in ("unshare", "ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            raise Unavailable(f"no {program} here")
    script = "mount --make-rprivate / && mount -t proc proc /proc && mount -t binfmt_misc none /proc/sys/fs/binfmt_misc"
    tried = subprocess.run([*_ISOLATE, "sh", "-c", script], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        said = (tried.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise Unavailable(f"no user namespace with a binfmt_misc of its own (Linux >= 6.7) can be had here: {said}")


@contextmanager
def switched_on(board: Sysroot, core: str, target: str = "") -> Iterator[Running]:
    """The board with sshd running; it is off afterwards, with all that ran on it. Raises `Unavailable`."""
    require_namespaces()
    with tempfile.TemporaryDirectory(prefix="ekv-") as name:
        folder = Path(name)
        alone = own_network()
        near, address = _addresses() if alone else ("", "127.0.0.1")
        running = _prepare(folder, core, target, address)
        with (folder / "sshd.log").open("wb") as log:
            process = subprocess.Popen(
                _command(board, core, folder / "there", ["/usr/sbin/sshd", "-D", "-e"], alone),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "QEMU_CPU": core,
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "BOARD_ADDRESS": address if alone else "",
                },
            )
        try:
            if alone:
                _plug_in(process, near)
            _await(process, address, running.port, folder / "sshd.log")
            yield running
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@functools.cache
def own_network() -> bool:
    """Whether a pair of network interfaces can be made here, one end of it on the board."""
    if shutil.which("ip") is None:
        return False
    name = f"ekv{os.getpid()}"
    made = subprocess.run([*_PAIR, name, "type", "veth"], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
    return made


def _addresses() -> tuple[str, str]:
    """Both ends of a network of two, drawn so that boards do not meet."""
    drawn = secrets.randbelow(2**14)
    return tuple(f"169.254.{64 + drawn // 2**6 % 128}.{drawn % 2**6 * 4 + end}" for end in (1, 2))  # type: ignore[return-value]


def _plug_in(process: subprocess.Popen[bytes], near: str) -> None:
    """Make the pair. It goes with the board's network, soon after the board is off."""
    name = f"ekv{process.pid}"
    here, there = Path("/proc/self/ns/net").stat().st_ino, Path(f"/proc/{process.pid}/ns/net")
    end = time.monotonic() + _BOOT_S
    while there.stat().st_ino == here and time.monotonic() < end:
        time.sleep(0.01)  # it has not left this network yet
    for command in (
        [*_PAIR, name, "type", "veth", "peer", "name", "board0", "netns", str(process.pid)],
        ["ip", "address", "add", f"{near}/30", "dev", name],
        ["ip", "link", "set", name, "up"],
    ):
        subprocess.run(command, check=True, capture_output=True)


def _prepare(folder: Path, core: str, target: str, address: str) -> Running:
    there = folder / "there"  # /etc/ssh on the board
    there.mkdir()
    for name in (there / "host_key", folder / "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", name], check=True)
    shutil.copy(folder / "user_key.pub", there)
    port = 2222
    if address == "127.0.0.1":
        with socket.create_server((address, 0)) as free:
            port = free.getsockname()[1]
    (there / "sshd_config").write_text(_SSHD_CONFIG.format(address=address, port=port, core=core))
    (folder / "known_hosts").write_text(f"[{address}]:{port} {(there / 'host_key.pub').read_text()}")
    config, lab = folder / "ssh_config", folder / "lab.toml"
    config.write_text(_SSH_CONFIG.format(folder=folder))
    lab.write_text(
        f'[[board]]\nname = "virtual"\nhost = "{USER}@{address}:{port}"\ntarget = "{target}"\n'
        'ssh_config = "ssh_config"\n'
    )
    return Running(core, address, port, lab, config)


def _command(board: Sysroot, core: str, ssh: Path, program: list[str], alone: bool) -> list[str]:
    return [
        *_ISOLATE,
        *(["--net"] if alone else []),
        "sh",
        "-c",
        _BOOT,
        "sh",
        str(board.root),
        str(ssh),
        str(board.qemu),
        core,
        *program,
    ]


def _await(process: subprocess.Popen[bytes], address: str, port: int, log: Path) -> None:
    end = time.monotonic() + _BOOT_S
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), socket.create_connection((address, port), timeout=1) as line:
            line.settimeout(5)
            if line.recv(4) == b"SSH-":
                return
        time.sleep(0.05)
    raise RuntimeError(f"the virtual board's sshd does not answer: {log.read_text(errors='replace').strip()[-500:]}")
