"""What timed kernels say of others: exact where they were timed, nothing far from them all, and honest in between."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import catalog
from edgekit.backends import ExecutedNode
from edgekit.cost import micro
from edgekit.cost.kernels import Kernel, Surface, executed_together, kernel_of, merged, parse, split
from edgekit.cost.work import Shape, Work, work_of
from edgekit.graph import load

sizes = st.integers(1, 4096)
kernels = st.builds(
    Kernel,
    kind=st.sampled_from(["conv3x3", "pointwise", "elementwise"]),
    op=st.sampled_from(["Conv", "Softmax", "ConvTranspose"]),
    shape=st.builds(Shape, *[sizes] * 7),
    function=st.integers(0, 3),
    latency_ms=st.floats(1e-4, 1e3),
    factor=st.floats(1e-2, 1e2),
    seen=st.integers(1, 9),
)


def pointwise(channels: int, factor: float, seen: int = 1) -> Kernel:
    return Kernel("pointwise", "Conv", Shape(channels, channels, 1, 1, 1, 28, 28), 0, 1.0, factor, seen)


@given(kernels)
def test_a_line_is_read_back(kernel: Kernel) -> None:
    again = parse(str(kernel))
    assert again == replace(kernel, latency_ms=again.latency_ms, factor=again.factor)
    assert again.latency_ms == pytest.approx(kernel.latency_ms, rel=1e-3)
    assert again.factor == pytest.approx(kernel.factor, rel=1e-3)


COSTS = next(cost for cost in catalog.device_profile("raspberry-pi-4").costs)


@given(kernels)
def test_a_profile_takes_every_such_line(kernel: Kernel) -> None:
    assert replace(COSTS, kernels=(str(kernel),)).kernels == (str(kernel),)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "conv Conv 1 2 3",
        "conv Conv 1 2 3 4 5 6 0 0 1.0 1.0 1",
        "conv Conv 1 2 3 4 5 6 7 0 nan 1.0 1",
        "conv Conv 1 2 3 4 5 6 7 0 1e999 1.0 1",
        f"conv Conv 1 2 3 4 5 6 7 0 {'9' * 400} 1.0 1",
        "conv Conv 1 2 3 4 5 6 7 0 0.0 1.0 1",
    ],
)
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match="kernels: must be written by `edgekit profile`"):
        replace(COSTS, kernels=(line,))


def test_more_kernels_than_a_profile_has_are_refused() -> None:
    """What they say takes memory by their square."""
    line = str(pointwise(64, 2.0))
    assert len(replace(COSTS, kernels=(line,) * 5000).kernels) == 5000
    with pytest.raises(ValueError, match="kernels: must not be more than 5000"):
        replace(COSTS, kernels=(line,) * 5001)


def test_near_what_was_timed_it_says_so_and_far_from_it_nothing() -> None:
    learnt = Surface([pointwise(64, 2.0, 9), pointwise(72, 2.0, 9), pointwise(80, 2.0, 9)])
    near, far, other = (
        pointwise(72, 1.0),
        replace(pointwise(72, 1.0), kind="depthwise"),
        replace(pointwise(72, 1.0), kind="elementwise", op="Add"),
    )
    logs, covariance = learnt.log_factors([near, far, other])
    assert logs[0] == pytest.approx(math.log(2.0), abs=0.05)
    assert logs[1:] == pytest.approx([0.0, 0.0])
    assert covariance[0, 0] < 0.02 < 0.5 < covariance[1, 1]


def test_leaving_out_is_learning_without() -> None:
    rng = np.random.default_rng(0)
    all_kernels = [pointwise(8 * n, float(rng.uniform(0.5, 2))) for n in range(1, 30)]
    logs, covariance = Surface(all_kernels).left_out([3, 4, 20])
    rest = [one for place, one in enumerate(all_kernels) if place not in (3, 4, 20)]
    wanted, _ = Surface(rest).log_factors([all_kernels[place] for place in (3, 4, 20)])
    assert logs == pytest.approx(wanted, abs=1e-6)
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_more_often_timed_counts_like_as_many() -> None:
    repeated = Surface([pointwise(64, 2.0)] * 3 + [pointwise(128, 0.5)])
    once = Surface(list(merged([pointwise(64, 2.0)] * 3 + [pointwise(128, 0.5)])))
    asked = [pointwise(96, 1.0), pointwise(64, 1.0)]
    assert repeated.log_factors(asked)[0] == pytest.approx(once.log_factors(asked)[0], abs=1e-6)


def test_what_ran_as_one_is_shared_out_and_nothing_is_lost() -> None:
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(micro.build("attention/4x40x32"), Path(folder) / "m.onnx")
        work = work_of(load(Path(folder) / "m.onnx"))
    first, softmax = work[0], next(one for one in work if one.op == "Softmax")
    last = work[-1]
    nodes = [
        ExecutedNode((), False, "f32", 0.25),  # a conversion before anything else
        ExecutedNode((), True, "f32", 1.0, (first.nodes[0], softmax.nodes[0])),
        ExecutedNode((), True, "f32", 2.0, (last.nodes[0],)),
        ExecutedNode((), False, "f32", 0.5),
    ]
    together = executed_together(work, nodes)
    assert sorted(place for members, _ in together for place in members) == list(range(len(work)))
    assert math.fsum(ms for _, ms in together) == 3.75
    assert (tuple(sorted((work.index(first), work.index(softmax)))), 1.25) in together
    expected = np.arange(1.0, len(work) + 1)
    assert split(together, expected)[work.index(first)] == pytest.approx(
        1.25 * expected[work.index(first)] / (expected[work.index(first)] + expected[work.index(softmax)])
    )


def test_without_names_what_follows_a_layer_belongs_to_it() -> None:
    work = (Work("a", "conv", 1, 1, 1, 1), Work("a", "pool", 0, 1, 0, 1), Work("b", "conv", 1, 1, 1, 1))
    nodes = [ExecutedNode(("a",), True, "f32", 1.0), ExecutedNode(("a",), False, "f32", 0.5)]
    assert executed_together(work, [*nodes, ExecutedNode(("b",), True, "f32", 2.0)]) == [((0, 1), 1.5), ((2,), 2.0)]


def test_the_dearest_function_counts() -> None:
    shape = Shape(8, 8, 1, 1, 1, 4, 4)
    plain = Work("a", "pointwise", 1024, 128, 64, 128, "Conv", shape, ("Add", "Relu"))
    assert kernel_of(plain).function == 0
    assert kernel_of(replace(plain, functions=("Mul", "Erf", "Add"))).function == 3
    assert kernel_of(plain, 3.0, 2.0).factor == 1.5
