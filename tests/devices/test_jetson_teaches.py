"""A Jetson that was measured corrects the user's own copy of its profile, and with it the next prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.command import Desk
from tests.trtexec.jetson import NANO, running_jetson

TARGET = ("--target", "jetson-nano")


def _write(path: Path) -> None:
    """A row of 3 x 3 convolutions, of as much arithmetic as the networks that the board's costs come from."""
    sizes = [(64, 3, 2), *[(64, 64, 1)] * 6]
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((o, i, 3, 3)).astype(np.float32) / (9 * i) ** 0.5 for o, i, _ in sizes]
    nodes = []
    for number, (_, _, stride) in enumerate(sizes):
        source = f"relu{number - 1}" if number else "x"
        conv = helper.make_node("Conv", [source, f"w{number}"], [f"y{number}"], pads=[1] * 4, strides=[stride] * 2)
        nodes += [conv, helper.make_node("Relu", [f"y{number}"], [f"relu{number}"])]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 224, 224])
    y = helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, [1, 64, 112, 112])
    held = [numpy_helper.from_array(array, f"w{number}") for number, array in enumerate(weights)]
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


@pytest.mark.slow
def test_the_first_run_on_a_board_corrects_its_predictions(desk: Desk) -> None:
    _write(desk.folder / "net.onnx")
    desk.succeed("deploy", "net.onnx", *TARGET, "--synthetic", "--out", "bundle")
    predict = ("predict", "net.onnx", *TARGET, "--plan", "bundle/plan.json", "--json")
    before = desk.succeed(*predict).document
    assert before["latency_ms"]["kind"] == "predicted"
    with running_jetson(NANO) as board:
        benched = desk.succeed(
            "bench", "bundle", "--host", "bench", "--lab", board.bench.lab(), "--seconds", "1", "--json"
        )
        board.bench.await_quiet()
    document = benched.document
    assert "1 raced latency now corrects the costs of jetson-nano (tensorrt)" in " ".join(benched.err.split())
    after = desk.succeed(*predict).document
    assert "by 1 network raced on this device" in after["profile"]["evidence"]
    between = sorted((before["latency_ms"]["value"], document["latency_ms"]["p50"]))
    assert between[0] < after["latency_ms"]["value"] < between[1]
