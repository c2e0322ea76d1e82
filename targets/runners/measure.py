"""The race that every runner holds: contestants take turns, rounds that others disturbed do not count."""

import gc
import json
import os
import time

import energy
from machine import Watch, device_facts, end_with_parent, memory_bytes, require_real
from quantiles import median, median_interval, order_ranks, percentile, with_intervals

COUNTED_MS = 20.0  # of a burst, at least
# What the previous contestant pushed out of the caches comes back run by run: after eight a model is within 2 % of the
# pace that it keeps. One whose runs take long moves more than caches hold, and settles at once.
SETTLING, SETTLING_MS = 8, 100.0
WARM_UP_S = 0.5
MOST_WARM_UP_S = 2.0
WARM_UP_STEP_S = 0.05
WARMING = 0.5  # of the time of the race, at most, for all contestants together
STABLE = 0.02  # change of the medians over the last steps that counts as none
STEPS = 6
WINDOW_S = 0.3  # /proc/stat moves in steps of 10 ms: rounds are too short for it
MOST_DISTURBED = 0.05  # share of a round that others may have
SLOW_CLOCK = 0.9  # of the fastest clock of this race
ENOUGH = 0.7  # share of the time asked for that must be calm, or the race is prolonged
LONGEST = 2.0  # times the time asked for
PRECISE = 0.004  # a median ratio known to so much, either way, needs no more rounds
# Where in memory a model was loaded moves its latency by some percent, more than rounds tell apart (Kalibera and Jones,
# Rigorous Benchmarking in Reasonable Time, ISMM 2013). So contestants are loaded anew during a race.
LOADS = 6
LOADING = 0.5  # of the time of the race, at most


class Contestant:
    """`load()` returns what runs one inference, its inputs bound, so that nothing else is timed; and the milliseconds
    that compiling took.
    """

    def __init__(self, name, load):
        self.name, self.load = name, load
        start = time.perf_counter()
        self.run, self.compile_ms = load()
        self.load_s = time.perf_counter() - start

    def load_again(self):
        self.run = None  # gives the memory back first
        self.run, _ = self.load()
        for _ in range(self.settling):
            self.run()

    def run_ms(self):
        start = time.perf_counter_ns()
        self.run()
        return (time.perf_counter_ns() - start) / 1e6

    def warm_up(self, most_s=MOST_WARM_UP_S):
        """Until half a second has passed and the medians of the last steps neither fall nor rise; at most two, or
        what there is time for.
        """
        least_s, step_s = min(WARM_UP_S, most_s / 2), min(WARM_UP_STEP_S, most_s / (2 * STEPS))
        began = time.perf_counter()
        medians, last = [], []
        while True:
            step_end = time.perf_counter() + step_s
            last = [self.run_ms()]
            while time.perf_counter() < step_end:
                last.append(self.run_ms())
            medians.append(median(last))
            passed_s = time.perf_counter() - began
            self.stable = passed_s >= least_s and is_stable(medians)
            if self.stable or (passed_s >= most_s and len(medians) >= STEPS - 1):
                break
        self.warm_up_s = passed_s
        self.settling, self.burst = burst_of(medians[-1])


def burst_of(run_ms):
    """(runs that settle the caches, runs that count after them) of a contestant that takes so long a run."""
    run_ms = max(run_ms, 1e-3)
    return max(1, min(SETTLING, int(SETTLING_MS / run_ms))), max(2, min(50, int(COUNTED_MS / run_ms) + 1))


def is_stable(medians):
    """Whether the last medians have no trend: the median of the slopes between any two of them (Theil and Sen)."""
    last = medians[-STEPS:]
    if len(last) < STEPS:
        return False
    slopes = [(last[j] - last[i]) / (j - i) for i in range(len(last)) for j in range(i + 1, len(last))]
    return abs(median(slopes)) * (STEPS - 1) <= STABLE * median(last)


def one_round(contestants, turn, watch):
    """A burst of every contestant, in an order that rotates, the runs not counted in which its caches settle."""
    watch.start_round()
    began = time.perf_counter()
    start = turn % len(contestants)
    bursts = {}
    for contestant in contestants[start:] + contestants[:start]:
        for _ in range(contestant.settling):
            contestant.run()
        bursts[contestant.name] = [contestant.run_ms() for _ in range(contestant.burst)]
    return {"bursts": bursts, "seconds": time.perf_counter() - began, "waited": watch.end_round()}


def judge(rounds, window, watch):
    """How much others had of each round of a window: what its threads waited, as far as the kernel tells; else the
    window's share of others' time. What a hypervisor takes is never waited for. A throttled round is worse than any.
    """
    slow = bool(watch.clocks_mhz) and watch.clocks_mhz[-1] < SLOW_CLOCK * max(watch.clocks_mhz)
    for one in rounds:
        others = max(one["waited"], window["stolen"]) if watch.counts_waits else window["foreign"]
        one["throttled"] = window["throttled"] or slow
        one["disturbance"] = others + one["throttled"]


def run_rounds(contestants, seconds, min_rounds, watch):
    """All rounds in the order of time, until the calm ones say enough; or the time is over and enough of it was calm,
    or all rounds agree whatever disturbed them; or the race was prolonged as far as it may.
    """
    rounds = []
    step_s = min(WINDOW_S, seconds / 4)
    began = time.perf_counter()
    while True:
        window_end = time.perf_counter() + step_s
        watch.start_window()
        window = [one_round(contestants, len(rounds), watch)]
        while time.perf_counter() < window_end:
            window.append(one_round(contestants, len(rounds) + len(window), watch))
        judge(window, watch.end_window(), watch)
        rounds += window
        passed_s = time.perf_counter() - began
        calm = [one for one in rounds if is_calm(one)]
        if len(calm) >= min_rounds and is_precise(contestants, calm):
            return rounds
        enough = len(calm) >= min_rounds and sum(one["seconds"] for one in calm) >= ENOUGH * seconds
        if len(rounds) < min_rounds or passed_s < seconds:
            continue
        if enough or passed_s >= LONGEST * seconds or is_precise(contestants, rounds):
            return rounds


def is_precise(contestants, rounds):
    """Whether the 95 % interval of every median ratio to the first contestant, or of its own median, is narrow."""
    first = [median(one["bursts"][contestants[0].name]) for one in rounds]
    compared = contestants[1:] or contestants
    low, high = order_ranks(len(rounds), 0.5)
    if low is None or high is None:
        return False
    for contestant in compared:
        mine = [median(one["bursts"][contestant.name]) for one in rounds]
        values = sorted(m / f for m, f in zip(mine, first)) if contestants[1:] else sorted(mine)
        if values[high - 1] - values[low - 1] > 2 * PRECISE * median(values):
            return False
    return True


def is_calm(one):
    return one["disturbance"] <= MOST_DISTURBED


def load_count(contestants, seconds):
    """How often each contestant is loaded in a race of so many seconds."""
    once_s = sum(contestant.load_s for contestant in contestants)
    return min(LOADS, 1 + int(LOADING * seconds / max(once_s, 1e-3)))


def run_loads(contestants, seconds, min_rounds, watch):
    """The rounds of all loads, each with the number of its load; contestants are loaded in an order that rotates."""
    loads = load_count(contestants, seconds)
    rounds = []
    for load in range(loads):
        if load:
            start = load % len(contestants)
            for contestant in contestants[start:] + contestants[:start]:
                contestant.load_again()
        found = run_rounds(contestants, seconds / loads, -(-min_rounds // loads), watch)
        rounds += [dict(one, load=load) for one in found]
    return rounds


def choose_rounds(rounds, least):
    """The calm rounds; where they are fewer than `least`, the less disturbed half of all."""
    calm = [one for one in rounds if is_calm(one)]
    if len(calm) >= least:
        return calm
    count = min(len(rounds), max(least, (len(rounds) + 1) // 2))
    bound = sorted(one["disturbance"] for one in rounds)[count - 1]
    return [one for one in rounds if one["disturbance"] <= bound]


def race(contestants, seconds, cores, min_rounds=10, footprint=False):
    """`ratio` compares this contestant's burst medians with the first contestant's: the median over the rounds of each
    load, and of these the median over the loads. With `footprint`, the energy of an inference too, where the board has
    rails. Without `min_rounds` no race is held: what is told is how long one inference of each takes.
    """
    require_real()
    if not min_rounds:
        firsts = [{"name": one.name, "first_ms": one.run_ms()} for one in contestants]
        return {"results": firsts, "rounds": 0, "before": {}, "after": {}}
    before = device_facts(cores)
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for contestant in contestants:
            contestant.warm_up(min(MOST_WARM_UP_S, WARMING * seconds / len(contestants)))
        watch = Watch(cores)
        rounds = run_loads(contestants, seconds, min_rounds, watch)
    finally:
        if collects:
            gc.enable()
    after = device_facts(cores)
    kept = choose_rounds(rounds, min_rounds)
    found = conditions(rounds, kept, contestants, watch, before)
    results = [row_of(contestant, contestants[0], kept) for contestant in contestants]
    if footprint:
        add_energy(results, contestants, found)
    return {"results": results, "rounds": len(kept), "before": before, "after": after, "conditions": found}


def row_of(contestant, first, rounds):
    mine = [one["bursts"][contestant.name] for one in rounds]
    ratios = [median(one["bursts"][contestant.name]) / median(one["bursts"][first.name]) for one in rounds]
    ordered = sorted(ratios)
    by_load = {}
    for one, ratio in zip(rounds, ratios):
        by_load.setdefault(one["load"], []).append(ratio)
    medians = sorted(median(some) for some in by_load.values())
    low, high = order_ranks(len(medians), 0.5)
    # So few loads that no two of them enclose the median: what the rounds say.
    known = low is not None and high is not None
    ci_low, ci_high = (medians[low - 1], medians[high - 1]) if known else median_interval(ratios)
    return {
        "name": contestant.name,
        "latency_ms": with_intervals(mine),
        "compile_ms": contestant.compile_ms,
        "warm_up_s": contestant.warm_up_s,
        "stable": contestant.stable,
        "ratio": median(medians),
        "ratio_low": percentile(ordered, 0.1),
        "ratio_high": percentile(ordered, 0.9),
        "ratio_ci_low": ci_low,
        "ratio_ci_high": ci_high,
    }


def conditions(rounds, kept, contestants, watch, facts):
    """Under what the race was held. `disturbed` is the share of rounds that were not calm, `least_disturbed` whether
    some of those count all the same since too few were calm. `missing`: what is not known, and why.
    """
    missing = {}
    if not watch.cores:
        missing["cores"] = "threads cannot be pinned here"
    if not watch.counts_load:
        missing["other_load"] = "/proc/stat does not tell"
    for name in ("governor", "max_clock_mhz", "power_mode"):
        if facts[name] is None:
            missing[name] = "not told here"
    if facts["temperature_c"] is None:
        missing["temperature_c"] = "no thermal zone here"
    if not watch.clocks_mhz:
        missing["clock_mhz"] = "cpufreq is not there"
    throttled = sum(one["throttled"] for one in rounds)
    if not watch.tells_throttling and not watch.clocks_mhz:
        missing["throttled"] = "neither counters nor clocks tell"
    return {
        "cores": watch.cores,
        "governor": facts["governor"],
        "power_mode": facts["power_mode"],
        "clock_mhz": median(watch.clocks_mhz) if watch.clocks_mhz else None,
        "lowest_clock_mhz": min(watch.clocks_mhz, default=None),
        "max_clock_mhz": facts["max_clock_mhz"],
        "temperature_before_c": facts["temperature_c"],
        "temperature_after_c": device_facts(watch.cores)["temperature_c"],
        "loads": len({one["load"] for one in rounds}),
        "rounds": len(rounds),
        "discarded": len(rounds) - len(kept),
        "disturbed": sum(not is_calm(one) for one in rounds) / len(rounds),
        "least_disturbed": not all(is_calm(one) for one in kept),
        "throttled": None if "throttled" in missing else throttled / len(rounds),
        "other_load": watch.other_load,
        "seconds": sum(one["seconds"] for one in rounds),
        "unstable": [contestant.name for contestant in contestants if not contestant.stable],
        "missing": missing,
    }


def add_energy(results, contestants, found):
    energies, rails = {}, {"source": None, "idle_w": None}
    try:
        energies, rails = energy.measure(contestants)
        if None in energies.values():
            found["missing"]["energy_mj"] = "other programs ran while it was measured"
    except energy.NoRails as error:
        found["missing"]["energy_mj"] = str(error)
    for row in results:
        row["energy_mj"] = energies.get(row["name"])
    found["energy_source"], found["idle_w"] = rails["source"], rails["idle_w"]


def peak_memory(load):
    """({"peak_bytes", "before_bytes"}, "") of a process of its own that calls `load`, or (None, the reason). `load`
    prepares the runtime and returns what loads and runs the model; before_bytes is the memory between the two.

    The process is a fork: to be called before this one has loaded a runtime, whose threads a fork does not take along.
    """
    if memory_bytes("VmHWM") is None:
        return None, "/proc/self/status has no VmHWM"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            end_with_parent()
            os.close(reader)
            run = load()
            before = memory_bytes("VmRSS")
            run()
            os.write(writer, json.dumps({"peak_bytes": memory_bytes("VmHWM"), "before_bytes": before}).encode())
            status = 0
        finally:
            os._exit(status)  # no clean-up of what belongs to the parent
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    _, state = os.waitpid(child, 0)
    if state != 0 or not text:
        killed = os.WIFSIGNALED(state)
        return None, "killed by signal %d" % os.WTERMSIG(state) if killed else "the model did not run by itself"
    return json.loads(text), ""
