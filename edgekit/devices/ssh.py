"""Runs a runner program on a board over ssh. What happens there is in targets/runners/board.sh: this side sends it that
program, the names and digests of the files, the job and the time limit, and makes sense of what it says.

No text of a user is ever part of a shell command: the one command that is run is a constant, all else is its input.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import re
import secrets
import shlex
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from edgekit import catalog
from edgekit.devices.lab import Board
from edgekit.devices.link import Link, command_line, connect, end, in_background, text
from edgekit.devices.transport import Ended, Parcel, document_of, pack, printable
from edgekit.errors import DeviceError, EdgekitError
from edgekit.progress import Progress, Silent

KEEP_KIB = 512 << 10  # of files on the board, those used last
WAIT_FOR_BOARD_S = 30.0
_BEAT_S = 5.0  # the board ends the work after 20 s without one
_GRACE_S = 60.0  # for checking files before the work, and for the link
_SLOWEST_BYTES_PER_S = 20_000

# How tar says it; GNU tar's last words name no reason.
_FULL = re.compile("No space left|quota exceeded|Wrote only")

# Reads the program from its input: a line with its length, then itself. `dd bs=1` reads not one byte too many.
_COMMAND = """exec sh -c 'read -r n && eval "$(dd bs=1 count=$n 2>/dev/null)"'"""


@dataclass
class SshTransport:
    """A board. It is connected to when the first job is run, and again after the link was lost.

    ``install`` is what its Python needs, as pip takes it.
    """

    board: Board
    install: Sequence[str] = ()
    progress: Progress = field(default_factory=Silent)
    wait_s: float = WAIT_FOR_BOARD_S
    _link: Link | None = field(default=None, init=False, repr=False)

    def run_job(self, runner: Path, job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send what the job needs and the board does not have, run it there, and return its JSON document.

        Raises `DeviceError`, and `MissingToolError` for what the board's Python lacks.
        """
        work = self._work_folder()
        there, parcels = pack(runner, job, lambda one: f"{work}/files/{one.digest}")
        python = self._there(self.board.python)
        start = python
        if runner.suffix == ".sh":  # which may need Python for a part of its work
            start, there = "sh", {**there, "python": python}
        program = f"{parcels[0].digest}/{runner.name}"
        tail = f"{start}\n{program}\n{json.dumps(there)}\n".encode()
        for _ in range(2):
            said = self._session("run", parcels, tail, timeout_s, job["action"])
            missing = [one for one in parcels if one.digest in said.words("missing").split()]
            if not missing:
                return self._document(said, job["action"], timeout_s)
            for one in missing:
                if one.digest in said.all("damaged"):
                    self.progress.note(f"{_names(one)} on {self.board.name} was damaged; it is sent again")
            self._put(missing, [one for one in parcels if one not in missing])
        raise self._damaged(missing[0])

    def _put(self, parcels: Sequence[Parcel], there: Sequence[Parcel]) -> None:
        """Send ``parcels``. Those of the same job that are ``there`` must not be driven out by them."""
        size_bytes = sum(one.size_bytes for one in parcels)
        files = sum(len(one.files) for one in parcels)
        counted = f"{files} file{'s' if files > 1 else ''}, {size_bytes / 1e6:.1f} MB"
        self.progress.note(f"send {counted} to {self.board.name}")

        def send(to: IO[bytes]) -> None:
            with tarfile.open(fileobj=to, mode="w|", format=tarfile.GNU_FORMAT) as archive:
                for one in parcels:
                    for name, path in sorted(one.files.items()):
                        with path.open("rb") as content:
                            header = tarfile.TarInfo(f"{one.digest}/{name}")
                            header.size = os.fstat(content.fileno()).st_size
                            header.mode = 0o600
                            archive.addfile(header, content)

        limit_s = _GRACE_S + size_bytes / _SLOWEST_BYTES_PER_S
        said = self._session("put", parcels, b"", limit_s, "send", size_bytes, send, there)
        if said.has("stored"):
            return
        if said.has("full") or _FULL.search(said.errors):
            free = f", where {int(said.words('full') or 0) / 1024:.0f} MB are free" if said.has("full") else ""
            raise DeviceError(
                f"the disk of {self.board.name} is full: {size_bytes / 1e6:.1f} MB have to go to "
                f"{self._work_folder()}{free}",
                "free some space there, or name another folder: work_dir in the lab file",
            )
        if said.has("damaged"):
            raise self._damaged(next(one for one in parcels if one.digest == said.words("damaged")))
        self._raise_common(said, "the transfer of files", limit_s)
        last = said.last_line or f"tar ended with status {said.words('untar')}"
        raise DeviceError(
            f"files could not be stored on {self.board.name}: {last}",
            f"look at {self._work_folder()} there, or name another folder: work_dir in the lab file",
        )

    def _damaged(self, one: Parcel) -> DeviceError:
        return DeviceError(
            f"{_names(one)} arrived on {self.board.name} damaged: the SHA-256 there is not that of the file here",
            "its storage or memory may be failing; run again, or name another folder: work_dir in the lab file",
        )

    def _document(self, said: _Said, action: str, timeout_s: float) -> dict[str, Any]:
        self._raise_common(said, action, timeout_s)
        code = int(said.words("exit"))
        ended = Ended(code if code < 128 else 128 - code, said.output, said.errors)
        python = shlex.join([self.board.python, "-m", "pip", "install", *self.install])
        return document_of(ended, action, f"on {self.board.name}", f"{command_line(self.board)} {shlex.quote(python)}")

    def _raise_common(self, said: _Said, action: str, limit_s: float) -> None:
        """Raise for what can happen to every session; do nothing where the board's program came to its own end."""
        name = self.board.name
        ended = said.words("ended")
        if ended == "limit":
            raise DeviceError(
                f"{action} did not end within {limit_s:.0f} s on {name}, and was ended there",
                "the board may be overloaded, or hang: look at its load and run again",
            )
        if said.has("no-python"):
            raise DeviceError(
                f"there is no {self.board.python} on {name}",
                "install Python there, or name the one to use: python in the lab file",
            )
        if said.has("no-tool"):
            raise DeviceError(f"there is no {said.words('no-tool')} on {name}", "install it there (coreutils, busybox)")
        if said.has("no-folder"):
            raise DeviceError(
                f"cannot write to {self._work_folder()} on {name}: {said.last_line or 'refused'}",
                "name a folder that can be written: work_dir in the lab file",
            )
        if ended or not (said.has("exit") or said.has("untar")):
            self._raise_lost(action)

    def _raise_lost(self, action: str) -> NoReturn:
        """The link, or the shell at its other end, is gone. Look once whether the board is still there."""
        before = None if self._link is None else self._link.greeting.boot_id
        self._link = None
        name = self.board.name
        again = "run again: what was finished is kept"
        try:
            self._link = connect(self.board, attempts=1)
        except EdgekitError:
            raise DeviceError(
                f"the link to {name} was lost during {action}, and the board does not answer now",
                f"it may be restarting, or off; when it answers, {again}",
            ) from None
        if self._link.greeting.boot_id != before:
            raise DeviceError(
                f"{name} restarted during {action}", f"look at its power supply and its memory, then {again}"
            )
        raise DeviceError(f"the link to {name} was lost during {action}; the board is up, and ended the work", again)

    def _work_folder(self) -> str:
        return self._there(self.board.work_dir).rstrip("/")

    def _there(self, path: str) -> str:
        return f"{self._connected().greeting.home}/{path[2:]}" if path.startswith("~/") else path

    def _connected(self) -> Link:
        if self._link is None or not self._link.is_up:
            self._link = None
            self._link = connect(self.board)
        return self._link

    def _session(
        self,
        verb: str,
        parcels: Sequence[Parcel],
        tail: bytes,
        limit_s: float,
        action: str,
        size_bytes: int = 0,
        send: Callable[[IO[bytes]], None] | None = None,
        there: Sequence[Parcel] = (),
    ) -> _Said:
        """One run of the board's program, when it is our turn. Raises `DeviceError` where others have the board for
        longer than ``wait_s``.
        """
        give_up: float | None = None
        while True:
            said = self._session_now(verb, parcels, tail, limit_s, action, size_bytes, send, there)
            if not said.has("busy"):
                return said
            holder = printable(said.words("busy")) or "another run"
            if give_up is None:
                give_up = time.monotonic() + self.wait_s
                self.progress.note(f"{self.board.name} is in use by {holder}: waiting up to {self.wait_s:.0f} s")
            elif time.monotonic() > give_up:
                raise DeviceError(
                    f"{self.board.name} is in use by {holder}",
                    "wait until that run has ended; two at once would disturb each other's measurements",
                )
            time.sleep(min(1.0, self.wait_s / 4))

    def _session_now(
        self,
        verb: str,
        parcels: Sequence[Parcel],
        tail: bytes,
        limit_s: float,
        action: str,
        size_bytes: int,
        send: Callable[[IO[bytes]], None] | None,
        there: Sequence[Parcel],
    ) -> _Said:
        link = self._connected()
        token = secrets.token_hex(8)
        program = (catalog.data_root() / "targets" / "runners" / "board.sh").read_bytes()
        holder = f"{getpass.getuser()}@{socket.gethostname()} (process {os.getpid()}, {action})"
        head = [token, verb, self._work_folder(), str(math.ceil(limit_s)), holder, str(KEEP_KIB)]
        head.append(str(math.ceil(1.05 * size_bytes / 1024) + 64 * bool(size_bytes)))
        folders = "".join(f"folder {one.digest}\n{one.sums}" for one in parcels)
        folders += "".join(f"keep {one.digest}\n" for one in there)
        start = f"{len(program)}\n".encode() + program + ("\n".join(head) + f"\n{folders}end\n").encode() + tail
        process = link.start(_COMMAND)
        said = _Said(token)
        readers = [
            in_background(lambda: said.hear_output(process.stdout)),
            in_background(lambda: said.hear_errors(process.stderr, self._tell)),
        ]
        feeder = in_background(lambda: _feed(process, start, send))
        try:
            give_up = time.monotonic() + limit_s + _GRACE_S
            while readers[0].is_alive() and time.monotonic() < give_up:
                readers[0].join(_BEAT_S)
                if send is None and not feeder.is_alive():
                    with suppress(OSError):
                        _write(process, b"\n")
        finally:  # the end of its input ends the work on the board, should it not have ended
            if feeder.is_alive():  # it may be stuck in the middle of the input
                process.kill()
                feeder.join(3.0)
            end(process, patience_s=3.0)
            _join(readers)
        return said

    def _tell(self, line: str) -> None:
        self.progress.note(f"{self.board.name}: {printable(line)}")


@dataclass
class _Said:
    """What came back from a session: the runner's output, its errors, and the words of the board's program."""

    token: str
    output: str = ""
    errors: str = ""
    told: list[tuple[str, str]] = field(default_factory=list)

    def hear_output(self, stream: IO[bytes] | None) -> None:
        begin = f"@{self.token} begin".encode()
        lines = iter(stream or ())
        for line in lines:  # what login scripts print comes before
            if line.strip() == begin:
                break
        self.output = text(b"".join(lines))

    def hear_errors(self, stream: IO[bytes] | None, tell: Callable[[str], None]) -> None:
        kept: list[str] = []
        told = True
        for line in stream or ():
            words = text(line).rstrip("\r\n")
            if words.startswith(f"@{self.token} "):
                word, _, rest = words.removeprefix(f"@{self.token} ").partition(" ")
                self.told.append((word, rest))
                continue
            kept = [*kept[-99:], words[:1000]]
            self.errors = "\n".join(kept)
            told = told and not words.startswith("Traceback (most recent call last)")  # its last line is the error
            if told and words.strip():
                tell(words[:200])

    def has(self, word: str) -> bool:
        return any(told == word for told, _ in self.told)

    def all(self, word: str) -> list[str]:
        return [rest for told, rest in self.told if told == word]

    def words(self, word: str) -> str:
        return next(iter(self.all(word)), "")

    @property
    def last_line(self) -> str:
        return next((printable(line[:200]) for line in reversed(self.errors.splitlines()) if line.strip()), "")


def _feed(process: subprocess.Popen[bytes], start: bytes, send: Callable[[IO[bytes]], None] | None) -> None:
    """Write a session's input. The end of a tar archive is the end of the input; else the board would take it for the
    end of the host.
    """
    with suppress(OSError, ValueError):  # the other side is gone, or has refused: it has said why
        _write(process, start)
        if send is not None and process.stdin is not None:
            try:
                send(process.stdin)
            finally:
                process.stdin.close()


def _write(process: subprocess.Popen[bytes], content: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(content)
    process.stdin.flush()


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join(5.0)


def _names(one: Parcel) -> str:
    names = sorted(one.files)
    return names[0] if len(names) == 1 else f"{names[0]} (with {len(names) - 1} more)"
