from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from benchmarks import sensitivity as bench
from benchmarks.flats import find_flats, flat_shifts
from edgekit.compress.cures import shifted
from edgekit.compress.observers import choose_range
from edgekit.compress.qdq import apply_precisions, nearest_codes, quantization_points
from edgekit.compress.ranges import collect_ranges
from edgekit.compress.symmetric import around_zero
from edgekit.compress.weights import Codes
from edgekit.graph import to_bytes
from edgekit.types import Precision
from tests import zoo
from tests.quantized import Case, case, case_of, run

WIDTH = 48


@dataclass(frozen=True)
class Lines:
    """Samples [1, 3, 8, 48] that hold something on the left, and the same value everywhere to the right of it."""

    fills: Sequence[int]
    value: float = 0.3
    labels: None = None
    digest: str = "lines"

    def __len__(self) -> int:
        return len(self.fills)

    def sample(self, i: int) -> dict[str, np.ndarray]:
        x = np.full((1, 3, 8, WIDTH), self.value, np.float32)
        x[..., : self.fills[i]] = np.random.default_rng(i).standard_normal((1, 3, 8, self.fills[i]))
        return {"x": x}


def line_net() -> Case:
    """A pointwise convolution between two depthwise ones. x [1, 3, 8, 48] -> [1, 6, 8, 48]."""
    net = zoo.Net(5)
    y = net.input("x", [1, 3, 8, WIDTH])
    y = net.op("Relu", net.op("Conv", y, net.random(3, 1, 3, 3), net.random(3), pads=[1] * 4, group=3))
    y = net.op("Conv", y, net.random(6, 3, 1, 1), net.random(6))
    found = case_of(net.model([net.op("Conv", y, net.random(6, 1, 3, 3), net.random(6), pads=[1] * 4, group=6)]))
    seen = collect_ranges(found.graph, quantization_points(found.graph), Lines([16, 32]))
    return replace(found, ranges={name: choose_range(one, "mse") for name, one in seen.items()})


def errors(found: Case, names: Sequence[str], shifts: Mapping[str, np.ndarray], fill: int) -> np.ndarray:
    """What int8 of these layers changes in the outputs [channels, rows, columns] of a line."""
    sample = Lines([fill]).sample(0)
    graph = shifted(found.graph, {name: shifts[name] for name in names if name in shifts})
    model = apply_precisions(graph, dict.fromkeys(names, Precision.INT8), found.ranges)
    (ours,), (theirs,) = (run(to_bytes(one), sample).values() for one in (model, found.graph.model))
    return np.asarray((ours - theirs)[0], float)


@pytest.mark.parametrize("symmetric", [False, True])
def test_what_repeats_comes_out_as_in_float(symmetric: bool) -> None:
    found = line_net()
    if symmetric:
        found = replace(found, ranges={name: around_zero(one) for name, one in found.ranges.items()})
    flats = find_flats(found.graph, found.names, found.ranges, Lines([12, 20, 28]))
    shifts = flat_shifts(found.graph, flats, found.ranges)
    assert list(shifts) == found.names
    for names in ([found.names[-1]], found.names):
        before, after = (errors(found, names, one, 16)[:, 2:-2, 22:-3].mean(axis=(1, 2)) for one in ({}, shifts))
        assert np.abs(after).max() < 0.35 * np.abs(before).max()
    # Where nothing repeats, errors stay what they were but for a constant.
    plain, moved = (errors(found, found.names[-1:], one, 16)[:, :, :12] for one in ({}, shifts))
    assert (moved - plain).std(axis=(1, 2)) == pytest.approx(np.zeros(6), abs=1e-5)


def test_losses_of_layers_with_their_shifts() -> None:
    found, lines = line_net(), Lines([4, 6, 8, 10])
    flats = find_flats(found.graph, found.names, found.ranges, lines)
    shifts = flat_shifts(found.graph, flats, found.ranges)
    cases = [bench.Case(found.graph, tuple(found.names), found.ranges, lines, one) for one in ({}, shifts)]
    plain, moved = map(bench.by_edgekit, cases)
    assert sum(moved.values()) < 0.8 * sum(plain.values())


def test_chosen_codes_get_a_shift_of_their_own() -> None:
    found = line_net()
    flats = find_flats(found.graph, found.names, found.ranges, Lines([12, 20]))
    last = found.names[-1]
    nearest = nearest_codes(found.graph.model.graph, flats[last].product.weight, 0, Precision.INT8)
    assert np.array_equal(
        flat_shifts(found.graph, flats, found.ranges)[last],
        flat_shifts(found.graph, flats, found.ranges, {last: nearest})[last],
    )
    others = Codes(np.zeros_like(nearest.codes), nearest.scale)
    shift = flat_shifts(found.graph, flats, found.ranges, {last: others})[last]
    share = flats[last].counts / flats[last].counts.sum()
    weight = found.graph.model.graph.initializers[flats[last].product.weight].const_value
    assert weight is not None
    wanted = np.einsum("oc,ogc,g->o", weight.numpy().reshape(6, 9), flats[last].rows, share)
    assert shift == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", ["conv_net", "inverted_residual", "grouped_conv", "lstm"])
def test_nothing_repeats_in_noise(name: str) -> None:
    found = case(name)
    assert find_flats(found.graph, found.names, found.ranges, found.data) == {}


def test_little_that_repeats_does_not_count() -> None:
    found = line_net()
    first = found.names[:1]
    assert find_flats(found.graph, first, found.ranges, Lines([WIDTH - 4] * 3)) == {}
    assert list(find_flats(found.graph, first, found.ranges, Lines([WIDTH - 12] * 3))) == first
    assert find_flats(found.graph, [], found.ranges, Lines([4])) == {}
