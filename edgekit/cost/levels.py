"""What the entries of a cost table add up to, held against every model that was raced.

A race knows a model's latency to some percent only: how its memory happens to lie after a load counts as well (decision
16). A table that is scaled to the two uniform models carries the luck of these two into every sum. Plans that
alternate and pruned models were raced as well: three levels, of what runs in float, of what runs in int8 and of the
crossings, are fitted to all of them by least squares of the relative errors. Pure numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgekit.cost.table import CostTable, crossing
from edgekit.types import Edge, Precision

# A level is thought to be within some 5 % of one, a raced latency to be off by some 2 %: (2 / 5)^2 rows of evidence.
_PRIOR_ROWS = 0.16


@dataclass(frozen=True)
class Sum:
    """A raced model: what its entries add up to, by kind, and what it took."""

    float_ms: float
    int8_ms: float
    crossing_ms: float
    measured_ms: float


@dataclass(frozen=True)
class Levels:
    """Factors of the entries of a table, by kind."""

    floats: float = 1.0
    int8: float = 1.0
    crossings: float = 1.0


def sum_of(table: CostTable, edges: Iterable[Edge], precisions: Mapping[str, Precision], measured_ms: float) -> Sum:
    """The entries of a model with these precisions, whose edges these are."""
    float_ms = int8_ms = 0.0
    for name, precision in precisions.items():
        if precision is Precision.INT8:
            int8_ms += table.latency_ms[name][precision]
        else:
            float_ms += table.latency_ms[name][precision]
    return Sum(float_ms, int8_ms, sum(map(table.boundary_ms, crossing(edges, precisions))), measured_ms)


def fit_levels(sums: Iterable[Sum]) -> Levels:
    """The levels nearest to one that explain the sums; one where nothing was raced."""
    rows = [(s.float_ms, s.int8_ms, s.crossing_ms, s.measured_ms) for s in sums if s.measured_ms > 0]
    if not rows:
        return Levels()
    known = np.asarray(rows, float)
    shares = known[:, :3] / known[:, 3:]
    normal = shares.T @ shares + _PRIOR_ROWS * np.eye(3)
    found = np.linalg.solve(normal, shares.sum(axis=0) + _PRIOR_ROWS * np.ones(3))
    floats, int8, crossings = (max(float(level), 0.0) for level in found)
    return Levels(floats, int8, crossings)


def levelled(table: CostTable, levels: Levels) -> CostTable:
    """The table with its entries at these levels."""

    def of(precision: Precision) -> float:
        return levels.int8 if precision is Precision.INT8 else levels.floats

    return replace(
        table,
        latency_ms={name: {p: ms * of(p) for p, ms in row.items()} for name, row in table.latency_ms.items()},
        anchors_ms={p: ms * of(p) for p, ms in table.anchors_ms.items()},
        boundary_ms_per_element=table.boundary_ms_per_element * levels.crossings,
        crossing_ms={
            producer: {consumer: ms * levels.crossings for consumer, ms in row.items()}
            for producer, row in table.crossing_ms.items()
        },
    )
