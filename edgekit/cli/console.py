"""Where a command prints and how it ends: results on a stdout of its own, everything else on stderr, one line for what
users can cause, and the documented exit code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError, InfeasibleError

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.progress import Progress

INTERRUPTED = 130


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what users can cause into one clear line, a hint, and the documented exit code."""
    try:
        yield
        sys.stdout.flush()
    except EdgekitError as error:
        sys.stderr.write(f"edgekit: {error}\n")
        if error.hint:
            sys.stderr.write(f"  hint: {error.hint}\n")
        if isinstance(error, InfeasibleError):
            for name, value in error.nearest.items():
                sys.stderr.write(f"  nearest {name}: {value:.6g}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("edgekit: interrupted; finished steps are kept, the next run resumes from them\n")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader has gone, as in `| head -1`
        _discard_output()
        sys.exit(1)
    except MemoryError:
        sys.stderr.write("edgekit: out of memory\n  hint: close other programs, or use smaller inputs (--shape)\n")
        sys.exit(2)
    except OSError as error:
        _discard_output()
        where = "" if error.filename is None else f"{error.filename}: "
        sys.stderr.write(f"edgekit: {where}{error.strerror or error}\n")
        sys.exit(2)


def _discard_output() -> None:
    """Let nothing that is still buffered fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class Terminal:
    """Where things are printed: results on stdout, everything else on stderr."""

    out: Console
    err: Console
    progress: Progress


def open_terminal() -> Terminal:
    """The two consoles, and progress on the second."""
    from rich.console import Console

    from edgekit.progress import OnConsole

    err = Console(stderr=True)
    return Terminal(Console(), err, OnConsole(err))


def print_json(document: object) -> None:
    """The one document of ``--json``."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def prepare_streams() -> None:
    """Before anything is printed: what the caller closed is opened on nothing, and SIGTERM ends like Ctrl-C."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - open until the end
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # under nohup it is ignored, and stays so
            signal.signal(number, signal.default_int_handler)


def keep_stdout_ours() -> None:
    """Native libraries print to file descriptor 1 as they please (HiGHS does, even when told not to). Results go to a
    private copy of it, everything else that is written there ends up on stderr, so that ``--json`` is one document.
    """
    sys.stdout.flush()
    private = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), 1)
    sys.stdout = os.fdopen(private, "w", encoding="utf-8", errors="backslashreplace")
