"""A user's own metric, ``file.py:name``.

``name`` is a function ``(outputs, label, reference) -> float`` whose mean over the samples is the metric (larger is
better unless it carries ``higher_is_better = False``), or an object (or a class without arguments) with
``row(outputs, label, reference) -> tuple of numbers`` and ``aggregate(rows [n, k]) -> float``, and where it likes
``name`` and ``higher_is_better``. What it raises, and what it returns that is no number, becomes an ``InputError`` that
names the place.
"""

from __future__ import annotations

import importlib.util
import math
import os.path
import reprlib
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgekit.catalog import nearest
from edgekit.errors import InputError

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Array]

_HINT = "write def name(outputs, label, reference): return a number, or an object with row and aggregate"


@dataclass(frozen=True)
class Function:
    """A user's function, guarded; its mean is the metric."""

    path: Path
    name: str
    function: Callable[..., Any]
    higher_is_better: bool

    def __call__(self, outputs: Outputs, label: object, reference: Outputs) -> float:
        """Call it. Raises ``InputError`` when it fails or returns no finite number."""
        value = _guarded(self.path, self.name, self.function, dict(outputs), label, dict(reference))
        return _finite(value, f"{self.path}: {self.name} (label {reprlib.repr(label)})")


@dataclass(frozen=True)
class Object:
    """A user's object, guarded: a ``Metric``."""

    path: Path
    name: str
    inner: Any
    higher_is_better: bool

    def row(self, outputs: Outputs, label: object, reference: Outputs) -> tuple[float, ...]:
        """Its row. Raises ``InputError`` when it fails or returns anything but finite numbers."""
        where = f"{self.name}.row"
        values = _guarded(self.path, where, self.inner.row, dict(outputs), label, dict(reference))
        place = f"{self.path}: {where} (label {reprlib.repr(label)})"
        if not isinstance(values, (tuple, list, np.ndarray)) or not len(values):
            raise InputError(f"{place} returned {values!r}, not a tuple of numbers", hint=_HINT)
        return tuple(_finite(value, place) for value in values)

    def aggregate(self, rows: Array) -> float:
        """Its value. Raises ``InputError`` when it fails or returns no finite number."""
        where = f"{self.name}.aggregate"
        return _finite(_guarded(self.path, where, self.inner.aggregate, rows), f"{self.path}: {where}")


def load(text: str) -> Function | Object:
    """Import ``file.py:name``. Raises ``InputError`` when the file or the name is missing, or is not a metric."""
    file, _, name = text.rpartition(":")
    # os.path says no where pathlib raises: overlong names, folders that may not be entered, unknown users' homes.
    path = Path(os.path.expanduser(file))  # noqa: PTH111
    if not file or not name:
        raise InputError(f"metric {text!r} names no function", hint="write --metric file.py:function")
    if not os.path.isfile(path):  # noqa: PTH113
        raise InputError(f"metric {text!r}: there is no file {path}", hint="write --metric file.py:function")
    module = _import(path)
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = nearest(name, own)
        raise InputError(f"{path}: has no {name!r}", hint=f"did you mean {close!r}?" if close else _HINT)
    found = getattr(module, name)
    if isinstance(found, type):
        found = _guarded(path, name, found)
    higher = bool(getattr(found, "higher_is_better", True))
    if callable(getattr(found, "row", None)) and callable(getattr(found, "aggregate", None)):
        return Object(path, str(getattr(found, "name", name)), found, higher)
    if not callable(found):
        raise InputError(f"{path}: {name} is neither a function nor an object with row and aggregate", hint=_HINT)
    return Function(path, name, found, higher)


def _import(path: Path) -> ModuleType:
    name = f"_edgekit_metric_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"metric {path}: is not a Python file", hint="its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    _guarded(path, "import", spec.loader.exec_module, module)
    return module


def _guarded(path: Path, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:  # anything may come from a user's code
        own = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path.absolute())]
        line = error.lineno if isinstance(error, SyntaxError) else (own[-1] if own else None)
        place = f"{path}:{line}" if line else str(path)
        problem = str(error).partition("\n")[0]
        raise InputError(
            f"{place}: {what} raised {type(error).__name__}: {problem}", hint="repair the metric"
        ) from error


def _finite(value: Any, place: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{place} returned {value!r}, not a finite number", hint="return a number for every sample")
    return number
