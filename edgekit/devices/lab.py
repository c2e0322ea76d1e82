"""Boards that can be reached: addresses as ``--host`` takes them, and the lab file that gives them names.

    [[board]]
    name = "bench-pi"                # what --host takes
    host = "pi@192.168.1.20"         # user@address[:port], ssh://..., or a Host of ~/.ssh/config
    target = "raspberry-pi-4"        # --target raspberry-pi-4 goes there without --host
    python = "/opt/edgekit/bin/python"
    work_dir = "/data/edgekit"
    ssh_config = "ssh_config"        # instead of ~/.ssh/config; relative to this file

Only name and host are needed. The host ``local`` is this machine, without ssh.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit import catalog
from edgekit.errors import InputError
from edgekit.files import cache

LAB_VARIABLE = "EDGEKIT_LAB"
LOCAL = "local"  # the word for this machine, where a board's address is asked for
_HOST_FORMS = "write user@address, user@address:port, ssh://user@address:port, or the name of a board in the lab file"


@dataclass(frozen=True)
class Address:
    """Where an ssh server is. ``user`` and ``port`` are those of ssh's own configuration where they are not given."""

    host: str
    user: str = ""
    port: int | None = None


@dataclass(frozen=True)
class Board:
    """A board of the lab, or one that was given by its address alone."""

    name: str
    host: str
    target: str = ""
    python: str = "python3"
    work_dir: str = "~/.cache/edgekit"
    ssh_config: str = ""

    def __post_init__(self) -> None:
        for key in ("name", "host", "python", "work_dir", "ssh_config"):
            if any(ord(character) < 32 or ord(character) == 127 for character in getattr(self, key)):
                raise ValueError(f"{key}: holds a control character")
        if not self.name or "," in self.name:
            raise ValueError(f"name: must be a word without commas, not {self.name!r}")
        if not self.python or self.python.startswith("-"):
            raise ValueError(f"python: must be a command or a path, not {self.python!r}")
        if not self.work_dir.startswith(("/", "~/")) or self.work_dir.strip("/~ ") == "":
            raise ValueError(f"work_dir: must be a folder of its own, from / or ~/ on, not {self.work_dir!r}")
        try:
            parse_address(self.host)
        except InputError as error:
            raise ValueError(f"host: {error}") from None

    @property
    def address(self) -> Address:
        """The parts of ``host``."""
        return parse_address(self.host)

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, which needs no ssh."""
        return self.host == LOCAL


@dataclass(frozen=True)
class _Lab:
    board: tuple[Board, ...] = ()


def parse_address(text: str) -> Address:
    """``[ssh://][user@]host[:port]``; an IPv6 address with a port stands in brackets. Raises `InputError`.

    What could be an option of ssh, or mean something to a shell of a ProxyCommand, is refused.
    """
    bare = text.removeprefix("ssh://").removesuffix("/")
    user, _, rest = bare.rpartition("@")
    found = re.fullmatch(r"\[([0-9A-Fa-f:.%\w]+)\](?::(\d+))?|([\w.-]+)(?::(\d+))?|([0-9A-Fa-f:.]+)", rest)
    host = (found[1] or found[3] or found[5]) if found else ""
    port = int(found[2] or found[4] or 0) if found else 0
    if found and not found[3] and not _is_ipv6(host):
        host = ""
    named = not user or re.fullmatch(r"[\w.][\w.+\\-]*", user)
    if not host or host.startswith("-") or not named or port > 65535 or (bare.startswith("@")):
        raise InputError(f"{text!r} is no address of a board", _HOST_FORMS)
    return Address(host, user, port or None)


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def open_lab(path: str | Path | None = None) -> dict[str, Board]:
    """The boards of a lab file by name: of ``path``, else of ``EDGEKIT_LAB``, else none. Raises `InputError`, which
    names the variable where nobody named the file otherwise.
    """
    if path:
        return _read_lab(path)
    given = os.environ.get(LAB_VARIABLE)
    if not given:
        return {}
    try:
        return _read_lab(given)
    except InputError as error:
        hint = f"{error.hint}; or unset {LAB_VARIABLE}" if error.hint else f"mend it, or unset {LAB_VARIABLE}"
        raise InputError(f"{LAB_VARIABLE}: {error}", hint) from None


def _read_lab(given: str | Path) -> dict[str, Board]:
    file = Path(os.path.expanduser(given))  # noqa: PTH111 - pathlib raises for unknown users
    document = catalog.read_toml(file)
    rows = document.get("board")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        close = catalog.nearest(next(iter(document), ""), ["board"])
        raise InputError(
            f"{file}: holds no [[board]]", "write [[board]]" if close else 'add [[board]], name = "...", host = "..."'
        )
    if odd := sorted(document.keys() - {"board"}):
        raise InputError(f"{file}: {odd[0]}: unknown key", "a lab file holds [[board]] blocks and nothing else")
    boards: dict[str, Board] = {}
    for row in rows:
        board = catalog.structure(row, Board, f"{file}: board {row.get('name', len(boards) + 1)}")
        if board.name in boards:
            raise InputError(f"{file}: board {board.name!r} is there twice", "rename one")
        if board.ssh_config:
            config = file.parent.resolve() / os.path.expanduser(board.ssh_config)  # noqa: PTH111
            if not config.is_file():
                raise InputError(f"{file}: board {board.name}: ssh_config: {config} is no file")
            board = replace(board, ssh_config=str(config))
        boards[board.name] = board
    return boards


def _this_machine() -> Board:
    """With this Python, and a folder of its own in the cache."""
    return Board(LOCAL, LOCAL, python=sys.executable, work_dir=str(cache.root() / "boards"))


def find_boards(hosts: str | None, target: str, lab: Mapping[str, Board]) -> tuple[Board, ...]:
    """The boards that ``--host`` names, separated by commas, or the lab's boards of ``target`` where it is not given.

    Raises `InputError` for what is neither a board of the lab nor an address.
    """
    if hosts is None:
        return tuple(board for board in lab.values() if board.target == target) if target else ()
    words = [word.strip() for word in hosts.split(",")]
    found: dict[str, Board] = {}
    for word in words:
        if word in found:
            raise InputError(f"--host names {word} twice", "name each board once")
        if word in lab:
            found[word] = lab[word]
            continue
        try:
            parse_address(word)
        except InputError as error:
            raise InputError(f"--host: {error}", error.hint) from None
        found[word] = Board(word, word) if word != LOCAL else _this_machine()
    return tuple(found.values())


__all__ = ["LAB_VARIABLE", "LOCAL", "Address", "Board", "find_boards", "open_lab", "parse_address"]
