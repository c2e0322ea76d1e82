"""The linear relaxation of a program: what is near it, and which budgets it prices."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.planner.linear import Linear
from edgekit.planner.problem import Limits, Quantity
from edgekit.planner.program import Program, formulate
from edgekit.planner.table import Table
from edgekit.planner.usable import Usable, consistent, everything

if TYPE_CHECKING:
    from edgekit.planner.table import Mask

_PRICE = 1e-6  # least shadow price, in units of the program's objective, that is not the LP's own tolerance


def narrowed(table: Table, usable: Usable, program: Program, near: Mask) -> Program | None:
    """The program of ``usable`` with the columns that are ``near``, and without those that have no other left to go
    with. None when a decision has nothing left.
    """
    import numpy as np

    near = near.copy()
    near[-1] = True  # the constant
    if program.memory.resident is not None:
        near[program.memory.resident] = True  # it has a range of its own
    columns = usable.columns.copy()
    columns[program.columns] &= near[: len(program.columns)]
    cells = [
        mask.copy() if numbers is None else mask & near[numbers]
        for mask, numbers in zip(usable.cells, program.cells, strict=True)
    ]
    left = consistent(table, Usable(columns, cells))
    if left is None:
        return None
    ceiling = np.where(near, program.ceiling, 0.0)
    ceiling[: len(program.columns)] *= left.columns[program.columns]
    for numbers, mask in zip(program.cells, left.cells, strict=True):
        if numbers is not None:
            ceiling[numbers[(numbers >= 0) & ~mask]] = 0.0
    return replace(program, ceiling=ceiling)


def priced_limits(table: Table, limits: Limits, objective: Quantity) -> frozenset[Quantity]:
    """Budgets that carry a shadow price in the linear relaxation: relaxing them would lower its ``objective``."""
    import numpy as np

    program = formulate(table, everything(table), limits, objective, tight=False)
    none = np.zeros(0)
    found = Linear(program).solve(program.floor, program.ceiling, none, none, math.inf, math.inf)
    if found is None:
        return frozenset()
    return frozenset(q for row, q in program.budgets if found.prices[row] < -_PRICE)
