"""One proven minimum of the planning problem."""

from __future__ import annotations

import math

from edgekit.errors import EdgekitError
from edgekit.planner.branching import branch_and_bound
from edgekit.planner.problem import Limits, Quantity
from edgekit.planner.program import formulate
from edgekit.planner.solver import Outcome, Picked, choose, value_of
from edgekit.planner.table import Table
from edgekit.planner.usable import least_of, usable_of

_COARSE = 1.0  # an objective below this, in HiGHS's units, is not resolved
_MANY = 2000  # columns from which the relaxation is solved first, and HiGHS may presolve


def minimise(
    table: Table,
    limits: Limits,
    quantity: Quantity,
    gap: float,
    deadline: float,
    incumbent: Picked | None = None,
) -> Outcome:
    """The pick with the least ``quantity`` that keeps ``limits``, to a relative ``gap``, and a proven lower bound.

    A minimum far below the coarsest option's amount is found in two rounds: the first one's value becomes the second
    one's limit, which drops what lies above it, so that the rest is given to HiGHS in finer units. A peak is always:
    it is held by rows, which HiGHS lets be over by 1e-6 of the largest amount in them.
    ``deadline`` is a ``time.monotonic`` value; when it passes with no pick found, ``incumbent`` is returned, or
    ``EdgekitError`` raised where there is none.
    """
    best, bound = incumbent, -math.inf
    for last_round in (False, True):
        usable = usable_of(table, limits)
        if usable is None:
            return Outcome(best, math.inf if best is None else value_of(table, best, quantity))
        program = formulate(table, usable, limits, quantity)
        if len(program.cost) < _MANY:
            found = choose(table, program, limits, gap, deadline, presolve=False)
        else:
            found = branch_and_bound(table, usable, program, limits, quantity, gap, deadline, best)
        if found is None:  # out of time
            if best is None:
                raise EdgekitError(
                    "no plan was found in the time given, and none was ruled out",
                    hint="allow more time, or loosen a budget",
                )
            return Outcome(best, bound)
        if found.picked is None:
            return Outcome(best, math.inf if best is None else value_of(table, best, quantity))
        best, bound = found.picked, max(bound, found.bound, least_of(table, usable).totals[quantity])
        value = value_of(table, best, quantity)
        fine = quantity != "memory_bytes" and value * program.scale >= _COARSE
        if last_round or fine or relative_gap(value, bound) == 0:
            break
        limits = limits.with_limit(quantity, value)
    return Outcome(best, min(bound, value))


def relative_gap(value: float, bound: float) -> float:
    """(value - bound) / value, 0 where the value is 0 or the bound reaches it, 1 where nothing is proven."""
    return min(1.0, max(0.0, (value - bound) / value)) if value > 0 else 0.0
