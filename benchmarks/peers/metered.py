"""How long a tool takes from its start to its end, and how much memory its largest process held.

    python -I -S metered.py COMMAND ...

is the small process between: the kernel starts the count of a process at what its parent held, so that a large parent
would be counted as well. It prints one JSON document when the command has ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GRACE_S = 15.0
"""For a tool to tidy up after an interrupt."""


@dataclass(frozen=True)
class Metered:
    """``peak_memory_bytes`` is the resident memory of the largest process of all that the tool waited for, itself
    included (``ru_maxrss`` of wait4(2)); what it held at once with others may be more. ``status`` is 0 for success.
    """

    wall_s: float
    peak_memory_bytes: int
    status: int


class TooSlowError(Exception):
    """The tool was ended at its time limit."""


def run(
    command: Sequence[str | Path], log: Path, limit_s: float, environment: Mapping[str, str] | None = None
) -> Metered:
    """Run ``command``; what it prints goes to ``log``. ``environment`` is added to this process's own.

    Raises TooSlowError after ``limit_s``, and OSError where the program cannot be started. Nothing is left running, nor
    after an interrupt.
    """
    between = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*between, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        with process:
            try:
                document, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                raise TooSlowError(f"not finished in {limit_s:.0f} s") from None
            finally:  # the whole group: the tool's own processes too
                _end(process)
    found = json.loads(document)
    if "error" in found:
        raise OSError(found["error"])
    return Metered(**found)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)  # so that it ends processes of other groups, as edgekit's runner
            process.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def last_words(log: Path, most: int = 300) -> str:
    """The end of what a tool said, in one line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return (next((line for line in reversed(lines) if line), "") or "it says nothing")[-most:]


def main() -> int:
    signal.signal(signal.SIGINT, lambda *_: None)  # it is the tool's; a handler, unlike SIG_IGN, is not inherited
    start = time.perf_counter()
    try:
        # Its output goes where errors go: this process's own output is the document.
        child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
    except OSError as error:
        json.dump({"error": f"{sys.argv[1]}: {error.strerror}"}, sys.stdout)
        return 0
    _, status, usage = os.wait4(child, 0)
    document = {
        "wall_s": time.perf_counter() - start,
        "peak_memory_bytes": usage.ru_maxrss * 1024,  # Linux counts in KiB
        "status": os.waitstatus_to_exitcode(status),
    }
    json.dump(document, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
