"""Energy of an inference from the rails that a board lets itself be asked about: Intel's and AMD's RAPL counters, and
the INA3221 sensors of Jetson boards. `root` is a folder that stands for "/".
"""

import glob
import os
import re
import threading
import time

from machine import Watch, read_int, read_text
from quantiles import median

BLOCK_S = 1.0  # long beside the milliseconds in which the counters and sensors move
BLOCKS = 3
MOST_FOREIGN = 0.1  # rails carry everybody's energy: a block in which others ran more than that says nothing
SAMPLE_S = 0.02
NO_RAILS = "no power rails that can be read here (no RAPL, no INA3221)"
# Rails that carry the whole module; where there is none, the named rails are added up. VDD_IN is the total power of a
# Jetson module: https://forums.developer.nvidia.com/t/interpretation-of-jetson-nx-power-rail/200883
WHOLE = ("VDD_IN", "POM_5V_IN")


class NoRails(Exception):
    """Why there is nothing to read."""


class Rapl:
    """Counters of energy: packages and their memory, https://docs.kernel.org/power/powercap/powercap.html."""

    def __init__(self, root=""):
        folder = glob.escape(root) + "/sys/class/powercap/"
        self.rails = []
        for zone in sorted(glob.glob(folder + "*-rapl:*")):
            name = read_text(zone + "/name") or ""
            if re.fullmatch("package-[0-9]+(-die-[0-9]+)?|dram", name):
                self.rails.append((name, zone + "/energy_uj", read_int(zone + "/max_energy_range_uj") or 0))
        if not self.rails:
            raise NoRails(NO_RAILS)
        closed = [path for _, path, _ in self.rails if read_int(path) is None]
        if closed:
            raise NoRails("%s: permission denied (readable by root alone)" % closed[0])
        self.source = "RAPL " + "+".join(name for name, _, _ in self.rails)

    def start(self):
        self.before = [read_int(path) for _, path, _ in self.rails]

    def stop_j(self):
        """Joules since `start`; a counter that is smaller than it was began again from zero."""
        after = [read_int(path) for _, path, _ in self.rails]
        ranges = [most for _, _, most in self.rails]
        return sum(spent_uj(*row) for row in zip(self.before, after, ranges)) / 1e6


def spent_uj(before, after, most):
    return after - before if after >= before else after - before + most


class Ina3221:
    """Sensors of power: a thread asks them while the work runs, and the mean counts. Kernels since 5 offer them as
    hwmon (millivolts and milliamperes), the older ones of JetPack 4 as iio (milliwatts).
    """

    def __init__(self, root=""):
        folder = glob.escape(root) + "/sys/bus/i2c/drivers/ina3221*/*/"
        rails = {}
        for label in sorted(glob.glob(folder + "hwmon/hwmon*/in[1-3]_label")):
            volts = label[: -len("_label")] + "_input"
            amperes = os.path.join(os.path.dirname(label), "curr%s_input" % label[-len("1_label")])
            rails[read_text(label)] = (volts, amperes)
        for label in sorted(glob.glob(folder + "iio:device*/rail_name_[0-2]")):
            rails[read_text(label)] = (os.path.join(os.path.dirname(label), "in_power%s_input" % label[-1]),)
        named = {name: paths for name, paths in rails.items() if name and name != "NC"}
        whole = [name for name in WHOLE if name in named]
        self.rails = [named[name] for name in whole or named]
        if not self.rails:
            raise NoRails(NO_RAILS)
        self.source = "INA3221 " + "+".join(whole or named)
        if self.power_w() is None:
            raise NoRails("%s cannot be read" % self.rails[0][0])

    def power_w(self):
        total_w = 0.0
        for paths in self.rails:
            values = [read_int(path) for path in paths]
            if None in values:
                return None
            total_w += values[0] / 1e3 if len(values) == 1 else values[0] * values[1] / 1e6
        return total_w

    def start(self):
        self.began, self.powers_w, self.done = time.perf_counter(), [], threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self):
        while True:
            self.powers_w.append(self.power_w())
            if self.done.wait(SAMPLE_S):
                return

    def stop_j(self):
        passed_s = time.perf_counter() - self.began
        self.done.set()
        self.thread.join()
        powers_w = [power for power in self.powers_w if power is not None]
        return passed_s * sum(powers_w) / len(powers_w) if powers_w else 0.0


def open_rails(root=""):
    """Raises `NoRails` with the reason."""
    try:
        return Ina3221(root)
    except NoRails as sensors:
        try:
            return Rapl(root)
        except NoRails as counters:
            raise (counters if str(sensors) == NO_RAILS else sensors) from None


def measure(contestants, root=""):
    """Contestant -> {"value", "low", "high"}: millijoules of one inference above what the idle board takes, the median
    and the extremes of several blocks; and {"source", "idle_w"}. Raises `NoRails` with the reason for none.
    """
    rails = open_rails(root)
    idle_w = median([block_w(rails, lambda: time.sleep(BLOCK_S)) for _ in range(2)])
    found = {contestant.name: [] for contestant in contestants}
    cores = list(range(os.cpu_count() or 1))
    for _ in range(BLOCKS):
        for contestant in contestants:
            watch, count = Watch(cores, root), 0
            rails.start()
            began = time.perf_counter()
            while count == 0 or time.perf_counter() - began < BLOCK_S:
                contestant.run()
                count += 1
            passed_s = time.perf_counter() - began
            spent_j = rails.stop_j()
            if watch.end_window()["foreign"] <= MOST_FOREIGN:
                found[contestant.name].append((spent_j - idle_w * passed_s) * 1e3 / count)
    energies = {
        name: {"value": median(values), "low": min(values), "high": max(values)} if values else None
        for name, values in found.items()
    }
    return energies, {"source": rails.source, "idle_w": idle_w}


def block_w(rails, work):
    rails.start()
    began = time.perf_counter()
    work()
    passed_s = time.perf_counter() - began
    return rails.stop_j() / passed_s
