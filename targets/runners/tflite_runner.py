#!/usr/bin/env python3
"""Runs TFLite models on the machine it is started on and prints one JSON document.

Needs Python >= 3.9, numpy, ai-edge-litert (or, where there is none, tflite-runtime, which gets only what it computes
right) and the modules beside it, and nothing of edgekit. Two ways to call it:

    tflite_runner.py JOB     one job of the development host: probe, race, profile or bundle (see these functions)
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

import machine  # noqa: E402
import measure  # noqa: E402
from quantiles import median, percentile  # noqa: E402

TABLE = "operators.json"  # beside the model: what the converter read back, operator by operator
DELEGATED = ("fp32", "fp16", "int8", "w8")  # precisions that XNNPACK has kernels for
# XNNPACK of LiteRT 2.1.2 leaves int8 products of two activations nearly all zero, without a word; 2.3.0 does not, nor
# does tflite-runtime 2.14.0, whose own kernels compute them (PP-OCRv4 rec and MiniLM as 2.3.0 does).
RIGHT_PRODUCTS = (2, 3)
WARM_UP_RUNS = 3
PROFILE_ROUNDS = 3
OPERATOR_S = 0.01  # time for one operator in one round
LEAST_RUNS, MOST_RUNS = 5, 200


class Unusable(Exception):
    """Why a model cannot be measured here; its text is what the host shows."""


def installed(package):
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def runtime():
    """(package, version): LiteRT, or the older tflite-runtime."""
    for package in ("ai-edge-litert", "tflite-runtime"):
        found = installed(package)
        if found is not None:
            return package, found
    raise Unusable("neither ai-edge-litert nor tflite-runtime is installed")


def runtime_name():
    return " ".join(runtime())


def interpreter_class():
    if runtime()[0] == "ai-edge-litert":
        from ai_edge_litert.interpreter import Interpreter
    else:
        from tflite_runtime.interpreter import Interpreter
    return Interpreter


def device_facts():
    return dict(machine.device_facts(), runtime=runtime_name())


def operators(path):
    with open(os.path.join(os.path.dirname(path), TABLE), encoding="utf-8") as file:
        return json.load(file)["operators"]


def refusal(rows, package, version):
    """Why a runtime would compute a model wrongly or not at all, or None."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    products = [row for row in rows if row["op"] == "BATCH_MATMUL" and row["precision"] == "int8"]
    old = package == "tflite-runtime"
    if products and not old and numbers < RIGHT_PRODUCTS:
        return "%s %s computes int8 products of two activations wrongly" % (package, version)
    if old and any(row["op"] == "DEPTHWISE_CONV_2D" and "run time" in row["precision"] for row in rows):
        return "%s %s computes depthwise convolutions with ranges of run time wrongly" % (package, version)
    if old and any(row["precision"].startswith(("w4", "int4")) for row in rows):
        return "%s %s has no 4-bit weights" % (package, version)
    return None


def load(model, threads):
    """An interpreter with its memory allocated; see `refusal`."""
    rows = operators(model["path"])
    reason = refusal(rows, *runtime())
    if reason is not None:
        raise Unusable(reason)
    made = interpreter_class()(model_path=model["path"], num_threads=threads)
    made.allocate_tensors()
    if any(row["layer"] and row["precision"] in DELEGATED for row in rows) and not delegated(made):
        raise Unusable("XNNPACK is not in use: every latency would be several times too high")
    return made


def delegated(interpreter):
    """No public name says it: a delegate shows up among the operators as one of them."""
    return any(row["op_name"] == "DELEGATE" for row in interpreter._get_ops_details())


def fill(interpreter, path, seed):
    """Bind inputs: those of the .npz, or uniform floats and 0/1 integers, so that token ids and masks stay valid."""
    import numpy as np

    given = {}
    if path is not None:
        with np.load(path, allow_pickle=False) as arrays:
            given = {key: arrays[key] for key in arrays.files}
    rng = np.random.default_rng(seed)
    for row in interpreter.get_input_details():
        dtype, shape = np.dtype(row["dtype"]), tuple(row["shape"])
        draw = rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        interpreter.set_tensor(row["index"], given.get(row["name"], draw.astype(dtype)))


def contestant(model, threads, inputs_path, seed):
    """A model with its input bound once."""

    def prepare():
        start = time.perf_counter()
        loaded = load(model, threads)
        load_ms = (time.perf_counter() - start) * 1e3
        fill(loaded, inputs_path, seed)
        loaded.invoke()
        return loaded.invoke, load_ms

    return measure.Contestant(model["name"], prepare)


def peak_memory(model, threads, inputs_path, seed):
    """Of a process that does nothing else: (bytes, reason for none); see `measure.peak_memory`."""

    def prepare():
        interpreter_class()
        return lambda: contestant(model, threads, inputs_path, seed).run()

    return measure.peak_memory(prepare)


def race(job):
    """See `measure.race`. With "footprint" in the job, the energy and peak memory of each model too."""
    models, threads, inputs, seed = job["models"], job["threads"], job.get("inputs"), job.get("seed", 0)
    footprint = job.get("footprint", False)
    with machine.pinned(threads) as cores:
        memory = [peak_memory(model, threads, inputs, seed) for model in models if footprint]
        contestants = [contestant(model, threads, inputs, seed) for model in models]
        found = measure.race(contestants, job["seconds"], cores, job.get("min_rounds", 10), footprint)
    for row, (size, reason) in zip(found["results"], memory):
        row["memory"] = size
        if size is None:
            found["conditions"]["missing"]["memory"] = reason
    for key in ("before", "after"):
        found[key]["runtime"] = runtime_name()
    return dict(found, threads=threads)


def profile(job):
    """Time of each operator, milliseconds. The runtime tells none from Python, so each operator is run as a model of
    its own, on random values; the times are scaled to the whole model's, whose sum they miss by caches and calls.
    """
    machine.require_real()
    with machine.pinned(job["threads"]):
        results = [profile_model(model, job) for model in job["models"]]
    return {"results": results, "threads": job["threads"], "device": device_facts()}


def profile_model(model, job):
    threads, seed = job["threads"], job.get("seed", 0)
    rows = operators(model["path"])
    whole = load(model, threads)
    fill(whole, job.get("inputs"), seed)
    whole.invoke()
    parts = Parts(model["path"])
    alone = {}  # like operators take like times
    keys = [parts.key(index) for index in range(len(rows))]
    for key, index in {key: index for index, key in enumerate(keys) if key is not None}.items():
        made = interpreter_class()(model_content=parts.model(index), num_threads=threads)
        made.allocate_tensors()
        fill(made, None, seed)
        alone[key] = made.invoke
    seconds = min(OPERATOR_S, job["seconds"])
    times_ms = {key: [] for key in alone}
    wholes_ms = []
    for _ in range(min(job["compiles"], PROFILE_ROUNDS)):
        wholes_ms.append(typical_ms(whole.invoke, 5 * seconds))
        for key, run in alone.items():
            times_ms[key].append(typical_ms(run, seconds))
    taken_ms = [0.0 if key is None else median(times_ms[key]) for key in keys]
    scale = median(wholes_ms) / (sum(taken_ms) or 1.0)
    nodes = [dict(row, type=row["op"], original_names=[], latency_ms=scale * ms) for row, ms in zip(rows, taken_ms)]
    return {"name": model["name"], "nodes": nodes, "whole_ms": median(wholes_ms)}


def typical_ms(run, seconds):
    """Lower quartile of as many runs as fit in the time: free of most of what others disturb."""
    for _ in range(WARM_UP_RUNS):
        run()
    runs = []
    end = time.perf_counter() + seconds
    while len(runs) < LEAST_RUNS or (time.perf_counter() < end and len(runs) < MOST_RUNS):
        start = time.perf_counter_ns()
        run()
        runs.append((time.perf_counter_ns() - start) / 1e6)
    return percentile(sorted(runs), 0.25)


class Parts:
    """A model file cut into models of one operator each."""

    def __init__(self, path):
        if runtime()[0] != "ai-edge-litert":
            raise Unusable("tflite-runtime cannot cut a model into its operators: profile with ai-edge-litert")
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools import flatbuffer_utils

        with open(path, "rb") as file:
            content = bytearray(file.read())
        self.schema, self.utils = schema, flatbuffer_utils
        self.whole = flatbuffer_utils.convert_bytearray_to_object(content)
        self.graph = self.whole.subgraphs[0]
        self.makers = {int(t): op for op in self.graph.operators for t in op.outputs}

    def constant(self, tensor):
        data = self.whole.buffers[self.graph.tensors[tensor].buffer].data
        return data is not None and len(data) > 0

    def unpacking(self, tensor):
        """The operator that unpacks these weights, or None: it runs once, when the model is loaded."""
        maker = self.makers.get(tensor)
        return maker if maker is not None and all(self.constant(int(t)) for t in maker.inputs if t >= 0) else None

    def key(self, index):
        """What an operator's time depends on; None for what runs at load alone."""
        op = self.graph.operators[index]
        if all(self.constant(int(t)) or self.unpacking(int(t)) for t in op.inputs if t >= 0):
            return None
        tensors = [self.graph.tensors[int(t)] for t in (*op.inputs, *op.outputs) if t >= 0]
        shapes = tuple((tuple(t.shape) if t.shape is not None else (), t.type) for t in tensors)
        packed = tuple(self.unpacking(int(t)) is not None for t in op.inputs if t >= 0)
        options = tuple(sorted(vars(op.builtinOptions).items())) if op.builtinOptions is not None else ()
        return (op.opcodeIndex, shapes, packed, repr(options))

    def model(self, index):
        op = self.graph.operators[index]
        ops = [maker for maker in (self.unpacking(int(t)) for t in op.inputs if t >= 0) if maker is not None] + [op]
        used = sorted({int(t) for one in ops for t in (*one.inputs, *one.outputs) if t >= 0})
        made, graph, schema = self.schema.ModelT(), self.schema.SubGraphT(), self.schema
        made.version, made.operatorCodes, made.subgraphs = self.whole.version, self.whole.operatorCodes, [graph]
        buffers = sorted({0} | {self.graph.tensors[t].buffer for t in used})
        made.buffers = [self.whole.buffers[b] for b in buffers]
        graph.tensors = []
        for tensor in used:
            copy, source = schema.TensorT(), self.graph.tensors[tensor]
            copy.__dict__.update(source.__dict__, buffer=buffers.index(source.buffer))
            graph.tensors.append(copy)
        graph.operators = []
        for one in ops:
            copy = schema.OperatorT()
            copy.__dict__.update(
                one.__dict__,
                inputs=[used.index(int(t)) if t >= 0 else -1 for t in one.inputs],
                outputs=[used.index(int(t)) for t in one.outputs],
            )
            graph.operators.append(copy)
        graph.inputs = [
            used.index(int(t)) for t in op.inputs if t >= 0 and not self.constant(int(t)) and not self.unpacking(int(t))
        ]
        graph.inputs = list(dict.fromkeys(graph.inputs))
        graph.outputs = [used.index(int(t)) for t in op.outputs]
        return bytes(self.utils.convert_object_to_bytearray(made, b""))


def probe(_job):
    package, _ = runtime()
    return {"device": device_facts(), "capabilities": [package]}


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def check_vectors(folder, interpreter):
    """Runs the test vectors through the shipped model. Returns the worst error as a share of the tolerance, and the
    SHA-256 of all outputs.
    """
    import numpy as np

    inputs = {row["name"]: row["index"] for row in interpreter.get_input_details()}
    outputs = {row["name"]: row["index"] for row in interpreter.get_output_details()}
    worst, digest = 0.0, hashlib.sha256()
    with np.load(os.path.join(folder, "vectors.npz"), allow_pickle=False) as vectors:
        names = [name[len("tolerance/") :] for name in vectors.files if name.startswith("tolerance/")]
        count = int(vectors["count"])
        for index in range(count):
            for name, place in inputs.items():
                interpreter.set_tensor(place, vectors["input/%d/%s" % (index, name)])
            interpreter.invoke()
            for name in names:
                actual, expected = interpreter.get_tensor(outputs[name]), vectors["output/%d/%s" % (index, name)]
                digest.update(np.ascontiguousarray(actual).tobytes())
                error = float("inf")
                if actual.shape == expected.shape:
                    difference = actual.astype(np.float64) - expected.astype(np.float64)
                    error = float(np.max(np.abs(difference), initial=0.0))
                allowed = float(vectors["tolerance/" + name])
                worst = max(worst, error / allowed if error == error else float("inf"))
    return {"count": count, "worst_error_share": worst, "ok": worst <= 1.0, "outputs_sha256": digest.hexdigest()}


def run_bundle(folder, seconds):
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    for name, entry in manifest["files"].items():
        if not os.path.isfile(os.path.join(folder, name)) or sha256(os.path.join(folder, name)) != entry["sha256"]:
            return {"ok": False, "error": "%s is missing or not what the manifest says" % name}
    artifact = manifest["artifact"]
    model = {"name": "bundle", "path": os.path.join(folder, artifact["path"])}
    with machine.pinned(artifact["threads"]):
        vectors = check_vectors(folder, load(model, artifact["threads"]))
    document = {"ok": vectors["ok"], "vectors": vectors, "device": device_facts()}
    if vectors["ok"] and seconds > 0:
        document.update(race({"models": [model], "threads": artifact["threads"], "seconds": seconds}))
    return document


def bundle(job):
    return run_bundle(job["folder"], job["seconds"])


def main():
    folder = os.path.dirname(os.path.abspath(__file__))
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the runtime's own words go elsewhere
    try:
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
    except Unusable as reason:
        sys.stderr.write("%s\n" % reason)
        return 1
    with answer:
        json.dump(document, answer)
        answer.write("\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
