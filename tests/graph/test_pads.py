from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.graph import Graph, load


def padded_conv(
    pads: list[int], *, own: list[int] | None = None, value: float | None = None, mode: str = "constant", read: int = 1
) -> onnx.ModelProto:
    """Pad -> Conv (3x3), with `read` readers of the padded tensor."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 3 + pads[1] + pads[5], 3, 3)).astype(np.float32)
    initializers = [numpy_helper.from_array(np.array(pads, np.int64), "pads"), numpy_helper.from_array(weights, "w")]
    inputs = ["x", "pads"]
    if value is not None:
        initializers.append(numpy_helper.from_array(np.array(value, np.float32), "value"))
        inputs.append("value")
    extra = {} if own is None else {"pads": own}
    nodes = [
        helper.make_node("Pad", inputs, ["padded"], name="pad", mode=mode),
        helper.make_node("Conv", ["padded", "w"], ["y"], name="conv", strides=[2, 2], **extra),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"])]
    if read > 1:
        nodes.append(helper.make_node("Relu", ["padded"], ["z"], name="other"))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["e", "f", "g", "h"]))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 9])], outputs, initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def loaded(model: onnx.ModelProto, folder: Path) -> Graph:
    onnx.save(model, folder / "m.onnx")
    return load(folder / "m.onnx")  # compares the outputs with the original's


def operators(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.model.graph]


@pytest.mark.parametrize("own", [None, [1, 0, 0, 2]])
@pytest.mark.parametrize("value", [None, 0.0])
def test_zero_padding_becomes_the_convolutions_own(tmp_path: Path, own: list[int] | None, value: float | None) -> None:
    graph = loaded(padded_conv([0, 0, 0, 1, 0, 0, 1, 2], own=own, value=value), tmp_path)
    assert operators(graph) == ["Conv"]
    (conv,) = graph.model.graph
    assert list(conv.attributes.get_ints("pads")) == [a + b for a, b in zip(own or [0] * 4, [0, 1, 1, 2], strict=True)]
    assert set(graph.model.graph.initializers) == {"w"}


@pytest.mark.parametrize(
    "model",
    [
        padded_conv([0, 0, 1, 1, 0, 0, 1, 1], value=0.5),
        padded_conv([0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"),
        padded_conv([0, 1, 1, 1, 0, 0, 1, 1]),
        padded_conv([0, 0, -1, 1, 0, 0, 1, 1]),
        padded_conv([0, 0, 1, 1, 0, 0, 1, 1], read=2),
    ],
    ids=["value", "reflect", "channels", "crops", "read twice"],
)
def test_any_other_padding_stays(tmp_path: Path, model: onnx.ModelProto) -> None:
    assert "Pad" in operators(loaded(model, tmp_path))
