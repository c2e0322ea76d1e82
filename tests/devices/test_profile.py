"""What the runner makes of disturbed node times."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import numpy as np
import pytest

from tests.quantized import RUNNER

COMPILES, RUNS = 5, 16
SLICE_MS = 3.0


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("openvino_runner", RUNNER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("true_ms", [0.004, 0.02, 0.06, 0.3, 1.0])
@pytest.mark.parametrize("load", [0.0, 0.5])
def test_a_node_takes_what_it_takes_on_an_idle_machine(runner: ModuleType, true_ms: float, load: float) -> None:
    """``load``: the share of time that another program has, a time slice at a time. OpenVINO's counters as they are:
    the running mean, truncated to microseconds.
    """
    rng = np.random.default_rng(0)
    runs_ms, means_ms = [], []
    for _ in range(COMPILES):
        hit = rng.random(RUNS + 3) < load * true_ms / SLICE_MS
        single_us = 1e3 * (true_ms * rng.normal(1, 0.02, RUNS + 3) + hit * SLICE_MS)
        counts = np.arange(1, RUNS + 4)
        totals_ms = counts * (np.cumsum(single_us) // counts) / 1e3
        runs_ms += list(np.diff(totals_ms)[2:])
        means_ms.append((totals_ms[-1] - totals_ms[2]) / RUNS)
    assert runner.node_time_ms(runs_ms, means_ms) == pytest.approx(true_ms, rel=0.15, abs=0.001)
    if load and true_ms > 0.2:
        assert np.mean(means_ms) > 1.3 * true_ms, "the means alone would not do"


def test_a_node_that_never_ran_takes_nothing(runner: ModuleType) -> None:
    assert runner.node_time_ms([0.0], [0.0]) == 0.0
