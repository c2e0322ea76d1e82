"""The rows that a sweep ends in, and the files that hold them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from edgekit import __version__, results
from edgekit.errors import DeviceError, GuardError, InfeasibleError, InputError, MissingToolError, VerifyError
from edgekit.files.replacing import write_bytes, write_text

SCHEMA = "edgekit/sweep/1"
CRASHED = 1
INTERRUPTED = 130
# Whatever kept an answer from being known weighs more than an answer that is "no".
_WORST_FIRST = (
    CRASHED,
    DeviceError.exit_code,
    MissingToolError.exit_code,
    InputError.exit_code,
    VerifyError.exit_code,
    GuardError.exit_code,
    InfeasibleError.exit_code,
)


@dataclass(frozen=True)
class Row:
    """One cell. ``host`` is '' for the machine that runs the cell; ``bundle`` and ``log`` are relative to the sweep's
    folder. What the deployment found is None, or '', where it ended with another ``exit_code`` than 0: ``error`` and
    ``hint`` then say why. ``metric_drop`` is what the metric lost against float (positive = worse), ``speedup`` float's
    latency over the chosen one's, with its 90 % interval where it is predicted. ``attempts`` counts the runs that it
    took.
    """

    model: str
    target: str
    host: str
    budget: str
    budget_latency_ms: float | None
    budget_memory_bytes: int | None
    budget_weight_bytes: int | None
    budget_max_drop: float | None
    device: str = ""
    chosen: str = ""
    latency_p50_ms: float | None = None
    latency_kind: str = "none"
    metric: str = ""
    metric_value: float | None = None
    metric_drop: float | None = None
    weight_bytes: int | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    exit_code: int = INTERRUPTED
    error: str = ""
    hint: str = ""
    attempts: int = 1
    bundle: str = ""
    log: str = ""


@dataclass(frozen=True)
class SweepResult:
    """All rows: models, then targets, then budgets, in the order of the sweep's file. ``exit_code`` is the worst."""

    rows: tuple[Row, ...]
    exit_code: int
    edgekit: str = __version__
    schema: str = SCHEMA


def sweep_result(rows: Iterable[Row]) -> SweepResult:
    """The rows with the exit code of the worst: the first of 1, 5, 4, 2, 7, 6, 3 that a cell ended with."""
    rows = tuple(rows)
    found = {row.exit_code for row in rows} - {0}
    worst = next((code for code in _WORST_FIRST if code in found), max(found, default=0))
    return SweepResult(rows, worst)


def to_json(result: SweepResult) -> dict[str, object]:
    """The document, its schema first and its rows last."""
    document: dict[str, object] = results.unstructure(result)
    return {key: document[key] for key in sorted(document, key=("schema", "edgekit", "exit_code", "rows").index)}


def write_json(result: SweepResult, path: Path) -> None:
    """Write the table as JSON. Raises `InputError` when it cannot be written."""
    write_text(path, json.dumps(to_json(result), indent=1, allow_nan=False) + "\n")


def write_parquet(result: SweepResult, path: Path) -> bool:
    """Write the table as Parquet, a column a field of `Row`. False where pyarrow is not installed: an older file of
    that name is gone then, since it would be of another sweep.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        path.unlink(missing_ok=True)
        return False
    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema([(one.name, kinds[str(one.type).partition(" ")[0]]) for one in fields(Row)])
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in result.rows], schema=schema), content)
    write_bytes(path, content.getvalue())
    return True


__all__ = [
    "CRASHED",
    "INTERRUPTED",
    "SCHEMA",
    "Row",
    "SweepResult",
    "sweep_result",
    "to_json",
    "write_json",
    "write_parquet",
]
