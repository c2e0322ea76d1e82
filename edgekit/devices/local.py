"""Runs a runner program on this machine, in a process group of its own, under a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgekit.errors import DeviceError


def run_job(runner: Path, job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Start ``runner`` with ``job`` as its JSON file and return the JSON document that it prints.

    Raises `DeviceError` when it fails, prints something else, or does not end within ``timeout_s``; nothing is left
    running then, nor after an interrupt.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        job_path = Path(folder) / "job.json"
        job_path.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, str(runner), str(job_path)]
        with subprocess.Popen(  # noqa: S603 - our own program, no shell
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                output, errors = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                raise DeviceError(
                    f"{job['action']} did not end within {timeout_s:.0f} s on this machine",
                    "the machine may be overloaded: look at its load and run again",
                ) from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        last = errors.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise DeviceError(f"{job['action']} failed on this machine: {last[0][:300]}")
    try:
        document: dict[str, Any] = json.loads(output)
    except ValueError:
        raise DeviceError(f"{job['action']} printed no JSON document on this machine") from None
    return document
