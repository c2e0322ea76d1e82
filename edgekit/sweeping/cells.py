"""The cells of a sweep: which deployment each is, on which board, in which folder, and whether it is done already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgekit import __version__, catalog
from edgekit.devices.lab import Board, find_boards
from edgekit.errors import GuardError, InfeasibleError, InputError
from edgekit.files.cache import key
from edgekit.files.replacing import write_text
from edgekit.sweeping.declaration import Declaration, Model, folder_name
from edgekit.sweeping.table import Row
from edgekit.types import Budget

CELLS = "cells"
RECORD = "cell.json"
LOG = "log.txt"
BUNDLE = "bundle"
# The same inputs end so again. A device that failed, a tool that was missing, a file that could not be read may not.
_FINAL = (0, InfeasibleError.exit_code, GuardError.exit_code)


@dataclass(frozen=True)
class Cell:
    """One deployment. ``arguments`` are those of `edgekit.deploy`, as JSON-able values; ``row`` has what is known
    before it runs. ``folder`` takes all that it writes; ``digest`` is over everything that its answer depends on.
    ``board`` is what runs one cell at a time: a board's name, or the target's where it is the machine itself.
    """

    folder: str
    digest: str
    board: str
    arguments: dict[str, Any]
    row: Row


def cells(
    declared: Declaration, out: Path, lab: Mapping[str, Board], lab_file: str, overlays: Sequence[str | Path]
) -> list[Cell]:
    """Every cell, models first, then targets, then budgets.

    The boards of a target share its models, each model with all of its budgets on one board: latencies are compared
    on the board that they were measured on, and what was measured for one budget serves the next.
    """
    made = []
    for number, model in enumerate(declared.models):
        inputs = _digests(model)
        for target in declared.targets:
            hosts = declared.hosts.get(target)
            boards = find_boards(",".join(hosts) if hosts else None, target, lab)
            board = boards[number % len(boards)] if boards else None
            for name, budget in declared.budgets.items():
                place = Path(CELLS, *map(folder_name, (model.name, target, name)))
                arguments = {
                    "model": model.path,
                    "target": target,
                    "data": model.data,
                    "evaluation": model.eval or None,
                    "recipe": model.recipe,
                    "metric": model.metric or None,
                    "budget": asdict(budget),
                    "shapes": {name: list(shape) for name, shape in model.shapes.items()},
                    "overlays": [str(Path(overlay).absolute()) for overlay in overlays],
                    "host": None if board is None else board.name,
                    "lab": (lab_file or None) if board is not None else None,
                }
                made.append(
                    Cell(
                        folder=str(out / place),
                        digest=_digest(model, inputs, target, board, budget, overlays),
                        board=target if board is None else board.name,
                        arguments=arguments,
                        row=_row(model, target, board, name, budget, place),
                    )
                )
    return made


def _row(model: Model, target: str, board: Board | None, name: str, budget: Budget, place: Path) -> Row:
    return Row(
        model=model.name,
        target=target,
        host="" if board is None else board.name,
        budget=name,
        budget_latency_ms=budget.latency_ms,
        budget_memory_bytes=budget.memory_bytes,
        budget_weight_bytes=budget.weight_bytes,
        budget_max_drop=budget.max_drop,
        log=(place / LOG).as_posix(),
    )


def _digest(
    model: Model, inputs: list[str], target: str, board: Board | None, budget: Budget, overlays: Sequence[str | Path]
) -> str:
    """Of what decides, in the words of those who wrote it; what a device is measured to be is no part of it."""
    entry = catalog.target(target, overlays)
    return key(
        edgekit=__version__,
        inputs=inputs,
        model=json.dumps(asdict(replace(model, path="", data="", eval=""))),
        budget=asdict(budget),
        target=json.dumps(asdict(entry)),
        channel_step=catalog.device_profile(entry.device_profile, overlays).channel_step,
        recipe=catalog.recipe(model.recipe, overlays).digest,
        board=json.dumps(None if board is None else asdict(board)),
    )


def _digests(model: Model) -> list[str]:
    own_metric = model.metric.rpartition(":")[0]
    samples = (model.data, model.eval, own_metric if own_metric.endswith(".py") else "")
    return [_model_digest(model.path), *map(_samples_digest, samples)]


def finished(cell: Cell) -> Row | None:
    """The row of an earlier run of the very same cell, or None where it must run."""
    folder = Path(cell.folder)
    try:
        document = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if document["digest"] != cell.digest:
            return None
        row = catalog.structure(document["row"], Row, RECORD)
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None
    whole = row.exit_code != 0 or (folder / BUNDLE).is_dir()
    return row if row.exit_code in _FINAL and whole else None


def record(cell: Cell, row: Row) -> None:
    """Keep a row beside what the cell wrote. Raises `InputError` when it cannot be written."""
    document = {"schema": "edgekit/sweep-cell/1", "digest": cell.digest, "row": asdict(row)}
    write_text(Path(cell.folder) / RECORD, json.dumps(document, indent=1) + "\n")


def _model_digest(model: str) -> str:
    """Of a model and its external data; '' where it cannot be read, which the deployment then says."""
    from edgekit.graph.read import read

    try:
        return read(model)[1]
    except InputError:
        return ""


def _samples_digest(path: str) -> str:
    """Of a file, or of every file in a folder."""
    if not path:
        return ""
    root = Path(path)
    state = hashlib.sha256()
    for file in [root] if root.is_file() else sorted(found for found in root.rglob("*") if found.is_file()):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        state.update(f"{file.relative_to(root).as_posix()}\0{digest}\n".encode())
    return state.hexdigest()


__all__ = ["BUNDLE", "CELLS", "LOG", "RECORD", "Cell", "cells", "finished", "record"]
