"""Runs a runner program on this machine, in a process group of its own, under a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgekit.errors import DeviceError


def run_job(runner: Path, job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Start ``runner`` with ``job`` as its JSON file and return the JSON document that it prints.

    The file is its standard input, so that nothing is left on the disk whatever happens. Raises `DeviceError` when it
    fails, prints something else, or does not end within ``timeout_s``; nothing is left running then, nor after an
    interrupt.
    """
    command = [sys.executable, str(runner), "/dev/stdin"]
    with subprocess.Popen(  # noqa: S603 - our own program, no shell
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(json.dumps(job), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{job['action']} did not end within {timeout_s:.0f} s on this machine",
                "the machine may be overloaded: look at its load and run again",
            ) from None
        finally:
            with suppress(ProcessLookupError):  # its children too, should it have ended before them
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode < 0:
        raise DeviceError(
            f"{job['action']} was killed on this machine by {signal.Signals(-process.returncode).name}",
            "SIGKILL is what the kernel sends when memory runs out" if process.returncode == -signal.SIGKILL else "",
        )
    if process.returncode != 0:
        last = errors.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise DeviceError(f"{job['action']} failed on this machine: {last[0][:300]}")
    try:
        document = json.loads(output)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise DeviceError(f"{job['action']} printed no JSON document on this machine")
    return document
