"""Samples from a folder of pictures or wav files, with ``labels.csv`` or ``labels.txt`` beside them or not.

With a label file the samples are its rows, in its order; without one they are the folder's files by name.
"""

# os.path.isfile says no where pathlib raises: overlong names, folders that may not be entered.
# ruff: noqa: PTH113

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.catalog import nearest
from edgekit.errors import InputError
from edgekit.recipes import preprocess

if TYPE_CHECKING:
    from edgekit.catalog import Recipe
    from edgekit.graph import Tensor

_LABEL_FILES = ("labels.csv", "labels.txt")
_HEADINGS = ("file", "filename", "image", "path", "wav")


@dataclass(frozen=True)
class FolderDataset:
    """Files that are read when their sample is asked for."""

    root: Path
    files: tuple[str, ...]
    labels: tuple[object, ...] | None
    recipe: Recipe
    inputs: tuple[Tensor, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names and bytes of the files, labels and preprocessing."""
        state = hashlib.sha256(json.dumps(preprocess.steps(self.recipe, self.inputs)).encode())
        for name in self.files:
            try:
                with (self.root / name).open("rb") as stream:
                    state.update(f"{name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
            except OSError as error:
                raise _unreadable(self.root / name, error) from None
        state.update(repr(self.labels).encode())
        return state.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, i: int) -> dict[str, np.ndarray[Any, Any]]:
        """Read file ``i``. Raises ``InputError`` naming it when it cannot be used."""
        first, *others = self.inputs
        filled = preprocess.read(self.root / self.files[i], self.recipe, first)
        return {first.name: filled} | {t.name: np.zeros(t.shape, t.dtype) for t in others}


def read(root: Path, recipe: Recipe, inputs: tuple[Tensor, ...]) -> FolderDataset:
    """List and check the folder. Raises ``InputError`` when it, its labels or the model do not suit the recipe."""
    if recipe.reader == "npz":
        raise InputError(
            f"data {root}: recipe {recipe.name!r} reads no folders",
            hint="say how to read the files, for instance --recipe image-classification, text-line or audio-16k",
        )
    preprocess.main_input(recipe, inputs)
    suffixes = preprocess.SUFFIXES[recipe.reader]
    try:
        present = sorted(p.name for p in root.iterdir() if p.suffix.lower() in suffixes and p.is_file())
        label_files = [root / name for name in _LABEL_FILES if (root / name).is_file()]
        below = sorted(p.name for p in root.iterdir() if p.is_dir())
    except OSError as error:
        raise _unreadable(root, error) from None
    if len(label_files) == 2:
        raise InputError(f"data {root}: has both {' and '.join(_LABEL_FILES)}", hint="keep one of them")
    if label_files:
        rows = _labelled(label_files[0], recipe, present)
        return FolderDataset(root, tuple(rows), tuple(rows.values()), recipe, inputs)
    if not present:
        raise InputError(
            f"data {root}: no files that recipe {recipe.name!r} reads ({', '.join(suffixes)})",
            hint=f"pass one of its folders: {', '.join(below[:5])}" if below else "check the path, or pass --recipe",
        )
    return FolderDataset(root, tuple(present), None, recipe, inputs)


def _labelled(path: Path, recipe: Recipe, present: list[str]) -> dict[str, object]:
    """File -> label, checked against the files that are there."""
    labels: dict[str, object] = {}
    for line, name, text in _rows(path):
        where = f"{path}:{line}"
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not name:
            raise InputError(f"{where}: {name!r} is not the path of a file in this folder", hint="write relative paths")
        if not os.path.isfile(path.parent / name):
            close = nearest(name, present)
            raise InputError(
                f"{where}: there is no file {name!r} in {path.parent}",
                hint=f"did you mean {close!r}?" if close else "remove the row, or add the file",
            )
        if name in labels:
            raise InputError(f"{where}: {name!r} is listed twice", hint="remove one row")
        labels[name] = _label(text, recipe, where)
    if not labels:
        raise InputError(f"{path}: holds no rows", hint="write file,label rows, or remove it to go without labels")
    unlabelled = [name for name in present if name not in labels]
    if unlabelled:
        raise InputError(
            f"{path}: {len(unlabelled)} of {len(present)} files have no row, first {unlabelled[0]!r}",
            hint="add their rows, or remove the files",
        )
    return labels


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, file, label) of each row, without the heading.

    ``.csv``: two comma-separated columns with the usual quoting; ``.txt``: what stands before and after the first tab,
    or before and after the first comma.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}", hint="save it as UTF-8") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if path.suffix == ".txt":
        lines = text.split("\n")
        cut = ((i, line.rstrip("\r").partition("\t" if "\t" in line else ",")) for i, line in enumerate(lines, 1))
        rows = ((i, [name, label] if separator else [name]) for i, (name, separator, label) in cut)
    else:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = ((reader.line_num, row) for row in reader)
    first = True
    try:
        for line, row in rows:
            if not row or row == [""]:
                continue
            if len(row) != 2:
                raise InputError(
                    f"{path}:{line}: has {len(row)} columns instead of 2: file,label",
                    hint='put a label that holds a comma in quotes: line.png,"1,024"',
                )
            heading = first and row[0].strip().lower() in _HEADINGS and not os.path.isfile(path.parent / row[0])
            first = False
            if not heading:
                yield line, row[0], row[1]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV: {error}", hint="check the quotes") from None


def _label(text: str, recipe: Recipe, where: str) -> object:
    if recipe.labels == "text":
        return text
    try:
        value = int(text) if recipe.labels == "integer" else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        wanted = "an integer" if recipe.labels == "integer" else "a number"
        raise InputError(
            f"{where}: label {text!r} is not {wanted}, which recipe {recipe.name!r} expects",
            hint='a recipe with labels = "text" takes any label',
        )
    return value


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read: {error.strerror or error}", hint="check the file and its permissions")
