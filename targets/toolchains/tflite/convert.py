#!/usr/bin/env python3
"""Turns a float ONNX model and a plan into a .tflite file and reads back what was written.

Runs inside the `tflite` toolchain and imports nothing of edgekit. Reads one JSON document from standard input and
prints one:

    {"action": "convert", "onnx": "model.onnx", "tflite": "model.tflite", "base": "fp32",
     "nodes": {"/conv1/Conv": {"precision": "int8", "inputs": [[-2.0, 3.1]], "output": [0.0, 6.0]}, ...}}

``nodes`` holds the ONNX nodes that are not in the ``base`` precision (fp32, or fp16 for weights stored in 16 bits).
``inputs`` are the ranges of the node's activation inputs in their order, ``output`` that of its result behind a ReLU or
clip that follows. The ranges must be there for int8 and int16x8. Paths are taken as they are.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent))

from container import Refused
from floats import channels_first, convert_float, float_error, fully_connected
from naming import number, tag_operators
from quantizing import quantize
from reading import finish, weight_bytes
from tidying import tidy


def main() -> int:
    """One job from standard input."""
    job = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the converters print what they do
    try:
        document = {"check": check, "convert": convert}[job["action"]](job)
    except Refused as refusal:
        document = {"error": str(refusal)}
    with answer:
        json.dump(document, answer)
    return 0


def check(_job: Mapping[str, Any]) -> dict[str, Any]:
    """Import everything that a conversion needs."""
    import ai_edge_litert.interpreter
    import ai_edge_quantizer.quantizer
    import onnx2tf
    import onnxruntime

    modules = (ai_edge_litert.interpreter, ai_edge_quantizer.quantizer, onnx2tf, onnxruntime)
    return {"modules": [module.__name__ for module in modules]}


def convert(job: Mapping[str, Any]) -> dict[str, Any]:
    """Write the .tflite. Returns its operators, the worst error of the float conversion, and seconds of each step."""
    start = time.monotonic()
    source = onnx.load(job["onnx"])
    numbered = number(source)
    content = channels_first(tidy(fully_connected(convert_float(numbered.model))), source, numbered)
    converted = time.monotonic()
    error = float_error(source, numbered, content)
    checked = time.monotonic()
    tagged = tag_operators(content, numbered)
    content = quantize(tagged, numbered, job)
    content, operators = finish(content, tagged, numbered, source)
    Path(job["tflite"]).write_bytes(content)
    return {
        "operators": operators,
        "float_error": error,
        "weight_bytes": weight_bytes(content),
        "seconds": {
            "float": converted - start,
            "check": checked - converted,
            "quantize": time.monotonic() - checked,
        },
    }


if __name__ == "__main__":
    sys.exit(main())
