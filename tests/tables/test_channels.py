from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.graph.channels import ChannelGroup
from edgekit.tables.channels import RATIOS, keep_counts


def group(channels: int, width: int = 1) -> ChannelGroup:
    return ChannelGroup("conv", channels, width, ("conv",), (), False)


@pytest.mark.parametrize(
    ("channels", "width", "step", "counts"),
    [
        (128, 1, 16, (112, 96, 80, 64)),
        (24, 1, 16, (16,)),  # 24 take as long as 32 do
        (16, 1, 16, ()),
        (17, 1, 16, (16,)),
        (12, 32, 16, (10, 9, 7, 6)),  # attention heads of 32 channels
        (64, 1, 1, (56, 48, 40, 32)),
        (2, 8, 16, ()),
    ],
)
def test_counts_fill_the_steps_of_the_device(channels: int, width: int, step: int, counts: tuple[int, ...]) -> None:
    assert keep_counts(group(channels, width), step) == counts


@given(st.integers(1, 2000), st.integers(1, 64), st.sampled_from([1, 4, 8, 16, 32]))
def test_every_count_saves_a_step(channels: int, width: int, step: int) -> None:
    counts = keep_counts(group(channels, width), step)
    assert len(counts) <= len(RATIOS)
    assert list(counts) == sorted(set(counts), reverse=True)
    for count in counts:
        assert 1 <= count < channels
        assert -(-count * width // step) < -(-channels * width // step)
