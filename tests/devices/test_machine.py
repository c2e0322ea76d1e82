"""What the runners read of a machine, from files as boards have them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.runner_modules import load

machine = load("machine")
energy = load("energy")

TICKS = os.sysconf("SC_CLK_TCK")


def board(root: Path, files: Mapping[str, object]) -> str:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return str(root)


def cpu(core: int, name: str) -> str:
    return f"sys/devices/system/cpu/cpu{core}/{name}"


def stat(*cores: tuple[int, ...]) -> str:
    """/proc/stat: for each core user, nice, system, idle, iowait, irq, softirq, steal; the guest's are within user."""
    rows = [f"cpu{core} " + " ".join(map(str, (*fields, 7, 3))) for core, fields in enumerate(cores)]
    return "\n".join(["cpu  9 9 9 9 9 9 9 9 9 9", *rows, "intr 5 0 0", "ctxt 17"])


def test_big_cores_come_first_then_whole_ones(tmp_path: Path) -> None:
    clocks = [1416000] * 4 + [1800000] * 2
    rk3399 = board(tmp_path / "rk", {cpu(c, "cpufreq/cpuinfo_max_freq"): clock for c, clock in enumerate(clocks)})
    assert machine.fastest_cores(1, range(6), rk3399) == [4]
    assert machine.fastest_cores(2, range(6), rk3399) == [4, 5]
    assert machine.fastest_cores(3, range(6), rk3399) == [0, 4, 5]
    assert machine.fastest_cores(2, {0, 1, 5}, rk3399) == [0, 5], "cores that are not ours stay out of it"
    assert machine.fastest_cores(9, range(6), rk3399) == list(range(6))
    siblings = {cpu(c, "topology/thread_siblings_list"): f"{c % 2},{c % 2 + 2}" for c in range(4)}
    assert machine.fastest_cores(2, range(4), board(tmp_path / "smt", siblings)) == [0, 1]
    assert machine.fastest_cores(2, [0, 2, 3], board(tmp_path / "smt", siblings)) == [0, 3]
    capacities = {cpu(c, "cpu_capacity"): 400 + 600 * (c == 2) for c in range(4)}
    assert machine.fastest_cores(1, range(4), board(tmp_path / "arm", capacities)) == [2]
    assert machine.fastest_cores(2, range(4), str(tmp_path / "nothing")) == [0, 1]


def test_a_board_is_called_what_its_device_tree_says(tmp_path: Path) -> None:
    """As on a Jetson Orin Nano, whose cores are called like those of every other Jetson."""
    cores = {"proc/cpuinfo": "processor : 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)"}
    assert machine.cpu_name(board(tmp_path / "plain", cores)) == "ARMv8 Processor rev 1 (v8l)"
    named = {**cores, "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0"}
    assert machine.cpu_name(board(tmp_path / "jetson", named)) == "NVIDIA Jetson Orin Nano Developer Kit"


def test_threads_are_pinned_and_let_go() -> None:
    before = os.sched_getaffinity(0)
    with machine.pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores)
        assert len(cores) == 1
        with machine.pinned(1) as inner:
            assert inner == cores
    assert os.sched_getaffinity(0) == before


@given(mine=st.integers(0, 5000), others=st.integers(0, 5000), idle=st.integers(0, 5000), stolen=st.integers(0, 50))
def test_foreign_time_is_what_is_busy_and_not_ours(mine: int, others: int, idle: int, stolen: int) -> None:
    """Ticks of one core; a tick is no evidence."""
    total = mine + others + idle + stolen
    before = {"total": 1.5, "busy": 1.0, "stolen": 0.0}
    after = {"total": 1.5 + total / TICKS, "busy": 1.0 + (total - idle) / TICKS, "stolen": stolen / TICKS}
    found = machine.foreign_share(before, after, mine / TICKS, 1)
    expected = max(0, others + stolen - 1) / total if total else 0.0
    assert found == pytest.approx(expected, abs=1e-9)


def test_cpu_times_of_the_cores_that_count(tmp_path: Path) -> None:
    root = board(tmp_path, {"proc/stat": stat((100, 10, 20, 300, 5, 1, 2, 4), (0, 0, 0, 442, 0, 0, 0, 0))})
    assert machine.cpu_times_s([0], root) == {"total": 442 / TICKS, "busy": 137 / TICKS, "stolen": 4 / TICKS}
    assert machine.cpu_times_s([0, 1], root) == {"total": 884 / TICKS, "busy": 137 / TICKS, "stolen": 4 / TICKS}
    assert machine.cpu_times_s([0, 2], root) is None
    assert machine.cpu_times_s([], root) is None
    for broken in ("", "cpu0 1 2 3", "nothing here"):
        assert machine.cpu_times_s([0], board(tmp_path / "broken", {"proc/stat": broken})) is None


def test_a_window_in_which_others_ran_and_the_cpu_was_throttled(tmp_path: Path) -> None:
    counts = {cpu(0, f"thermal_throttle/{name}_throttle_count"): 3 for name in ("core", "package")}
    calm = (0, 0, 0, 0, 0, 0, 0, 0)
    clock = {cpu(0, "cpufreq/scaling_cur_freq"): 1800000}
    root = board(tmp_path, {"proc/stat": stat(calm), **counts, **clock})
    watch = machine.Watch([0], root)
    assert (watch.counts_load, watch.counts_waits, watch.tells_throttling) == (True, False, True)
    board(tmp_path, {"proc/stat": stat((0, 400, 0, 500, 0, 0, 0, 100))})
    found = watch.end_window()
    assert found["foreign"] == pytest.approx(0.5, abs=0.02)
    assert found["stolen"] == pytest.approx(0.1, abs=0.002)
    assert found["throttled"] is False
    watch.start_window()
    board(tmp_path, {"proc/stat": stat((0, 400, 0, 1500, 0, 0, 0, 100)), next(iter(counts)): 4})
    found = watch.end_window()
    assert (found["foreign"], found["throttled"]) == (0.0, True)
    assert watch.other_load == pytest.approx(0.25, abs=0.01)
    assert watch.clocks_mhz == [1800.0, 1800.0]


@pytest.mark.parametrize(
    ("bits", "now"), [("0", False), ("50000", False), ("50005", True), ("8", True), ("junk", None)]
)
def test_a_raspberry_pi_tells_of_heat_and_low_voltage(bits: str, now: bool | None, tmp_path: Path) -> None:
    root = board(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": bits})
    assert machine.firmware_throttles(root) is now
    assert machine.firmware_throttles(str(tmp_path / "elsewhere")) is None


def test_facts_of_a_board_and_of_one_that_tells_nothing(tmp_path: Path) -> None:
    root = board(
        tmp_path,
        {
            "proc/cpuinfo": "processor : 0\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4",
            "sys/class/thermal/thermal_zone0/temp": 51234,
            "sys/class/thermal/thermal_zone1/temp": -40,
            "sys/class/thermal/thermal_zone2/temp": "not a number",
            "var/lib/nvpmodel/status": "pmode:0002",
            **{cpu(c, "cpufreq/scaling_governor"): "ondemand" for c in (0, 1)},
            **{cpu(c, "cpufreq/scaling_cur_freq"): 1500000 - 900000 * c for c in (0, 1)},
            **{cpu(c, "cpufreq/cpuinfo_max_freq"): 1500000 for c in (0, 1)},
        },
    )
    facts = machine.device_facts([0, 1], root)
    known = {key: facts[key] for key in ("cpu", "governor", "power_mode", "clock_mhz", "temperature_c")}
    assert known == {
        "cpu": "Raspberry Pi 4 Model B Rev 1.4",
        "governor": "ondemand",
        "power_mode": "nvpmodel 0002",
        "clock_mhz": 600.0,
        "temperature_c": 51.234,
    }
    silent = machine.device_facts([0], str(tmp_path / "nothing"))
    for key in ("governor", "power_mode", "clock_mhz", "max_clock_mhz", "temperature_c"):
        assert silent[key] is None


@pytest.mark.slow
def test_a_real_disturber_is_seen_by_both_measures() -> None:
    """Another process on the same core: half the time is its, and we wait for as long."""
    with machine.pinned(1) as cores:
        watch = machine.Watch(cores)
        if not watch.counts_load or not watch.counts_waits:
            pytest.skip("this kernel counts neither load nor waits")
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:  # inherits the core
            try:
                time.sleep(0.3)
                watch.start_window()
                end = time.perf_counter() + 1.0
                while time.perf_counter() < end:
                    pass
                waited, found = watch.end_round(), watch.end_window()
            finally:
                other.kill()
        assert found["foreign"] > 0.25
        assert waited > 0.25


# --- energy ----------------------------------------------------------------------------------------------------------


def test_rapl_adds_packages_and_memory_and_wraps(tmp_path: Path) -> None:
    zones = {
        "intel-rapl:0": ("package-0", 900, 1000),
        "intel-rapl:0:0": ("core", 5, 1000),
        "intel-rapl:0:1": ("dram", 100, 500),
        "intel-rapl:1": ("psys", 1, 1000),
    }
    files: dict[str, object] = {}
    for zone, (name, uj, most) in zones.items():
        folder = f"sys/class/powercap/{zone}/"
        files |= {folder + "name": name, folder + "energy_uj": uj, folder + "max_energy_range_uj": most}
    root = board(tmp_path, files)
    rails = energy.open_rails(root)
    assert rails.source == "RAPL package-0+dram"
    rails.start()
    later = {"intel-rapl:0": 50, "intel-rapl:0:1": 130}
    board(tmp_path, {f"sys/class/powercap/{zone}/energy_uj": uj for zone, uj in later.items()})
    assert rails.stop_j() == pytest.approx((150 + 30) / 1e6)


@given(before=st.integers(0, 999), spent=st.integers(0, 999))
def test_a_counter_that_wraps_loses_nothing(before: int, spent: int) -> None:
    assert energy.spent_uj(before, (before + spent) % 1000, 1000) == spent


def test_what_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    with pytest.raises(energy.NoRails, match="no power rails"):
        energy.open_rails(str(tmp_path))
    folder = "sys/class/powercap/intel-rapl:0/"
    root = board(tmp_path, {folder + "name": "package-0", folder + "energy_uj": "", folder + "max_energy_range_uj": 1})
    with pytest.raises(energy.NoRails, match="permission denied"):
        energy.open_rails(root)


def test_jetson_sensors_old_and_new(tmp_path: Path) -> None:
    folder = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/"
    labels = {1: "VDD_IN", 2: "VDD_CPU_GPU_CV", 3: "VDD_SOC"}
    files: dict[str, object] = {}
    for number, label in labels.items():
        files |= {folder + f"in{number}_label": label, folder + f"in{number}_input": 5000 * number}
        files |= {folder + f"curr{number}_input": 800}
    whole = energy.open_rails(board(tmp_path / "orin", files))
    assert (whole.source, whole.power_w()) == ("INA3221 VDD_IN", pytest.approx(4.0))
    parts = energy.open_rails(board(tmp_path / "agx", {**files, folder + "in1_label": "NC"}))
    assert (parts.source, parts.power_w()) == ("INA3221 VDD_CPU_GPU_CV+VDD_SOC", pytest.approx(20.0))
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/"
    nano = {folder + "rail_name_0": "POM_5V_IN", folder + "in_power0_input": 2500}
    rails = energy.open_rails(board(tmp_path / "nano", nano))
    rails.start()
    time.sleep(0.1)
    assert rails.stop_j() == pytest.approx(0.25, rel=0.5)


def test_energy_of_an_inference_is_above_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board of 2 W that takes 6 W while it works: 4 W of an inference of some 10 ms are some 40 mJ."""
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/"
    root = board(tmp_path, {folder + "rail_name_0": "POM_5V_IN", folder + "in_power0_input": 2000})

    seconds: list[float] = []

    class Contestant:
        name = "float"

        def run(self) -> None:
            began = time.perf_counter()
            if not seconds:
                board(tmp_path, {folder + "in_power0_input": 6000})
            time.sleep(0.01)
            seconds.append(time.perf_counter() - began)

    monkeypatch.setattr(energy, "BLOCK_S", 0.2)
    found, rails = energy.measure([Contestant()], root)
    assert rails == {"source": "INA3221 POM_5V_IN", "idle_w": pytest.approx(2.0, rel=0.1)}
    assert found["float"]["value"] == pytest.approx(4000 * sum(seconds) / len(seconds), rel=0.3)


@pytest.mark.parametrize(
    ("processor", "kernel", "is_emulated"),
    [
        ("aarch64", "aarch64", False),
        ("x86_64", "x86_64", False),
        ("armv8l", "aarch64", False),  # 32-bit programs on a 64-bit system
        ("i686", "x86_64", False),
        ("aarch64", "x86_64", True),
        ("armv7l", "x86_64", True),
        ("x86_64", "aarch64", True),
        ("aarch64", None, False),  # before Linux 6.1 nobody tells
    ],
)
def test_an_emulated_processor_shows_in_the_kernel_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: str, kernel: str | None, is_emulated: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: processor)
    root = board(tmp_path, {} if kernel is None else {"proc/sys/kernel/arch": kernel})
    assert machine.emulated(root) is is_emulated
    assert machine.device_facts([0], root)["emulated"] is is_emulated
