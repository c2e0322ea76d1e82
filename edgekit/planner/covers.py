"""What the linear relaxation of a tight memory budget overlooks: it lets half of a large tensor be live.

Tensors of one execution step whose sizes, with the resident weights, add up to more than the budget are a cover: not
all of them can be that large (Balas, Facets of the knapsack polytope, *Mathematical Programming* 8, 1975). Whoever is
larger than all of them counts in their place (extended cover). The covers that a relaxation's solution breaks are found
exactly, step by step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgekit.planner.memory import Level, Memory

if TYPE_CHECKING:
    from edgekit.planner.table import Floats

_BROKEN = 1e-3  # by how much a cover must be broken to be worth a row
_NONE = 1e-6  # a share of a tensor that is the relaxation's tolerance


class Cover(NamedTuple):
    """The columns, each so many times, add up to ``limit`` at most where resident weights take more than
    ``above_bytes`` over their least.
    """

    columns: tuple[tuple[int, int], ...]
    limit: int
    above_bytes: float


class Broken(NamedTuple):
    """By how much levels that cannot all be reached, where weights take more than ``above_bytes``, all are."""

    excess: float
    above_bytes: float
    levels: tuple[int, ...]


class Crowds:
    """The steps of a program in which tensors compete for memory, and the distinct levels of these tensors."""

    def __init__(self, memory: Memory, width: int) -> None:
        import numpy as np
        from scipy.sparse import csr_array

        numbers: dict[Level, int] = {}
        self.steps = [
            (room, [[numbers.setdefault(level, len(numbers)) for level in one] for one in tensors if one])
            for room, tensors in memory.crowds
        ]
        self.levels = list(numbers)
        self._sizes = np.array([level.size_bytes for level in self.levels])
        ends = np.cumsum([0, *(len(level.columns) for level in self.levels)])
        across = np.array([column for level in self.levels for column in level.columns], dtype=np.intp)
        self._matrix = csr_array((np.ones(len(across)), across, ends), shape=(len(self.levels), width))

    def reached(self, columns: Floats) -> Floats:
        """How much each level is reached, 0 to 1."""
        import numpy as np

        found: Floats = np.clip(self._matrix @ columns, 0.0, 1.0)
        return found

    def broken(self, reached: Floats, resident_bytes: float, at_least_bytes: float) -> Iterator[tuple[int, Broken]]:
        """By step, what is broken at these weights: the most broken covers, each needing fewer weights than the one
        before; none that need less than ``at_least_bytes`` but the first.
        """
        for step, (room, tensors) in enumerate(self.steps):
            used = [[level for level in levels if reached[level] > _NONE] for levels in tensors]
            used = [levels for levels in used if levels]
            if sum(self._sizes[levels[0]] for levels in used) <= room - resident_bytes:
                continue
            for missing, total, levels in _cheapest(used, 1 - reached, self._sizes):
                if levels and total > room - resident_bytes:
                    yield step, Broken(1 - missing, room - total, levels)
                    if room - total < at_least_bytes:
                        break

    def cover(self, step: int, broken: Broken) -> Cover:
        """The row that forbids it."""
        largest = max(self._sizes[level] for level in broken.levels)
        members = list(broken.levels)
        for levels in self.steps[step][1]:
            if not set(levels) & set(broken.levels):
                members += [level for level in levels if self._sizes[level] >= largest][-1:]
        columns = Counter(column for level in members for column in self.levels[level].columns)
        return Cover(tuple(sorted(columns.items())), len(broken.levels) - 1, broken.above_bytes)

    def undecided(self, reached: Floats, resident_bytes: float) -> Iterator[tuple[float, int]]:
        """Levels that are reached in part in steps that are full, each with what it decides of the step's room."""
        import numpy as np

        doubt = np.minimum(reached, 1 - reached)
        for room, tensors in self.steps:
            load = resident_bytes
            for levels in tensors:
                below = [*(self._sizes[level] for level in levels[1:]), 0.0]
                load += sum((self._sizes[k] - low) * reached[k] for k, low in zip(levels, below, strict=True))
            if load >= room * (1 - 1e-6):
                for levels in tensors:
                    yield from ((float(doubt[k] * self._sizes[k] / room), k) for k in levels if doubt[k] > _NONE)


def _cheapest(
    tensors: Sequence[Sequence[int]], missing: Floats, sizes: Floats
) -> list[tuple[float, float, tuple[int, ...]]]:
    """Levels of distinct tensors that miss less than 1 in all, and their sizes' sum: those that miss the least first,
    each larger than all before.
    """
    found: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for levels in tensors:
        longer = [
            (short + missing[level], total + sizes[level], (*members, level))
            for short, total, members in found
            for level in levels
            if short + missing[level] < 1 - _BROKEN
        ]
        found, all_found = [], sorted([*found, *longer], key=lambda one: (one[0], -one[1]))
        for one in all_found:
            if not found or one[1] > found[-1][1]:
                found.append(one)
    return found
