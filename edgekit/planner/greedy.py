"""The baseline that most tools use: one change at a time, the most gained per added loss first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from edgekit.planner.problem import QUANTITIES, Limits, Problem, Quantity, Totals
from edgekit.planner.solver import totals_of
from edgekit.planner.table import Condition, Step, Table, tabulate
from edgekit.planner.usable import slack_of

if TYPE_CHECKING:
    from edgekit.planner.table import Floats


class _Amounts(NamedTuple):
    latency_ms: float
    weight_bytes: float
    memory_bytes: float
    loss: float


def greedy(problem: Problem, limits: Limits) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """An option for each layer and each channel group within the limits, without any proof; ``None`` when stuck.

    From float layers and whole groups, the single change with the best gain per added loss is made, again and again:
    while another budget is broken, gain is what the change takes off the broken ones as a share of each; then, if loss
    has a budget, gain is latency, until that budget or another would break. No node returns to an option that it left.
    """
    table = tabulate(problem, limits)
    state = _State(table)
    while True:
        totals = state.totals()
        broken: set[Quantity] = {
            q for q in QUANTITIES if q != "loss" and (slack_of(limits, q, getattr(totals, q)) or 0.0) < 0
        }
        if not broken and limits.loss is None:
            break
        step = state.peak_step() if limits.memory_bytes is not None else None
        move = None
        for gain, added, node, option in sorted(_moves(state, totals, broken, step), key=_rank):
            if (slack_of(limits, "loss", totals.loss + added) or 0.0) < 0 <= added or gain <= 0:
                continue
            if broken or all(
                (slack_of(limits, q, getattr(state.totals(node, option), q)) or 0.0) >= 0 for q in QUANTITIES
            ):
                move = (node, option)
                break
        if move is None:
            break
        state.take(*move)
    layers = len(problem.layers)
    picked = state.picked()
    totals = totals_of(table, picked)
    if any((slack_of(limits, q, getattr(totals, q)) or 0.0) < 0 for q in QUANTITIES):
        return None
    return picked[:layers], picked[layers:]


def _rank(move: tuple[float, float, int, int]) -> tuple[float, float, int, int]:
    """The most gain per added loss first; what adds none before all others."""
    gain, added, node, option = move
    return (-math.inf if added <= 0 else -gain / added, -gain, node, option)


def _moves(
    state: _State, totals: Totals, broken: set[Quantity], step: Step | None
) -> Iterator[tuple[float, float, int, int]]:
    """Each change that is still open: (gain, added loss, node, option)."""
    for node in range(state.table.nodes):
        for option, change in enumerate(state.changes(node)):
            if option == state.now[node] or option in state.left[node]:
                continue
            if not broken:
                gain = -change.latency_ms
            else:
                gain = 0.0
                if "latency_ms" in broken:
                    gain -= change.latency_ms / totals.latency_ms
                if "weight_bytes" in broken:
                    gain -= change.weight_bytes / totals.weight_bytes
                if "memory_bytes" in broken and step is not None:
                    gain -= (change.memory_bytes + state.step_change(step, node, option)) / totals.memory_bytes
            if gain > 0:
                yield gain, change.loss, node, option


class _State:
    """The options taken so far, and what a change of one would change: remembered until a neighbour changes."""

    def __init__(self, table: Table) -> None:
        self.table = table
        layers = len(table.problem.layers)
        self.now: list[int] = []
        for node in range(table.nodes):
            columns = range(table.starts[node], table.starts[node + 1])
            if node < layers:
                start = next((k for k, c in enumerate(columns) if table.is_float[c]), 0)
            else:
                kept = [table.problem.groups[node - layers].options[table.option[c]].kept for c in columns]
                start = kept.index(max(kept))
            self.now.append(start)
        self.left: list[set[int]] = [set() for _ in self.now]
        self.around: list[list[int]] = [[] for _ in self.now]  # factors
        self.beside: list[list[int]] = [[] for _ in self.now]  # pairs
        for i, factor in enumerate(table.factors):
            for node in factor.nodes:
                self.around[node].append(i)
        for i, pair in enumerate(table.pairs):
            for node in (pair.producer, pair.consumer, *pair.parts):
                self.beside[node].append(i)
        self.cached: dict[int, list[_Amounts]] = {}

    def picked(self) -> tuple[int, ...]:
        return tuple(int(self.table.option[self.table.starts[n] + k]) for n, k in enumerate(self.now))

    def totals(self, node: int = 0, option: int | None = None) -> Totals:
        """What the options taken cost, or would with one changed."""
        if option is None:
            return totals_of(self.table, self.picked())
        before, self.now[node] = self.now[node], option
        found = totals_of(self.table, self.picked())
        self.now[node] = before
        return found

    def take(self, node: int, option: int) -> None:
        self.left[node].add(self.now[node])
        self.now[node] = option
        for i in self.around[node]:
            for other in self.table.factors[i].nodes:
                self.cached.pop(other, None)
        for i in self.beside[node]:
            pair = self.table.pairs[i]
            for other in (pair.producer, pair.consumer, *pair.parts):
                self.cached.pop(other, None)
        self.cached.pop(node, None)

    def changes(self, node: int) -> list[_Amounts]:
        """By the node's options: what taking it would change. Memory is that of the weights alone."""
        if node not in self.cached:
            count = self.table.starts[node + 1] - self.table.starts[node]
            amounts = [self._local(node, option) for option in range(count)]
            base = amounts[self.now[node]]
            self.cached[node] = [_Amounts(*(a - b for a, b in zip(one, base, strict=True))) for one in amounts]
        return self.cached[node]

    def _local(self, node: int, option: int) -> _Amounts:
        table, before = self.table, self.now[node]
        self.now[node] = option
        own = [float(table.amount[q][table.starts[node] + option]) for q in QUANTITIES]
        for i in self.around[node]:
            factor = table.factors[i]
            at = tuple(self.now[n] for n in factor.nodes)
            for k, amounts in enumerate(factor.amount.values()):
                own[k] += float(amounts[at])
        for i in self.beside[node]:
            pair = table.pairs[i]
            if self._is_float(pair.producer) != self._is_float(pair.consumer):
                own[0] += pair.cost_ms + sum(float(costs[self.now[g]]) for g, costs in pair.parts.items())
        self.now[node] = before
        return _Amounts(*own)

    def _is_float(self, layer: int) -> bool:
        if layer < 0:  # as a decider: that it is int8
            return not self._is_float(~layer)
        return bool(self.table.is_float[self.table.starts[layer] + self.now[layer]])

    def _holds(self, condition: Condition) -> bool:
        any_of = not condition.any_of or any(map(self._is_float, condition.any_of))
        return any_of and all(map(self._is_float, condition.all_of))

    def _bytes(self, step: Step) -> float:
        table = self.table
        total = float(step.least_bytes)
        for which, extra in step.extra.items():
            total += extra * self._holds(table.conditions[which])
        for number in step.sizes:
            size = table.sizes[number]
            large = self._holds(size.condition)
            total += size.extra * large
            for group, small in size.small.items():
                amounts: Floats = small + size.extras[group] if large else small
                total += float(amounts[self.now[group]])
        return total

    def peak_step(self) -> Step:
        """The step with the most live bytes."""
        return max(self.table.steps, key=self._bytes)

    def step_change(self, step: Step, node: int, option: int) -> float:
        """Live bytes that taking the option would add to the step."""
        before, self.now[node] = self.now[node], option
        changed = self._bytes(step)
        self.now[node] = before
        return changed - self._bytes(step)
