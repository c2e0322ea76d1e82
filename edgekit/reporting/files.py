"""Where the documents of a plan go: looked at before the long work, written whole or not at all after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import InputError
from edgekit.files import replacing

if TYPE_CHECKING:
    from edgekit.outcome import PlanResult


def require_writable(*paths: Path | None) -> None:
    """Raise `InputError` for a path that cannot be written, and for two flags that name one file."""
    wanted: dict[Path, Path] = {}
    for path in paths:
        if path is None:
            continue
        replacing.require_writable(path)
        if (first := wanted.setdefault(path.resolve(), path)) is not path:
            raise InputError(f"--out and --pareto would both write {first}", "give one of them another name")


def write_document(path: Path | None, document: object) -> None:
    """Write a JSON document; nothing where no path was named."""
    if path is not None:
        replacing.write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_front(found: PlanResult, paths: Sequence[Path]) -> None:
    """The plans that were considered as a document and as a picture; both are made before one is written."""
    if not paths:
        return
    from edgekit.reporting import front

    considered = front.front_of(found)
    document_file, picture_file = paths
    image = front.picture(considered, picture_file.suffix)
    write_document(document_file, front.document(considered))
    replacing.write_bytes(picture_file, image)
