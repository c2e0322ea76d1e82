"""The race: what warms up, which rounds count, and what it says of the conditions; with a real model too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgekit import conditions
from edgekit.backends import openvino
from edgekit.catalog import runner_files
from edgekit.devices.race import Raced
from edgekit.types import Kind, Precision
from tests.devices.runner_modules import load
from tests.quantized import case, host

measure = load("measure")
machine = load("machine")


def spin(milliseconds: float) -> None:
    end = time.perf_counter_ns() + milliseconds * 1e6
    while time.perf_counter_ns() < end:
        pass


def rounds_of(*disturbances: float) -> list[dict[str, Any]]:
    return [{"disturbance": value, "number": number} for number, value in enumerate(disturbances)]


class Disturbed:
    """A watch in whose windows others have a share of the time, by number of the window."""

    counts_waits, counts_load, tells_throttling, other_load = False, True, True, 0.5
    cores = (0,)

    def __init__(self, shares: list[float], clocks_mhz: list[float] | None = None) -> None:
        self.shares, self.clocks, self.clocks_mhz = shares, clocks_mhz, []
        self.windows = 0

    def start_window(self) -> None: ...

    def start_round(self) -> None: ...

    def end_round(self) -> float:
        return 0.9  # does not matter: waits are not counted

    def end_window(self) -> dict[str, Any]:
        share = self.shares[min(self.windows, len(self.shares) - 1)]
        if self.clocks:
            self.clocks_mhz.append(self.clocks[min(self.windows, len(self.clocks) - 1)])
        self.windows += 1
        return {"foreign": share, "stolen": 0.0, "throttled": False}


def contestants(*milliseconds: float) -> list[Any]:
    found = [measure.Contestant(str(ms), lambda ms=ms: (lambda: spin(ms), 0.0)) for ms in milliseconds]
    for one in found:
        one.settling, one.burst = 1, 2
    return found


def loading(name: str, milliseconds: list[float]) -> Any:
    """A contestant whose latency depends on how it was loaded, as where its memory lies does."""
    turns = iter(milliseconds)
    found = measure.Contestant(name, lambda: (partial(spin, next(turns)), 0.0))
    found.settling, found.burst, found.warm_up_s, found.stable = 1, 2, 0.0, True
    return found


def test_contestants_are_loaded_anew_so_that_no_lucky_load_decides() -> None:
    steady = loading("steady", [0.2] * 6)
    lucky = loading("lucky", [0.14, 0.2, 0.2, 0.21, 0.2, 0.2])
    rounds = measure.run_loads([steady, lucky], 1.2, 12, Disturbed([0.0]))
    assert {one["load"] for one in rounds} == set(range(6))
    row = measure.row_of(lucky, steady, rounds)
    assert row["ratio"] == pytest.approx(1.0, abs=0.04)
    assert row["ratio_ci_low"] < 0.85, "its range is that of the loads"
    assert row["ratio_ci_high"] > row["ratio"]


class Cached:
    """What takes its time again after another ran: less with each run, as caches fill."""

    last: Cached | None = None

    def __init__(self, warm_ms: float, cold_ms: float) -> None:
        self.warm_ms, self.cold_ms, self.runs = warm_ms, cold_ms, 0

    def run(self) -> None:
        self.runs = 0 if Cached.last is not self else self.runs + 1
        Cached.last = self
        spin(self.warm_ms + self.cold_ms * 0.5**self.runs)


def test_what_a_race_counts_is_the_pace_that_a_model_keeps() -> None:
    """With caches that the others emptied, a network of small weights looked faster beside a large one than it is."""
    models = [Cached(2.0, 3.0), Cached(1.0, 0.0)]
    racing = [measure.Contestant(str(i), lambda one=one: (one.run, 0.0)) for i, one in enumerate(models)]
    for one in racing:
        one.warm_up(0.2)
    rounds = measure.run_rounds(racing, 1.0, 10, Disturbed([0.0]))
    first, second = (measure.row_of(one, racing[0], [dict(one, load=0) for one in rounds]) for one in racing)
    assert first["latency_ms"]["p50"] == pytest.approx(2.0, rel=0.05)
    assert second["ratio"] == pytest.approx(0.5, rel=0.05)


def test_a_slow_model_settles_in_few_runs_and_a_quick_one_runs_often() -> None:
    assert measure.burst_of(0.01) == (8, 50)
    assert measure.burst_of(5.0) == (8, 5)
    assert measure.burst_of(30.0) == (3, 2)
    assert measure.burst_of(2000.0) == (1, 2)


def test_what_loads_slowly_is_loaded_less_often() -> None:
    slow = measure.Contestant("slow", lambda: (time.sleep(0.1) or (lambda: spin(0.1)), 0.0))
    assert measure.load_count([slow], 0.1) == 1
    assert measure.load_count([slow], 1.0) == 5
    assert measure.load_count([slow, slow], 60.0) == measure.LOADS


def test_stable_is_no_trend_and_noise_is_no_trend() -> None:
    assert not measure.is_stable([1.0] * 5), "too short to say"
    assert measure.is_stable([9.0, 7.0, *[1.0] * 6])
    assert measure.is_stable([1.0, 1.02, 0.99, 1.5, 1.0, 1.01]), "one outlier"
    assert not measure.is_stable([1.0, 0.95, 0.9, 0.86, 0.82, 0.78]), "still warming up"
    assert not measure.is_stable([1.0, 1.02, 1.04, 1.06, 1.08, 1.1]), "heating up"


def test_warming_up_waits_for_what_gets_faster_but_not_for_ever() -> None:
    began = time.perf_counter()

    def slower() -> None:  # for the first second, and for good in `never`
        spin(max(0.5, 6 - 5.5 * (time.perf_counter() - began)))

    warm = measure.Contestant("warm", lambda: (slower, 0.0))
    warm.warm_up()
    assert measure.WARM_UP_S < warm.warm_up_s <= measure.MOST_WARM_UP_S + 0.5
    never = measure.Contestant("never", lambda: (lambda: time.sleep(0.002 * 16 ** (time.perf_counter() - began)), 0.0))
    began = time.perf_counter()
    never.warm_up()
    assert not never.stable
    assert measure.MOST_WARM_UP_S <= never.warm_up_s < measure.MOST_WARM_UP_S + 1.0
    assert 2 <= never.burst <= 50


def test_calm_rounds_count_or_else_the_least_disturbed() -> None:
    calm = rounds_of(0.0, 0.3, 0.02, 1.4, 0.05)
    assert [one["number"] for one in measure.choose_rounds(calm, 3)] == [0, 2, 4]
    assert [one["number"] for one in measure.choose_rounds(calm, 4)] == [0, 1, 2, 4], "never fewer than asked for"
    noisy = rounds_of(0.5, 0.4, 0.9, 0.3, 0.8, 0.7)
    assert [one["number"] for one in measure.choose_rounds(noisy, 2)] == [0, 1, 3], "the better half, in time's order"
    assert len(measure.choose_rounds(rounds_of(0.9, 0.9), 10)) == 2


@pytest.mark.parametrize(
    ("shares", "longest", "disturbed"),
    [([0.0], 1.0, 0.0), ([0.6, 0.6, 0.6, 0.0], 1.4, 0.5), ([0.6], 2.0, 1.0)],
)
def test_a_disturbed_race_is_prolonged_within_bounds(
    shares: list[float], longest: float, disturbed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "PRECISE", -1.0)  # never: only time and disturbance decide
    began = time.perf_counter()
    rounds = measure.run_rounds(contestants(0.2, 0.4), 0.8, 10, Disturbed(shares))
    assert longest * 0.8 - 0.05 <= time.perf_counter() - began < longest * 0.8 + 0.6
    assert sum(not measure.is_calm(one) for one in rounds) / len(rounds) == pytest.approx(disturbed, abs=0.2)


def test_rounds_that_agree_end_a_race_early() -> None:
    began = time.perf_counter()
    rounds = measure.run_rounds(contestants(0.2, 0.4), 20.0, 10, Disturbed([0.0]))
    assert time.perf_counter() - began < 15
    assert len(rounds) >= 10


def test_a_clock_that_drops_is_throttling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PRECISE", -1.0)
    rounds = measure.run_rounds(contestants(0.2), 0.8, 10, Disturbed([0.0], [1800, 1750, 1200, 1800]))
    throttled = [one for one in rounds if one["throttled"]]
    assert 0 < len(throttled) < len(rounds) * 0.6
    assert not any(measure.is_calm(one) for one in throttled)


def test_a_process_of_its_own_tells_its_peak() -> None:
    def run() -> None:
        list(range(4_000_000))  # some 150 MB, gone again at once

    found, reason = measure.peak_memory(lambda: run)
    assert reason == ""
    assert 90e6 < found["peak_bytes"] - found["before_bytes"] < 400e6
    assert measure.peak_memory(lambda: lambda: os.kill(os.getpid(), 9)) == (None, "killed by signal 9")
    found, reason = measure.peak_memory(lambda: lambda: 1 / 0)
    assert (found, reason) == (None, "the model did not run by itself")


# --- conditions ------------------------------------------------------------------------------------------------------

CALM = conditions.Conditions(
    cores=(4, 5), governor="performance", clock_mhz=1790.0, max_clock_mhz=1800.0, temperature_before_c=41.2,
    temperature_after_c=48.0, rounds=210, discarded=3, disturbed=0.014, throttled=0.0, other_load=0.01,
)  # fmt: skip


def test_a_calm_race_is_one_line_and_no_warning() -> None:
    assert conditions.summary(CALM) == (
        "cores 4, 5, governor performance, 1790 MHz, 41 to 48 °C, 3 of 210 rounds discarded"
    )
    assert conditions.warnings(CALM) == ()


def test_what_is_off_is_said() -> None:
    found = conditions.warnings(replace(CALM, disturbed=0.37, least_disturbed=True, other_load=0.5))
    assert found[0].startswith("disturbed: 37 % of rounds (others had 50 % of")
    assert "throttled" in conditions.warnings(replace(CALM, throttled=0.2))[0]
    assert "600 of 1800 MHz" in conditions.warnings(replace(CALM, clock_mhz=600.0))[0]


def test_conditions_are_read_and_later_keys_ignored() -> None:
    row = {"cores": [1], "unstable": ["x"], "rounds": 5, "moon_phase": "full", "missing": {"throttled": "y"}}
    found = conditions.read_conditions(row)
    assert (found.cores, found.unstable, found.rounds) == ((1,), ("x",), 5)
    assert "throttling not readable" in conditions.summary(found)


# --- a real model ----------------------------------------------------------------------------------------------------


def race(tmp_path: Path, seconds: float, **arguments: Any) -> dict[str, Raced]:
    artifact = openvino.convert(case("conv_net").write({}), tmp_path / "net", Precision.FP32)
    return host().race({"float": artifact, "again": artifact}, seconds, **arguments)


def test_a_real_race_says_how_sure_it_is_and_under_what(tmp_path: Path) -> None:
    raced = race(tmp_path, 1.0, footprint=True)
    again = raced["again"]
    for row in raced.values():
        latency = row.latency_ms
        assert latency.p50_low is not None
        assert latency.p50_high is not None
        assert latency.p50_low <= latency.p50 <= latency.p50_high
        assert row.peak_memory_bytes is not None
        assert row.peak_memory_bytes.kind is Kind.MEASURED
        assert 20e6 < (row.peak_memory_bytes.value or 0) < 2e9
        assert row.energy_mj is not None
        assert row.energy_mj.kind is Kind.MEASURED or row.energy_mj.source
    assert again.ratio_ci_low is not None
    assert again.ratio_ci_high is not None
    assert again.ratio_ci_low <= again.ratio <= again.ratio_ci_high
    held = again.conditions
    assert held is not None
    assert len(held.cores) == 1
    assert held.rounds - held.discarded >= 10
    assert held.seconds > 0.2
    unknown = {"governor", "power_mode", "clock_mhz", "max_clock_mhz", "throttled", "other_load"}
    for name in unknown:
        assert (getattr(held, name) is None) == (name in held.missing), name
    assert raced["float"].energy_mj is not None


@pytest.mark.slow
def test_a_program_that_hogs_the_core_is_noticed_and_the_race_still_ends(tmp_path: Path) -> None:
    cores = machine.fastest_cores(1, os.sched_getaffinity(0))
    script = f"import os\nos.sched_setaffinity(0, {cores})\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            began = time.monotonic()
            held = race(tmp_path, 2.0)["float"].conditions
            assert time.monotonic() - began < 40
        finally:
            other.kill()
    assert held is not None
    assert list(held.cores) == cores
    assert held.other_load is not None
    assert held.other_load > 0.1, "half of the core, less where the machine has more to do than these two"
    assert held.disturbed > 0.1
    assert held.rounds - held.discarded >= 10, "the least disturbed rounds count where none is calm"


def test_the_runner_and_its_modules_stand_alone(tmp_path: Path) -> None:
    """Copied to an empty folder they run, leave nothing behind, and import nothing of edgekit."""
    for path in runner_files("openvino_runner.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-I", str(tmp_path / "openvino_runner.py"), "/dev/stdin"]
    done = subprocess.run(command, input='{"action": "probe"}', capture_output=True, text=True, check=True, cwd="/")
    assert {"governor", "temperature_c", "clock_mhz", "runtime"} <= set(json.loads(done.stdout)["device"])
    assert sorted(tmp_path.iterdir()) == before
    assert not any("edgekit" in path.read_text().split("import ")[-1] for path in before)
