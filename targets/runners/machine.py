"""What must be known of a machine to read a latency measured on it: cores, clocks, governor, temperature, throttling,
other load. Linux tells all of it in files; `root` is a folder that stands for "/". What cannot be read is `None`.
"""

import glob
import os
import platform
import sys
import time
from contextlib import contextmanager

CPUS = "/sys/devices/system/cpu/"
# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled: the lower bits are what is so now, those
# from 16 on what was so since the start.
PI_THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
PI_NOW = 0xF


def read_text(path, root=""):
    try:
        with open(root + path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def read_int(path, root="", base=10):
    try:
        return int(read_text(path, root) or "", base)
    except ValueError:
        return None


def cpu_name(root=""):
    """The board's name where its device tree has one: ARM's /proc/cpuinfo often names the core's architecture alone."""
    board = (read_text("/proc/device-tree/model", root) or "").strip("\0 \n")
    if board:
        return board
    for line in (read_text("/proc/cpuinfo", root) or "").splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def temperature_c(root=""):
    """Of the hottest zone."""
    zones = glob.glob(glob.escape(root) + "/sys/class/thermal/thermal_zone*/temp")
    millidegrees = [read_int(zone) for zone in zones]
    return max((value / 1000 for value in millidegrees if value is not None), default=None)


def clock_mhz(cores, root="", name="scaling_cur_freq"):
    """The slowest core's clock now, or another of the frequencies that cpufreq names."""
    found = [read_int("%scpu%d/cpufreq/%s" % (CPUS, core, name), root) for core in cores]
    return None if not found or None in found else min(found) / 1000


def governor(cores, root=""):
    found = {read_text("%scpu%d/cpufreq/scaling_governor" % (CPUS, core), root) for core in cores} - {None}
    return "+".join(sorted(found)) or None


def power_mode(cores, root=""):
    """Jetson's nvpmodel, the firmware's platform profile, or the CPU's energy preference: the first that there is."""
    status = read_text("/var/lib/nvpmodel/status", root)
    if status:
        return "nvpmodel " + status.rpartition(":")[2]
    first = "%scpu%d/cpufreq/energy_performance_preference" % (CPUS, cores[0] if cores else 0)
    return read_text("/sys/firmware/acpi/platform_profile", root) or read_text(first, root)


def emulated(root=""):
    """Whether this program's instructions are emulated (QEMU and its like): the kernel below is of another kind of
    processor. Linux tells since 6.1: Documentation/admin-guide/sysctl/kernel.rst, "arch".
    """
    kernel = read_text("/proc/sys/kernel/arch", root)
    return kernel is not None and is_arm(kernel) != is_arm(platform.machine())


def is_arm(name):
    return name.startswith(("arm", "aarch64"))


def require_real():
    """Ends the program where a time would be the emulator's."""
    if emulated():
        sys.exit("this machine emulates its processor: no time that it takes means anything")


def device_facts(cores=None, root=""):
    """What must be known to read a latency. `None` where not readable."""
    cores = allowed_cores() if cores is None else cores
    return {
        "cpu": cpu_name(root),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "emulated": emulated(root),
        "governor": governor(cores, root),
        "power_mode": power_mode(cores, root),
        "clock_mhz": clock_mhz(cores, root),
        "max_clock_mhz": clock_mhz(cores, root, "cpuinfo_max_freq"),
        "temperature_c": temperature_c(root),
        "load_1min": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def allowed_cores():
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def fastest_cores(count, allowed, root=""):
    """`count` of the allowed cores: the fastest by clock, then by the kernel's capacity (big.LITTLE), one thread of a
    physical core before the second of another, low numbers first.
    """

    def speed(core):
        clock = read_int("%scpu%d/cpufreq/cpuinfo_max_freq" % (CPUS, core), root) or 0
        return clock, read_int("%scpu%d/cpu_capacity" % (CPUS, core), root) or 0

    physical = {}
    for core in sorted(allowed):
        siblings = read_text("%scpu%d/topology/thread_siblings_list" % (CPUS, core), root) or str(core)
        physical.setdefault(siblings, []).append(core)
    turns = {core: turn for cores in physical.values() for turn, core in enumerate(cores)}
    ordered = sorted(allowed, key=lambda core: (turns[core], [-value for value in speed(core)], core))
    return sorted(ordered[: max(1, count)])


@contextmanager
def pinned(threads):
    """This thread, and all that it starts, on as many cores as it has threads. Yields the cores; none where the system
    does not let itself be told. To be entered before a runtime starts its threads.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield []
        return
    before = os.sched_getaffinity(0)
    cores = fastest_cores(threads, before)
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        cores = []
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


def cpu_times_s(cores, root=""):
    """{"total", "busy", "stolen"}: seconds since the start, summed over the cores. Stolen is what a hypervisor gave to
    others; it counts as busy. `None` where /proc/stat lacks a core.
    """
    rows = {}
    for line in (read_text("/proc/stat", root) or "").splitlines():
        name, _, rest = line.partition(" ")
        if name[:3] == "cpu" and name[3:].isdigit():
            # user nice system idle iowait irq softirq steal; guest time is within user and nice: man 5 proc_stat
            rows[int(name[3:])] = [int(field) for field in rest.split()[:8]]
    if not cores or any(len(rows.get(core, ())) < 8 for core in cores):
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    total = sum(sum(rows[core]) for core in cores)
    idle = sum(rows[core][3] + rows[core][4] for core in cores)
    return {"total": total / ticks, "busy": (total - idle) / ticks, "stolen": sum(rows[c][7] for c in cores) / ticks}


def foreign_share(before, after, own_s, cores):
    """Share of the cores' time that others had between two `cpu_times_s`; `own_s` is this process's part. A tick for
    each core is no evidence: the counters move in ticks.
    """
    total = after["total"] - before["total"]
    foreign = after["busy"] - before["busy"] - own_s - cores / os.sysconf("SC_CLK_TCK")
    return min(1.0, max(0.0, foreign / total)) if total > 0 else 0.0


def waits_ns(root=""):
    """Thread -> nanoseconds that it was ready to run and another had its core: Documentation/scheduler/sched-stats.rst.
    Empty where the kernel does not count.
    """
    found = {}
    for path in glob.iglob(glob.escape(root) + "/proc/self/task/*/schedstat"):
        fields = (read_text(path) or "").split()
        if len(fields) == 3 and int(fields[0]) > 0:  # a kernel that does not count says "0 0 0"
            found[path] = int(fields[1])
    return found


def throttle_count(cores, root=""):
    """How often these cores and their package were slowed for heat (x86); `None` where nobody counts."""
    names = ("core_throttle_count", "package_throttle_count")
    found = [read_int("%scpu%d/thermal_throttle/%s" % (CPUS, core, name), root) for core in cores for name in names]
    counted = [value for value in found if value is not None]
    return sum(counted) if counted else None


def firmware_throttles(root=""):
    """Whether a Raspberry Pi's firmware limits the clock now, for heat or for lack of voltage; `None` elsewhere."""
    bits = read_int(PI_THROTTLED, root, 16)
    return None if bits is None else bool(bits & PI_NOW)


class Watch:
    """What others do to the cores while something is measured on them, in windows of several rounds."""

    def __init__(self, cores, root=""):
        self.cores, self.root = list(cores), root
        self.clocks_mhz = []
        self.load_s = self.watched_s = 0.0
        self.start_window()
        self.counts_waits = bool(self.waits)
        self.counts_load = self.times is not None
        self.tells_throttling = self.throttles is not None or firmware_throttles(root) is not None

    def start_window(self):
        self.times, self.own_s = cpu_times_s(self.cores, self.root), time.process_time()
        self.throttles = throttle_count(self.cores, self.root)
        self.start_round()

    def start_round(self):
        self.waits, self.began = waits_ns(self.root), time.perf_counter_ns()

    def end_round(self):
        """The share of the round that the thread that waited longest waited for a core."""
        passed_ns = time.perf_counter_ns() - self.began
        waits = waits_ns(self.root)
        longest_ns = max((now - self.waits.get(thread, 0) for thread, now in waits.items()), default=0)
        return min(1.0, longest_ns / max(1, passed_ns))

    def end_window(self):
        """{"foreign": share of others' time, "stolen": by a hypervisor, "throttled"}, each as far as it can be told."""
        found = {"foreign": 0.0, "stolen": 0.0, "throttled": bool(firmware_throttles(self.root))}
        times, own_s = cpu_times_s(self.cores, self.root), time.process_time() - self.own_s
        if self.times is not None and times is not None:
            passed_s = times["total"] - self.times["total"]
            found["foreign"] = foreign_share(self.times, times, own_s, len(self.cores))
            stolen_s = times["stolen"] - self.times["stolen"] - len(self.cores) / os.sysconf("SC_CLK_TCK")
            found["stolen"] = min(1.0, max(0.0, stolen_s / passed_s)) if passed_s > 0 else 0.0
            self.load_s += found["foreign"] * passed_s
            self.watched_s += passed_s
        throttles = throttle_count(self.cores, self.root)
        if throttles is not None and self.throttles is not None and throttles > self.throttles:
            found["throttled"] = True
        clock = clock_mhz(self.cores, self.root)
        if clock is not None:
            self.clocks_mhz.append(clock)
        return found

    @property
    def other_load(self):
        """Mean share of the cores' time that others had; `None` where it cannot be told."""
        return self.load_s / self.watched_s if self.counts_load and self.watched_s > 0 else None


def memory_bytes(name, root=""):
    """A size of this process from /proc/self/status: VmRSS is resident now, VmHWM was the most."""
    for line in (read_text("/proc/self/status", root) or "").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None


def end_with_parent():
    """A job whose host was killed is of no use, and would disturb the next one's measurements."""
    if sys.platform == "linux":
        import ctypes
        import signal

        PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
