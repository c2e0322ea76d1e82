"""A board whose costs are known is measured: the fit finds them, and says how sure it is."""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.cost import micro
from edgekit.cost.board import Timed, channel_step, fit_costs, total_features, with_facts
from edgekit.cost.profile import predict_work, units
from edgekit.cost.work import FEATURES, Work, work_of
from edgekit.entries import DeviceProfile, Memory, Processor
from edgekit.graph import load
from edgekit.types import Kind, Precision

FP32, INT8 = Precision.FP32, Precision.INT8
PART = Processor("cores", "cpu", "core", {FP32: 50.0, INT8: 150.0}, 2)
BOARD = DeviceProfile("board", "", "", memory=Memory(20.0, (1024,)), processors=(PART,))
TRUTH = np.array([0.05, 0.004, 0.003, 1.3, 2.2, 1.5, 4.0, 2.5, 1.7, 2.0, 3.0, 1.4, 1.6])


@functools.cache
def works() -> dict[str, tuple[Work, ...]]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in list(micro.NETWORKS)[::3]:
            if "384" not in name and "256" not in name:  # the large ones take their time
                onnx.save(micro.build(name), Path(folder) / "m.onnx")
                found[name] = work_of(load(Path(folder) / "m.onnx"))
    return found


def timed(noise: float = 0.0) -> list[Timed]:
    rng = np.random.default_rng(1)
    rows = []
    for name, work in works().items():
        for precision in (FP32, INT8):
            one = Timed(name, precision, work, 0, 1.0)
            ms = float(total_features(one, units(BOARD, PART, precision, 1)) @ TRUTH)
            rows.append(Timed(name, precision, work, 0, ms * math.exp(noise * rng.standard_normal())))
    return rows


@pytest.mark.slow
def test_known_costs_are_found_again() -> None:
    rows = timed(noise=0.05)
    fitted = fit_costs(BOARD, "openvino", 1, rows, "on a made-up board")
    assert [cost.precision for cost in fitted.costs] == [FP32, INT8]
    board = DeviceProfile("board", "", "", memory=BOARD.memory, processors=(PART,), costs=fitted.costs)
    net = [Work(f"l{i}", "conv3x3", 10**8, 3 * 10**5, 10**5, 3 * 10**5) for i in range(4)]
    for precision in (FP32, INT8):
        truth = float(
            total_features(Timed("", precision, tuple(net), 0, 1.0), units(BOARD, PART, precision, 1)) @ TRUTH
        )
        figure = predict_work(net, {one.layer: precision for one in net}, board, "openvino", 1)
        assert figure.kind is Kind.PREDICTED
        assert figure.value == pytest.approx(truth, rel=0.12)
        assert figure.low < truth < figure.high
        assert "made-up board; each left out in turn: median error" in figure.source


def test_facts_that_are_known_stay_and_the_others_are_measured() -> None:
    rows = [
        Timed("a", FP32, (Work("a", "conv", 10**8, 10**5, 10**6, 10**5),), 0, 2.0),
        Timed("a", INT8, (Work("a", "conv", 10**8, 10**5, 10**6, 10**5),), 0, 1.0),
    ]
    new = with_facts(DeviceProfile("board", "", ""), rows, "Some CPU", 4, 2)
    part = new.part("cpu")
    assert part.name == "Some CPU"
    assert part.cores == 4
    assert part.peak_gmacs == {FP32: 100.0, INT8: 200.0}  # 50 and 100 on two of four cores
    assert new.memory.bandwidth_gbs == pytest.approx(2.4)  # 1.2e6 elements of 4 bytes in 2 ms
    known = DeviceProfile("board", "", "", memory=Memory(9.0, ()), processors=(Processor("x", "cpu", "y", {FP32: 7}),))
    kept = with_facts(known, rows, "Some CPU", 4, 2)
    assert kept.memory == known.memory
    assert kept.part("cpu").peak_gmacs == {FP32: 7, INT8: 200.0}


@given(st.sampled_from([2, 4, 8, 16, 32]), st.floats(0.8, 2.2), st.floats(0.1, 10))
def test_a_step_is_found(step: int, power: float, scale: float) -> None:
    rng = np.random.default_rng(step)
    latency = {
        count: scale * (math.ceil(count / step) * step) ** power * math.exp(0.003 * rng.standard_normal())
        for count in micro.STEP_CHANNELS
    }
    assert channel_step(latency) == step


@given(st.floats(0.8, 2.2))
def test_smooth_growth_has_no_step(power: float) -> None:
    rng = np.random.default_rng(0)
    latency = {count: count**power * math.exp(0.01 * rng.standard_normal()) for count in micro.STEP_CHANNELS}
    assert channel_step(latency) in (None, 1)


def test_what_int8_reads_of_a_float_input_is_counted() -> None:
    work = (Work("a", "conv", 10**8, 10**5, 10**6, 10**5),)
    given_units = units(BOARD, PART, INT8, 1)
    more = total_features(Timed("a", INT8, work, 10**6, 1.0), given_units)
    less = total_features(Timed("a", INT8, work, 0, 1.0), given_units)
    place = FEATURES.index("activation_bytes")
    assert (more - less)[place] == pytest.approx(5e6 / given_units.bytes_per_ms)
