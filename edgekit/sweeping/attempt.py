"""One deployment of a sweep in a process of its own: ``python -m edgekit.sweeping.attempt``, the cell as a line of JSON
on standard input. It writes the cell's record. It stops when its standard input ends, however the process that started
it came to its end.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edgekit.errors import EdgekitError, InputError
from edgekit.sweeping.cells import BUNDLE, Cell, record
from edgekit.sweeping.table import CRASHED, Row
from edgekit.types import Budget, Kind

if TYPE_CHECKING:
    from edgekit.results import DeployResult


def main() -> None:
    """Read the cell, deploy it, write its record."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what the deployment starts must not read our orders
    document = json.loads(orders.readline())
    cell = Cell(**{**document, "row": Row(**document["row"])})
    threading.Thread(target=_stop_at_the_end_of, args=(orders,), daemon=True).start()
    record(cell, _deployed(cell))


def _stop_at_the_end_of(orders: TextIO) -> None:
    orders.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _deployed(cell: Cell) -> Row:
    from rich.console import Console

    from edgekit import api
    from edgekit.progress import OnConsole

    given: dict[str, Any] = dict(cell.arguments)
    given["budget"] = Budget(**given["budget"])
    given["shapes"] = {name: tuple(shape) for name, shape in given["shapes"].items()}
    out = Path(cell.folder) / BUNDLE
    try:
        return _row(cell, api.deploy(**given, out=out, progress=OnConsole(Console(stderr=True, width=120))))
    except EdgekitError as error:
        sys.stderr.write(f"edgekit: {error}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))
        return replace(cell.row, exit_code=error.exit_code, error=str(error), hint=error.hint)
    except (OSError, MemoryError) as error:
        sys.excepthook(*sys.exc_info())  # the whole story goes to the log
        return replace(cell.row, exit_code=InputError.exit_code, error=str(error) or "out of memory")
    except Exception as error:  # a fault of ours in one cell must not cost the others
        sys.excepthook(*sys.exc_info())
        return replace(cell.row, exit_code=CRASHED, error=f"{type(error).__name__}: {error}")


def _row(cell: Cell, result: DeployResult) -> Row:
    from edgekit.reporting import verdict

    chosen, reference = verdict.shipped(result), verdict.float_candidate(result)
    same = chosen.name == reference.name
    reach = None if same or chosen.kind is not Kind.PREDICTED else chosen.speedup
    return replace(
        cell.row,
        device=result.device.cpu,
        chosen=chosen.name,
        latency_p50_ms=_known(chosen.latency_ms.p50),
        latency_kind=chosen.kind.value,
        metric=chosen.metric.name,
        metric_value=_known(chosen.metric.value),
        metric_drop=0.0 if same else _known(verdict.metric_drop(chosen, reference).value),
        weight_bytes=chosen.weight_bytes,
        speedup=1.0 if same else _known(verdict.speedup(chosen, reference)),
        speedup_low=None if reach is None else reach.low,
        speedup_high=None if reach is None else reach.high,
        exit_code=0,
        bundle=(Path(cell.row.log).parent / BUNDLE).as_posix(),
    )


def _known(value: float | None) -> float | None:
    """No number is None in a row: a board that is not at hand may have no latency."""
    return value if value is not None and math.isfinite(value) else None


if __name__ == "__main__":
    main()
