"""The command line: one short function a command. The only place that prints and exits."""

from __future__ import annotations

from edgekit.cli.app import app
from edgekit.cli.console import keep_stdout_ours, one_line_errors, prepare_streams


def main() -> None:
    """Entry point of the ``edgekit`` command."""
    prepare_streams()
    with one_line_errors():  # those of parsing and of help texts; commands' own end before
        keep_stdout_ours()
        app()
