"""What two plans of one model decide differently: what ``edgekit plan --diff A B`` answers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edgekit import results
from edgekit.errors import InputError
from edgekit.results import ModelInfo
from edgekit.types import Budget, LayerChoice, Mask, Plan, Precision

SCHEMA = "edgekit/plan-diff/1"
# What `edgekit plan` writes, and what bundles and `edgekit deploy --json` hold.
READABLE = ("edgekit/plan/1", results.SCHEMA)
PLAN_FILE = "plan.json"
_HINT = "pass the plan.json of edgekit plan --out or of a bundle, or a bundle's folder"


@dataclass(frozen=True)
class Decided:
    """The part of a plan file that is compared, and where it was read."""

    file: str
    target: str
    model: ModelInfo
    budget: Budget
    plan: Plan


@dataclass(frozen=True)
class Side:
    """One of the two plans: the file it was read from, the digest of its decisions, and whether its weights ship
    compressed.
    """

    file: str
    target: str
    plan_digest: str
    compressed: bool = False


@dataclass(frozen=True)
class Amount:
    """A budget or a predicted total by its name in the plan ("latency_ms", "weight_bytes", "loss", ...). None: no such
    budget, or nothing predicted.
    """

    name: str
    a: float | None
    b: float | None


@dataclass(frozen=True)
class LayerOption:
    """What a plan decided for a layer."""

    precision: Precision
    keep: float
    mask: Mask = Mask.NONE


@dataclass(frozen=True)
class LayerDifference:
    """A layer that the plans treat differently. None: the plan does not have it."""

    name: str
    op_type: str
    a: LayerOption | None
    b: LayerOption | None


@dataclass(frozen=True)
class GroupDifference:
    """A channel group of which the plans keep different numbers; a plan without a choice for it keeps all."""

    name: str
    channels: int
    a: int
    b: int


@dataclass(frozen=True)
class PlanDifference:
    """Two plans side by side. ``same`` is True where nothing differs at all. ``budget``, ``layers`` and ``groups`` hold
    what differs; ``totals`` hold all predicted totals, equal or not.
    """

    model: ModelInfo
    a: Side
    b: Side
    same: bool
    totals: tuple[Amount, ...]
    budget: tuple[Amount, ...]
    layers: tuple[LayerDifference, ...]
    groups: tuple[GroupDifference, ...]
    schema: str = SCHEMA


def read(path: Path) -> Decided:
    """The decisions in a plan file or in a bundle's folder (whose digests are not checked: `edgekit verify` does).

    Raises:
        InputError: it cannot be read, or is no plan (the field that is wrong is named).
    """
    file = path / PLAN_FILE if path.is_dir() else path
    try:
        document: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"plan {file}: {error.strerror}", _HINT) from None
    except (ValueError, RecursionError):
        raise InputError(f"plan {file}: not a JSON document", _HINT) from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema not in READABLE:
        found = f"its schema is {schema!r:.60}" if schema is not None else "it has no schema"
        raise InputError(f"plan {file}: not an edgekit plan ({found})", _HINT)
    try:
        return results.structure({**document, "file": str(path)}, Decided, "plan")
    except InputError as error:
        raise InputError(f"plan {file}: {error}", _HINT) from error


def compare(a: Decided, b: Decided) -> PlanDifference:
    """What differs from ``a`` to ``b``. Raises `InputError` where they plan different models."""
    if a.model.sha256 != b.model.sha256:
        raise InputError(
            f"the plans belong to different models: {a.file} plans {_described(a.model)}, {b.file} plans "
            f"{_described(b.model)}",
            "compare two plans of the same model file",
        )
    budget = tuple(one for one in _budgets(a.budget, b.budget) if one.a != one.b)
    totals = _totals(a.plan, b.plan)
    layers, groups = _layers(a.plan, b.plan), _groups(a.plan, b.plan)
    alike = a.target == b.target and a.plan.compressed == b.plan.compressed
    same = alike and not (budget or layers or groups) and all(one.a == one.b for one in totals)
    return PlanDifference(
        model=a.model,
        a=Side(a.file, a.target, a.plan.digest, a.plan.compressed),
        b=Side(b.file, b.target, b.plan.digest, b.plan.compressed),
        same=same,
        totals=totals,
        budget=budget,
        layers=layers,
        groups=groups,
    )


def _described(model: ModelInfo) -> str:
    return f"{model.name} (sha256 {model.sha256[:12]})"


def _budgets(a: Budget, b: Budget) -> tuple[Amount, ...]:
    return tuple(Amount(field.name, getattr(a, field.name), getattr(b, field.name)) for field in fields(Budget))


def _totals(a: Plan, b: Plan) -> tuple[Amount, ...]:
    counted = ("weight_bytes", "peak_activation_bytes", "memory_bytes", "loss")
    return (
        Amount("latency_ms", _known(a.predicted.latency_ms.value), _known(b.predicted.latency_ms.value)),
        *(Amount(name, _known(getattr(a.predicted, name)), _known(getattr(b.predicted, name))) for name in counted),
    )


def _known(value: float | None) -> float | None:
    """None for what is not finite, which JSON has no number for: what is not known in both plans does not differ."""
    return value if value is not None and math.isfinite(value) else None


def _layers(a: Plan, b: Plan) -> tuple[LayerDifference, ...]:
    """In the order of ``a``; what only ``b`` has comes last."""
    ours, theirs = ({choice.name: choice for choice in plan.layers} for plan in (a, b))
    rows = []
    for name in dict.fromkeys([*ours, *theirs]):
        one, other = _option(ours.get(name)), _option(theirs.get(name))
        if one != other:
            rows.append(LayerDifference(name, (ours.get(name) or theirs[name]).op_type, one, other))
    return tuple(rows)


def _option(choice: LayerChoice | None) -> LayerOption | None:
    return None if choice is None else LayerOption(choice.precision, choice.keep, choice.mask)


def _groups(a: Plan, b: Plan) -> tuple[GroupDifference, ...]:
    ours, theirs = ({choice.name: choice for choice in plan.groups} for plan in (a, b))
    rows = []
    for name in dict.fromkeys([*ours, *theirs]):
        group = ours.get(name) or theirs[name]
        kept = [plan[name].kept if name in plan else group.channels for plan in (ours, theirs)]
        if kept[0] != kept[1]:
            rows.append(GroupDifference(name, group.channels, *kept))
    return tuple(rows)
