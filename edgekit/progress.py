"""How long work says where it is: bars on a terminal, plain lines in a log, nothing from the Python API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[], None]
_LINE_EVERY_S = 10.0


class Progress(Protocol):
    """A listener to long work."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Enter a stage of ``total`` steps; call what it yields after each step."""
        ...

    def note(self, line: str) -> None:
        """Something the user should know, once."""
        ...


class Silent:
    """Says nothing."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:  # noqa: ARG002
        """Enter a stage."""
        yield lambda: None

    def note(self, line: str) -> None:
        """Say nothing."""


class OnConsole:
    """Bars where ``console`` is a terminal; a line at the start and end of a stage, and now and then between, where it
    is a log.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """Enter a stage."""
        start = time.monotonic()
        with self._bar(title, total) if self._console.is_terminal else self._lines(title, total) as advance:
            yield advance
        self._console.print(f"[green]✓[/] {title} [dim]{time.monotonic() - start:.1f} s[/]", highlight=False)

    @contextmanager
    def _bar(self, title: str, total: int | None) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = [SpinnerColumn(), TextColumn("{task.description}")]
        if total is not None:
            columns += [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        with Bar(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)

    @contextmanager
    def _lines(self, title: str, total: int | None) -> Iterator[Advance]:
        self._console.print(f"{title} ...", highlight=False)
        done, last = 0, time.monotonic()

        def advance() -> None:
            nonlocal done, last
            done += 1
            if total is not None and time.monotonic() - last > _LINE_EVERY_S:
                last = time.monotonic()
                self._console.print(f"{title}: {done} of {total}", highlight=False)

        yield advance

    def note(self, line: str) -> None:
        """Print the line."""
        from rich.markup import escape

        self._console.print(f"[yellow]·[/] {escape(line)}", highlight=False)
