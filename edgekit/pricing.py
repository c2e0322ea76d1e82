"""What each budget is worth: what a little more of it would buy."""

from __future__ import annotations

import math

from edgekit.planner import Solution, prices
from edgekit.planner.problem import Quantity
from edgekit.results import Price
from edgekit.tables.formulate import BUDGETS, Planning, limits_of
from edgekit.types import Budget

DECIBEL = 10**0.1 - 1
"""Share of itself by which a noise power grows with one decibel."""

_TIME_LIMIT_S = 20.0
# A round step is a tenth of the plan's own amount, or one of these units where it has some.
_MS, _MB = 1.0, 1e6


def price_budgets(planning: Planning, solution: Solution, budget: Budget) -> tuple[Price, ...]:
    """What one more millisecond, megabyte (or a round tenth of what the plan takes) and decibel of noise would buy. The
    noise is the plan's own: it is what the metric leaves room for.
    """
    totals = solution.totals
    limits = limits_of(budget, totals.loss)
    steps: dict[Quantity, float] = {
        "latency_ms": _step(totals.latency_ms, _MS),
        "weight_bytes": _step(totals.weight_bytes, _MB),
        "memory_bytes": _step(totals.memory_bytes, _MB),
        "loss": totals.loss * DECIBEL,
    }
    steps = {quantity: step for quantity, step in steps.items() if step > 0}
    found = prices(planning.problem, limits, solution, "latency", steps, time_limit_s=_TIME_LIMIT_S)
    return tuple(
        Price(
            budget="noise" if price.quantity == "loss" else BUDGETS[price.quantity],
            step=1.0 if price.quantity == "loss" else price.step,
            buys=price.bought,
            now=price.now,
            then=price.then,
        )
        for price in found
    )


def _step(total: float, unit: float) -> float:
    if total >= 5 * unit or total <= 0:
        return unit
    return float(f"{10 ** math.floor(math.log10(total / 10)):.0e}")
