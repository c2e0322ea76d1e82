"""Branch and bound over what makes a large program hard: how much of a tight memory budget goes to the weights, and
which large tensors are live. All else is left to HiGHS, which is given the few columns near the relaxation.

The linear relaxation is near the optimum where budgets are sums. Where tensors of one step compete for memory it is
not; there covers close most of the gap (`covers`), once a range of the weights is assumed. So the tree splits that
range at the weights from which on a broken cover holds, or fixes whether a tensor reaches a size. Where nothing is left
to split, most columns cost more than what lies between relaxation and optimum (reduced-cost fixing, Nemhauser and
Wolsey, *Integer and Combinatorial Optimization*, 1988, ch. II.5.4): HiGHS gets those near it, then more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from edgekit.planner.covers import Cover, Crowds
from edgekit.planner.linear import Linear, Vertex
from edgekit.planner.problem import Limits, Quantity
from edgekit.planner.program import Program
from edgekit.planner.relaxation import narrowed
from edgekit.planner.solver import ABSOLUTE_GAP, Outcome, Picked, choose, value_of
from edgekit.planner.table import Table
from edgekit.planner.usable import Usable

if TYPE_CHECKING:
    from edgekit.planner.table import Floats

_NEAR = (1 / 50, 1 / 10, 2 / 5, 3 / 2, 6, math.inf)  # how far above the relaxation HiGHS looks, in gaps
_WITHIN_REACH = 3  # times as far up to which all that may be better than the plan found is looked at instead
_PROVE = 0.95  # of the gap: what one look must prove, so that rounding does not ask for another
_PATIENCE = 0.15  # share of the time left that one look may take
_ROUNDS = 12  # of covers at one node
_STALLED = 1e-5  # of the bound: rounds of covers that raise it by less are the last
_AWAY = 4  # a split of the weights is worth what the cover is broken by, or so many times its distance in rooms
_DOUBT = 4  # and one of a level so many times the room that it decides
_WORTH = 0.005  # of a step's room: splits that decide less are made only where HiGHS does not settle it
_LOOKS = 3  # that is, in so many looks


class _Split(NamedTuple):
    """Weights up to so many bytes over their least, or more; or whether a level is reached."""

    score: float
    at_bytes: float = 0.0
    level: int | None = None


@dataclass(eq=False)
class _Node:
    """A part of the plans: weights over their least from ``low`` to ``high``, levels reached, columns forbidden."""

    program: Program
    low: float
    high: float
    levels: frozenset[int] = frozenset()
    depth: int = 0
    looks: int = 0
    bound: float = -math.inf
    vertex: Vertex | None = None
    split: _Split | None = None


def branch_and_bound(
    table: Table,
    usable: Usable,
    program: Program,
    limits: Limits,
    quantity: Quantity,
    gap: float,
    deadline: float,
    incumbent: Picked | None,
) -> Outcome | None:
    """What ``choose`` finds for the whole program, sooner: the pick with the least ``quantity``, to the gap, and its
    bound; ``None`` when time ran out without a pick.
    """
    tree = _Tree(table, usable, program, limits, quantity, gap, deadline, incumbent)
    tree.grow()
    if tree.best is None:
        return Outcome(None, math.inf) if math.isinf(tree.bound) and tree.bound > 0 else None
    return Outcome(tree.best, min(tree.bound / program.scale, tree.value))


@dataclass(eq=False)
class _Tree:
    table: Table
    usable: Usable
    program: Program
    limits: Limits
    quantity: Quantity
    gap: float
    deadline: float
    incumbent: Picked | None

    def __post_init__(self) -> None:
        self.best = self.incumbent
        self.value = math.inf if self.best is None else value_of(self.table, self.best, self.quantity)
        self.linear = Linear(self.program)
        self.rows: list[Cover | int] = []  # those added to the program's: a cover, or a level that is reached
        self.crowds = Crowds(self.program.memory, len(self.program.cost))
        self.open: list[_Node] = []
        self.closed = math.inf  # the least bound of what was left unproven

    @property
    def goal(self) -> float:
        """A plan above it is not worth looking for."""
        return self.value * self.program.scale * (1 - self.gap)

    @property
    def bound(self) -> float:
        """Of all plans, in the program's units."""
        return min([self.closed, *(node.bound for node in self.open)])

    def grow(self) -> None:
        """Until the gap is proven or the time is over. The lowest bound first; but down until a plan is known, and what
        HiGHS did not settle soon comes last: a better plan from elsewhere may settle it.
        """
        self._open(_Node(self.program, 0.0, self.program.memory.resident_bytes))
        while self.open and time.monotonic() < self.deadline:
            if self.best is None:
                node = min(self.open, key=lambda n: (n.looks, -n.depth, n.bound))
            else:
                left = [n for n in self.open if n.bound < self.goal]
                if not left:
                    return
                node = min(left, key=lambda n: (max(n.looks, _LOOKS - 1), n.bound))
            self.open.remove(node)
            if node.split is None or (node.split.score < _WORTH and node.looks < _LOOKS):
                self._look(node)
            else:
                for child in self._children(node, node.split):
                    self._open(child)

    def _open(self, node: _Node) -> None:
        """Bound a part of the plans, with all covers that its relaxation breaks; it stays open if it may hold more."""
        for number in range(_ROUNDS):
            vertex, before = self._relaxed(node), node.bound
            if vertex is None:  # no vertex: HiGHS is asked without one
                break
            if vertex.value >= self.goal:
                self.closed = min(self.closed, vertex.value)
                return
            node.vertex, node.bound = vertex, max(before, vertex.value - ABSOLUTE_GAP)
            if not self._separated(node, vertex) or (number > 1 and node.bound - before < _STALLED * node.bound):
                break
        if node.vertex is not None and math.isfinite(self.goal):
            near = node.vertex.reduced <= self.goal - node.vertex.value
            program = narrowed(self.table, self.usable, node.program, near)
            if program is None:
                self.closed = min(self.closed, self.goal)
                return
            node.program = program
        self.open.append(node)

    def _relaxed(self, node: _Node) -> Vertex | None:
        import numpy as np

        floor, ceiling = self._weights_between(node)
        lower, upper = np.full(len(self.rows), -np.inf), np.full(len(self.rows), np.inf)
        for place, row in enumerate(self.rows):
            if isinstance(row, Cover):
                upper[place] = row.limit if row.above_bytes < node.low else np.inf
            elif row in node.levels:
                lower[place] = 1.0
        return self.linear.solve(floor, ceiling, lower, upper, self.goal, self.deadline - time.monotonic())

    def _weights_between(self, node: _Node) -> tuple[Floats, Floats]:
        """Floor and ceiling of the columns."""
        floor, ceiling = node.program.floor.copy(), node.program.ceiling.copy()
        memory = node.program.memory
        if memory.resident is not None:
            floor[memory.resident] = node.low / memory.resident_bytes
            ceiling[memory.resident] = min(ceiling[memory.resident], node.high / memory.resident_bytes)
        return floor, ceiling

    def _separated(self, node: _Node, vertex: Vertex) -> bool:
        """Whether there are new covers to solve it with; finds where to split it too."""
        memory, reached = node.program.memory, self.crowds.reached(vertex.columns)
        resident = 0.0 if memory.resident is None else vertex.columns[memory.resident] * memory.resident_bytes
        splits, added = [], False
        for step, broken in self.crowds.broken(reached, resident, node.low):
            if broken.above_bytes >= resident - 0.5:  # bytes are whole numbers
                continue
            if broken.above_bytes >= node.low:
                away = (resident - broken.above_bytes) / self.crowds.steps[step][0]
                splits.append(_Split(min(broken.excess, _AWAY * away), broken.above_bytes))
                continue
            cover = self.crowds.cover(step, broken)
            if cover not in self.rows:
                self._add(cover, dict(cover.columns))
                added = True
        splits += (_Split(_DOUBT * doubt, level=level) for doubt, level in self.crowds.undecided(reached, resident))
        node.split = max(splits, default=None, key=lambda split: split.score)
        return added

    def _add(self, row: Cover | int, entries: dict[int, int]) -> None:
        self.rows.append(row)
        self.linear.add(list(entries), list(entries.values()))

    def _children(self, node: _Node, split: _Split) -> Iterator[_Node]:
        import numpy as np

        child = replace(node, depth=node.depth + 1, looks=0, split=None)
        if split.level is None:
            at = math.floor(split.at_bytes)
            yield replace(child, high=float(at))
            yield replace(child, low=at + 1.0)
            return
        columns = self.crowds.levels[split.level].columns
        near = np.ones(len(node.program.cost), dtype=np.bool_)
        near[list(columns)] = False
        program = narrowed(self.table, self.usable, node.program, near)
        if program is not None:
            yield replace(child, program=program)
        if split.level not in self.rows:
            self._add(split.level, dict.fromkeys(columns, 1))
        yield replace(child, levels=node.levels | {split.level})

    def _look(self, node: _Node) -> None:
        """Give HiGHS the columns near the relaxation; the part stays open where that does not settle it."""
        low, share = node.bound, math.inf if node.vertex is None else _NEAR[node.looks]
        if node.vertex is not None:
            low = node.vertex.value - ABSOLUTE_GAP
        room = math.inf if math.isinf(share) else max(share * self.gap * low, ABSOLUTE_GAP)
        reach = 1 if self.best is self.incumbent or (self.open and node.looks < _LOOKS) else _WITHIN_REACH
        last = self.goal - low <= room * reach
        room = self.goal - low if last else room
        if low + room > node.bound or last:
            now = time.monotonic()
            until = self.deadline if last and not self.open else now + _PATIENCE * (self.deadline - now)
            near = self._excerpt(node, room)
            found: Outcome | None = Outcome(None, math.inf)
            if near is not None:
                found = choose(self.table, near, self.limits, _PROVE * self.gap, until, presolve=True)
            if found is not None:
                self._take(found.picked)
                node.bound = max(node.bound, min(found.bound * self.program.scale, low + room))
        node.looks += 1
        if node.bound < self.goal and not last:
            self.open.append(node)
        else:
            self.closed = min(self.closed, node.bound)

    def _take(self, picked: Picked | None) -> None:
        if picked is not None and (value := value_of(self.table, picked, self.quantity)) < self.value:
            self.best, self.value = picked, value

    def _excerpt(self, node: _Node, room: float) -> Program | None:
        """The program of a part of the plans, with the columns whose reduced costs are at most ``room``."""
        import numpy as np
        from scipy.sparse import csr_array, vstack

        program: Program | None = node.program
        if node.vertex is not None:
            program = narrowed(self.table, self.usable, node.program, node.vertex.reduced <= room)
        if program is None:
            return None
        floor, ceiling = self._weights_between(replace(node, program=program))
        matrix, lower, upper = program.matrix, program.lower, program.upper
        for row in self.rows:
            if isinstance(row, Cover):
                if row.above_bytes >= node.low:
                    continue
                entries, low, high = dict(row.columns), -np.inf, float(row.limit)
            elif row in node.levels:
                entries, low, high = dict.fromkeys(self.crowds.levels[row].columns, 1), 1.0, np.inf
            else:
                continue
            amounts = np.array(list(entries.values()), dtype=np.float64)
            at = (np.zeros(len(amounts), dtype=np.intp), np.array(list(entries), dtype=np.intp))
            matrix = vstack([matrix, csr_array((amounts, at), shape=(1, matrix.shape[1]))], format="csr")
            lower, upper = np.append(lower, low), np.append(upper, high)
        return replace(program, matrix=matrix, lower=lower, upper=upper, floor=floor, ceiling=ceiling)
