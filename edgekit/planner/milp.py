"""One proven minimum: HiGHS on the planning problem's program, with ``evaluate`` as the truth."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgekit.errors import EdgekitError
from edgekit.planner.problem import QUANTITIES, Limits, Quantity, Totals, evaluate
from edgekit.planner.program import Program, formulate
from edgekit.planner.relaxation import narrowed, relax
from edgekit.planner.table import Table
from edgekit.planner.usable import Usable, least_of, slack_of, usable_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit.planner.table import Floats

_ABSOLUTE_GAP = 1e-6  # HiGHS's own, in the units of the objective that it is given; its value is then its bound
_COARSE = 1.0  # an objective below this, in those units, is not resolved
_MAX_CUTS = 8  # plans that HiGHS's own tolerance let through, excluded one by one before the budgets are shrunk
_SHRINK = (1e-5, 1e-4, 1e-3)  # of a budget's slack, until HiGHS's tolerances do not add up to it
_MANY = 2000  # columns from which the relaxation is solved first, and HiGHS may presolve
_NEAR = (1 / 50, 1 / 10, 2 / 5, 3 / 2, 6)  # how far above the relaxation, in gaps
_WITHIN_REACH = 3  # times as far up to which all that may be better than the plan found is looked at instead
_PROVE = 0.95  # of the gap: what one look must prove, so that rounding does not ask for another
_PATIENCE = 0.15  # share of the time left that one look may take

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
            return Outcome(best, math.inf if best is None else _value(table, best, quantity))
        program = formulate(table, usable, limits, quantity)
        if len(program.cost) < _MANY:
            found = _choose(table, program, limits, gap, deadline, presolve=False)
        else:
            found = _near_relaxation(table, usable, program, limits, quantity, gap, deadline, best)
        if found is None:  # out of time
            if best is None:
                raise EdgekitError(
                    "no plan was found in the time given, and none was ruled out",
                    hint="allow more time, or loosen a budget",
                )
            return Outcome(best, bound)
        if found.picked is None:
            return Outcome(best, math.inf if best is None else _value(table, best, quantity))
        best, bound = found.picked, max(bound, found.bound, least_of(table, usable).totals[quantity])
        value = _value(table, best, quantity)
        fine = quantity != "memory_bytes" and value * program.scale >= _COARSE
        if last_round or fine or relative_gap(value, bound) == 0:
            break
        limits = limits.with_limit(quantity, value)
    return Outcome(best, min(bound, value))


def _near_relaxation(
    table: Table,
    usable: Usable,
    program: Program,
    limits: Limits,
    quantity: Quantity,
    gap: float,
    deadline: float,
    incumbent: Picked | None,
) -> Outcome | None:
    """What ``_choose`` finds, sooner: the linear relaxation is near the optimum, so that most columns cost more than
    what lies between (reduced-cost fixing, Nemhauser and Wolsey, *Integer and Combinatorial Optimization*, 1988,
    ch. II.5.4). HiGHS is given the few near it, then more, until what it finds is proven for all.
    """
    relaxation = relax(program, deadline - time.monotonic())
    if relaxation is None:
        return _choose(table, program, limits, gap, deadline, presolve=True)
    if math.isinf(relaxation.value):
        return Outcome(None, math.inf)
    best, value = incumbent, math.inf if incumbent is None else _value(table, incumbent, quantity)
    low = proven = relaxation.value - _ABSOLUTE_GAP
    for share in (*_NEAR, math.inf):
        goal = value * program.scale * (1 - gap)  # a plan above it is not worth looking for
        if proven >= goal:
            break
        room = max(share * gap * low, _ABSOLUTE_GAP) if math.isfinite(share) else math.inf
        last = goal - low <= room * (1 if best is incumbent else _WITHIN_REACH)
        room = goal - low if last else room
        if low + room <= proven:
            continue
        near = narrowed(table, usable, program, relaxation, room)
        if near is None:
            proven = max(proven, low + room)
            continue
        now = time.monotonic()
        until = deadline if last else now + _PATIENCE * (deadline - now)
        found = _choose(table, formulate(table, near, limits, quantity), limits, _PROVE * gap, until, presolve=True)
        if found is not None:
            if found.picked is not None and _value(table, found.picked, quantity) < value:
                best, value = found.picked, _value(table, found.picked, quantity)
            proven = max(proven, min(found.bound * program.scale, low + room))
        if last:
            break
    if best is None:
        return Outcome(None, math.inf) if math.isinf(proven) else None
    return Outcome(best, min(proven / program.scale, value))


def _value(table: Table, picked: Picked, quantity: Quantity) -> float:
    return float(getattr(totals_of(table, picked), quantity))


def relative_gap(value: float, bound: float) -> float:
    """(value - bound) / value, 0 where the value is 0 or the bound reaches it, 1 where nothing is proven."""
    return min(1.0, max(0.0, (value - bound) / value)) if value > 0 else 0.0


def _choose(
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
            bound = max(bound, (proven - _ABSOLUTE_GAP) / program.scale)
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
    fixed = np.zeros(width)
    fixed[-1] = 1.0
    result = milp(
        program.cost,
        integrality=(np.arange(width) < options).astype(np.int8),
        bounds=Bounds(fixed, program.ceiling),
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
