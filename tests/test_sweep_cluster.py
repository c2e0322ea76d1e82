"""Sweeps on real Dask clusters that the tests start on this machine."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import DeviceError, InputError
from edgekit.progress import Silent
from edgekit.sweep import run_sweep
from edgekit.sweeping import cluster
from edgekit.sweeping.table import to_json
from tests.command import Desk, write_target
from tests.test_end_to_end import await_no_process
from tests.test_sweep import BUDGETS, FLAGS, HEAD, MODEL, SECOND, add_second_model, write_sweep

distributed = pytest.importorskip("distributed", reason="distributed is not installed: pip install edgekit-sdk[sweep]")

THIRD = MODEL + 'name = "third"\nmetric = "sqnr"\n'


@contextmanager
def workers(folder: Path, *boards: str) -> Iterator[Any]:
    """A scheduler and one worker process a board, each restarted by its nanny when it dies."""
    nanny = {"nthreads": 1, "local_directory": str(folder / "dask"), "dashboard": False}
    spec = {
        number: {"cls": distributed.Nanny, "options": {**nanny, "resources": {f"board:{board}": 1}}}
        for number, board in enumerate(boards)
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard": False, "host": "127.0.0.1"}}
    with distributed.SpecCluster(workers=spec, scheduler=scheduler, silence_logs=50) as running:
        yield running


@contextmanager
def threads(folder: Path, board: str) -> Iterator[Any]:
    """A cluster inside this process, which others can reach too."""
    options = {"processes": False, "protocol": "tcp://", "host": "127.0.0.1", "dashboard_address": None}
    options |= {"local_directory": str(folder / "dask"), "resources": {f"board:{board}": 1}}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, **options) as running:
        yield running


class KillOne(Silent):
    """Kills a worker in the middle of a cell, once the first cell has ended."""

    def __init__(self, running: Any) -> None:
        self.running = running
        self.killed: list[int] = []

    def note(self, line: str) -> None:
        if "ms" not in line or self.killed:
            return
        end = time.monotonic() + 10
        while not (busy := [w for w in self.running.scheduler.workers.values() if w.processing]):
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(1)
        pid = self.running.workers[busy[0].name].pid
        os.kill(pid, signal.SIGKILL)
        self.killed.append(pid)


class TestPlumbing:
    @pytest.mark.slow
    def test_cells_run_where_their_board_is_and_not_at_all_without_one(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cluster, "ABSENCE_S", 1.0)
        write_target(desk.folder / "overlay", "other", 'extends = "host"\n')
        (desk.folder / "none.onnx").write_bytes(b"no model")
        text = 'targets = ["quick", "other"]\n[[model]]\npath = "none.onnx"\ndata = "data.npz"\n'
        with threads(desk.folder, "quick") as running:
            result = run_sweep(
                write_sweep(desk.folder, text),
                desk.folder / "out",
                scheduler=running.scheduler_address,
                overlays=[desk.folder / "overlay"],
            )
        assert [(row.target, row.exit_code) for row in result.rows] == [("quick", 2), ("other", 5)]
        assert "none.onnx" in result.rows[0].error
        assert result.rows[1].error == "no worker of the cluster has board:other"
        assert "board:other=1" in result.rows[1].hint

    def test_nobody_answers(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cluster, "_CONNECT_S", 1)
        sweep = write_sweep(desk.folder, HEAD + MODEL)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
            with pytest.raises(DeviceError, match="no Dask scheduler answers"):
                run_sweep(sweep, desk.folder / "out", scheduler=address, overlays=[desk.folder / "overlay"])
        with pytest.raises(InputError, match="is no address"):
            run_sweep(sweep, desk.folder / "out", scheduler="no://x", overlays=[desk.folder / "overlay"])

    def test_without_dask_the_command_says_how_to_get_it(self, desk: Desk) -> None:
        (desk.folder / "distributed.py").write_text("raise ImportError")
        write_sweep(desk.folder, HEAD + MODEL)
        bare = Desk(desk.folder, desk.cache, {"PYTHONPATH": str(desk.folder)})
        done = bare.run("sweep", "sweep.toml", *FLAGS, "--scheduler", "tcp://127.0.0.1:1")
        assert done.code == 4
        assert "pip install edgekit-sdk[sweep]" in done.err


@pytest.mark.slow
class TestDeployed:
    def test_three_models_with_a_worker_killed_give_the_local_table(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EDGEKIT_CACHE", str(desk.cache))
        add_second_model(desk.folder)
        sweep = write_sweep(desk.folder, HEAD + MODEL + SECOND + THIRD + BUDGETS)
        overlays = [desk.folder / "overlay"]
        local = run_sweep(sweep, desk.folder / "here", overlays=overlays)
        with workers(desk.folder, "quick", "quick") as running:
            killing = KillOne(running)
            there = run_sweep(
                sweep,
                desk.folder / "there",
                scheduler=running.scheduler_address,
                overlays=overlays,
                progress=killing,
            )
            assert killing.killed
        assert [row.exit_code for row in local.rows] == [0, 3, 0, 3, 0, 3]
        assert to_json(there) == to_json(local)

    def test_an_interrupt_ends_the_cell_on_the_worker_too(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        own = Desk(desk.folder, desk.folder / "cache")  # so that there is work to cut off
        monkeypatch.setenv("EDGEKIT_CACHE", str(own.cache))
        write_sweep(desk.folder, HEAD + MODEL)
        with threads(desk.folder, "quick") as running:
            with own.start("sweep", "sweep.toml", *FLAGS, "--scheduler", running.scheduler_address) as process:
                end = time.monotonic() + 60
                while not list(desk.folder.glob("out/cells/*/*/*/log.txt")):
                    assert time.monotonic() < end
                    time.sleep(0.1)
                time.sleep(4)
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=30)
            assert process.returncode == 130
            await_no_process(own, 20)
        assert not (desk.folder / "out" / "results.json").exists()
