"""Finds the fastest plan that keeps the metric.

The planner knows losses (noise power), the guard knows the metric; how one turns into the other is a property of the
model that is only learnt by trying. So the loss budget is bisected, on a logarithmic scale: plan, score, tighten or
loosen. The number of evaluations is bounded and the best plan so far is kept, so the search always ends with an answer.

A metric over some hundred samples does not fall evenly with the noise: int8 wherever it can be may keep what plans with
less noise lose. It is scored where it takes less time than what bisection found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from edgekit.errors import InfeasibleError
from edgekit.planner import LayerOption, Limits, Problem, Solution, evaluate, keeps, solve
from edgekit.types import Mask, Precision

EVALUATIONS = 7
# Two loss budgets closer than this give plans that no evaluation could tell apart (0.4 dB).
_CLOSE = 1.1
# Where bisection starts, as a share of the fastest plan's loss: 40 dB below it, quantization is not what hurts.
_LOWEST = 1e-4


def within(drop: float, max_drop: float | None) -> bool:
    """Whether a drop is within the budget. Three samples of 300 are one point, whatever their quotient rounds to."""
    return max_drop is None or drop <= max_drop + 1e-9


@dataclass(frozen=True)
class Tried:
    """A plan that was scored: how far the metric dropped, and whether that is within the budget."""

    solution: Solution
    drop: float
    keeps: bool


def fastest_keeping(
    problem: Problem, limits: Limits, max_drop: float | None, drop_of: Callable[[Solution], float]
) -> tuple[Tried, ...]:
    """Scored plans, the best (fastest that keeps the metric) first.

    ``drop_of`` realises and scores a plan. Raises `InfeasibleError` when no plan fits the hard limits, or the most
    faithful plan that does still drops more than ``max_drop``.
    """
    tried: dict[tuple[tuple[int, ...], tuple[int, ...]], Tried] = {}

    def score(solution: Solution) -> Tried:
        key = (solution.choice, solution.kept)
        if key not in tried:
            lost = drop_of(solution) if max_drop is not None else 0.0
            tried[key] = Tried(solution, lost, within(lost, max_drop))
        return tried[key]

    fastest = score(solve(problem, limits))
    if not fastest.keeps:
        faithful = score(solve(problem, limits, objective="loss"))
        if not faithful.keeps:
            known = math.isfinite(faithful.drop)
            raises = f"raise --max-drop to {math.ceil(faithful.drop * 1000) / 10:g}% or " if known else ""
            raise InfeasibleError(
                f"no plan within the other budgets keeps the metric: the most faithful drops it by {faithful.drop:.4g}",
                f"{raises}loosen the other budgets",
                {"max_drop": faithful.drop} if known else {},
            )
        high = fastest.solution.totals.loss
        low = max(faithful.solution.totals.loss, high * _LOWEST)
        while len(tried) < EVALUATIONS and high > low * _CLOSE:
            middle = math.sqrt(low * high)
            one = score(solve(problem, limits.with_limit("loss", middle)))
            low, high = (middle, high) if one.keeps else (low, min(middle, one.solution.totals.loss))
        best_ms = min(one.solution.totals.latency_ms for one in tried.values() if one.keeps)
        uniform = _all_int8(problem, limits, fastest.solution.totals.latency_ms)
        if uniform is not None and uniform.totals.latency_ms < best_ms:
            score(uniform)
    return tuple(sorted(tried.values(), key=lambda one: (not one.keeps, one.solution.totals.latency_ms)))


def _all_int8(problem: Problem, limits: Limits, least_ms: float) -> Solution | None:
    """int8 for every layer that has it, and what is fastest for the others; None where that is over a limit. Nothing is
    faster than ``least_ms``.
    """

    def order(option: LayerOption) -> tuple[bool, float]:
        return option.precision is not Precision.INT8 or option.mask is not Mask.NONE, option.latency_ms

    choice = tuple(layer.options.index(min(layer.options, key=order)) for layer in problem.layers)
    kept = (0,) * len(problem.groups)
    totals = evaluate(problem, choice, kept)
    if not keeps(limits, totals):
        return None
    gap = 1 - least_ms / totals.latency_ms if totals.latency_ms else 0.0
    return Solution(choice, totals, gap, gap, (), 0.0, kept)
