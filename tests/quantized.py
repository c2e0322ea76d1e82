"""Zoo models loaded, with min-max ranges of smooth samples, and a backend and device that really run them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from edgekit.backends import openvino
from edgekit.catalog import data_root
from edgekit.compress.observers import Range, choose_range
from edgekit.compress.qdq import apply_precisions, quantization_points
from edgekit.compress.ranges import collect_ranges
from edgekit.devices import local
from edgekit.devices.race import Device
from edgekit.graph import Graph, load, to_bytes
from edgekit.recipes.samples import Dataset, synthetic
from edgekit.types import Precision
from tests import zoo

RUNNER = data_root() / "targets" / "runners" / openvino.RUNNER


@dataclass(frozen=True)
class Case:
    """A loaded model with samples and the range of each tensor that may be quantized."""

    graph: Graph
    data: Dataset
    ranges: Mapping[str, Range]

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.graph.layers]

    def uniform(self, precision: Precision) -> dict[str, Precision]:
        return dict.fromkeys(self.names, precision)

    def write(self, precisions: Mapping[str, Precision]) -> bytes:
        return to_bytes(apply_precisions(self.graph, precisions, self.ranges))


def case_of(model: onnx.ModelProto) -> Case:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        graph = load(path)
    data = synthetic(graph.inputs, 4, seed=0)
    seen = collect_ranges(graph, quantization_points(graph), data)
    return Case(graph, data, {name: choose_range(one, "min-max") for name, one in seen.items()})


@cache
def case(name: str) -> Case:
    """The zoo model of that name; also with groups in its transposed convolution."""
    return case_of(zoo.conv_transpose(group=2) if name == "conv_transpose_grouped" else zoo.STATIC[name]())


CASES = (*zoo.STATIC, "conv_transpose_grouped")


def run(model: bytes, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In onnxruntime, Q/DQ pairs executed as they stand."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def sqnr_db(outputs: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Signal to noise of the output where it is lowest."""
    return min(
        10 * np.log10(np.square(theirs, dtype=float).sum() / max(np.square(outputs[name] - theirs).sum(), 1e-30))
        for name, theirs in reference.items()
    )


def host() -> Device:
    """This machine, one thread."""
    return Device(openvino, lambda job, timeout_s: local.run_job(RUNNER, job, timeout_s), 1)
