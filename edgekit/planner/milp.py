"""The planning problem as a mixed-integer linear program: its formulation and one proven minimum.

Every budget becomes a row of non-negative increments over the cheapest conceivable plan, divided by the slack that the
budget leaves: coefficients lie in [0, 1] whatever the units, and an option that alone overruns the slack is dropped
before HiGHS sees it. See ``docs/decisions/0001-planner-milp.md``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekit.errors import EdgekitError
from edgekit.planner.problem import QUANTITIES, Limits, Quantity, evaluate
from edgekit.planner.table import Table, least_of, slack_of, usable_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit.planner.table import Floats, Mask

_COST_CEILING = 1e3  # largest objective coefficient given to HiGHS, whose absolute gap scipy cannot change
_ABSOLUTE_GAP = 1e-6  # in those units; HiGHS then reports its value as its bound
_COARSE = 1.0  # an objective below this, in those units, is not resolved
_PRICE = 1e-6  # least shadow price, in those units, that is not the LP's own tolerance
_MAX_CUTS = 8  # plans that HiGHS's own tolerance let through, excluded one by one before the budgets are shrunk
_SHRINK = 1e-5  # of a budget's slack: ten times HiGHS's feasibility tolerance


class Outcome(NamedTuple):
    """The best choice found and the proven lower bound of what was minimised (infinite when nothing fits)."""

    choice: tuple[int, ...] | None  # None: no plan exists
    bound: float


@dataclass(eq=False)
class _Rows:
    """A program under construction. Columns lie in [0, ceiling]; the first ones are the options in use."""

    tight: bool
    ceiling: list[float]
    entries: list[dict[int, float]] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    budgets: list[tuple[int, Quantity]] = field(default_factory=list)

    def column(self) -> int:
        self.ceiling.append(1.0)
        return len(self.ceiling) - 1

    def add(self, entries: dict[int, float], lower: float, upper: float) -> None:
        self.entries.append(entries)
        self.lower.append(lower)
        self.upper.append(upper)

    def budget(self, quantity: Quantity, entries: dict[int, float], slack: float) -> None:
        """``entries`` are amounts over the least, none negative, that may add up to ``slack``.

        ``tight`` scales by the slack and forbids what overruns it alone. Otherwise the scale is the largest amount,
        which keeps the shadow prices of the linear relaxation meaningful.
        """
        if self.tight:
            for column in [c for c, amount in entries.items() if amount > slack]:
                self.ceiling[column] = 0.0
                del entries[column]
        largest = max(entries.values(), default=0.0)
        if largest > 0:
            unit = slack if self.tight else largest
            self.budgets.append((len(self.entries), quantity))
            self.add({c: amount / unit for c, amount in entries.items()}, -math.inf, slack / unit)


@dataclass(frozen=True, eq=False)
class _Program:
    """Minimise ``cost @ z`` (in units of 1 / ``scale``; the last column is fixed at 1 and carries the constant)."""

    columns: npt.NDArray[np.intp]  # the table's columns in use
    cost: Floats
    scale: float
    matrix: Any  # scipy.sparse.csr_array
    rows: _Rows


def _formulate(table: Table, mask: Mask, limits: Limits, objective: Quantity, tight: bool = True) -> _Program:
    import numpy as np
    from scipy.sparse import csr_array

    columns = np.flatnonzero(mask)
    layer, layers = table.layer[columns], range(len(table.problem.layers))
    lows, least = least_of(table, mask)
    starts = np.searchsorted(layer, range(len(layers) + 1))
    float_columns = [[c for c in range(starts[i], starts[i + 1]) if table.is_float[columns[c]]] for i in layers]
    over: dict[Quantity, dict[int, float]] = {}
    for quantity, amounts in table.amount.items():
        above = amounts[columns] - lows[quantity][layer]
        over[quantity] = {int(c): float(above[c]) for c in np.flatnonzero(above)}

    rows = _Rows(tight, [1.0] * len(columns))
    for i in layers:
        rows.add(dict.fromkeys(range(starts[i], starts[i + 1]), 1.0), 1.0, 1.0)
    if objective == "latency_ms" or limits.latency_ms is not None:
        over["latency_ms"] |= _boundary_columns(rows, table.pairs, float_columns)
    for quantity in ("latency_ms", "weight_bytes", "loss"):
        slack = slack_of(limits, quantity, least[quantity])
        if slack is not None:
            rows.budget(quantity, dict(over[quantity]), slack)
    if objective == "memory_bytes" or limits.memory_bytes is not None:
        slack = slack_of(limits, "memory_bytes", least["memory_bytes"])
        peak = objective == "memory_bytes"
        over["memory_bytes"] = _memory_rows(rows, table, over["memory_bytes"], float_columns, slack, peak)

    constant = rows.column()
    cost = np.zeros(constant + 1)
    amounts_in_use = {c: amount for c, amount in over[objective].items() if rows.ceiling[c] > 0}
    scale = _COST_CEILING / max(amounts_in_use.values(), default=_COST_CEILING)
    for column, amount in amounts_in_use.items():
        cost[column] = amount * scale
    cost[constant] = least[objective] * scale
    at = np.repeat(np.arange(len(rows.entries)), [len(entries) for entries in rows.entries])
    across = np.array([c for entries in rows.entries for c in entries], dtype=np.intp)
    values = np.array([v for entries in rows.entries for v in entries.values()], dtype=np.float64)
    matrix = csr_array((values, (at, across)), shape=(len(rows.entries), constant + 1))
    return _Program(columns, cost, scale, matrix, rows)


def _boundary_columns(
    rows: _Rows, pairs: list[tuple[int, int, float]], float_columns: list[list[int]]
) -> dict[int, float]:
    """One column per boundary, at least |difference of the two layers' float shares|: its cost by column."""
    costs: dict[int, float] = {}
    for producer, consumer, cost in pairs:
        column = rows.column()
        costs[column] = cost
        for one, other in ((producer, consumer), (consumer, producer)):
            difference = dict.fromkeys(float_columns[one], -1.0) | dict.fromkeys(float_columns[other], 1.0)
            rows.add({column: 1.0} | difference, 0.0, math.inf)
    return costs


def _memory_rows(
    rows: _Rows,
    table: Table,
    weights: dict[int, float],
    float_columns: list[list[int]],
    slack: float | None,
    minimise_peak: bool,
) -> dict[int, float]:
    """Resident weights + live activations of every step, over the least, stay under ``slack``; to minimise their peak,
    also under a column whose bytes are returned as the objective's entry.
    """
    members: list[list[int]] = []  # columns that sum to 1 when the group's tensors keep their full size
    for group in table.groups:
        if len(group) == 1:
            members.append(float_columns[group[0]])
            continue
        large = rows.column()
        members.append([large])
        for decider in group:
            if float_columns[decider]:
                rows.add({large: 1.0} | dict.fromkeys(float_columns[decider], -1.0), 0.0, math.inf)
    widest = max(step.least_bytes for step in table.steps)
    unit = math.fsum(weights.values())
    if slack is not None and rows.tight:
        unit = min(unit, slack)
    resident: dict[int, float] = {}
    if unit > 0:  # resident weights in one column: the rows of the steps stay sparse
        column = rows.column()
        rows.add({c: amount / unit for c, amount in weights.items()} | {column: -1.0}, 0.0, 0.0)
        resident = {column: unit}
    span = unit + max(sum(step.extra.values()) for step in table.steps)
    if slack is not None and rows.tight:
        span = min(span, slack)
    peak = rows.column() if minimise_peak and span > 0 else None
    for step in table.steps:
        entries = dict(resident)
        for group_index, extra in step.extra.items():
            for column in members[group_index]:
                entries[column] = entries.get(column, 0.0) + extra
        if slack is not None and sum(entries.values()) > slack + widest - step.least_bytes:
            rows.budget("memory_bytes", entries, slack + widest - step.least_bytes)  # drops what can not be used
        if peak is not None:
            scaled = {c: amount / span for c, amount in entries.items()}
            rows.add(scaled | {peak: -1.0}, -math.inf, (widest - step.least_bytes) / span)
    return {} if peak is None else {peak: span}


def minimise(
    table: Table,
    limits: Limits,
    quantity: Quantity,
    gap: float,
    deadline: float,
    incumbent: tuple[int, ...] | None = None,
) -> Outcome:
    """The choice with the least ``quantity`` that keeps ``limits``, to a relative ``gap``, and a proven lower bound.

    A minimum far below the coarsest option's amount is found in two rounds: the first one's value becomes the second
    one's limit, which drops what lies above it, so that the rest is given to HiGHS in finer units.
    ``deadline`` is a ``time.monotonic`` value; when it passes with no choice found, ``incumbent`` is returned, or
    ``EdgekitError`` raised where there is none.
    """
    best, bound = incumbent, -math.inf
    for last_round in (False, True):
        mask = usable_of(table, limits)
        if mask is None:
            return Outcome(best, math.inf if best is None else _value(table, best, quantity))
        program = _formulate(table, mask, limits, quantity)
        found = _choose(table, program, limits, gap, deadline)
        if found is None:  # out of time
            if best is None:
                raise EdgekitError(
                    "no plan was found in the time given, and none was ruled out",
                    hint="allow more time, or loosen a budget",
                )
            return Outcome(best, bound)
        if found.choice is None:
            return Outcome(best, math.inf if best is None else _value(table, best, quantity))
        best, bound = found.choice, max(bound, found.bound, least_of(table, mask)[1][quantity])
        value = _value(table, best, quantity)
        if last_round or value * program.scale >= _COARSE or relative_gap(value, bound) == 0:
            break
        limits = limits.with_limit(quantity, value)
    return Outcome(best, min(bound, value))


def _value(table: Table, choice: tuple[int, ...], quantity: Quantity) -> float:
    return float(getattr(evaluate(table.problem, choice), quantity))


def relative_gap(value: float, bound: float) -> float:
    """(value - bound) / value, 0 where the value is 0 or the bound reaches it, 1 where nothing is proven."""
    return min(1.0, max(0.0, (value - bound) / value)) if value > 0 else 0.0


def _choose(table: Table, program: _Program, limits: Limits, gap: float, deadline: float) -> Outcome | None:
    """Run HiGHS until its plan keeps the limits exactly; ``None`` when time ran out without a plan.

    HiGHS accepts a row that is 1e-6 over. A plan that slips through is cut off, which leaves the bound valid; when many
    do, the budgets shrink by a little more than that tolerance.
    """
    import numpy as np

    layers = len(table.problem.layers)
    layer, option = table.layer[program.columns], table.option[program.columns]
    cuts: list[npt.NDArray[np.intp]] = []
    bound = -math.inf
    while len(cuts) <= _MAX_CUTS + 1:
        shrunk = len(cuts) > _MAX_CUTS
        result = _highs(program, cuts, _SHRINK if shrunk else 0.0, gap, deadline - time.monotonic())
        if result is None:
            return None
        values, proven = result
        if not shrunk:
            bound = max(bound, (proven - _ABSOLUTE_GAP) / program.scale)
        if values is None:
            return Outcome(None, math.inf)
        shares = values[: len(layer)]
        best_first = np.lexsort((np.arange(len(layer)), -shares, layer))
        chosen = best_first[np.searchsorted(layer, np.arange(layers))]
        choice = tuple(int(option[c]) for c in chosen)
        totals = evaluate(table.problem, choice)
        slacks = (slack_of(limits, quantity, getattr(totals, quantity)) for quantity in QUANTITIES)
        if all(slack is None or slack >= 0 for slack in slacks):
            return Outcome(choice, bound)
        cuts.append(chosen)
    raise RuntimeError("the solver's plan does not keep the budgets it was given")


def _highs(
    program: _Program, cuts: Sequence[npt.NDArray[np.intp]], shrink: float, gap: float, seconds: float
) -> tuple[Floats | None, float] | None:
    """(columns, proven bound) of the optimum, (None, inf) when there is none, ``None`` when time ran out before."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    if seconds <= 0:
        return None
    width, options = len(program.cost), len(program.columns)
    matrix, lower, upper = program.matrix, np.array(program.rows.lower), np.array(program.rows.upper)
    for row, _ in program.rows.budgets:
        upper[row] *= 1 - shrink
    for chosen in cuts:
        cut = csr_array((np.ones(len(chosen)), (np.zeros(len(chosen), dtype=np.intp), chosen)), shape=(1, width))
        matrix = vstack([matrix, cut], format="csr")
        lower, upper = np.append(lower, -np.inf), np.append(upper, len(chosen) - 1)
    fixed = np.zeros(width)
    fixed[-1] = 1.0
    result = milp(
        program.cost,
        integrality=(np.arange(width) < options).astype(np.int8),
        bounds=Bounds(fixed, np.array(program.rows.ceiling)),
        constraints=LinearConstraint(matrix, lower, upper) if matrix.shape[0] else None,
        options={"mip_rel_gap": gap, "time_limit": seconds},
    )
    if "infeasible" in result.message.lower():  # also "unbounded or infeasible": no column here is unbounded
        return None, math.inf
    if result.x is None:
        if result.status == 1:
            return None
        raise RuntimeError(f"HiGHS failed: {result.message}")
    return result.x, -math.inf if result.mip_dual_bound is None else float(result.mip_dual_bound)


def priced_limits(table: Table, limits: Limits, objective: Quantity) -> set[Quantity]:
    """Budgets that carry a shadow price in the linear relaxation: relaxing them would lower its ``objective``."""
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import vstack

    program = _formulate(table, np.ones(len(table.layer), dtype=np.bool_), limits, objective, tight=False)
    lower, upper = np.array(program.rows.lower), np.array(program.rows.upper)
    equal, below = lower == upper, np.isinf(lower)
    above = ~equal & ~below
    fixed = np.zeros(len(program.cost))
    fixed[-1] = 1.0
    result = linprog(
        program.cost,
        A_ub=vstack([program.matrix[below], -program.matrix[above]]),
        b_ub=np.concatenate([upper[below], -lower[above]]),
        A_eq=program.matrix[equal],
        b_eq=upper[equal],
        bounds=list(zip(fixed, program.rows.ceiling, strict=True)),
    )
    if result.status != 0:
        return set()
    position = np.cumsum(below) - 1
    prices = result.ineqlin.marginals
    return {quantity for row, quantity in program.rows.budgets if prices[position[row]] < -_PRICE}
