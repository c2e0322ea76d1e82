"""What a little more of each budget would buy, found by planning again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgekit.planner.milp import minimise
from edgekit.planner.problem import QUANTITIES, Limits, Problem, Quantity, Solution
from edgekit.planner.solver import Picked, totals_of
from edgekit.planner.table import Table, tabulate


@dataclass(frozen=True)
class Price:
    """Raising the budget of ``quantity`` by ``step`` takes the best value of ``bought`` from ``now`` to ``then``, which
    is never more. Both are minima under the budgets, before anything is given back for the other objective.
    """

    quantity: Quantity
    step: float
    bought: Quantity
    now: float
    then: float


def prices(
    problem: Problem,
    limits: Limits,
    solution: Solution,
    objective: Literal["latency", "loss"],
    steps: Mapping[Quantity, float],
    gap: float = 1e-4,
    time_limit_s: float = 60.0,
) -> tuple[Price, ...]:
    """The price of each limit that is set and has a step: what raising it by that buys of the objective.

    The objective's own quantity needs no limit: letting it rise by a step above ``solution`` buys the other objective.
    Each price is a plan of its own, so name steps for the limits of interest (``solution.binding``) when the problem is
    large. ``solution`` must keep ``limits`` (``ValueError``); when the time limit passes, what was found until then
    counts.
    """
    first: Quantity = "latency_ms" if objective == "latency" else "loss"
    second: Quantity = "loss" if objective == "latency" else "latency_ms"
    deadline = time.monotonic() + time_limit_s
    table = tabulate(problem, limits)
    plan = (*solution.choice, *solution.kept)
    for quantity in QUANTITIES:
        limit, total = getattr(limits, quantity), getattr(totals_of(table, plan), quantity)
        if limit is not None and total > limit * (1 + 1e-9):
            raise ValueError(f"the solution's {quantity} is {total}, over its limit {limit}")

    found: dict[Quantity, Price] = {}
    wanted = [q for q in QUANTITIES if q in steps and q != first and getattr(limits, q) is not None]
    best = _better(table, limits, first, gap, deadline, plan) if wanted else plan
    for quantity in wanted:
        looser = limits.with_limit(quantity, getattr(limits, quantity) + steps[quantity])
        then = _amount(table, _better(table, looser, first, gap, deadline, best), first)
        found[quantity] = Price(quantity, steps[quantity], first, _amount(table, best, first), then)
    if first in steps:
        at = limits.with_limit(first, _amount(table, plan, first))
        least = _better(table, at, second, gap, deadline, plan)
        looser = at.with_limit(first, _amount(table, plan, first) + steps[first])
        then = _amount(table, _better(table, looser, second, gap, deadline, least), second)
        found[first] = Price(first, steps[first], second, _amount(table, least, second), then)
    return tuple(found[q] for q in QUANTITIES if q in found)


def _amount(table: Table, picked: Picked, quantity: Quantity) -> float:
    return float(getattr(totals_of(table, picked), quantity))


def _better(table: Table, limits: Limits, quantity: Quantity, gap: float, deadline: float, known: Picked) -> Picked:
    """The best pick within the limits; the known one, which keeps them, when nothing better is found in time."""
    found = minimise(table, limits, quantity, gap, deadline, incumbent=known).picked
    return known if found is None or _amount(table, found, quantity) >= _amount(table, known, quantity) else found
