"""HiGHS on one program, with ``evaluate`` as the truth: its plan keeps the limits exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgekit.planner.problem import QUANTITIES, Limits, Quantity, Totals, evaluate
from edgekit.planner.program import Program
from edgekit.planner.table import Table
from edgekit.planner.usable import slack_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit.planner.table import Floats

ABSOLUTE_GAP = 1e-6  # HiGHS's own, in the units of the objective that it is given; its value is then its bound
_MAX_CUTS = 8  # plans that HiGHS's own tolerance let through, excluded one by one before the budgets are shrunk
_SHRINK = (1e-5, 1e-4, 1e-3)  # of a budget's slack, until HiGHS's tolerances do not add up to it

Picked = tuple[int, ...]
"""One option for each node: for each layer, then for each channel group."""


class Outcome(NamedTuple):
    """The best pick found and the proven lower bound of what was minimised (infinite when nothing fits)."""

    picked: Picked | None  # None: no plan exists
    bound: float


def totals_of(table: Table, picked: Picked) -> Totals:
    """What a pick costs."""
    layers = len(table.problem.layers)
    return evaluate(table.problem, picked[:layers], picked[layers:])


def keeps(limits: Limits, totals: Totals) -> bool:
    """Whether the totals are within the limits."""
    slacks = (slack_of(limits, quantity, getattr(totals, quantity)) for quantity in QUANTITIES)
    return all(slack is None or slack >= 0 for slack in slacks)


def value_of(table: Table, picked: Picked, quantity: Quantity) -> float:
    """What a pick costs of one quantity."""
    return float(getattr(totals_of(table, picked), quantity))


def choose(
    table: Table, program: Program, limits: Limits, gap: float, deadline: float, presolve: bool
) -> Outcome | None:
    """Run HiGHS until its plan keeps the limits exactly; ``None`` when time ran out without a plan.

    HiGHS accepts a row that is 1e-6 over, and rows add up. A plan that slips through is cut off, which leaves the bound
    valid; when many do, the budgets shrink by more than those tolerances, and more until the plan keeps them.
    """
    import numpy as np

    node, option = table.node[program.columns], table.option[program.columns]
    cuts: list[npt.NDArray[np.intp]] = []
    bound = -math.inf
    for attempt in range(_MAX_CUTS + 1 + len(_SHRINK)):
        shrink = _SHRINK[attempt - _MAX_CUTS - 1] if attempt > _MAX_CUTS else 0.0
        result = _highs(program, cuts, shrink, gap, deadline - time.monotonic(), presolve)
        if result is None:
            return None
        values, proven = result
        if not shrink:
            bound = max(bound, (proven - ABSOLUTE_GAP) / program.scale)
        if values is None:
            return Outcome(None, math.inf)
        shares = values[: len(node)]
        best_first = np.lexsort((np.arange(len(node)), -shares, node))
        chosen = best_first[np.searchsorted(node, np.arange(table.nodes))]
        picked = tuple(int(option[c]) for c in chosen)
        if keeps(limits, totals_of(table, picked)):
            return Outcome(picked, bound)
        cuts.append(chosen)
    raise RuntimeError("the solver's plan does not keep the budgets it was given")


def _highs(
    program: Program, cuts: Sequence[npt.NDArray[np.intp]], shrink: float, gap: float, seconds: float, presolve: bool
) -> tuple[Floats | None, float] | None:
    """(columns, proven bound) of the optimum, (None, inf) when there is none, ``None`` when time ran out before.

    Small programs go without HiGHS's presolve, which takes amounts near its tolerance for none: it has called plans
    optimal that were not, and programs infeasible that were not, where several plans use a budget up to one part in a
    million.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    if seconds <= 0:
        return None
    width, options = len(program.cost), len(program.columns)
    matrix, lower, upper = program.matrix, program.lower, program.upper.copy()
    for row, _ in program.budgets:
        upper[row] *= 1 - shrink
    for chosen in cuts:
        cut = csr_array((np.ones(len(chosen)), (np.zeros(len(chosen), dtype=np.intp), chosen)), shape=(1, width))
        matrix = vstack([matrix, cut], format="csr")
        lower, upper = np.append(lower, -np.inf), np.append(upper, len(chosen) - 1)
    result = milp(
        program.cost,
        integrality=(np.arange(width) < options).astype(np.int8),
        bounds=Bounds(program.floor, program.ceiling),
        constraints=LinearConstraint(matrix, lower, upper) if matrix.shape[0] else None,
        options={"mip_rel_gap": gap, "time_limit": seconds, "presolve": presolve},
    )
    if "infeasible" in result.message.lower():  # also "unbounded or infeasible": no column here is unbounded
        return None, math.inf
    if result.x is None:
        if result.status == 1:
            return None
        raise RuntimeError(f"HiGHS failed: {result.message}")
    return result.x, -math.inf if result.mip_dual_bound is None else float(result.mip_dual_bound)
