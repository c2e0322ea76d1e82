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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.planner.memory import Memory, memory_rows
from edgekit.planner.problem import Limits, Quantity
from edgekit.planner.rows import Entries, Rows, Shares
from edgekit.planner.table import SHAPED, Pair, Table
from edgekit.planner.usable import Least, Usable, least_of, slack_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit.planner.table import Floats

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
    floor: Floats
    ceiling: Floats
    budgets: list[tuple[int, Quantity]]  # row, what it limits
    memory: Memory


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

    rows = Rows(tight, [1.0] * len(columns))
    for node in options:
        rows.add(dict.fromkeys(node, 1.0), 1.0, 1.0)
    cells = _cell_columns(rows, table, usable, least, position, over)
    shares = Shares(
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
    memory = Memory()
    if objective == "memory_bytes" or limits.memory_bytes is not None:
        slack = slack_of(limits, "memory_bytes", least.totals["memory_bytes"])
        peak = objective == "memory_bytes"
        memory, over["memory_bytes"] = memory_rows(rows, shares, over["memory_bytes"], slack, peak)

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
    floor, ceiling = np.zeros(constant + 1), np.array(rows.ceiling)
    floor[constant] = 1.0
    lower, upper = np.array(rows.lower), np.array(rows.upper)
    return Program(columns, cells, cost, scale, matrix, lower, upper, floor, ceiling, rows.budgets, memory)


def _cell_columns(
    rows: Rows,
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


def _boundary_columns(rows: Rows, shares: Shares, pair: Pair, costs: Entries) -> None:
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
