"""Models for the tests of the TFLite backend, and what is read back of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends import Artifact, able, tflite
from edgekit.catalog import data_root
from edgekit.compress.observers import choose_range
from edgekit.compress.qdq import apply_precisions, quantization_points
from edgekit.compress.ranges import collect_ranges
from edgekit.graph import to_bytes
from edgekit.types import Precision
from tests.quantized import Case, case_of
from tests.zoo import Net

FP32, FP16, INT8, INT16X8, W8, W4 = (Precision(word) for word in ("fp32", "fp16", "int8", "int16x8", "w8", "w4"))
RUNNER = data_root() / "targets" / "runners" / tflite.RUNNER


def hub(source: Case, plan: Mapping[str, Precision]) -> bytes:
    """The plan as the backend takes it: with the results' ranges."""
    seen = collect_ranges(source.graph, quantization_points(source.graph, results=True), source.data)
    ranges = {name: choose_range(one, "min-max") for name, one in seen.items()}
    return to_bytes(apply_precisions(source.graph, plan, ranges, results=True))


def offered(source: Case, precision: Precision) -> dict[str, Precision]:
    return dict.fromkeys(able(source.graph, tflite, precision), precision)


def rows_of(made: Artifact) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(made.path.with_name("operators.json").read_text())["operators"]
    return rows


def words(made: Artifact, source: Case) -> dict[str, set[str]]:
    """Layer -> what the file says that it executes as."""
    found: dict[str, set[str]] = {}
    for node in tflite.executed_nodes(rows_of(made), source.graph):
        if node.computes:
            found.setdefault(node.layers[0], set()).add(node.precision)
    return found


def expected(source: Case, plan: Mapping[str, Precision]) -> dict[str, set[str]]:
    return {name: {plan.get(name, FP32).value} for name in source.names}


def misnamed() -> Case:
    """Nodes and tensors named to be taken for others: numbers, other nodes' names, what the converter appends."""
    rng = np.random.default_rng(0)
    weights = {
        "n3_conv_filter": rng.normal(size=(8, 3, 3, 3)),
        "n0_conv_filter": rng.normal(size=(8, 1, 3, 3)),
        "o1;0": rng.normal(size=(8, 8, 1, 1)),
        "input_0": rng.normal(size=(8, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["o0;0", "n3_conv_filter"], ["n2_out0"], "n1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["n2_out0"], ["n0_out0"], "/n0_out0"),
        helper.make_node("Conv", ["n0_out0", "n0_conv_filter"], ["n1_out0"], "n0", pads=[1, 1, 1, 1], group=8),
        helper.make_node("Conv", ["n1_out0", "o1;0"], ["n4_out0"], "n0_conv"),
        helper.make_node("Add", ["n0_out0", "n4_out0"], ["serving_default:0"], "n2"),
        helper.make_node("GlobalAveragePool", ["serving_default:0"], ["pooled"], "Conv_output_nhwc"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "n3"),
        helper.make_node("MatMul", ["flat", "input_0"], ["n9_out0"], "n5_fc_weights"),
    ]
    graph = helper.make_graph(
        nodes,
        "misnamed",
        [helper.make_tensor_value_info("o0;0", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("n9_out0", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return case_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def glued() -> Case:
    """Channels padded with zeros, branches of two sizes joined and averaged: all of it between convolutions."""
    net = Net()
    x = net.op("Relu", net.op("Conv", net.input("x", [1, 3, 16, 16]), net.random(8, 3, 3, 3), pads=[1, 1, 1, 1]))
    small = net.op("Conv", x, net.random(12, 8, 2, 2), strides=[2, 2])
    pooled = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    padded = net.op("Concat", pooled, net.weight(np.zeros((1, 4, 8, 8), np.float32)), axis=1)
    y = net.op("Relu", net.op("Add", small, padded))
    wide = net.op("Resize", y, "", net.weight(np.float32([1, 1, 2, 2])), mode="nearest", nearest_mode="floor",
                  coordinate_transformation_mode="asymmetric")  # fmt: skip
    joined = net.op("Concat", wide, x, axis=1)
    z = net.op("Relu", net.op("Conv", joined, net.random(16, 20, 1, 1)))
    mean = net.op("GlobalAveragePool", z)
    return case_of(net.model([net.op("Conv", mean, net.random(5, 16, 1, 1))]))


def gated() -> Case:
    """Activations of several operators, a squeeze-and-excite gate on them, and a swish: all between convolutions."""
    net = Net()
    x = net.op("HardSwish", net.op("Conv", net.input("x", [1, 3, 16, 16]), net.random(8, 3, 3, 3), pads=[1, 1, 1, 1]))
    x = net.op("Add", net.op("Mul", net.weight(np.float32([0.7])), x), net.weight(np.float32([-0.2])))
    squeezed = net.op("Relu", net.op("Conv", net.op("GlobalAveragePool", x), net.random(4, 8, 1, 1)))
    gate = net.op("HardSigmoid", net.op("Conv", squeezed, net.random(8, 4, 1, 1)), alpha=1 / 6, beta=0.5)
    y = net.op("Conv", net.op("Mul", x, gate), net.random(12, 8, 1, 1))
    swish = net.op("Mul", y, net.op("Sigmoid", y))
    return case_of(net.model([net.op("Conv", swish, net.random(5, 12, 1, 1))]))
