"""A sweep: every model for every target within every budget, one row each."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from edgekit.catalog import OVERLAY_VARIABLE
from edgekit.devices.lab import LAB_VARIABLE, open_lab
from edgekit.errors import InputError
from edgekit.files.replacing import write_text
from edgekit.progress import Progress, Silent
from edgekit.reporting import sweeps as report
from edgekit.sweeping.cells import CELLS, Cell, cells, finished
from edgekit.sweeping.declaration import read_declaration
from edgekit.sweeping.running import run_here
from edgekit.sweeping.table import Row, SweepResult, sweep_result, write_json, write_parquet

RESULTS = "results.json"
PARQUET = "results.parquet"
REPORT = "report.html"
_LOCK = ".edgekit-sweep"  # its presence says that the folder is a sweep's
_LOCK_WAIT_S = 20.0  # a killed sweep's last deployment needs a moment to stop


def run_sweep(
    file: str | Path,
    out: str | Path,
    *,
    scheduler: str | None = None,
    lab: str | Path | None = None,
    overlays: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> SweepResult:
    """Deploy every cell of the sweep that ``file`` declares (see `edgekit.sweeping.declaration`) and write
    ``results.json``, ``results.parquet`` (where pyarrow is installed) and ``report.html`` to ``out``; the cells'
    bundles and logs are in folders below it. A cell that ends with an error is a row with its exit code.

    Cells that an earlier run finished with the same inputs are kept. With ``scheduler`` (the address of a Dask
    scheduler) cells run on its workers, which see the same files under the same paths.

    Raises:
        InputError: ``file`` is not valid, or ``out`` is not free, in use, or cannot be written.
        MissingToolError: ``scheduler`` is given and Dask is not installed here or edgekit not on a worker.
        DeviceError: no scheduler answers at that address, or it has gone.
    """
    progress = progress or Silent()
    folders = [*overlays, *filter(None, os.environ.get(OVERLAY_VARIABLE, "").split(os.pathsep))]
    declared = read_declaration(Path(file), folders)
    given = lab or os.environ.get(LAB_VARIABLE) or ""
    lab_file = str(Path(os.path.expanduser(given)).absolute()) if given else ""  # noqa: PTH111 - may raise
    folder = Path(out).absolute()
    every = cells(declared, folder, open_lab(lab), lab_file, folders)
    with _claimed(folder) as lock:
        rows = {cell.folder: row for cell in every if (row := finished(cell)) is not None}
        if rows:
            progress.note(f"{len(rows)} of {len(every)} cells are finished already")
        left = [cell for cell in every if cell.folder not in rows]
        title = f"sweep {Path(file).name}: {len(left)} cells"
        with (
            progress.stage(title, len(left)) as advance,
            closing(_run(left, scheduler, folder, lock, progress)) as ended,
        ):
            for cell, row in ended:
                rows[cell.folder] = row
                progress.note(report.line(row))
                advance()
        result = sweep_result(rows[cell.folder] for cell in every)
        write_json(result, folder / RESULTS)
        write_parquet(result, folder / PARQUET)
        write_text(folder / REPORT, report.render(result, Path(file).name))
    return result


def _run(
    left: Sequence[Cell], scheduler: str | None, out: Path, lock: int, progress: Progress
) -> Generator[tuple[Cell, Row], None, None]:
    if scheduler is None:
        return run_here(left, lock)
    from edgekit.sweeping.cluster import run_on

    return run_on(scheduler, left, out, progress)


@contextmanager
def _claimed(out: Path) -> Iterator[int]:
    """``out`` as this sweep's alone, as the file descriptor of its lock."""
    if out.is_dir() and any(out.iterdir()) and not (out / _LOCK).exists():
        raise InputError(f"--out {out}: not empty, and not the folder of a sweep", "choose a new or empty folder")
    try:
        (out / CELLS).mkdir(parents=True, exist_ok=True)
        lock = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}", "choose a folder that you may write") from error
    try:
        end = time.monotonic() + _LOCK_WAIT_S
        while not _taken(lock):
            if time.monotonic() > end:
                hint = "wait for it, or choose another --out"
                raise InputError(f"--out {out}: another sweep is at work in it", hint)
            time.sleep(0.2)
        yield lock
    finally:
        os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


__all__ = ["PARQUET", "REPORT", "RESULTS", "run_sweep"]
