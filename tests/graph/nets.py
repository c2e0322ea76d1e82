"""Random small networks for property tests, and the plain measuring that the tests share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import strategies as st

from benchmarks.arena import arena_bytes
from edgekit.compress.observers import Range
from edgekit.compress.qdq import apply_precisions, quantization_points
from edgekit.errors import MissingToolError
from edgekit.graph import Graph, load, peak_activation_bytes, to_bytes
from edgekit.types import Precision
from tests.zoo import Net

BLOCKS = (
    "conv",
    "bn",
    "relu",
    "clip",
    "scale",
    "hswish",
    "silu",
    "depthwise",
    "residual",
    "dense",
    "pool",
    "view",
    "se",
)


@st.composite
def random_nets(draw: st.DrawFn) -> onnx.ModelProto:
    """A chain of random blocks with skips, on x [1, 4, 8, 8]; sometimes several outputs."""
    net = Net(draw(st.integers(0, 2**16)))
    y, channels, size = net.input("x", [1, 4, 8, 8]), 4, 8
    outputs = []
    for block in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=10)):
        if block == "conv":
            wider = draw(st.sampled_from([2, 4, 8]))
            y, channels = net.conv(y, channels, wider, draw(st.sampled_from([1, 3])), bias=draw(st.booleans())), wider
        elif block == "depthwise":
            y = net.conv(y, channels, channels, group=channels)
        elif block == "bn":
            y = net.batch_norm(y, channels)
        elif block == "relu":
            y = net.op("Relu", y)
        elif block == "clip":
            y = net.clip6(y)
        elif block == "scale":
            op = draw(st.sampled_from(["Mul", "Add", "Sub", "Div"]))
            shape = draw(st.sampled_from([(1,), (channels, 1, 1), (1, channels, 1, 1), ()]))
            constant = net.weight(net.rng.uniform(0.5, 1.5, shape))
            y = net.op(op, y, constant) if draw(st.booleans()) or op == "Div" else net.op(op, constant, y)
        elif block == "hswish":
            y = net.hard_swish(y)
        elif block == "silu":
            y = net.op("Mul", y, net.op("Sigmoid", y))
        elif block == "residual":
            inner = net.conv(net.op("Relu", net.conv(y, channels, channels)), channels, channels, 1)
            y = net.op("Add", inner, y) if draw(st.booleans()) else net.op("Add", y, inner)
        elif block == "dense":
            y, channels = net.op("Concat", y, net.conv(y, channels, 4), axis=1), channels + 4
        elif block == "pool" and size > 2:
            y, size = net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), size // 2
        elif block == "view":
            flat = net.op("Relu", net.op("Reshape", y, net.ints(1, channels, size * size)))
            y = net.op("Add", net.op("Reshape", flat, net.ints(1, channels, size, size)), y)
        elif block == "se":
            gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", y), channels, channels, 1))
            y = net.op("Mul", y, gate)
        if draw(st.integers(0, 5)) == 0 and y != "x" and y not in outputs:
            outputs.append(y)
    if y == "x" or y not in outputs:
        y = net.op("Tanh", y)
        outputs.append(y)
    return net.model(outputs, opset=draw(st.sampled_from([11, 13, 17])))


def load_model(model: onnx.ModelProto, folder: Path, shapes: Any = None) -> Graph:
    """Save and load."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    return load(path, shapes)


def run(model: bytes, feed: dict[str, Any]) -> list[Any]:
    """Outputs in onnxruntime, unoptimised."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return list(ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feed))


def random_feed(graph: Graph, seed: int) -> dict[str, Any]:
    """Inputs unlike those that load itself tries."""
    rng = np.random.default_rng(1000 + seed)
    feed: dict[str, Any] = {}
    for tensor in graph.inputs:
        if tensor.dtype.startswith("float"):
            feed[tensor.name] = (3 * rng.standard_normal(tensor.shape)).astype(tensor.dtype)
        else:
            feed[tensor.name] = rng.integers(0, 2, tensor.shape).astype(tensor.dtype)
    return feed


def arena_misfit_bytes(graph: Graph, precisions: Mapping[str, Precision]) -> tuple[int, int]:
    """How far the memory predicted for activations is from what OpenVINO allocates for them, and that."""
    ranges = {point: Range(-4.0, 4.0) for point in quantization_points(graph)}
    try:
        arena = arena_bytes(to_bytes(apply_precisions(graph, precisions, ranges)))
    except MissingToolError as error:
        pytest.skip(str(error))
    outside = 4 * sum(math.prod(tensor.shape) for tensor in (*graph.inputs, *graph.outputs))
    return peak_activation_bytes(graph, precisions) - outside - arena, arena
