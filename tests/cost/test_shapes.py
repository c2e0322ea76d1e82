from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.cost.shapes import ShapeProfile, ShapeTable, designs, fit_shapes
from edgekit.cost.table import CostTable
from edgekit.graph.channels import find_channels
from edgekit.graph.sizes import sizes_of
from edgekit.types import Precision
from tests.quantized import case

FP32 = Precision.FP32


@given(st.lists(st.integers(1, 5).map(lambda n: list(range(n, 0, -1))), min_size=1, max_size=20), st.integers(1, 12))
def test_every_offered_count_is_seen_about_equally_often(offered: list[list[int]], count: int) -> None:
    rows = designs(offered, count)
    assert len(rows) == count
    assert rows == designs(offered, count)
    for counts, column in zip(offered, zip(*rows, strict=True), strict=True):
        seen = Counter(column)
        assert set(seen) <= set(counts)
        assert all(abs(seen[c] - count / len(counts)) < 1 for c in counts)


@pytest.mark.parametrize("noise", [0.0, 0.03])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_planted_shares_predict_shapes_that_were_not_seen(noise: float, seed: int) -> None:
    graph = case("conv_net").graph
    channels = find_channels(graph)
    sizes = sizes_of(graph, channels)
    full = [group.channels for group in channels.groups]
    rng = np.random.default_rng(seed)
    planted = ShapeTable({layer.name: {FP32: tuple(rng.dirichlet(np.ones(4)))} for layer in graph.layers})
    latency = {layer.name: {FP32: float(rng.uniform(0.1, 2))} for layer in graph.layers}
    table = CostTable(FP32, dict.fromkeys(latency, FP32), latency, {FP32: 1.0}, 0.0, 0.1, "planted")

    def times(kept: tuple[int, ...]) -> dict[str, float]:
        return {
            name: latency[name][FP32] * planted.relative_time(name, FP32, layer, full).at(kept)
            for name, layer in sizes.layers.items()
        }

    offered = [[count, count * 3 // 4, count // 2] for count in full]
    profiles = [
        ShapeProfile(kept, table.floats, {n: t * (1 + noise * rng.standard_normal()) for n, t in times(kept).items()})
        for kept in designs(offered, 6)
    ]
    fitted = fit_shapes(sizes, full, table, profiles)
    for kept in (tuple(c // 4 * 3 for c in full), tuple(c // 2 for c in full), tuple(full)):
        for name, layer in sizes.layers.items():
            found = fitted.relative_time(name, FP32, layer, full).at(kept) * latency[name][FP32]
            assert found == pytest.approx(times(kept)[name], rel=0.04 if noise == 0 else 0.15)
    for row in fitted.shares.values():
        assert min(row[FP32]) >= 0
        assert sum(row[FP32]) == pytest.approx(1)


def test_pruned_layers_are_compared_with_the_whole_ones_of_their_own_run() -> None:
    """A device that was half as fast when shapes were profiled tells the same shares; a whole model in mixed precision
    tells nothing.
    """
    graph = case("conv_net").graph
    channels = find_channels(graph)
    sizes = sizes_of(graph, channels)
    full = tuple(group.channels for group in channels.groups)
    latency = {layer.name: {FP32: 1.0} for layer in graph.layers}
    table = CostTable(FP32, dict.fromkeys(latency, FP32), latency, {FP32: 1.0}, 0.0, 0.1, "planted")
    halved = tuple(count // 2 for count in full)

    def profile(kept: tuple[int, ...], factor: float) -> ShapeProfile:
        times = {name: factor * layer.outputs.at(kept) / layer.outputs.at(full) for name, layer in sizes.layers.items()}
        return ShapeProfile(kept, table.floats, times)

    usual = fit_shapes(sizes, full, table, [profile(full, 1), profile(halved, 1)])
    slower = fit_shapes(sizes, full, table, [profile(full, 2), profile(full, 9), profile(halved, 2)])
    assert usual.shares.keys() == slower.shares.keys() != set()
    for name, row in usual.shares.items():
        assert slower.shares[name][FP32] == pytest.approx(row[FP32])


def test_without_profiles_time_follows_the_multiply_accumulates() -> None:
    graph = case("conv_net").graph
    channels = find_channels(graph)
    sizes = sizes_of(graph, channels)
    full = [group.channels for group in channels.groups]
    halved = [count // 2 for count in full]
    for name, layer in sizes.layers.items():
        relative = ShapeTable({}).relative_time(name, FP32, layer, full)
        assert relative.at(full) == pytest.approx(1)
        assert relative.at(halved) == pytest.approx(layer.macs.at(halved) / layer.macs.at(full))
