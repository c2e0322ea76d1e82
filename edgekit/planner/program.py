"""The planning problem as a mixed-integer linear program.

Every budget becomes a row of non-negative increments over the cheapest conceivable plan, divided by the slack that the
budget leaves: coefficients lie in [0, 1] whatever the units, and what alone overruns the slack is dropped before
HiGHS sees it. Integer are the options of layers and of channel groups alone; a combination of options is a continuous
column tied to them by its marginals, which is the local polytope of a graphical model (Wainwright and Jordan,
*Graphical Models, Exponential Families, and Variational Inference*, 2008, ch. 4): tight for each layer by itself. See
``docs/decisions/0001-planner-milp.md`` and ``0007-channels-and-bits-in-one-program.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.planner.problem import Limits, Quantity
from edgekit.planner.table import SHAPED, Condition, Pair, Table, most_of
from edgekit.planner.usable import Least, Usable, least_of, slack_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit.planner.table import Floats

Entries = dict[int, float]

COST_CEILING = 1e3  # largest objective coefficient given to HiGHS, whose absolute gap scipy cannot change


@dataclass(frozen=True, eq=False)
class Program:
    """Minimise ``cost @ z`` (in units of 1 / ``scale``; the last column is fixed at 1 and carries the constant)."""

    columns: npt.NDArray[np.intp]  # the table's columns in use; the program's first ones, all others are continuous
    cells: list[npt.NDArray[np.intp] | None]  # for each factor its combinations' columns (-1: dropped), if it has any
    cost: Floats
    scale: float
    matrix: Any  # scipy.sparse.csr_array
    lower: Floats
    upper: Floats
    ceiling: Floats
    budgets: list[tuple[int, Quantity]]  # row, what it limits


@dataclass(eq=False)
class _Rows:
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
        self.ceiling.append(1.0)
        return len(self.ceiling) - 1

    def add(self, entries: Mapping[int, float], lower: float, upper: float) -> None:
        self.at += [len(self.lower)] * len(entries)
        self.across += entries.keys()
        self.values += entries.values()
        self.lower.append(lower)
        self.upper.append(upper)

    def at_least(self, column: int, entries: Mapping[int, float]) -> None:
        if entries:
            self.add({column: 1.0} | {c: -value for c, value in entries.items()}, 0.0, math.inf)

    def drop_over(self, entries: Entries, slack: float) -> None:
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
class _Shares:
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


def formulate(table: Table, usable: Usable, limits: Limits, objective: Quantity, tight: bool = True) -> Program:
    """Rows and columns that minimise ``objective`` within the limits, using what is usable."""
    import numpy as np
    from scipy.sparse import csr_array

    columns = np.flatnonzero(usable.columns)
    position = np.full(len(table.node), -1)
    position[columns] = np.arange(len(columns))
    bounds = np.searchsorted(table.node[columns], range(table.nodes + 1)).tolist()
    options = [list(range(bounds[n], bounds[n + 1])) for n in range(table.nodes)]
    least = least_of(table, usable)
    over: dict[Quantity, Entries] = {}
    for quantity, amounts in table.amount.items():
        above = amounts[columns] - least.nodes[quantity][table.node[columns]]
        over[quantity] = {int(c): float(above[c]) for c in np.flatnonzero(above)}

    rows = _Rows(tight, [1.0] * len(columns))
    for node in options:
        rows.add(dict.fromkeys(node, 1.0), 1.0, 1.0)
    cells = _cell_columns(rows, table, usable, least, position, over)
    shares = _Shares(
        table,
        position.tolist(),
        options,
        {
            key: dict.fromkeys((c for c in node if table.is_float[columns[c]] == (key >= 0)), 1.0)
            for number, node in enumerate(options)
            for key in (number, ~number)
        },
        cells,
        {
            (node, group): i
            for i, factor in reversed(list(enumerate(table.factors)))
            for node in factor.nodes
            for group in factor.nodes
            if node < len(table.problem.layers) <= group and cells[i] is not None
        },
    )
    if objective == "latency_ms" or limits.latency_ms is not None:
        for pair in table.pairs:
            _boundary_columns(rows, shares, pair, over["latency_ms"])
    for quantity in ("latency_ms", "weight_bytes", "loss"):
        slack = slack_of(limits, quantity, least.totals[quantity])
        if slack is not None:
            rows.budget(quantity, dict(over[quantity]), slack)
    if objective == "memory_bytes" or limits.memory_bytes is not None:
        slack = slack_of(limits, "memory_bytes", least.totals["memory_bytes"])
        peak = objective == "memory_bytes"
        over["memory_bytes"] = _memory_rows(rows, shares, over["memory_bytes"], slack, peak)

    constant = rows.column()
    cost = np.zeros(constant + 1)
    amounts_in_use = {c: amount for c, amount in over[objective].items() if amount > 0 and rows.ceiling[c] > 0}
    scale = COST_CEILING / max(amounts_in_use.values(), default=COST_CEILING)
    for column, amount in amounts_in_use.items():
        cost[column] = amount * scale
    cost[constant] = least.totals[objective] * scale
    matrix = csr_array(
        (np.array(rows.values), (np.array(rows.at, dtype=np.intp), np.array(rows.across, dtype=np.intp))),
        shape=(len(rows.lower), constant + 1),
    )
    lower, upper, ceiling = np.array(rows.lower), np.array(rows.upper), np.array(rows.ceiling)
    return Program(columns, cells, cost, scale, matrix, lower, upper, ceiling, rows.budgets)


def _cell_columns(
    rows: _Rows,
    table: Table,
    usable: Usable,
    least: Least,
    position: npt.NDArray[np.intp],
    over: dict[Quantity, Entries],
) -> list[npt.NDArray[np.intp] | None]:
    """One column for each combination of options in use, tied to them: the combinations with an option add up to it."""
    import numpy as np

    found: list[npt.NDArray[np.intp] | None] = []
    for i, (factor, mask) in enumerate(zip(table.factors, usable.cells, strict=True)):
        at = np.nonzero(mask)
        spans = [position[table.starts[n] : table.starts[n + 1]] for n in factor.nodes]
        free = [axis for axis, places in enumerate(at) if places.min() < places.max()]
        numbers = None
        if len(free) > 1:
            first = len(rows.ceiling)
            rows.ceiling += [1.0] * len(at[0])
            numbers = np.full(mask.shape, -1)
            numbers[at] = np.arange(first, len(rows.ceiling))
            for axis in free:
                by_option = np.moveaxis(numbers, axis, 0).reshape(mask.shape[axis], -1)
                for column, members in zip(spans[axis].tolist(), by_option, strict=True):
                    if column >= 0:
                        rows.add(dict.fromkeys(members[members >= 0].tolist(), 1.0) | {column: -1.0}, 0.0, 0.0)
        found.append(numbers)
        if free:
            targets = numbers[at].tolist() if numbers is not None else spans[free[0]][at[free[0]]].tolist()
            for quantity in SHAPED:
                above = factor.amount[quantity][at] - least.factors[quantity][i]
                entries = over[quantity]
                for column, amount in zip(targets, above.tolist(), strict=True):
                    if amount:
                        entries[column] = entries.get(column, 0.0) + amount
    return found


def _boundary_columns(rows: _Rows, shares: _Shares, pair: Pair, costs: Entries) -> None:
    """Columns for how much two layers differ in domain, alone or by a channel group's option; what they cost goes to
    ``costs``.
    """
    differ: Entries | None = None  # columns that sum to 1 when the domains differ
    base, loose = pair.cost_ms, []
    for group, by_option in pair.parts.items():
        one, other = shares.float_and_kept(pair.producer, group), shares.float_and_kept(pair.consumer, group)
        if one is None or other is None:
            loose.append(group)
            continue
        columns: Entries = {}
        for cost, ours, theirs in zip(by_option.tolist(), one, other, strict=True):
            if ours != theirs:
                more, less = rows.column(), rows.column()
                rows.add({more: 1.0, less: -1.0} | _difference(theirs, ours), 0.0, 0.0)
                costs[more] = costs[less] = cost + base
                columns |= {more: 1.0, less: 1.0}
        base, differ = 0.0, columns if differ is None else differ
    if differ is None:
        column = rows.column()
        costs[column] = base
        ours, theirs = shares.floats[pair.producer], shares.floats[pair.consumer]
        rows.at_least(column, _difference(ours, theirs))
        rows.at_least(column, _difference(theirs, ours))
        differ = {column: 1.0}
    for group in loose if differ else ():
        kept = shares.kept(group)
        parts = {k: rows.column() for k, chosen in enumerate(kept) if chosen}
        for k, column in parts.items():
            costs[column] = float(pair.parts[group][k])
            rows.add({column: 1.0} | dict.fromkeys(kept[k], -1.0), -math.inf, 0.0)
        rows.add(dict.fromkeys(parts.values(), 1.0) | dict.fromkeys(differ, -1.0), 0.0, math.inf)


def _difference(more: Entries, less: Entries) -> Entries:
    """``more`` - ``less``, column by column."""
    entries = {c: more.get(c, 0.0) - less.get(c, 0.0) for c in (*more, *less)}
    return {c: value for c, value in entries.items() if value}


def _memory_rows(rows: _Rows, shares: _Shares, weights: Entries, slack: float | None, minimise_peak: bool) -> Entries:
    """Resident weights + live activations of every step, over the least, stay under ``slack``; to minimise their peak,
    also under a column whose bytes are returned as the objective's entry.
    """
    table = shares.table
    room = slack if rows.tight else None
    members = [_large(rows, shares, condition) for condition in table.conditions]
    widest = max(step.least_bytes for step in table.steps)
    unit = math.fsum(weights.values())
    if room is not None:
        unit = min(unit, room)
    resident: Entries = {}
    if unit > 0:  # resident weights in one column: the rows of the steps stay sparse
        column = rows.column()
        rows.add({c: amount / unit for c, amount in weights.items()} | {column: -1.0}, 0.0, 0.0)
        resident = {column: unit}
    rooms: dict[int, float] = {}  # what a tensor may take over its least
    for step in table.steps:
        for tensor in step.sizes:
            left = math.inf if room is None else room + widest - step.least_bytes
            rooms[tensor] = min(rooms.get(tensor, math.inf), left)
    held = _tensor_columns(rows, shares, rooms)
    span = unit + max(most_of(step, table.sizes) for step in table.steps)
    if room is not None:
        span = min(span, room)
    peak = rows.column() if minimise_peak and span > 0 else None
    for step in table.steps:
        entries = dict(resident)
        for which, extra in step.extra.items():
            for column in members[which]:
                entries[column] = entries.get(column, 0.0) + extra
        for tensor in sorted(step.sizes):
            for column, amount in held[tensor].items():
                entries[column] = entries.get(column, 0.0) + amount
        if slack is not None and sum(entries.values()) > slack + widest - step.least_bytes:
            rows.budget("memory_bytes", entries, slack + widest - step.least_bytes)  # drops what can not be used
        if peak is not None:
            scaled = {c: amount / span for c, amount in entries.items()}
            rows.add(scaled | {peak: -1.0}, -math.inf, (widest - step.least_bytes) / span)
    return {} if peak is None else {peak: span}


def _large(rows: _Rows, shares: _Shares, condition: Condition) -> Entries:
    """Columns that sum to 1 when the condition holds."""
    if not shares.possible(condition):
        return {}
    decisive = shares.decisive(condition.any_of)
    guards = shares.undecided(condition.all_of)
    if len(decisive) + len(guards) == 1:
        return shares.floats[(*decisive, *guards)[0]]
    large = rows.column()
    for decider in decisive or (None,):
        # At least what all of them are, less what they fall short of holding all.
        entries = {large: 1.0}
        for one in guards if decider is None else (*guards, decider):
            for column, value in shares.floats[one].items():
                entries[column] = entries.get(column, 0.0) - value
        rows.add(entries, 1.0 - len(guards) - (decider is not None), math.inf)
    return {large: 1.0}


def _tensor_columns(rows: _Rows, shares: _Shares, rooms: Mapping[int, float]) -> dict[int, Entries]:
    """For each tensor that changes with channel groups its bytes over its least, as few columns as can say it."""
    held: dict[int, Entries] = {}
    for number, size in shares.table.sizes.items():
        large = _large(rows, shares, size.condition) if size.condition.all_of else None
        decisive = shares.decisive(size.condition.any_of) if large is None else ()
        entries: Entries = {}
        extra = size.extra
        for group, small in size.small.items():
            for chosen, amount in zip(shares.kept(group), small.tolist(), strict=True):
                for column in chosen:
                    entries[column] = entries.get(column, 0.0) + amount
            if (decisive or large) and size.extras[group].any():
                amounts = (size.extras[group] + extra).tolist()
                extra = 0.0  # the large and kept ones add up to the large one
                joint = _large_and_kept(rows, shares, decisive, group, large)
                for columns, amount in zip(joint, amounts, strict=True):
                    for column in columns:
                        entries[column] = entries.get(column, 0.0) + amount
        if extra and (decisive or large):
            for column in _large(rows, shares, Condition(decisive)) if large is None else large:
                entries[column] = entries.get(column, 0.0) + extra
        entries = {column: amount for column, amount in entries.items() if amount}
        room = rooms.get(number, math.inf)
        rows.drop_over(entries, room)
        if len(entries) > 1:
            column = rows.column()
            unit = min(size.most, room)
            rows.add({c: amount / unit for c, amount in entries.items()} | {column: -1.0}, -math.inf, 0.0)
            entries = {column: unit}
        held[number] = entries
    return held


def _large_and_kept(
    rows: _Rows, shares: _Shares, decisive: tuple[int, ...], group: int, large: Entries | None
) -> list[Entries]:
    """By the group's options: columns that sum to 1 when it is chosen and the tensor is large: where one of the
    deciders holds, or where the columns ``large`` say so.
    """
    joint = [(shares.floats[layer], shares.float_and_kept(layer, group)) for layer in decisive]
    if large is not None:
        joint = [(large, None)]
    alone = joint[0][1]
    if len(joint) == 1 and alone is not None:
        return alone
    kept = shares.kept(group)
    found: list[Entries] = [{rows.column(): 1.0} if chosen else {} for chosen in kept]
    for whole, by_option in joint:
        if by_option is None:
            total = {column: 1.0 for entries in found for column in entries}
            rows.add(total | {column: -value for column, value in whole.items()}, 0.0, math.inf)
            continue
        for entries, columns in zip(found, by_option, strict=True):
            for column in entries:
                rows.at_least(column, columns)
    if any(by_option is None for _, by_option in joint):
        for entries, chosen in zip(found, kept, strict=True):
            if chosen:
                rows.add(entries | dict.fromkeys(chosen, -1.0), -math.inf, 0.0)
    return found
