"""Solve, trace the Pareto front, and say why when no plan fits."""

from __future__ import annotations

import math
import time
from typing import Literal

from edgekit.errors import EdgekitError, InfeasibleError
from edgekit.planner.milp import minimise, relative_gap
from edgekit.planner.problem import QUANTITIES, Limits, Problem, Quantity, Solution, Totals
from edgekit.planner.relaxation import priced_limits
from edgekit.planner.solver import totals_of
from edgekit.planner.table import Table, tabulate

LATENCY_WINDOW = 0.005
"""Share of the best latency that may be given back for a lower loss: the spread of a quiet device's median is larger,
so a faster plan inside this window could not be told apart, while its loss could."""
LOSS_WINDOW = 0.01
"""The same for the best loss (0.04 dB of noise power, below what a calibration set resolves)."""
_SECOND_GAP = 20
"""The second objective's gap in gaps of the first, up to two of its own windows: nobody could tell the difference."""
BINDING_SLACK = 0.01
"""A budget with less than this share of itself left over counts as binding."""

_WORDS: dict[Quantity, tuple[str, str, str]] = {
    "latency_ms": ("latency", "ms", "the fastest plan is predicted to take"),
    "weight_bytes": ("weight size", "bytes", "the smallest plan takes"),
    "memory_bytes": ("memory", "bytes", "the leanest plan takes"),
    "loss": ("loss", "", "the most faithful plan has"),
}


def solve(
    problem: Problem,
    limits: Limits,
    objective: Literal["latency", "loss"] = "latency",
    gap: float = 1e-4,
    time_limit_s: float = 60.0,
) -> Solution:
    """The plan with the lowest objective that keeps all limits, to a proven relative ``gap``; then, within
    ``LATENCY_WINDOW`` (``LOSS_WINDOW``) of that objective, the plan with the lowest loss (latency), to 20 gaps.

    ``gap`` is resolved down to about 1e-6. The same input gives the same plan unless ``time_limit_s``, or the share of
    it that one look may take (``milp``), ends a search; the reported gap is honest then too. ``binding`` names limits
    that are used up to ``BINDING_SLACK`` or that carry a shadow price in the linear relaxation.

    Raises ``InfeasibleError`` when no plan fits (with ``nearest``, for which it may use the time limit once more),
    ``EdgekitError`` when the time limit passed before any plan was found, ``ValueError`` for a malformed problem.
    """
    started = time.monotonic()
    deadline = started + time_limit_s
    table = tabulate(problem, limits)
    first: Quantity = "latency_ms" if objective == "latency" else "loss"
    second: Quantity = "loss" if objective == "latency" else "latency_ms"
    found = minimise(table, limits, first, gap, deadline)
    if found.picked is None:
        raise _infeasible(table, limits, gap, time_limit_s)
    picked, totals = found.picked, totals_of(table, found.picked)
    search_gap = relative_gap(getattr(totals, first), found.bound)
    window = LATENCY_WINDOW if objective == "latency" else LOSS_WINDOW
    if getattr(totals, second) > 0:
        ceiling = getattr(totals, first) * (1 + window)
        own_limit = getattr(limits, first)
        near = limits.with_limit(first, ceiling if own_limit is None else min(ceiling, own_limit))
        near = near.with_limit(second, getattr(totals, second))
        coarse = min(_SECOND_GAP * gap, 2 * (LOSS_WINDOW if second == "loss" else LATENCY_WINDOW))
        better = minimise(table, near, second, coarse, deadline, incumbent=picked).picked
        if better is not None and getattr(totals_of(table, better), second) < getattr(totals, second):
            picked, totals = better, totals_of(table, better)
    return Solution(
        choice=picked[: len(problem.layers)],
        totals=totals,
        gap=relative_gap(getattr(totals, first), found.bound),
        search_gap=min(search_gap, relative_gap(getattr(totals, first), found.bound)),
        binding=_binding(table, limits, first, totals),
        seconds=time.monotonic() - started,
        kept=picked[len(problem.layers) :],
    )


def pareto(
    problem: Problem, limits: Limits, points: int = 12, gap: float = 1e-3, time_limit_s: float = 120.0
) -> tuple[Solution, ...]:
    """The front of latency against loss within the limits, fastest first, at most ``points`` plans, none of which
    dominates another: the lowest loss at evenly spaced latencies (epsilon-constraint method, Haimes et al. 1971).

    Each solution's ``gap`` belongs to its loss, the fastest one's to its latency. Raises as ``solve`` does; when the
    time limit passes, the points found so far are returned.
    """
    if points < 2:
        raise ValueError(f"points is {points}; a front has at least its two ends")
    started = time.monotonic()
    fastest = solve(problem, limits, "latency", gap, time_limit_s)
    faithful = solve(problem, limits, "loss", gap, max(1.0, started + time_limit_s - time.monotonic()))
    table = tabulate(problem, limits)
    found = [fastest, faithful]
    low, high = fastest.totals.latency_ms, faithful.totals.latency_ms
    for index in range(1, points - 1):
        begun = time.monotonic()
        if high <= low or begun > started + time_limit_s:
            break
        within = limits.with_limit("latency_ms", low + (high - low) * index / (points - 1))
        try:
            best = minimise(table, within, "loss", gap, started + time_limit_s)
        except EdgekitError:
            break
        if best.picked is not None:
            totals = totals_of(table, best.picked)
            proven = relative_gap(totals.loss, best.bound)
            binding = _binding(table, within, "loss", totals)
            choice, kept = best.picked[: len(problem.layers)], best.picked[len(problem.layers) :]
            found.append(Solution(choice, totals, proven, proven, binding, time.monotonic() - begun, kept))
    front: list[Solution] = []
    for solution in sorted(found, key=lambda s: (s.totals.latency_ms, s.totals.loss, s.choice, s.kept)):
        if not front or solution.totals.loss < front[-1].totals.loss:
            front.append(solution)
    return tuple(front)


def _binding(table: Table, limits: Limits, objective: Quantity, totals: Totals) -> tuple[str, ...]:
    limited = [q for q in QUANTITIES if getattr(limits, q) is not None]
    if not limited:
        return ()
    used_up = {q for q in limited if getattr(totals, q) >= getattr(limits, q) * (1 - BINDING_SLACK)}
    priced = priced_limits(table, limits, objective) if len(used_up) < len(limited) else frozenset()
    return tuple(q for q in limited if q in priced | used_up)


def _infeasible(table: Table, limits: Limits, gap: float, time_limit_s: float) -> InfeasibleError:
    """Which budgets cannot hold. ``nearest``: for each budget the best value while all others hold, or, where nothing
    holds the others, the best value with no budget at all.
    """
    deadline = time.monotonic() + time_limit_s
    limited = [q for q in QUANTITIES if getattr(limits, q) is not None]
    alone: dict[Quantity, float] = {}
    together: dict[Quantity, float] = {}
    for quantity in limited:
        for values, others in ((alone, Limits()), (together, limits.with_limit(quantity, None))):
            try:
                picked = minimise(table, others, quantity, gap, deadline).picked
            except EdgekitError:  # out of time: this figure stays unknown
                continue
            if picked is not None:
                values[quantity] = getattr(totals_of(table, picked), quantity)
    impossible = [q for q in limited if q in alone and alone[q] > getattr(limits, q)]
    blamed = impossible or list(together) or limited
    said = [f"{_WORDS[q][0]} {_amount(q, getattr(limits, q))}" for q in blamed]
    if impossible:
        reasons = [f"{_WORDS[q][2]} {_amount(q, alone[q], up=True)}" for q in impossible]
        message = f"no plan fits: {', '.join(said)}; {', '.join(reasons)}"
    else:
        message = f"no plan fits all budgets at once: {', '.join(said)}"
    fixes = [f"{_WORDS[q][0]} to {_amount(q, value, up=True)}" for q, value in together.items()]
    hint = f"raise {' or '.join(fixes)}" if fixes else "more than one budget must be raised"
    return InfeasibleError(message, hint=hint, nearest={str(q): float(v) for q, v in (alone | together).items()})


def _amount(quantity: Quantity, value: float, up: bool = False) -> str:
    """Four digits and the unit; ``up`` rounds upwards, so that the figure can be used as a budget."""
    unit = _WORDS[quantity][1]
    if unit == "bytes":
        return f"{int(value)} bytes"
    if up and value > 0:
        step = 10.0 ** (math.floor(math.log10(value)) - 3)
        value = math.ceil(value / step) * step
    return f"{value:.4g} {unit}".rstrip()
