"""Runs cells on a Dask cluster. A board is a resource of the worker that reaches it, so that each has one cell at a
time:

    dask scheduler
    dask worker tcp://10.0.0.1:8786 --nthreads 1 --resources "board:bench-pi=1"

The workers see the sweep's files, and the folder that it writes, under the same paths.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import __version__
from edgekit.errors import DeviceError, EdgekitError, InputError, MissingToolError
from edgekit.progress import Progress
from edgekit.sweeping.cells import Cell, record
from edgekit.sweeping.running import run_cell
from edgekit.sweeping.table import CRASHED, Row

if TYPE_CHECKING:
    from distributed import Client, Future

_CONNECT_S = 10
_CHECK_EVERY_S = 2.0
# How long a board may have no worker before its cells are given up: one that was killed is back before that.
ABSENCE_S = 60.0


def run_on(
    scheduler: str, cells: Sequence[Cell], out: Path, progress: Progress
) -> Generator[tuple[Cell, Row], None, None]:
    """Cells with their rows, as they end on the workers of ``scheduler``.

    Raises:
        InputError: ``scheduler`` is no address, or a worker does not see ``out``.
        MissingToolError: Dask is not installed here, or this edgekit not on a worker.
        DeviceError: no scheduler answers, or it has gone.
    """
    if not cells:
        return
    client = _connect(scheduler)
    futures: dict[Future[Any], Cell] = {}
    try:
        _require_able(client, out)
        ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        for number, cell in enumerate(cells):
            future = client.submit(
                on_worker,
                asdict(cell),
                key=f"edgekit-{cell.digest[:16]}-{number}-{time.time_ns()}",
                resources={resource(cell): 1},
                pure=False,
            )
            futures[future] = cell
            future.add_done_callback(ended.put)
        absent: dict[str, float] = {}
        while futures:
            try:
                future = ended.get(timeout=_CHECK_EVERY_S)
            except queue.Empty:
                for one in _given_up(client, futures, absent, progress):
                    cell = futures.pop(one)
                    one.cancel()
                    yield cell, _kept(cell, _no_worker(cell))
                continue
            if future in futures:
                cell = futures.pop(future)
                yield cell, _row(scheduler, cell, future)
    finally:
        with suppress(Exception):  # the scheduler may have gone
            client.cancel(list(futures), force=True)
        client.close(timeout=_CONNECT_S)


def resource(cell: Cell) -> str:
    """What a worker must offer to run a cell."""
    return f"board:{cell.board}"


def on_worker(document: dict[str, Any]) -> dict[str, Any]:
    """Run a cell on a worker; stop when the task is cancelled, which happens too when its client has gone."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def stopped() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled" or worker.status.name in ("closing", "closed", "failed")

    row = Row(**document["row"])
    return asdict(run_cell(Cell(**{**document, "row": row}), stopped))


def _connect(scheduler: str) -> Client:
    try:
        from distributed import Client
    except ImportError:
        raise MissingToolError(
            "--scheduler needs Dask, which is not installed", "pip install edgekit-sdk[sweep]"
        ) from None
    try:
        return Client(scheduler, timeout=_CONNECT_S, set_as_default=False, name="edgekit-sweep")
    except OSError as error:  # its time limits are of this kind too
        hint = "start one: dask scheduler; its first lines say its address"
        raise DeviceError(f"no Dask scheduler answers at {scheduler}", hint) from error
    except ValueError as error:
        raise InputError(f"--scheduler {scheduler!r} is no address: {error}", "write tcp://10.0.0.1:8786") from None


def _require_able(client: Client, out: Path) -> None:
    for worker, answer in client.run(_greet, str(out), on_error="return").items():
        if isinstance(answer, ImportError):
            hint = f"install it there: pip install edgekit-sdk=={__version__} distributed"
            raise MissingToolError(f"edgekit is not installed on worker {worker}", hint)
        if isinstance(answer, BaseException):
            raise DeviceError(f"worker {worker}: {type(answer).__name__}: {answer}")
        version, sees_out = answer
        if version != __version__:
            hint = f"install it there: pip install edgekit-sdk=={__version__}"
            raise MissingToolError(f"worker {worker} has edgekit {version}, this is {__version__}", hint)
        if not sees_out:
            hint = "models, samples and --out must be on a file system that all machines share, under the same paths"
            raise InputError(f"worker {worker} does not see {out}", hint)


def _greet(out: str) -> tuple[str, bool]:
    from edgekit import __version__

    return __version__, Path(out).is_dir()


def _given_up(
    client: Client, futures: dict[Future[Any], Cell], absent: dict[str, float], progress: Progress
) -> list[Future[Any]]:
    """The cells whose board no worker has had for too long. ``absent`` keeps since when."""
    workers = client.scheduler_info()["workers"].values()
    offered = {name for worker in workers for name, amount in worker["resources"].items() if amount >= 1}
    for name in {resource(cell) for cell in futures.values()}:
        if name in offered:
            absent.pop(name, None)
        elif name not in absent:
            absent[name] = time.monotonic()
            progress.note(f'no worker has {name} yet: dask worker ADDRESS --nthreads 1 --resources "{name}=1"')
    now = time.monotonic()
    return [one for one, cell in futures.items() if now - absent.get(resource(cell), now) > ABSENCE_S]


def _no_worker(cell: Cell) -> Row:
    return replace(
        cell.row,
        exit_code=DeviceError.exit_code,
        error=f"no worker of the cluster has {resource(cell)}",
        hint=f'start one where the board is: dask worker ADDRESS --nthreads 1 --resources "{resource(cell)}=1"',
    )


def _row(scheduler: str, cell: Cell, future: Future[Any]) -> Row:
    if future.cancelled():  # not by us: those are not in the list any more
        raise DeviceError(f"the Dask scheduler at {scheduler} has gone", "start it again; finished cells are kept")
    error = future.exception()
    if error is None:
        return Row(**future.result())
    if isinstance(error, EdgekitError):
        return _kept(cell, replace(cell.row, exit_code=error.exit_code, error=str(error), hint=error.hint))
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        said, hint = "its worker was killed again and again", "the kernel kills what takes too much memory"
        return _kept(cell, replace(cell.row, exit_code=DeviceError.exit_code, error=said, hint=hint))
    return _kept(cell, replace(cell.row, exit_code=CRASHED, error=f"{type(error).__name__}: {error}"))


def _kept(cell: Cell, row: Row) -> Row:
    """An answer that no worker could keep. Without a folder there is nothing to keep it in."""
    if Path(cell.folder).is_dir():
        record(cell, row)
    return row


__all__ = ["ABSENCE_S", "on_worker", "resource", "run_on"]
