"""Budgets and shapes as people write them on a command line: ``10ms``, ``64MiB``, ``1%``, ``x=1x3x224x224``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from edgekit.errors import InputError
from edgekit.types import Budget

if TYPE_CHECKING:
    import pint

_EXAMPLES = {"--latency": "33ms", "--memory": "512MB", "--size": "5MB"}


def parse_budget(
    latency: str | None = None, memory: str | None = None, size: str | None = None, max_drop: str | None = None
) -> Budget:
    """A ``Budget`` from what follows ``--latency``, ``--memory``, ``--size`` and ``--max-drop``.

    ``None`` leaves latency, memory and size unlimited and ``max_drop`` at the default of ``Budget``. MB is 10^6 bytes,
    MiB 2^20. Raises ``InputError`` that names the flag and shows an example.
    """
    latency_ms = None if latency is None else _quantity("--latency", latency, "millisecond")
    memory_bytes = None if memory is None else _bytes("--memory", memory)
    weight_bytes = None if size is None else _bytes("--size", size)
    if max_drop is None:
        return Budget(latency_ms, memory_bytes, weight_bytes)
    return Budget(latency_ms, memory_bytes, weight_bytes, _drop(max_drop))


def parse_shapes(shapes: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Input name -> shape from texts such as ``x=1x3x224x224``. Raises ``InputError`` for anything else."""
    parsed: dict[str, tuple[int, ...]] = {}
    for text in shapes:
        name, _, dims = text.rpartition("=")
        if not name or not re.fullmatch(r"[1-9][0-9]{0,9}([xX][1-9][0-9]{0,9})*", dims, re.ASCII):
            raise InputError(
                f"--shape {text!r} is not a shape: an input's name, =, and positive sizes with x between them",
                hint="write for instance --shape x=1x3x224x224",
            )
        shape = tuple(int(d) for d in dims.lower().split("x"))
        if parsed.setdefault(name, shape) != shape:
            raise InputError(f"--shape gives input {name!r} two shapes: {parsed[name]} and {shape}", hint="keep one")
    return parsed


def _number(flag: str, text: str, hint: str) -> tuple[float, str]:
    """(number, what follows it). Only this goes further: a units library would evaluate whole expressions."""
    found = re.fullmatch(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµμ]*|%)\s*", text)
    value = float(found[1]) if found else math.nan
    if found is None or not math.isfinite(value):
        raise InputError(f"{flag} {text!r} is not an amount", hint=hint)
    if value < 0:
        raise InputError(f"{flag} {text!r} is negative", hint=hint)
    return value, found[2]


def _quantity(flag: str, text: str, unit: str) -> float:
    hint = f"write for instance {flag} {_EXAMPLES[flag]}"
    value, suffix = _number(flag, text, hint)
    if value == 0:
        raise InputError(f"{flag} {text!r}: nothing fits a budget of zero", hint=hint)
    if not suffix:
        raise InputError(f"{flag} {text!r} has no unit", hint=hint)
    import pint

    try:
        return float(_units().Quantity(value, suffix).to(unit).magnitude)
    except pint.UndefinedUnitError:
        raise InputError(f"{flag} {text!r}: {suffix!r} is no unit", hint=hint) from None
    except (pint.DimensionalityError, pint.OffsetUnitCalculusError):
        kind = "time" if unit == "millisecond" else "memory; bytes are a capital B"
        raise InputError(f"{flag} {text!r}: {suffix!r} is not a unit of {kind}", hint=hint) from None


@cache
def _units() -> pint.UnitRegistry[float]:
    import pint

    return pint.UnitRegistry()


def _bytes(flag: str, text: str) -> int:
    count = _quantity(flag, text, "byte")
    if not 1 <= count < 2**63:
        raise InputError(
            f"{flag} {text!r} is {count:g} bytes, which is no budget", hint=f"write for instance {flag} 5MB"
        )
    return math.floor(count)


def _drop(text: str) -> float:
    flag, hint = "--max-drop", "write for instance --max-drop 1% (or 0.01)"
    value, suffix = _number(flag, text, hint)
    if suffix not in ("", "%"):
        raise InputError(f"{flag} {text!r}: {suffix!r} does not belong to a drop of the metric", hint=hint)
    if not suffix and value >= 1:
        raise InputError(f"{flag} {text!r} could mean {value:g} or {value:g}%", hint="write 1% for one point")
    return value / 100 if suffix else value
