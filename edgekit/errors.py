"""Errors that a user is meant to read: one line that says what is wrong and where, one that says what to do."""

from __future__ import annotations

from typing import ClassVar


class EdgekitError(Exception):
    """Base of every error that edgekit raises on purpose.

    ``str(error)`` says what is wrong and where; ``hint`` says what to do about it. ``exit_code`` is the exit status of
    the command line (see the table in README.md).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InputError(EdgekitError):
    """A flag, file or value that the user gave cannot be used."""

    exit_code = 2


class InfeasibleError(EdgekitError):
    """No plan fits the budget. ``nearest`` maps each budget to the best value that can be reached."""

    exit_code = 3

    def __init__(self, message: str, hint: str = "", nearest: dict[str, float] | None = None) -> None:
        super().__init__(message, hint)
        self.nearest = nearest or {}


class MissingToolError(EdgekitError):
    """A toolchain or an optional extra is not installed; the hint names the command that adds it."""

    exit_code = 4


class DeviceError(EdgekitError):
    """The device, or the way to it, failed."""

    exit_code = 5


class GuardError(EdgekitError):
    """A guard refused the result: metric drop, slower than float, or planned and executed precision differ."""

    exit_code = 6


class VerifyError(EdgekitError):
    """A bundle is not what its manifest says."""

    exit_code = 7
