"""The linear relaxation of a program: a lower bound, what each column would add to it, the prices of the budgets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.planner.problem import Limits, Quantity
from edgekit.planner.program import Program, formulate
from edgekit.planner.table import Table
from edgekit.planner.usable import Usable, consistent, everything

if TYPE_CHECKING:
    from edgekit.planner.table import Floats

_PRICE = 1e-6  # least shadow price, in units of the program's objective, that is not the LP's own tolerance


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The least value in the program's units, each column's reduced cost, and the budgets with a shadow price."""

    value: float  # infinite when nothing fits
    reduced: Floats
    priced: frozenset[Quantity]


def relax(program: Program, seconds: float = math.inf) -> Relaxation | None:
    """Solve the relaxation; ``None`` when that does not work out in the time given."""
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import vstack

    if seconds <= 0:
        return None
    lower, upper = program.lower, program.upper
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
        bounds=list(zip(fixed, program.ceiling, strict=True)),
        options={"time_limit": seconds},
    )
    if result.status == 2:
        return Relaxation(math.inf, fixed, frozenset())
    if result.status != 0 or result.fun is None:
        return None
    position = np.cumsum(below) - 1
    prices = result.ineqlin.marginals
    priced = frozenset(q for row, q in program.budgets if prices[position[row]] < -_PRICE)
    return Relaxation(float(result.fun), np.asarray(result.lower.marginals), priced)


def narrowed(table: Table, usable: Usable, program: Program, relaxation: Relaxation, room: float) -> Usable | None:
    """What a plan may use that is at most ``room`` (in the program's units) above the relaxation: a column that is not
    in its solution adds at least its reduced cost. None when no plan is that near.
    """
    near = relaxation.reduced <= room
    columns = usable.columns.copy()
    columns[program.columns] &= near[: len(program.columns)]
    cells = [
        mask.copy() if numbers is None else mask & near[numbers]
        for mask, numbers in zip(usable.cells, program.cells, strict=True)
    ]
    return consistent(table, Usable(columns, cells))


def priced_limits(table: Table, limits: Limits, objective: Quantity) -> frozenset[Quantity]:
    """Budgets that carry a shadow price in the linear relaxation: relaxing them would lower its ``objective``."""
    found = relax(formulate(table, everything(table), limits, objective, tight=False))
    return found.priced if found is not None else frozenset()
