#!/usr/bin/env python3
"""Runs OpenVINO models on the machine it is started on and prints one JSON document.

Needs Python >= 3.9, numpy and openvino, and nothing of edgekit, so that it can be copied to a device or shipped in a
bundle. Two ways to call it:

    openvino.py JOB.json     one job of the development host: probe, race, profile or bundle (see these functions)
    run [--seconds S]        inside a bundle: checks the test vectors, then measures the shipped model
"""

import argparse
import ctypes
import glob
import hashlib
import json
import os
import platform
import signal
import sys
import time

MIN_BURST_MS = 10.0  # a burst this long amortises the caches that the previous contestant left behind
WARM_UP_S = 0.5
PROFILE_WARM_UP = 3  # runs to a compilation
LEAST_PROFILED = 8
MOST_PROFILED = 19
SHORT_NODE_MS = 0.05


def read_text(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def cpu_name():
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def device_facts():
    """What must be known to read a latency: CPU, cores, governor, temperature, runtime. `None` where not readable."""
    import openvino

    zones = sorted(glob.glob("/sys/class/thermal/thermal_zone*/temp"))
    millidegrees = [read_text(zone) for zone in zones]
    celsius = [int(value) / 1000 for value in millidegrees if value and value.lstrip("-").isdigit()]
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "temperature_c": max(celsius) if celsius else None,
        "load_1min": os.getloadavg()[0],
        "runtime": "openvino " + openvino.__version__.split("-")[0],
        "python": platform.python_version(),
    }


def compile_model(core, model, threads, profile=False):
    """`model` is {"path", "hint"}: the hint is the precision of everything that is not quantized (f32, bf16, f16)."""
    config = {
        "INFERENCE_PRECISION_HINT": model["hint"],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    if profile:
        config["PERF_COUNT"] = "YES"
    return core.compile_model(model["path"], "CPU", config)


def random_inputs(compiled, seed):
    """Uniform floats and 0/1 integers, so that token ids and masks stay valid."""
    import numpy as np

    rng = np.random.default_rng(seed)
    values = {}
    for port in compiled.inputs:
        dtype = np.dtype(port.get_element_type().to_dtype())
        shape = tuple(port.get_shape())
        draw = rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        values[port.get_any_name()] = draw.astype(dtype)
    return values


def load_inputs(path, compiled, seed):
    import numpy as np

    if path is None:
        return random_inputs(compiled, seed)
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


class Contestant:
    """A compiled model with its input bound once, so that only inference is timed."""

    def __init__(self, core, model, threads, inputs_path, seed):
        self.name = model["name"]
        start = time.perf_counter()
        compiled = compile_model(core, model, threads)
        self.compile_ms = (time.perf_counter() - start) * 1e3
        self.request = compiled.create_infer_request()
        inputs = load_inputs(inputs_path, compiled, seed)
        self.request.infer(inputs, share_inputs=False)
        self.samples_ms = []

    def run_ms(self):
        start = time.perf_counter_ns()
        self.request.infer()
        return (time.perf_counter_ns() - start) / 1e6

    def warm_up(self):
        """Until half a second has passed and the last runs no longer get faster."""
        end = time.perf_counter() + WARM_UP_S
        runs = []
        while len(runs) < 5 or time.perf_counter() < end:
            runs.append(self.run_ms())
        tail = sorted(runs[len(runs) // 2 :])
        self.burst = max(2, min(50, int(MIN_BURST_MS / max(tail[len(tail) // 2], 1e-3)) + 1))


def percentile(ordered, share):
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summary(samples):
    ordered = sorted(samples)
    return {
        "p50": percentile(ordered, 0.50),
        "p90": percentile(ordered, 0.90),
        "p99": percentile(ordered, 0.99),
        "n": len(ordered),
    }


def median(values):
    return percentile(sorted(values), 0.5)


def race(job):
    """Interleaved: each round runs a burst of every contestant, in an order that rotates, the burst's first run not
    counted. `ratio` is the median over the rounds of this contestant's burst median : the first contestant's.
    """
    import openvino

    core = openvino.Core()
    before = device_facts()
    inputs, seed = job.get("inputs"), job.get("seed", 0)
    contestants = [Contestant(core, model, job["threads"], inputs, seed) for model in job["models"]]
    for contestant in contestants:
        contestant.warm_up()
    rounds = {contestant.name: [] for contestant in contestants}
    end = time.perf_counter() + job["seconds"]
    turn = 0
    while turn < job.get("min_rounds", 10) or time.perf_counter() < end:
        start = turn % len(contestants)
        for contestant in contestants[start:] + contestants[:start]:
            contestant.run_ms()
            burst = [contestant.run_ms() for _ in range(contestant.burst)]
            contestant.samples_ms.extend(burst)
            rounds[contestant.name].append(median(burst))
        turn += 1
    first = rounds[contestants[0].name]
    results = []
    for contestant in contestants:
        ratios = sorted(mine / base for mine, base in zip(rounds[contestant.name], first))
        results.append(
            {
                "name": contestant.name,
                "latency_ms": summary(contestant.samples_ms),
                "compile_ms": contestant.compile_ms,
                "ratio": percentile(ratios, 0.5),
                "ratio_low": percentile(ratios, 0.1),
                "ratio_high": percentile(ratios, 0.9),
            }
        )
    return {"results": results, "rounds": turn, "threads": job["threads"], "before": before, "after": device_facts()}


def text_of(info, key):
    return str(info[key].value) if key in info else ""


def executed_nodes(compiled):
    """What the compiler made of the model: one row an executed node."""
    rows = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = op.get_rt_info()
        rows.append(
            {
                "name": op.get_friendly_name(),
                "type": text_of(info, "layerType"),
                "precision": text_of(info, "runtimePrecision"),
                "original_names": [name for name in text_of(info, "originalLayersNames").split(",") if name],
            }
        )
    return rows


def node_means_ms(request):
    return {row.node_name: row.real_time.total_seconds() * 1e3 for row in request.get_profiling_info()}


def profile(job):
    """Time of each executed node, milliseconds, over several compilations that alternate between the models.

    OpenVINO reports the running mean since compilation, truncated to microseconds, so run n took n * mean_n -
    (n - 1) * mean_(n-1), give or take n microseconds: hence few runs to a compilation. See `node_time_ms`.
    """
    import openvino

    core = openvino.Core()
    found = {model["name"]: {"nodes": [], "runs_ms": {}, "means_ms": {}, "wholes_ms": []} for model in job["models"]}
    for _ in range(job["compiles"]):
        for model in job["models"]:
            compiled = compile_model(core, model, job["threads"], profile=True)
            mine = found[model["name"]]
            mine["nodes"] = mine["nodes"] or executed_nodes(compiled)
            request = compiled.create_infer_request()
            request.infer(load_inputs(job.get("inputs"), compiled, job.get("seed", 0)), share_inputs=False)
            for _ in range(PROFILE_WARM_UP - 1):
                request.infer()
            count = PROFILE_WARM_UP
            totals_ms = first_ms = {name: count * mean_ms for name, mean_ms in node_means_ms(request).items()}
            start = time.perf_counter()
            while count < MOST_PROFILED and (count < LEAST_PROFILED or time.perf_counter() - start < job["seconds"]):
                began = time.perf_counter_ns()
                request.infer()
                mine["wholes_ms"].append((time.perf_counter_ns() - began) / 1e6)
                count += 1
                before_ms = totals_ms
                totals_ms = {name: count * mean_ms for name, mean_ms in node_means_ms(request).items()}
                for name, total_ms in totals_ms.items():
                    mine["runs_ms"].setdefault(name, []).append(total_ms - before_ms[name])
            for name, total_ms in totals_ms.items():
                mean_ms = (total_ms - first_ms[name]) / (count - PROFILE_WARM_UP)
                mine["means_ms"].setdefault(name, []).append(mean_ms)
    results = []
    for name, mine in found.items():
        for node in mine["nodes"]:
            node["latency_ms"] = node_time_ms(*(mine[key].get(node["name"], [0.0]) for key in ("runs_ms", "means_ms")))
        results.append({"name": name, "nodes": mine["nodes"], "whole_ms": median(mine["wholes_ms"])})
    return {"results": results, "threads": job["threads"], "device": device_facts()}


def node_time_ms(runs_ms, means_ms):
    """One node's time from its single runs and from its mean in each compilation. Other work on the machine interrupts
    long nodes often: the lower quartile of the runs is free of it. It seldom hits a short one, whose single runs drown
    in the truncation: there the median of the means counts.
    """
    typical_ms = median(means_ms)
    return max(typical_ms, 0.0) if typical_ms < SHORT_NODE_MS else percentile(sorted(runs_ms), 0.25)


def probe(_job):
    import openvino

    core = openvino.Core()
    return {
        "device": device_facts(),
        "capabilities": [str(name) for name in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")],
    }


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def check_vectors(folder, manifest, core):
    """Runs the test vectors through the shipped model. Returns the worst error as a share of the tolerance."""
    import numpy as np

    artifact = manifest["artifact"]
    model = {"path": os.path.join(folder, artifact["path"]), "hint": artifact["hint"]}
    compiled = compile_model(core, model, artifact["threads"])
    request = compiled.create_infer_request()
    worst = 0.0
    with np.load(os.path.join(folder, "vectors.npz"), allow_pickle=False) as vectors:
        allowed = [name for name in vectors.files if name.startswith("tolerance/")]
        tolerance = {name[len("tolerance/") :]: float(vectors[name]) for name in allowed}
        count = int(vectors["count"])
        for index in range(count):
            prefix = "input/%d/" % index
            inputs = {name[len(prefix) :]: vectors[name] for name in vectors.files if name.startswith(prefix)}
            request.infer(inputs, share_inputs=False)
            for name, allowed in tolerance.items():
                actual = request.get_tensor(name).data
                expected = vectors["output/%d/%s" % (index, name)]
                if actual.shape != expected.shape:
                    error = float("inf")
                else:  # as floats: booleans have no difference, and that of unsigned integers wraps
                    difference = actual.astype(np.float64) - expected.astype(np.float64)
                    error = float(np.max(np.abs(difference), initial=0.0))
                worst = max(worst, error / allowed if error == error else float("inf"))
    return {"count": count, "worst_error_share": worst, "ok": worst <= 1.0}


def run_bundle(folder, seconds):
    import openvino

    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    for name, entry in manifest["files"].items():
        if not os.path.isfile(os.path.join(folder, name)) or sha256(os.path.join(folder, name)) != entry["sha256"]:
            return {"ok": False, "error": "%s is missing or not what the manifest says" % name}
    vectors = check_vectors(folder, manifest, openvino.Core())
    document = {"ok": vectors["ok"], "vectors": vectors, "device": device_facts()}
    if vectors["ok"] and seconds > 0:
        artifact = manifest["artifact"]
        model = {"name": "bundle", "path": os.path.join(folder, artifact["path"]), "hint": artifact["hint"]}
        document.update(race({"models": [model], "threads": artifact["threads"], "seconds": seconds}))
    return document


def bundle(job):
    return run_bundle(job["folder"], job["seconds"])


def end_with_parent():
    """A job whose host was killed is of no use, and would disturb the next one's measurements."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main():
    folder = os.path.dirname(os.path.abspath(__file__))
    if os.path.isfile(os.path.join(folder, "manifest.json")):
        parser = argparse.ArgumentParser(description="Check this bundle's test vectors, then measure its latency.")
        parser.add_argument("--seconds", type=float, default=3.0, help="time to measure; 0 checks the vectors only")
        document = run_bundle(folder, parser.parse_args().seconds)
        status = 0 if document["ok"] else 7
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("job", help="JSON file with an 'action': probe, race, profile or bundle")
        with open(parser.parse_args().job, encoding="utf-8") as file:
            job = json.load(file)
        end_with_parent()
        document = {"probe": probe, "race": race, "profile": profile, "bundle": bundle}[job["action"]](job)
        status = 0
    json.dump(document, sys.stdout)
    sys.stdout.write("\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
