#!/usr/bin/env python3
"""Runs OpenVINO models on the machine it is started on and prints one JSON document.

Needs Python >= 3.9, numpy, openvino and the modules beside it, and nothing of edgekit, so that it can be copied to a
device or shipped in a bundle. Two ways to call it:

    openvino_runner.py JOB   one job of the development host: probe, race, profile or bundle (see these functions)
    run [--seconds S]        inside a bundle: checks the test vectors, then measures the shipped model
"""

import functools
import json
import os
import sys
import time

sys.dont_write_bytecode = True  # a bundle holds what its manifest lists, and nothing else
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# At each import OpenVINO starts a process that tells its makers of it: beside a race, and from machines of customers.
sys.modules["openvino_telemetry"] = None

import bundled  # noqa: E402
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


@functools.cache
def runtime_core():
    """One a process, made when it is first needed: what is forked before knows nothing of it."""
    import openvino

    return openvino.Core()


def compile_model(model, threads, profile=False):
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
        return runtime_core().compile_model(model["path"], "CPU", config)
    with open(model["path"], "rb") as file:
        core = runtime_core()
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


def contestant(model, threads, inputs_path, seed):
    """A model with its input bound once."""

    def load():
        start = time.perf_counter()
        compiled = compile_model(model, threads)
        compile_ms = (time.perf_counter() - start) * 1e3
        request = compiled.create_infer_request()
        request.infer(load_inputs(inputs_path, compiled, seed), share_inputs=False)
        return request.infer, compile_ms

    return measure.Contestant(model["name"], load)


def peak_memory(model, threads, inputs_path, seed):
    """Of a process that does nothing else: (bytes, reason for none); see `measure.peak_memory`."""

    def load():
        runtime_core().get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
        return lambda: contestant(model, threads, inputs_path, seed).run()

    return measure.peak_memory(load)


def race(job):
    return bundled.race(job, contestant, peak_memory, runtime_name)


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
    found = {model["name"]: {"nodes": [], "runs_ms": {}, "means_ms": {}, "wholes_ms": []} for model in job["models"]}
    for _ in range(job["compiles"]):
        for model in job["models"]:
            compiled = compile_model(model, job["threads"], profile=True)
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
    return {
        "device": device_facts(),
        "capabilities": [str(name) for name in runtime_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")],
    }


def open_model(folder, artifact):
    """The bundle's model as `compile_model` takes it, and as a function. Raises ValueError for weights that are not
    what the manifest says.
    """
    path = artifact["path"]
    weights = expanded(folder, artifact, os.path.splitext(path)[0] + ".bin")
    model = {"name": "bundle", "path": os.path.join(folder, path), "hint": artifact["hint"], "weights": weights}
    request = compile_model(model, artifact["threads"]).create_infer_request()

    def infer(inputs, names):
        request.infer(inputs, share_inputs=False)
        return {name: request.get_tensor(name).data for name in names}

    return model, infer


def bundle(job):
    return bundled.run(job["folder"], job["seconds"], open_model, race, device_facts)


def main():
    actions = {"probe": probe, "race": race, "profile": profile, "bundle": bundle}
    document, status = bundled.called(__doc__, actions)
    json.dump(document, sys.stdout)
    sys.stdout.write("\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
