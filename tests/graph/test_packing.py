from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit.graph.packing import Block, largest_first, packed_bytes

# What std::sort of libstdc++ (g++ 12, -O2) makes of 40 sizes, the largest first: the places that they had.
SIZES = [3, 1, 2, 2, 3, 1, 1, 3, 2, 1] * 4
# fmt: off
PLACES = [
    0, 27, 30, 24, 20, 17, 34, 14, 10, 7, 37, 4, 32, 28, 2, 3, 23, 22, 18, 38,
    33, 13, 12, 8, 36, 31, 35, 29, 39, 26, 25, 21, 19, 16, 15, 11, 9, 6, 5, 1,
]
# fmt: on
steps = st.integers(0, 12)
blocks = st.builds(lambda a, b, size: Block(min(a, b), max(a, b), size), steps, steps, st.integers(1, 300))


@given(st.lists(blocks, max_size=60))
def test_between_the_most_that_is_live_and_sharing_nothing(found: list[Block]) -> None:
    rounded = [block._replace(size_bytes=-(-block.size_bytes // 32) * 32) for block in found]
    live = max((sum(b.size_bytes for b in rounded if b.first <= at <= b.last) for at in range(13)), default=0)
    assert live <= packed_bytes(found) <= sum(block.size_bytes for block in rounded)
    assert packed_bytes(list(reversed(found))) == packed_bytes(found)


@given(st.lists(blocks, max_size=80))
def test_sorting_loses_nothing_and_is_by_size(found: list[Block]) -> None:
    made = largest_first(found)
    assert sorted(made) == sorted(found)
    assert [block.size_bytes for block in made] == sorted((block.size_bytes for block in found), reverse=True)


def test_blocks_of_one_size_come_in_the_order_of_the_cpp_library() -> None:
    made = largest_first([Block(place, place, size) for place, size in enumerate(SIZES)])
    assert [block.first for block in made] == PLACES
    few = largest_first([Block(place, place, size) for place, size in enumerate(SIZES[:16])])
    assert few == sorted(few, key=lambda block: (-block.size_bytes, block.first))  # up to 16 it keeps their order


def test_a_hole_is_left_where_blocks_must_not_move() -> None:
    found = [Block(0, 4, 96), Block(1, 1, 128), Block(2, 4, 96), Block(2, 4, 64)]
    assert packed_bytes(found) == 288  # and no more than 256 are live at once
    assert packed_bytes([Block(0, 0, 33)]) == 64  # in units of 32 bytes
    assert packed_bytes([]) == 0
