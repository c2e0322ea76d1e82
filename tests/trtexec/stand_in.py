"""A trtexec for machines without a GPU. Its options are those of one release of TensorRT; its reports have that
release's form, as samples/common/sampleReporting.cpp of the release writes them and the examples of NVIDIA's
trt-engine-explorer show them. What it computes is right (onnxruntime), its times are made up.

Reads ``stand_in.json`` beside itself: ``version``, ``flags`` (all options of the release), ``dla_cores`` of the board,
and for tests of faults ``pause_s`` (how long a build takes), ``fault`` (see `misbehave`) and ``types`` (layers compiled
otherwise than asked).
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SETTINGS = json.loads((HERE / "stand_in.json").read_text())
VERSION = tuple(int(part) for part in SETTINGS["version"].split("."))
FORMATS = {
    "fp32": "Row major linear FP32",
    "fp16": "Channel major FP16 format where channel % 4 == 0",
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
}
NEWER_FORMATS = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}
# TensorRT moves pairs through them ("Explicit quantization" in its developer guide).
VIEWS = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class FailedError(Exception):
    """What trtexec says before it fails."""


def say(level: str, text: str) -> None:
    print(f"[11/22/2026-12:00:00] [{level}] {text}", flush=True)


def parse(words: list[str]) -> dict[str, str]:
    """trtexec's own way: split at the first '='; what nobody asked for is an unknown option."""
    found = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    unknown = sorted(found.keys() - set(SETTINGS["flags"]))
    if unknown:
        for name in unknown:
            say("E", f"Unknown option: {name} {found[name]}")
        raise FailedError
    return found


def misbehave(when: str) -> None:
    """The fault of ``SETTINGS``, as "moment:what": kill (as the kernel does), slow, fail, fill (the disk), F=TEXT."""
    moment, _, what = SETTINGS.get("fault", "").partition(":")
    if moment != when:
        return
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "fill":
        with Path("built/filler").open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
    elif what == "slow":
        time.sleep(30)
    elif what == "fail":
        say("E", '[TRT] ModelImporter.cpp:773: While parsing node number 3 [Foo -> "y"]:')
        raise FailedError("Failed to parse onnx file")
    else:
        Path(what.split("=")[0]).write_text(what.split("=")[1] + "\n")


# --- building ---------------------------------------------------------------------------------------------------------


def build(options: dict[str, str]) -> None:
    import onnx

    for name in ("--onnx", "--saveEngine"):
        if name not in options:
            raise FailedError("Model missing or format not recognized")
    model_bytes = Path(options["--onnx"]).read_bytes()
    graph = onnx.load_model_from_string(model_bytes).graph
    core = options.get("--useDLACore", "")
    if core and int(core) >= SETTINGS.get("dla_cores", 0):
        raise FailedError(f"Cannot create DLA engine, {core} not available")
    if core and "--int8" not in options:
        options = {**options, "--fp16": ""}  # as samples/common/sampleEngines.cpp does
    layers = compiled(graph, options)
    if core:
        layers = on_accelerator(layers, "--allowGPUFallback" in options)
    print("&&&& building", file=sys.stderr, flush=True)
    misbehave("build")
    time.sleep(SETTINGS.get("pause_s", 0))
    cache = Path(options["--timingCacheFile"])
    known = cache.read_bytes() if cache.exists() else b""
    say("I", f"Loaded {len(known)} bytes of timing cache from {cache}")
    head = json.dumps({"version": SETTINGS["version"], "layers": layers, "detailed": is_detailed(options)}).encode()
    with Path(options["--saveEngine"]).open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for start in range(0, len(model_bytes), 1 << 16):
            file.write(model_bytes[start : start + (1 << 16)])
    cache.write_bytes(b"timing of this GPU\n")
    misbehave("built")
    say("I", "Engine built in 12.5 sec." if VERSION < (10,) else "Engine built in 12.5083 sec.")


def is_detailed(options: dict[str, str]) -> bool:
    return options.get("--profilingVerbosity") in ("detailed", "verbose")


def compiled(graph: Any, options: dict[str, str]) -> list[dict[str, Any]]:
    """The engine's layers: each computing node with the Relu behind it, in the types that file and options ask for."""
    import onnx

    half = {one.name for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT16}
    strong = "--stronglyTyped" in options or VERSION >= (11,)
    made = {name: node for node in graph.node for name in node.output}
    constraints = options.get("--layerPrecisions", "")
    named = dict(word.rsplit(":", 1) for word in constraints.split(",")) if constraints else {}
    if named and options.get("--precisionConstraints") != "obey":
        say("W", "--layerPrecision/--layerOutputTypes flags have no effect")
        named = {}
    layers = []
    for node in graph.node:
        if node.op_type not in COMPUTING:
            continue
        source = made.get(node.input[0])
        while source is not None and source.op_type in VIEWS:
            source = made.get(source.input[0])
        if source is not None and source.op_type == "DequantizeLinear":
            if not strong and "--int8" not in options:
                raise FailedError("Q/DQ layers need --int8: Network has int8 layers, builder flag kINT8 is not set")
            executed = "int8"
        elif strong:
            executed = "fp16" if half.intersection(node.input) else "fp32"
        else:
            executed = named.get(node.name) or ("fp16" if "--fp16" in options else "fp32")
        followers = [one for one in graph.node if node.output[0] in one.input and one.op_type == "Relu"]
        executed = SETTINGS.get("types", {}).get(node.name, executed)
        layers.append(
            {"nodes": [node.name, *(one.name for one in followers)], "type": executed, "output": node.output[0]}
        )
    return layers


def on_accelerator(layers: list[dict[str, Any]], falls_back: bool) -> list[dict[str, Any]]:
    """What computes halves in a row becomes one region of the accelerator, named as jetson_dla_tutorial shows it."""
    found: list[dict[str, Any]] = []
    for layer in layers:
        if layer["type"] != "fp16" and not falls_back:
            raise FailedError(f"{layer['nodes'][0]}: is not supported on DLA, and GPU fallback is not enabled")
        if layer["type"] == "fp16" and found and "region" in found[-1]:
            found[-1]["region"] += layer["nodes"]
            found[-1]["output"] = layer["output"]
        else:
            found.append({**layer, **({"region": list(layer["nodes"])} if layer["type"] == "fp16" else {})})
    return found


# --- running ----------------------------------------------------------------------------------------------------------


def load_engine(path: str) -> tuple[dict[str, Any], bytes]:
    content = Path(path).read_bytes()
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    if head["version"] != SETTINGS["version"]:
        raise FailedError(
            "6: The engine plan file is not compatible with this version of TensorRT, "
            f"expecting library version {SETTINGS['version']} got {head['version']}"
        )
    return head, content[8 + size :]


def compute(model: bytes, options: dict[str, str]) -> dict[str, Any]:
    import numpy as np
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    files = dict(word.rsplit(":", 1) for word in options["--loadInputs"].split(","))
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
    inputs = {}
    for row in session.get_inputs():
        dtype = np.dtype(types[row.type])
        content = Path(files[row.name]).read_bytes()
        size = math.prod(row.shape) * dtype.itemsize
        if len(content) != size:
            raise FailedError(
                f"Unexpected file size for input file: {files[row.name]}. Note: Input binding size is: {size} bytes "
                f"but the file size is {len(content)} bytes"
            )
        inputs[row.name] = np.frombuffer(content, dtype).reshape(row.shape)
    names = [row.name for row in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def run(options: dict[str, str]) -> None:
    head, model = load_engine(options["--loadEngine"])
    if "--useDLACore" not in options and any("region" in layer for layer in head["layers"]):
        raise FailedError("the engine needs a DLA core, and none is set")  # by default -1: NvInferRuntime.h, setDLACore
    warm_up_ms = int(options.get("--warmUp", 200))
    graph = "--noCudaGraph" not in options if VERSION >= (11,) else "--useCudaGraph" in options
    spin = "--noSpinWait" not in options if VERSION >= (11,) else "--useSpinWait" in options
    transfers = "--includeDataTransfers" in options if VERSION >= (11,) else "--noDataTransfers" not in options
    say("I", "=== Inference Options ===")
    for name, value in (("Data transfers", transfers), ("Spin-wait", spin), ("CUDA Graph", graph)):
        say("I", f"{name}: {'Enabled' if value else 'Disabled'}")
    say("I", f"TensorRT version: {SETTINGS['version']}")
    if "--exportProfile" in options:
        misbehave("profile")
        Path(options["--exportProfile"]).write_text(profile(head["layers"]))
    if "--exportLayerInfo" in options:
        Path(options["--exportLayerInfo"]).write_text(layer_info(head, is_detailed(options)))
    if "--exportTimes" in options:
        misbehave("time")
        Path(options["--exportTimes"]).write_text(times(warm_up_ms, transfers))
    if "--exportOutput" in options:
        Path(options["--exportOutput"]).write_text(outputs(compute(model, options)))


def number(value: float) -> str:
    """As std::ostream prints a float."""
    return format(value, ".6g")


def times(warm_up_ms: int, transfers: bool) -> str:
    """Until 8.4 with the warm-up, until 8.2 with the time from end to end."""
    rows, start = [], 0.0
    for index in range(200):
        h2d, d2h = (0.125, 0.0625) if transfers else (0.0, 0.0)
        latency = 12.0 if start < warm_up_ms else 4.0 + 0.01 * (index % 10)
        row = {
            "startEnqMs": start,
            "endEnqMs": start + 0.2,
            "startH2dMs": start,
            "endH2dMs": start + h2d,
            "startComputeMs": start + h2d,
            "endComputeMs": start + h2d + latency,
            "startD2hMs": start + h2d + latency,
            "endD2hMs": start + h2d + latency + d2h,
            "h2dMs": h2d,
            "computeMs": latency,
            "d2hMs": d2h,
            "latencyMs": h2d + latency + d2h,
        }
        if VERSION < (8, 3):
            row["endToEndMs"] = 2 * latency
        if VERSION < (8, 5) or row["startComputeMs"] >= warm_up_ms:
            rows.append("{ " + ", ".join(f'"{key}" : {number(value)}' for key, value in row.items()) + " }")
        start += 10.0
    return "[\n  " + "\n, ".join(rows) + "\n]\n"


def profile(layers: list[dict[str, Any]]) -> str:
    rows = ["[", '  { "count" : 50 }']
    share = 100 / len(layers)
    for index, layer in enumerate(layers):
        average = 0.1 * (index + 1)
        median = f', "medianMs" : {number(average)}' if VERSION >= (8, 4) else ""
        rows.append(
            f', {{ "name" : "{title(layer)}", "timeMs" : {number(50 * average)}, "averageMs" : {number(average)}'
            f'{median}, "percentage" : {number(share)} }}'
        )
    return "\n".join([*rows, "]\n"])


def title(layer: dict[str, Any]) -> str:
    """With the weight's own quantization until 8.6; Myelin's names from 10 on say nothing for what it fuses."""
    first, *rest = layer["nodes"]
    if "region" in layer:
        nodes = layer["region"]
        return f"{{ForeignNode[{nodes[0]}{'...' + nodes[-1] if len(nodes) > 1 else ''}]}}"
    if layer["type"] == "int8" and VERSION < (10,):
        return " + ".join([f"{first}.weight", f"{first}_weight_QuantizeLinear", *layer["nodes"]])
    if rest and VERSION >= (11,):
        return f"__myl_ConvRelu_myl0_{layer['output']}"
    return " + ".join(layer["nodes"])


def layer_info(head: dict[str, Any], detailed: bool) -> str:
    rows: list[Any] = []
    for layer in head["layers"]:
        if not (detailed and head["detailed"]):
            rows.append(title(layer))
            continue
        word = (NEWER_FORMATS if VERSION >= (10, 4) else FORMATS)[layer["type"]]
        tensor = {"Location": "Device", "Dimensions": [1, 8, 16, 16], "Format/Datatype": word}
        row = {
            "Name": title(layer),
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "some", **tensor}],
            "Outputs": [{"Name": layer["output"], **tensor}],
            "ParameterType": "Convolution",
            "Weights": {"Type": NEWER_FORMATS[layer["type"]], "Count": 864},
            "TacticName": "made_up",
        }
        if "region" in layer:
            row = {key: row[key] for key in ("Name", "Inputs", "Outputs")} | {"LayerType": "DLA"}
        elif VERSION >= (8, 6):
            row["Metadata"] = "\x1f".join(f"[ONNX Layer: {name}]" for name in layer["nodes"])
        rows.append(row)
    first = title(head["layers"][0]) if "region" in head["layers"][0] else head["layers"][0]["nodes"][0]
    copy = f"Reformatting CopyNode for Input Tensor 0 to {first}"
    if rows and isinstance(rows[0], dict):
        tensor = {"Location": "Device", "Dimensions": [1, 3, 16, 16], "Format/Datatype": FORMATS["fp32"]}
        rows.insert(0, {"Name": copy, "LayerType": "Reformat", "Inputs": [tensor], "Outputs": [tensor]})
    else:
        rows.insert(0, copy)
    return json.dumps({"Layers": rows, "Bindings": ["x", "y"]}).replace(', {"Name": ', '\n,{"Name": ') + "\n"


def outputs(arrays: dict[str, Any]) -> str:
    rows = []
    for name, array in arrays.items():
        shape = "x".join(map(str, array.shape))
        values = ", ".join(number(float(value)) for value in array.ravel())
        rows.append(f'{{ "name" : "{name}"\n  , "dimensions" : "{shape}"\n  , "values" : [ {values} ]\n  }}')
    return "[\n  " + "\n, ".join(rows) + "\n]\n"


def main() -> int:
    patch = VERSION[2] if len(VERSION) > 2 else 0
    title_line = f"TensorRT.trtexec [TensorRT v{VERSION[0]}{VERSION[1]:02d}{patch:02d}] # {' '.join(sys.argv)}"
    print(f"&&&& RUNNING {title_line}", flush=True)
    try:
        options = parse(sys.argv[1:])
        if "--loadEngine" in options:
            run(options)
        else:
            build(options)
    except (FailedError, OSError) as error:
        if str(error):
            say("E", str(error))
        print(f"&&&& FAILED {title_line}", flush=True)
        return 1
    print(f"&&&& PASSED {title_line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
