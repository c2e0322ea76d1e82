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

from edgekit.devices.transport import Ended, document_of
from edgekit.errors import DeviceError

_HERE = "on this machine"


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
                f"{job['action']} did not end within {timeout_s:.0f} s {_HERE}",
                "the machine may be overloaded: look at its load and run again",
            ) from None
        finally:
            with suppress(ProcessLookupError):  # its children too, should it have ended before them
                os.killpg(process.pid, signal.SIGKILL)
    ended = Ended(process.returncode, output, errors)
    return document_of(ended, job["action"], _HERE, f"{sys.executable} -m pip install --upgrade edgekit-sdk")
