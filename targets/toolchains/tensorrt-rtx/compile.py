"""Compiles a typed ONNX model for a GPU of one compute capability and says what the engine's layers execute.

A job as JSON on stdin: {"action": "check"}, or {"action": "compile", "onnx": path, "compute": "8.6"}. One JSON document
on stdout. No GPU and no driver is needed: the engine is never run.
"""

import json
import re
import sys
import time
from pathlib import Path

import tensorrt_rtx_bindings as trt  # the package around it has no wheel, and adds nothing

_TYPES = {"Int8": "int8", "Half": "fp16", "Float": "fp32", "BFloat16": "bf16", "FP8": "fp8", "Int4": "int4"}
_ROW = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), StreamId: \d+, Metadata: (?P<nodes>.*)$"
)


class _Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []
        self.errors = []

    def log(self, severity, message):
        self.lines += message.splitlines()
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(message)


def _compile(path, compute):
    log = _Log()
    # Each of these is held: on temporaries the parser ends in a segmentation fault.
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(Path(path).read_bytes()):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return {"accepted": False, "reason": "; ".join(_said(one) for one in errors) or _last(log)}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + compute.replace(".", "")), 0)
    begun = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"accepted": False, "reason": _last(log)}
    return {
        "accepted": True,
        "reason": "",
        "compute": compute,
        "version": trt.__version__,
        "engine_bytes": plan.nbytes,
        "build_s": time.monotonic() - begun,
        "weight_bytes": _bytes(log.lines, "Total Weights Memory"),
        "activation_bytes": _bytes(log.lines, "Total Activation Memory"),
        "layers": [_row(found) for found in map(_ROW.match, log.lines) if found],
    }


def _row(found):
    return {
        "name": found["name"],
        "kind": found["kind"],
        "nodes": re.findall(r"\[ONNX Layer: (.*?)\]", found["nodes"]),
        **{key: _types(found[key]) for key in ("inputs", "constants", "outputs")},
    }


def _types(text):
    return [_TYPES.get(word, word.lower()) for word in re.findall(r"Datatype: (\w+)", text)]


def _bytes(lines, title):
    found = [line for line in lines if line.startswith(title)]
    return int(re.search(r"(\d+) bytes", found[-1])[1]) if found else None


def _said(error):
    words = " ".join(error.desc().split())
    return f"{error.node_operator()} {error.node_name()}: {words}" if error.node_name() else words


def _last(log):
    return " ".join(log.errors[-1].split())[:400] if log.errors else "no engine, and no reason given"


def main():
    job = json.load(sys.stdin)
    if job["action"] == "check":
        trt.Builder(_Log())
        document = {"version": trt.__version__}
    else:
        document = _compile(job["onnx"], job["compute"])
    json.dump(document, sys.stdout)


main()
