"""Rows and columns of a program under construction, and what its columns say of a choice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekit.planner.problem import Quantity
from edgekit.planner.table import Condition, Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Entries = dict[int, float]


@dataclass(eq=False)
class Rows:
    """A program under construction. Columns lie in [0, ceiling]."""

    tight: bool
    ceiling: list[float]
    at: list[int] = field(default_factory=list)
    across: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    budgets: list[tuple[int, Quantity]] = field(default_factory=list)

    def column(self) -> int:
        """A new column."""
        self.ceiling.append(1.0)
        return len(self.ceiling) - 1

    def add(self, entries: Mapping[int, float], lower: float, upper: float) -> None:
        """A new row."""
        self.at += [len(self.lower)] * len(entries)
        self.across += entries.keys()
        self.values += entries.values()
        self.lower.append(lower)
        self.upper.append(upper)

    def at_least(self, column: int, entries: Mapping[int, float]) -> None:
        """The column is at least the sum of the entries."""
        if entries:
            self.add({column: 1.0} | {c: -value for c, value in entries.items()}, 0.0, math.inf)

    def drop_over(self, entries: Entries, slack: float) -> None:
        """Forbid, and forget, what alone is more than the slack."""
        for column in [c for c, amount in entries.items() if amount > slack]:
            self.ceiling[column] = 0.0
            del entries[column]

    def budget(self, quantity: Quantity, entries: Entries, slack: float) -> None:
        """``entries`` are amounts over the least, none negative, that may add up to ``slack``.

        ``tight`` scales by the slack and forbids what overruns it alone. Otherwise the scale is the largest amount,
        which keeps the shadow prices of the linear relaxation meaningful.
        """
        if self.tight:
            self.drop_over(entries, slack)
        largest = max(entries.values(), default=0.0)
        if largest > 0:
            unit = slack if self.tight else largest
            self.budgets.append((len(self.lower), quantity))
            self.add({c: amount / unit for c, amount in entries.items()}, -math.inf, slack / unit)


@dataclass(frozen=True, eq=False)
class Shares:
    """What the columns say: how much of a layer is float, alone and together with a channel group's option."""

    table: Table
    position: list[int]  # of each table column among the program's, -1 where unusable
    options: list[list[int]]  # for each node its program columns
    floats: dict[int, Entries]  # for each layer its float program columns, and for ~layer those that are int8
    cells: list[npt.NDArray[np.intp] | None]
    factors: dict[tuple[int, int], int]  # layer, group node -> a factor with columns that holds both

    def decisive(self, deciders: Iterable[int]) -> tuple[int, ...]:
        """Those that decide whether one of them holds: one alone that surely does, else all that can."""
        able = [d for d in deciders if self.floats[d]]
        sure = [d for d in able if len(self.floats[d]) == len(self.options[max(d, ~d)])]
        return tuple(sure[:1] or able)

    def undecided(self, guards: Iterable[int]) -> tuple[int, ...]:
        """Those that do not hold whatever is chosen."""
        return tuple(g for g in guards if len(self.floats[g]) < len(self.options[max(g, ~g)]))

    def possible(self, condition: Condition) -> bool:
        """Whether the condition can hold at all, and depends on something."""
        able = not condition.any_of or self.decisive(condition.any_of)
        return bool(able) and condition != Condition() and all(self.floats[g] for g in condition.all_of)

    def kept(self, group: int) -> list[dict[int, float]]:
        """By the group's options: the column that chooses it."""
        span = range(self.table.starts[group], self.table.starts[group + 1])
        return [{self.position[c]: 1.0} if self.position[c] >= 0 else {} for c in span]

    def float_and_kept(self, layer: int, group: int) -> list[dict[int, float]] | None:
        """By the group's options: columns that sum to 1 when it is chosen and the layer is float (~layer: it is int8);
        None: no such.
        """
        node = max(layer, ~layer)
        if not self.floats[layer]:
            return [{} for _ in self.kept(group)]
        if len(self.floats[layer]) == len(self.options[node]):
            return self.kept(group)
        if len(self.options[group]) == 1:
            return [dict(self.floats[layer]) if chosen else {} for chosen in self.kept(group)]
        number = self.factors.get((node, group))
        columns = None if number is None else self.cells[number]
        if number is None or columns is None:
            return None
        nodes = self.table.factors[number].nodes
        is_float = self.table.is_float[self.table.starts[node] : self.table.starts[node + 1]]
        wanted = is_float if layer >= 0 else ~is_float
        found = []
        for part in columns.compress(wanted, axis=nodes.index(node)).swapaxes(0, nodes.index(group)):
            found.append(dict.fromkeys(part[part >= 0].tolist(), 1.0))
        return found
