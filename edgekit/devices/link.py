"""A connection to a board through OpenSSH's own client, so that ~/.ssh/config, keys, agents, jump hosts and known_hosts
are used as they are. Host keys are checked as that configuration says, and nobody is asked anything (BatchMode).

One ssh process holds the connection (ssh's ControlMaster) and ends with this one; commands run through it. Where the
board is this machine, a shell takes ssh's place.
"""

from __future__ import annotations

import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgekit.devices.lab import Board
from edgekit.devices.transport import printable
from edgekit.errors import DeviceError, EdgekitError, MissingToolError

CONNECT_S = 30.0  # a loaded board may take seconds to start a shell
_PAUSES_S = (0.5, 1.0, 2.0)  # before each retry of what may pass by itself
_LONGEST_SOCKET = 80  # characters; the system's limit is 108, and ssh adds 17 of its own while it connects
_CLOSE_S = 3.0

# Says who is there, and then holds the connection until this side closes it.
_GREET = 'echo "edgekit $(cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo -) $HOME"; exec cat'
_OPTIONS = (
    *("-T", "-x", "-a"),  # no terminal, no X11, no agent forwarding
    *("-o", "BatchMode=yes"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "RemoteCommand=none"),
    *("-o", "PermitLocalCommand=no"),
    *("-o", "ServerAliveInterval=5"),  # a link that is silent for 15 s is lost
    *("-o", "ServerAliveCountMax=3"),
    *("-o", "ControlPersist=no"),
)


@dataclass(frozen=True)
class Greeting:
    """What a board says first. ``boot_id`` changes with every boot ('-' where the board does not tell)."""

    boot_id: str
    home: str


@dataclass(frozen=True, eq=False)
class Link:
    """An open connection. It is closed when it is no longer referred to."""

    board: Board
    greeting: Greeting
    socket: Path
    master: subprocess.Popen[bytes]

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Start a shell command on the board, its input and outputs as pipes."""
        return _popen(_ssh(self.board, "no", self.socket, command))

    @property
    def is_up(self) -> bool:
        """Whether the ssh process that holds the connection still runs."""
        return self.master.poll() is None


def connect(board: Board, attempts: int = 1 + len(_PAUSES_S)) -> Link:
    """Open a connection; what may pass by itself (a reset, a server that is just starting) is tried again.

    Raises `DeviceError`, or `MissingToolError` where this machine has no ssh.
    """
    if shutil.which("ssh") is None and not board.is_here:
        raise MissingToolError("this machine has no ssh", "install OpenSSH's client: apt install openssh-client")
    for pause_s in (*_PAUSES_S[: attempts - 1], None):
        try:
            return _connect_once(board)
        except _PassingError as error:
            if pause_s is None:
                raise DeviceError(str(error), error.hint) from None
            time.sleep(pause_s)
    raise AssertionError("one attempt at least")


class _PassingError(EdgekitError):
    """What may be gone when it is tried again."""


def _connect_once(board: Board) -> Link:
    folder = Path(tempfile.mkdtemp(prefix="edgekit-"))
    if len(str(folder)) > _LONGEST_SOCKET or not re.fullmatch(r"[\w/.+-]+", str(folder)):
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="edgekit-", dir="/tmp"))
    master = None
    try:
        master = _popen(_ssh(board, "yes", folder / "ssh", f"exec sh -c '{_GREET}'"))
        errors: list[str] = []
        listener = in_background(lambda: errors.extend(text(line) for line in master.stderr or ()))
        greeting = _greeting(master)
        if greeting is None:
            gone = master.poll() is not None
            end(master)
            listener.join(_CLOSE_S)
            raise _refusal(board, "".join(errors), gone)
        link = Link(board, greeting, folder / "ssh", master)
    except BaseException:
        _close(master, folder)
        raise
    weakref.finalize(link, _close, master, folder)
    return link


def _greeting(master: subprocess.Popen[bytes]) -> Greeting | None:
    """The board's first word; what its login scripts print before it is passed over."""
    said: queue.SimpleQueue[Greeting | None] = queue.SimpleQueue()

    def listen() -> None:
        for line in master.stdout or ():
            words = text(line).rstrip("\r\n").split(" ", 2)
            if words[0] == "edgekit" and len(words) == 3:
                said.put(Greeting(words[1], words[2]))
        with suppress(subprocess.TimeoutExpired):
            master.wait(_CLOSE_S)
        said.put(None)

    in_background(listen)
    try:
        return said.get(timeout=CONNECT_S)
    except queue.Empty:
        return None


def _refusal(board: Board, errors: str, gone: bool) -> EdgekitError:
    """What ssh's own words mean. ``gone``: ssh gave up by itself."""
    try_it = f"try it by hand: {command_line(board)}"
    address = board.address
    known_as = shlex.quote(f"[{address.host}]:{address.port}" if address.port else address.host)
    rows: Sequence[tuple[str, str, str]] = (
        (
            "REMOTE HOST IDENTIFICATION HAS CHANGED",
            f"{board.host} shows another host key than the one that is known: another board, or an attack",
            f"if the board was set up anew, forget the old key: ssh-keygen -R {known_as}; then {try_it}",
        ),
        (
            "Host key verification failed",
            f"the host key of {board.host} is not known",
            f"connect once by hand and compare its fingerprint: {command_line(board)}",
        ),
        (
            "Permission denied",
            f"{board.host} lets nobody in with these keys: permission denied",
            "check the user name and the key: ssh-copy-id puts your key there, ssh-add unlocks it (no password is "
            "asked for here)",
        ),
        (
            "Could not resolve hostname",
            f"there is no host called {address.host}",
            "check the name, or use the board's IP address",
        ),
        (
            "Connection refused",
            f"no ssh server answers at {board.host}",
            "check the address and the port, and that sshd runs there",
        ),
        (
            r"timed out|No route to host|Network is unreachable|not responding",
            f"{board.host} cannot be reached",
            "check that the board is on and in the same network",
        ),
    )
    for pattern, message, hint in rows:
        if re.search(pattern, errors):
            return DeviceError(message, hint)
    lines = [printable(line) for line in errors.strip().splitlines() if line.strip()]
    if re.search(r"Connection (reset|closed)|kex_exchange_identification|Broken pipe", errors):
        return _PassingError(f"{board.host} closed the connection: {lines[-1][:200]}", try_it)
    if not gone:
        message = f"{board.host} does not answer within {CONNECT_S:.0f} s"
        return DeviceError(message, "check that the board is on, in the same network, and not overloaded")
    return DeviceError(f"no connection to {board.host}: {lines[-1][:200] if lines else 'ssh said nothing'}", try_it)


def command_line(board: Board) -> str:
    """The ssh command that a person would type to get there; a shell's on this machine."""
    if board.is_here:
        return "sh -c"
    address = board.address
    config = ["-F", board.ssh_config] if board.ssh_config else []
    port = ["-p", str(address.port)] if address.port else []
    there = f"{address.user}@{address.host}" if address.user else address.host
    return shlex.join(["ssh", *config, *port, there])


def _ssh(board: Board, master: str, socket: Path, command: str) -> list[str]:
    if board.is_here:  # below a shell of its own, as below sshd: the board's program ends what it was started by
        return ["sh", "-c", 'sh -c "$1"; exit $?', "sh", command]
    address = board.address
    return [
        "ssh",
        *(("-F", board.ssh_config) if board.ssh_config else ()),
        *_OPTIONS,
        *("-o", f"ControlMaster={master}", "-o", f"ControlPath={socket}"),
        *(("-p", str(address.port)) if address.port else ()),
        *(("-l", address.user) if address.user else ()),
        *("--", address.host, command),
    ]


def _popen(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for us, who then end the work on the board before the connection."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)  # noqa: S603


def in_background(work: Callable[[], object]) -> threading.Thread:
    """A started thread that does not keep the program from ending."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def text(line: bytes) -> str:
    """What a program on the board wrote."""
    return line.decode("utf-8", "replace")


def end(process: subprocess.Popen[bytes], patience_s: float = 0.0) -> None:
    """Wait for ssh to end by itself, as it does when its input is closed, then kill it with the jump hosts' ssh."""
    with suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _close(master: subprocess.Popen[bytes] | None, folder: Path) -> None:
    if master is not None:
        end(master, _CLOSE_S)
    shutil.rmtree(folder, ignore_errors=True)
