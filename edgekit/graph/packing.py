"""Where OpenVINO's CPU plugin puts the tensors of a model in its one block of memory, and how large that block gets.

Its MemorySolver (openvino/runtime/memory_solver.hpp, release 2026.4) takes the largest tensor first and puts each at
the lowest place that is free while it lives. Tensors do not move, so holes may be left: the block can be larger than
what is ever live at once. Among tensors of one size the order decides. It is no chance: it is what the C++ library's
`std::sort` makes of the order of first use, and that is done here the same way, so that holes come out alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_ALIGNMENT_BYTES = 32
# libstdc++ leaves runs of this many items to an insertion sort (bits/stl_algo.h, _S_threshold).
_RUN = 16


class Block(NamedTuple):
    """Memory in use from step ``first`` to ``last``, both included."""

    first: int
    last: int
    size_bytes: int


def packed_bytes(blocks: Sequence[Block]) -> int:
    """The size of OpenVINO's block for these tensors. Of the steps only their order counts."""
    units = [b._replace(size_bytes=-(-b.size_bytes // _ALIGNMENT_BYTES)) for b in sorted(blocks) if b.size_bytes > 0]
    placed: list[tuple[Block, int]] = []
    for block in largest_first(units):
        place = 0
        beside = ((at, b.size_bytes) for b, at in placed if b.first <= block.last and block.first <= b.last)
        for low, size in sorted(beside):
            if low < place + block.size_bytes and place < low + size:
                place = low + size
        placed.append((block, place))
    return _ALIGNMENT_BYTES * max((block.size_bytes + place for block, place in placed), default=0)


def largest_first(blocks: Sequence[Block]) -> list[Block]:
    """Sorted by size as ``std::sort`` of libstdc++ does: blocks of one size come out in an order of its own.

    That is introsort (Musser 1997): quicksort around the median of three, and an insertion sort over all at the end.
    Its way out where quicksort goes too deep, a heapsort, is not followed: inputs that need it are made on purpose.
    """
    found = list(blocks)
    _quicksort(found)
    for at in range(1, len(found)):
        block, to = found[at], at
        if at < _RUN and block.size_bytes > found[0].size_bytes:
            to = 0
        while to > 0 and block.size_bytes > found[to - 1].size_bytes:
            to -= 1
        found[to + 1 : at + 1] = found[to:at]
        found[to] = block
    return found


def _quicksort(found: list[Block]) -> None:
    """Down to runs of `_RUN` blocks."""

    def before(one: int, other: int) -> bool:
        return found[one].size_bytes > found[other].size_bytes

    waiting = [(0, len(found), 2 * len(found).bit_length() - 2)]
    while waiting:
        first, last, depth = waiting.pop()
        if last - first <= _RUN or depth == 0:
            continue
        a, b, c = first + 1, first + (last - first) // 2, last - 1
        low, high = (a, b) if before(a, b) else (b, a)
        median = high if before(high, c) else c if before(low, c) else low
        found[first], found[median] = found[median], found[first]
        left, right = first + 1, last
        while True:
            while before(left, first):
                left += 1
            right -= 1
            while before(first, right):
                right -= 1
            if left >= right:
                break
            found[left], found[right] = found[right], found[left]
            left += 1
        waiting += [(first, left, depth - 1), (left, last, depth - 1)]
