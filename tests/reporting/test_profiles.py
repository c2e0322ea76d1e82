"""What `edgekit profile --diff` prints, and that it prints what changed."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from edgekit.cost.anchoring import re_anchor
from edgekit.cost.kernels import parse
from edgekit.cost.work import FEATURES
from edgekit.entries import Anchor, Costs, DeviceProfile, Memory, Processor
from edgekit.profiles.differences import ProfileDifference, compare
from edgekit.reporting.profiles import print_profile_difference
from edgekit.types import Precision

FP32, INT8 = Precision.FP32, Precision.INT8
COVARIANCE = tuple("0 " * i + "0.2" for i in range(len(FEATURES)))
COST = Costs(
    "tflite", "cpu", FP32, 12, "12 rows", dict.fromkeys(FEATURES, 2.0), COVARIANCE, 0.15, 1.7, ("conv", "matmul"),
    (1e6, 1e9), (1e4, 1e8), 4,
)  # fmt: skip
PART = Processor("four cores", "cpu", "core", {FP32: 30.0, INT8: 60.0}, 4)
OLD = DeviceProfile("board", "", "", (), 8, memory=Memory(10.0, ()), processors=(PART,), costs=(COST,))


def printed(found: ProfileDifference) -> str:
    out = io.StringIO()
    print_profile_difference(found, Console(file=out, width=110))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def test_the_same_is_said_to_be_the_same() -> None:
    found = compare(OLD, OLD, "shipped", "mine.toml")
    assert found.same
    assert printed(found).splitlines()[-1] == "no difference"


def test_what_changed_is_shown() -> None:
    own = replace(COST, rows=54, factors={**COST.factors, "depthwise": 6.0}, spread=0.1)
    new = replace(OLD, channel_step=16, costs=(own, replace(own, precision=INT8)))
    assert printed(compare(OLD, new, "shipped", "mine.toml")) == GOLDEN


def test_costs_relative_to_another_peak_are_no_change() -> None:
    """Twice the peak and twice the factors promise the same latency."""
    faster = replace(PART, peak_gmacs={FP32: 60.0, INT8: 60.0})
    macs = dict.fromkeys(FEATURES[3:-2], 4.0)
    new = replace(OLD, processors=(faster,), costs=(replace(COST, factors={**COST.factors, **macs}),))
    (cost,) = compare(OLD, new, "a", "b").costs
    assert cost.factor == cost.most_factor == 1
    assert compare(OLD, new, "a", "b").facts[0].name == "cpu.peak_gmacs.fp32"


def test_races_are_counted_and_applied() -> None:
    rows = [Anchor("tflite", "cpu", FP32, f"m{i}", 10.0, 13.0, "2026-01-01", 4) for i in range(9)]
    (cost,) = compare(OLD, re_anchor(OLD, rows), "a", "b").costs
    assert (cost.a.anchors, cost.b.anchors) == (0, 9)
    assert 1.2 < cost.factor < 1.3
    assert cost.b.reach < cost.a.reach


def test_kernels_that_both_timed_are_compared() -> None:
    sizes = "16 16 9 1 1 32 3"
    timed = [f"conv Conv {sizes}{i} 0 {ms} 1 1" for i, ms in enumerate((1.0, 2.0, 4.0))]
    again = [f"conv Conv {sizes}{i} 0 {ms} 1 1" for i, ms in enumerate((1.5, 2.4, 4.0))]
    lines = [str(parse(line)) for line in timed], [str(parse(line)) for line in again]
    old, new = (replace(OLD, costs=(replace(COST, kernels=tuple(kernels)),)) for kernels in lines)
    found = compare(old, new, "a", "b")
    assert (found.costs[0].a.kernels, found.costs[0].b.kernels) == (3, 3)
    assert found.costs[0].kernel_factor == pytest.approx(1.2)
    assert "  3, x1.2  " in printed(found)
    assert compare(OLD, new, "a", "b").costs[0].kernel_factor is None


GOLDEN = """\
device profile board
A  shipped
B  mine.toml
              A   B
channel_step  8  16

costs                            rows     races        90 % interval  latency  most changed
tflite cpu fp32, 4 threads    12 → 54         0  x/÷ 1.54 → x/÷ 1.47       x1  depthwise x3
tflite cpu int8, 4 threads  none → 54  none → 0      none → x/÷ 1.47
latency: what B predicts over what A does, for a network of the kinds that were measured"""
