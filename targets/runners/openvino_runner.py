#!/usr/bin/env python3
"""Runs OpenVINO models on the machine it is started on and prints one JSON document.

Needs Python >= 3.9, numpy, openvino and the modules beside it, and nothing of edgekit, so that it can be copied to a
device or shipped in a bundle. Two ways to call it:

    openvino_runner.py JOB   one job of the development host: probe, race, profile or bundle (see these functions)
    run [--seconds S]        inside a bundle: checks the test vectors, then measures the shipped model
"""

import argparse
import hashlib
import json
import os
import sys
import time

sys.dont_write_bytecode = True  # a bundle holds what its manifest lists, and nothing else
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# At each import OpenVINO starts a process that tells its makers of it: beside a race, and from machines of customers.
sys.modules["openvino_telemetry"] = None

import machine  # noqa: E402
import measure  # noqa: E402
from expand import expanded  # noqa: E402
from quantiles import median, percentile  # noqa: E402

PROFILE_WARM_UP = 3  # runs to a compilation
LEAST_PROFILED = 8
MOST_PROFILED = 19
SHORT_NODE_MS = 0.05


def runtime_name():
    import openvino

    return "openvino " + openvino.__version__.split("-")[0]


def device_facts():
    return dict(machine.device_facts(), runtime=runtime_name())


def compile_model(core, model, threads, profile=False):
    """`model` is {"path", "hint"}: the hint is the precision of everything that is not quantized (f32, bf16, f16).
    "weights", where there are any, stand for the file beside the path.
    """
    config = {
        "INFERENCE_PRECISION_HINT": model["hint"],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    if profile:
        config["PERF_COUNT"] = "YES"
    if model.get("weights") is None:
        return core.compile_model(model["path"], "CPU", config)
    with open(model["path"], "rb") as file:
        return core.compile_model(core.read_model(file.read(), model["weights"]), "CPU", config)


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


def contestant(core, model, threads, inputs_path, seed):
    """A model with its input bound once."""

    def load():
        start = time.perf_counter()
        compiled = compile_model(core, model, threads)
        compile_ms = (time.perf_counter() - start) * 1e3
        request = compiled.create_infer_request()
        request.infer(load_inputs(inputs_path, compiled, seed), share_inputs=False)
        return request.infer, compile_ms

    return measure.Contestant(model["name"], load)


def peak_memory(model, threads, inputs_path, seed):
    """Of a process that does nothing else: (bytes, reason for none); see `measure.peak_memory`."""

    def load():
        import openvino

        core = openvino.Core()
        core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
        return lambda: contestant(core, model, threads, inputs_path, seed).run()

    return measure.peak_memory(load)


def race(job):
    """See `measure.race`. With "footprint" in the job, the energy and peak memory of each model too."""
    models, threads, inputs, seed = job["models"], job["threads"], job.get("inputs"), job.get("seed", 0)
    footprint = job.get("footprint", False)
    with machine.pinned(threads) as cores:
        memory = [peak_memory(model, threads, inputs, seed) for model in models if footprint]

        import openvino

        core = openvino.Core()
        contestants = [contestant(core, model, threads, inputs, seed) for model in models]
        found = measure.race(contestants, job["seconds"], cores, job.get("min_rounds", 10), footprint)
    for row, (size, reason) in zip(found["results"], memory):
        row["memory"] = size
        if size is None:
            found["conditions"]["missing"]["memory"] = reason
    for key in ("before", "after"):
        found[key]["runtime"] = runtime_name()
    return dict(found, threads=threads)


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
    machine.require_real()
    with machine.pinned(job["threads"]):
        return profile_nodes(job)


def profile_nodes(job):
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


def shipped_model(folder, artifact):
    """The bundle's model as `compile_model` takes it."""
    path = artifact["path"]
    weights = expanded(folder, artifact, os.path.splitext(path)[0] + ".bin")
    return {"name": "bundle", "path": os.path.join(folder, path), "hint": artifact["hint"], "weights": weights}


def check_vectors(folder, manifest, model, core):
    """Runs the test vectors through the shipped model. Returns the worst error as a share of the tolerance."""
    import numpy as np

    compiled = compile_model(core, model, manifest["artifact"]["threads"])
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
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    for name, entry in manifest["files"].items():
        if not os.path.isfile(os.path.join(folder, name)) or sha256(os.path.join(folder, name)) != entry["sha256"]:
            return {"ok": False, "error": "%s is missing or not what the manifest says" % name}
    with machine.pinned(manifest["artifact"]["threads"]):
        return run_checked(folder, manifest, seconds)


def run_checked(folder, manifest, seconds):
    import openvino

    artifact = manifest["artifact"]
    try:
        model = shipped_model(folder, artifact)
    except ValueError as error:
        return {"ok": False, "error": str(error)}
    vectors = check_vectors(folder, manifest, model, openvino.Core())
    document = {"ok": vectors["ok"], "vectors": vectors, "device": device_facts()}
    if vectors["ok"] and seconds > 0:
        document.update(race({"models": [model], "threads": artifact["threads"], "seconds": seconds}))
    return document


def bundle(job):
    return run_bundle(job["folder"], job["seconds"])


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
        machine.end_with_parent()
        document = {"probe": probe, "race": race, "profile": profile, "bundle": bundle}[job["action"]](job)
        status = 0
    json.dump(document, sys.stdout)
    sys.stdout.write("\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
