#!/usr/bin/env python3
"""Runs TFLite models on the machine it is started on and prints one JSON document.

Needs Python >= 3.9, numpy, ai-edge-litert (or, where there is none, tflite-runtime, which gets only what it computes
right) and the modules beside it, and nothing of edgekit. Two ways to call it:

    tflite_runner.py JOB     one job of the development host: probe, race, profile or bundle (see these functions)
    run [--seconds S]        inside a bundle: checks the test vectors, then measures the shipped model
"""

import json
import os
import sys
import time

sys.dont_write_bytecode = True  # a bundle holds what its manifest lists, and nothing else
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import bundled  # noqa: E402
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
    return bundled.race(job, contestant, peak_memory, runtime_name)


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


def open_model(folder, artifact):
    """The bundle's model as `load` takes it, and as a function."""
    model = {"name": "bundle", "path": os.path.join(folder, artifact["path"])}
    interpreter = load(model, artifact["threads"])
    into = {row["name"]: row["index"] for row in interpreter.get_input_details()}
    out_of = {row["name"]: row["index"] for row in interpreter.get_output_details()}

    def infer(inputs, names):
        for name, values in inputs.items():
            interpreter.set_tensor(into[name], values)
        interpreter.invoke()
        return {name: interpreter.get_tensor(out_of[name]) for name in names}

    return model, infer


def bundle(job):
    return bundled.run(job["folder"], job["seconds"], open_model, race, device_facts)


def main():
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the runtime's own words go elsewhere
    actions = {"probe": probe, "race": race, "profile": profile, "bundle": bundle}
    try:
        document, status = bundled.called(__doc__, actions)
    except Unusable as reason:
        sys.stderr.write("%s\n" % reason)
        return 1
    with answer:
        json.dump(document, answer)
        answer.write("\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
