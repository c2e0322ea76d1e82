"""Runs cells on this machine: each in a process of its own, one at a time for each board."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from edgekit import catalog
from edgekit.errors import DeviceError, InputError
from edgekit.sweeping.cells import LOG, RECORD, Cell, record
from edgekit.sweeping.table import CRASHED, Row

RETRIES = 2
RETRY_WAIT_S = 10.0  # before the first retry, twice as long before the second: a board takes that long to boot
_STOP_S = 15.0
_POLL_S = 0.2

Stopped = Callable[[], bool]


class StoppedError(Exception):
    """The sweep ended before the cell did."""


def run_cell(cell: Cell, stopped: Stopped, lock: int | None = None) -> Row:
    """Deploy a cell and return its row, which is kept in its folder. A device that failed is tried again.

    ``lock`` is a file descriptor that the process holds open as long as it runs. Raises `StoppedError` once ``stopped``
    says so, and `InputError` when the folder cannot be written; nothing is left running then.
    """
    folder = Path(cell.folder)
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of other inputs, or of a run that was cut off
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}", "choose another --out") from error
    row = _attempt(cell, stopped, lock)
    for attempt in range(1, RETRIES + 1):
        if row.exit_code != DeviceError.exit_code:
            break
        _wait(RETRY_WAIT_S * attempt, stopped)
        row = _attempt(cell, stopped, lock)
        row = replace(row, attempts=attempt + 1)
        record(cell, row)
    return row


def run_here(cells: Sequence[Cell], lock: int | None = None) -> Generator[tuple[Cell, Row], None, None]:
    """Cells with their rows, as they end. Those that this machine itself measures come first and alone, since planning
    for a board would disturb them; then the boards work side by side, each on one cell at a time.
    """
    lanes: dict[str, list[Cell]] = {}
    for cell in cells:
        lanes.setdefault(cell.row.host, []).append(cell)
    here = lanes.pop("", [])
    for phase in ([here], list(lanes.values())):
        if any(phase):
            yield from _side_by_side(phase, lock)


def _side_by_side(lanes: Sequence[Sequence[Cell]], lock: int | None) -> Generator[tuple[Cell, Row], None, None]:
    ended: queue.SimpleQueue[tuple[Cell, Row] | BaseException] = queue.SimpleQueue()
    stop = threading.Event()

    def work(lane: Sequence[Cell]) -> None:
        try:
            for cell in lane:
                ended.put((cell, run_cell(cell, stop.is_set, lock)))
        except BaseException as error:
            ended.put(error)

    with ThreadPoolExecutor(min(len(lanes), os.cpu_count() or 1)) as pool:
        try:
            for lane in lanes:
                pool.submit(work, lane)
            for _ in range(sum(map(len, lanes))):
                found = ended.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            stop.set()


def _attempt(cell: Cell, stopped: Stopped, lock: int | None) -> Row:
    if stopped():
        raise StoppedError
    file = Path(cell.folder) / RECORD
    file.unlink(missing_ok=True)
    with (Path(cell.folder) / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgekit.sweeping.attempt"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
        )
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asdict(cell)) + "\n")
            process.stdin.flush()
        while process.poll() is None:
            if stopped():
                raise StoppedError
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
    finally:
        _end(process)
    try:
        row = catalog.structure(json.loads(file.read_text(encoding="utf-8"))["row"], Row, RECORD)
    except (OSError, ValueError):
        how = f"was killed by signal {-process.returncode}" if process.returncode < 0 else "ended without an answer"
        killed = "the kernel sends SIGKILL when memory runs out; " if process.returncode == -signal.SIGKILL else ""
        row = replace(cell.row, exit_code=CRASHED, error=f"the deployment {how}", hint=f"{killed}read {LOG} beside it")
        record(cell, row)
    return row


def _end(process: subprocess.Popen[str]) -> None:
    """The end of its input has it stop its own work on a device; only what does not heed that is killed."""
    with suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(seconds: float, stopped: Stopped) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if stopped():
            raise StoppedError
        time.sleep(_POLL_S)


__all__ = ["RETRIES", "StoppedError", "run_cell", "run_here"]
