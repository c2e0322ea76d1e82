"""The planning problem as arrays, with everything removed that no best plan can use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from edgekit.planner.problem import QUANTITIES, Limits, Problem, Quantity, validate

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Mask = npt.NDArray[np.bool_]

ROUNDING = 1e-9
"""Relative excess of latency or loss over a budget that is float summation, not a violation. Bytes are exact."""


class Step(NamedTuple):
    """One execution step's live activations."""

    least_bytes: int  # with every tensor at its smaller size
    extra: dict[int, int]  # decider group -> bytes added when one of the group is not int8


@dataclass(frozen=True, eq=False)
class Table:
    """The problem with dominated options and redundant steps removed and model-input boundaries folded into options."""

    problem: Problem
    layer: npt.NDArray[np.intp]  # of each column (= option that may be chosen), ascending
    option: npt.NDArray[np.intp]
    is_float: Mask
    amount: dict[Quantity, Floats]  # per column; memory_bytes without activations
    pairs: list[tuple[int, int, float]]  # boundaries between layers: producer, consumer, cost
    groups: list[tuple[int, ...]]  # distinct sets of deciders
    steps: list[Step]


def tabulate(problem: Problem, limits: Limits) -> Table:
    """Check the input (``ValueError``) and turn it into arrays."""
    import numpy as np

    validate(problem, limits)
    into_int8 = [0.0] * len(problem.layers)
    pairs: dict[tuple[int, int], float] = {}
    for b in problem.boundaries:
        if b.producer < 0:
            into_int8[b.consumer] += b.cost_ms
        elif b.producer != b.consumer and b.cost_ms > 0:
            key = (min(b.producer, b.consumer), max(b.producer, b.consumer))
            pairs[key] = pairs.get(key, 0.0) + b.cost_ms
    rows: list[tuple[int, int, bool, tuple[float, ...]]] = []
    for index, layer in enumerate(problem.layers):
        kept: list[tuple[int, int, bool, tuple[float, ...]]] = []
        for order, o in enumerate(layer.options):
            entry = into_int8[index] if o.domain == "int8" else 0.0
            amounts = (o.latency_ms + entry, float(o.weight_bytes), float(o.memory_bytes), o.loss)
            kept.append((index, order, o.domain == "float", amounts))
        rows += [row for row in kept if not any(_dominates(other, row) for other in kept)]
    groups: dict[frozenset[int], int] = {}
    steps: list[Step] = []
    for step in _maximal_steps(problem.steps) or [()]:
        least, extra = 0, dict[int, int]()
        for t in (problem.tensors[i] for i in step):
            shrinks = bool(t.deciders) and t.bytes_full > t.bytes_small
            least += t.bytes_small if shrinks else t.bytes_full
            if shrinks:
                group = groups.setdefault(frozenset(t.deciders), len(groups))
                extra[group] = extra.get(group, 0) + t.bytes_full - t.bytes_small
        steps.append(Step(least, extra))
    floor = max(step.least_bytes for step in steps)
    steps = [s for s in steps if s.least_bytes == floor or s.least_bytes + sum(s.extra.values()) > floor]
    table = np.array([row[3] for row in rows], dtype=np.float64).reshape(-1, len(QUANTITIES))
    return Table(
        problem=problem,
        layer=np.array([row[0] for row in rows], dtype=np.intp),
        option=np.array([row[1] for row in rows], dtype=np.intp),
        is_float=np.array([row[2] for row in rows], dtype=np.bool_),
        amount={q: table[:, i] for i, q in enumerate(QUANTITIES)},
        pairs=[(p, c, cost) for (p, c), cost in sorted(pairs.items())],
        groups=[tuple(sorted(g)) for g in groups],
        steps=[s for i, s in enumerate(steps) if s not in steps[:i]],
    )


def _dominates(one: tuple[int, int, bool, tuple[float, ...]], other: tuple[int, int, bool, tuple[float, ...]]) -> bool:
    """Same domain and nowhere worse; of two equal options the first stays."""
    if one is other or one[2] != other[2] or any(a > b for a, b in zip(one[3], other[3], strict=True)):
        return False
    return one[3] != other[3] or one[1] < other[1]


def _maximal_steps(steps: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Steps whose live tensors are not a subset of another step's."""
    distinct = sorted({frozenset(step) for step in steps}, key=lambda s: (-len(s), sorted(s)))
    kept: list[frozenset[int]] = []
    holders: dict[int, list[frozenset[int]]] = {}
    for step in distinct:
        candidates = min((holders.get(t, []) for t in step), key=len, default=kept)
        if not any(step <= other for other in candidates):
            kept.append(step)
            for t in step:
                holders.setdefault(t, []).append(step)
    return [tuple(sorted(step)) for step in kept]


def slack_of(limits: Limits, quantity: Quantity, total: float) -> float | None:
    """What a budget leaves over a total: None when there is no budget, negative when it is broken."""
    limit = getattr(limits, quantity)
    if limit is None:
        return None
    rounding = ROUNDING * limit if quantity in ("latency_ms", "loss") else 0.0
    return float(limit - total + rounding)


def least_of(table: Table, mask: Mask) -> tuple[dict[Quantity, Floats], dict[Quantity, float]]:
    """Per quantity: each layer's least amount among the options in ``mask``, and the least conceivable total."""
    import numpy as np

    starts = np.searchsorted(table.layer[mask], np.arange(len(table.problem.layers)))
    lows = {q: np.minimum.reduceat(a[mask], starts) if len(starts) else a[:0] for q, a in table.amount.items()}
    totals = {q: math.fsum(low) for q, low in lows.items()}
    totals["latency_ms"] += table.problem.fixed_latency_ms
    totals["memory_bytes"] += max(step.least_bytes for step in table.steps)
    return lows, totals


def usable_of(table: Table, limits: Limits) -> Mask | None:
    """Options that do not overrun a budget even when every other layer takes its least; None when no plan is left."""
    import numpy as np

    mask = np.ones(len(table.layer), dtype=np.bool_)
    while True:
        lows, totals = least_of(table, mask)
        keep = mask.copy()
        for quantity in QUANTITIES:
            slack = slack_of(limits, quantity, totals[quantity])
            if slack is None:
                continue
            if slack < 0:
                return None
            keep &= table.amount[quantity] - lows[quantity][table.layer] <= slack
        if len(np.unique(table.layer[keep])) < len(table.problem.layers):
            return None
        if (keep == mask).all():
            return mask
        mask = keep
