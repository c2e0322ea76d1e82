"""What a plan within the limits may use: what surely overruns a budget is removed before the solver sees it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekit.planner.problem import QUANTITIES, Limits, Quantity
from edgekit.planner.table import SHAPED, Table, most_of

if TYPE_CHECKING:
    from edgekit.planner.table import Floats, Mask

ROUNDING = 1e-9
"""Relative excess of latency or loss over a budget that is float summation, not a violation. Bytes are exact."""


class Usable(NamedTuple):
    """What a plan within the limits may use: columns, and for each factor combinations of options."""

    columns: Mask
    cells: list[Mask]


def slack_of(limits: Limits, quantity: Quantity, total: float) -> float | None:
    """What a budget leaves over a total: None when there is no budget, negative when it is broken."""
    limit = getattr(limits, quantity)
    if limit is None:
        return None
    rounding = ROUNDING * limit if quantity in ("latency_ms", "loss") else 0.0
    return float(limit - total + rounding)


class Least(NamedTuple):
    """Per quantity the least amount of each node and of each factor, and the least conceivable total."""

    nodes: dict[Quantity, Floats]
    factors: dict[Quantity, Floats]
    totals: dict[Quantity, float]


def least_of(table: Table, usable: Usable) -> Least:
    """The least that what is ``usable`` adds up to; every node and factor must have something left."""
    import numpy as np

    nodes: dict[Quantity, Floats] = {}
    factors: dict[Quantity, Floats] = {}
    totals: dict[Quantity, float] = {}
    for quantity, amounts in table.amount.items():
        masked = np.where(usable.columns, amounts, np.inf)
        nodes[quantity] = np.minimum.reduceat(masked, table.starts[:-1]) if table.nodes else amounts[:0]
        factors[quantity] = np.zeros(len(table.factors))
        if quantity in SHAPED:
            for i, (factor, cells) in enumerate(zip(table.factors, usable.cells, strict=True)):
                factors[quantity][i] = factor.amount[quantity][cells].min()
        totals[quantity] = math.fsum((*nodes[quantity], *factors[quantity]))
    totals["latency_ms"] += table.problem.fixed_latency_ms
    totals["memory_bytes"] += max(step.least_bytes for step in table.steps)
    return Least(nodes, factors, totals)


def everything(table: Table) -> Usable:
    """All columns and combinations."""
    import numpy as np

    shapes = (factor.amount["latency_ms"].shape for factor in table.factors)
    return Usable(np.ones(len(table.node), dtype=np.bool_), [np.ones(shape, dtype=np.bool_) for shape in shapes])


def usable_of(table: Table, limits: Limits, start: Usable | None = None) -> Usable | None:
    """What does not overrun a budget even when all the rest takes its least; None when no plan is left."""
    import numpy as np

    usable: Usable | None = start or everything(table)
    limited = [q for q in QUANTITIES if getattr(limits, q) is not None]
    while usable is not None:
        least = least_of(table, usable)
        columns, cells = usable.columns.copy(), [c.copy() for c in usable.cells]
        for quantity in limited:
            slack = slack_of(limits, quantity, least.totals[quantity])
            if slack is None or slack < 0:
                return None
            rise = table.amount[quantity] - least.nodes[quantity][table.node]
            if quantity in SHAPED:
                for i, factor in enumerate(table.factors):
                    over = factor.amount[quantity] - least.factors[quantity][i]
                    cells[i] &= over <= slack
                    for axis, node in enumerate(factor.nodes):
                        others = tuple(a for a in range(over.ndim) if a != axis)
                        lowest = np.where(usable.cells[i], over, np.inf).min(axis=others)
                        rise[table.starts[node] : table.starts[node + 1]] += lowest
            columns &= rise <= slack
            if quantity == "memory_bytes":
                _drop_over_steps(table, usable, slack, cells)
        smaller = consistent(table, Usable(columns, cells))
        if smaller is None or (smaller.columns == usable.columns).all():
            return smaller
        usable = smaller
    return usable


def consistent(table: Table, usable: Usable) -> Usable | None:
    """Without columns that no combination has left, and combinations of columns that are gone; None when a node or a
    factor has nothing left.
    """
    import numpy as np

    columns, cells = usable.columns.copy(), [c.copy() for c in usable.cells]
    before = -1
    while (count := int(columns.sum())) != before:
        before = count
        for mask, factor in zip(cells, table.factors, strict=True):
            spans = [slice(table.starts[node], table.starts[node + 1]) for node in factor.nodes]
            for axis, span in enumerate(spans):
                mask &= columns[span].reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
            for axis, span in enumerate(spans):  # only now: another option may have taken this one's combinations
                columns[span] &= mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))
    if table.nodes and not np.logical_or.reduceat(columns, table.starts[:-1]).all():
        return None
    return Usable(columns, cells) if all(mask.any() for mask in cells) else None


def _drop_over_steps(table: Table, usable: Usable, slack: float, cells: list[Mask]) -> None:
    """Remove what makes an execution step's activations overrun memory even when all the rest takes its least."""
    import numpy as np

    layers, starts = len(table.problem.layers), table.starts
    widest = max(step.least_bytes for step in table.steps)
    factors: dict[int, list[int]] = {}
    for i, factor in enumerate(table.factors):
        for node in factor.nodes:
            factors.setdefault(node, []).append(i)
    holds: dict[int, Mask] = {}  # by decider: the options of its layer that make a tensor large
    for node in range(layers):
        span = slice(starts[node], starts[node + 1])
        holds |= {node: table.is_float[span], ~node: ~table.is_float[span]}

    def in_use(decider: int) -> Mask:
        node = max(decider, ~decider)
        return usable.columns[starts[node] : starts[node + 1]]

    def least(node: int, amounts: Floats) -> float:
        return float(amounts[usable.columns[starts[node] : starts[node + 1]]].min())

    for step in table.steps:
        room = slack + widest - step.least_bytes
        if not step.sizes or most_of(step, table.sizes) <= room:
            continue
        held = [table.sizes[t] for t in sorted(step.sizes)]
        # What is large only where several layers agree counts as small here: that forbids less, never too much.
        deciders = [() if size.condition.all_of else size.condition.any_of for size in held]
        surely = [any(bool((holds[d] | ~in_use(d)).all()) for d in its) for its in deciders]
        lowest = 0.0
        for size, large in zip(held, surely, strict=True):
            lowest += sum(least(n, s + size.extras[n] * large) for n, s in size.small.items()) + size.extra * large
        able = {max(d, ~d) for its in deciders for d in its if (holds[d] & in_use(d)).any()}
        touched = {n for size in held for n in size.small} | able
        for i in {i for n in touched for i in factors.get(n, ())}:
            nodes = table.factors[i].nodes
            if len(touched & set(nodes)) < 2:
                continue
            shape = cells[i].shape
            over = np.full(shape, lowest)
            for size, its, large in zip(held, deciders, surely, strict=True):
                if not (size.small.keys() | {max(d, ~d) for d in its}) & set(nodes):
                    continue
                is_large: Any = np.full(shape, large)
                for axis, node in enumerate(nodes):
                    for decider in {node, ~node}.intersection(its):
                        wide = [-1 if a == axis else 1 for a in range(len(shape))]
                        is_large = is_large | holds[decider].reshape(wide)
                for node, small in size.small.items():
                    before = least(node, small + size.extras[node] * large)
                    if node in nodes:
                        wide = [-1 if n == node else 1 for n in nodes]
                        over += small.reshape(wide) + size.extras[node].reshape(wide) * is_large - before
                    else:
                        over += np.where(is_large, least(node, small + size.extras[node]), least(node, small)) - before
                over += size.extra * (is_large.astype(np.float64) - large)
            cells[i] &= over <= room
