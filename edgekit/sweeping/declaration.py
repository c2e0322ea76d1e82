"""The file that declares a sweep. Paths in it are relative to it.

targets = ["host", "raspberry-pi-4"]

[hosts]                          # boards that share a target's models; default: those of the lab file
raspberry-pi-4 = ["pi@10.0.0.5", "bench-pi"]

[[model]]
path = "detector.onnx"
data = "calib.npz"               # as --data; eval, recipe, metric as --eval, --recipe, --metric
shapes = { x = [1, 3, 320, 320] }

[[budget]]
latency = "10ms"                 # as --latency; memory, size, max_drop as --memory, --size, --max-drop
max_drop = "1%"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from edgekit import catalog
from edgekit.budget import parse_budget
from edgekit.errors import InputError
from edgekit.types import Budget

_BLOCKS = ("model", "budget")


@dataclass(frozen=True)
class Model:
    """A model with its samples, as `edgekit.deploy` takes them. ``name`` is what rows and folders are called."""

    path: str
    data: str
    eval: str = ""
    recipe: str = "npz"
    metric: str = ""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        for name, shape in self.shapes.items():
            if not shape or min(shape) < 1:
                raise ValueError(f"shapes: {name}: must be a list of positive sizes, not {list(shape)}")


@dataclass(frozen=True)
class Limits:
    """A budget in the words of the command line. ``name`` is what rows and folders are called."""

    latency: str = ""
    memory: str = ""
    size: str = ""
    max_drop: str = ""
    name: str = ""


@dataclass(frozen=True)
class _Top:
    targets: tuple[str, ...]
    hosts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets: is empty")
        for key, names in (("targets", self.targets), *((f"hosts.{t}", h) for t, h in self.hosts.items())):
            if twice := [name for place, name in enumerate(names) if name in names[:place]]:
                raise ValueError(f"{key}: holds {twice[0]} twice")
        for target, names in self.hosts.items():
            if target not in self.targets:
                close = catalog.nearest(target, self.targets)
                raise ValueError(f"hosts: {target!r} is not one of targets" + (f" (meant {close!r}?)" if close else ""))
            if not names:
                raise ValueError(f"hosts: {target}: is empty")


@dataclass(frozen=True)
class Declaration:
    """A checked sweep: models with absolute paths, targets that exist, budgets by name, boards by target."""

    models: tuple[Model, ...]
    targets: tuple[str, ...]
    hosts: dict[str, tuple[str, ...]]
    budgets: dict[str, Budget]


Row = TypeVar("Row", Model, Limits)


def read_declaration(file: Path, overlays: Sequence[str | Path] = ()) -> Declaration:
    """Parse and check a sweep's file, so that a typo is told before the first hour and not after it.

    Raises:
        InputError: the file is no valid sweep (file, block and key are named), or a model, samples, a target or a
            recipe that it names do not exist.
    """
    document = catalog.read_toml(file)
    models = [_located(model, file) for model in _rows(document, Model, file)]
    limits = _rows(document, Limits, file)
    rest = {key: value for key, value in document.items() if key not in _BLOCKS}
    for key in rest:
        close = catalog.nearest(key, _BLOCKS)
        if close and key not in {known.name for known in fields(_Top)}:
            raise InputError(f"{file}: {key}: unknown key", f"did you mean [[{close}]]?")
    top = catalog.structure(rest, _Top, str(file), 'write targets = ["host"] above the first block')
    for target in top.targets:
        catalog.target(target, overlays)
    for model in models:
        catalog.recipe(model.recipe, overlays)
    budgets = {limit.name or _words(limit): _budget(limit, f"{file}: budget {n}") for n, limit in enumerate(limits, 1)}
    names = {"model": [model.name for model in models], "budget": [limit.name or _words(limit) for limit in limits]}
    for block, given in names.items():
        folders = [folder_name(name) for name in given]
        for place, folder in enumerate(folders):
            if folder in folders[:place]:
                raise InputError(f"{file}: two {block}s are called {given[place]!r}", "give one of them a name = ...")
    return Declaration(tuple(models), top.targets, top.hosts, budgets)


def folder_name(name: str) -> str:
    """A name as one that any file system takes, and that leads nowhere else."""
    return re.sub(r"[^\w+=.,-]+", "-", name, flags=re.ASCII).strip(".-") or "-"


def _rows(document: dict[str, Any], kind: type[Row], file: Path) -> list[Row]:
    block = "model" if kind is Model else "budget"
    rows = document.get(block, [{}] if kind is Limits else None)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file}: holds no [[{block}]]", f"add [[{block}]] and its keys below it")
    return [catalog.structure(row, kind, f"{file}: {block} {number}") for number, row in enumerate(rows, 1)]


def _located(model: Model, file: Path) -> Model:
    folder = file.absolute().parent
    for key in ("path", "data", "eval"):
        given = getattr(model, key)
        if given and not (folder / given).exists():
            raise InputError(f"{file}: model {model.path}: {key}: {folder / given}: no such file or folder")
    own_metric = model.metric.rpartition(":")[0].endswith(".py")
    return replace(
        model,
        path=str(folder / model.path),
        data=str(folder / model.data),
        eval=model.eval and str(folder / model.eval),
        metric=str(folder / model.metric) if own_metric else model.metric,
        name=model.name or Path(model.path).stem,
    )


def _budget(limits: Limits, where: str) -> Budget:
    given = {key: getattr(limits, key) or None for key in ("latency", "memory", "size", "max_drop")}
    try:
        return parse_budget(**given)
    except InputError as error:  # it speaks of flags
        flags = r"--(latency|memory|size|max-drop)"
        said, hint = (
            re.sub(flags, lambda found: found[1].replace("-", "_"), text) for text in (str(error), error.hint)
        )
        raise InputError(
            f"{where}: {said}", re.sub(r"for instance (\w+) (\S+)", r'for instance \1 = "\2"', hint)
        ) from None


def _words(limits: Limits) -> str:
    """ "latency 10ms, max_drop 1%"."""
    parts = [
        f"{key} {getattr(limits, key)}" for key in ("latency", "memory", "size", "max_drop") if getattr(limits, key)
    ]
    return ", ".join(parts) or "default"


__all__ = ["Declaration", "Limits", "Model", "folder_name", "read_declaration"]
