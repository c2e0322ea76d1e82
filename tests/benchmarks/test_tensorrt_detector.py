"""The detector's own metric, its pictures, and that a Nano's plan for it prunes, halves, or says what is nearest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.detector import metric
from tests import zoo
from tests.command import Desk

SIDE = 416
STRIDES = (8, 16, 32)
ROOT = Path(__file__).resolve().parents[2]


def head(boxes: list[tuple[float, float, float, float]], scores: list[float], stride: int = 16) -> np.ndarray:
    """What the network would say of boxes with centres in different cells of one stride."""
    cells = [(SIDE // s) ** 2 for s in STRIDES]
    raw = np.full((1, sum(cells), 6), -3, np.float32)
    raw[..., 4:] = 0
    first, across = sum(cells[: STRIDES.index(stride)]), SIDE // stride
    for (x0, y0, x1, y1), score in zip(boxes, scores, strict=True):
        centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2]) / stride
        column, row = np.floor(centre).astype(int)
        sizes = np.log([(x1 - x0) / stride, (y1 - y0) / stride])
        raw[0, first + row * across + column] = [*(centre - (column, row)), *sizes, score, 1]
    return raw


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8, unique=True),
    st.sampled_from(STRIDES),
    st.floats(20, 70),
)
def test_boxes_are_read_back_from_the_head(places: list[tuple[int, int]], stride: int, size: float) -> None:
    boxes = [(80 * x + 3.0, 80 * y + 5.0, 80 * x + 3 + size, 80 * y + 5 + size * 0.9) for x, y in places]
    scores = [0.9 - 0.05 * i for i in range(len(boxes))]
    raw = head(boxes, scores, stride)
    assert np.allclose(metric.boxes_of(raw), boxes, atol=0.05)  # the best first
    planted = np.full((8, 4), -1, np.float32)
    planted[: len(boxes)] = boxes
    row = metric.box_f1.row({"output": raw}, planted, {})
    assert row == (len(boxes),) * 3
    assert metric.box_f1.aggregate(np.array([row])) == 1


def test_misses_ghosts_doubles_and_shifts() -> None:
    planted = np.array([[10, 10, 60, 60], [100, 100, 160, 160], [-1, -1, -1, -1]], np.float32)
    there, other, ghost = (10, 10, 60, 60), (100, 100, 160, 160), (300, 300, 350, 350)
    double = (16, 16, 66, 66)  # of a cell of its own, mostly inside the first

    def row(boxes: list[tuple[float, float, float, float]], score: float = 0.9) -> tuple[float, ...]:
        return metric.box_f1.row({"output": head(boxes, [score] * len(boxes))}, planted, {})

    assert row([there, other]) == (2, 2, 2)
    assert row([there, ghost]) == (1, 2, 2)
    assert row([there, (70, 70, 130, 130)]) == (1, 2, 2), "an overlap of less than half is no match"
    assert row([there], 0.05) == (0, 0, 2), "too unsure"
    assert metric.box_f1.row({"output": head([there, double], [0.9, 0.5], 8)}, planted, {})[:2] == (1, 1)
    assert row([]) == (0, 0, 2)
    assert metric.box_f1.aggregate(np.array([row([there, ghost]), row([there, other])])) == pytest.approx(6 / 8)


def test_a_damaged_head_is_no_crash() -> None:
    for value in (np.nan, np.inf, -np.inf, 1e30):
        row = metric.box_f1.row({"output": np.full((1, 3549, 6), value, np.float32)}, np.ones((1, 4)), {})
        assert np.isfinite(row).all()


@pytest.mark.parametrize("side", ["100", "640"])
def test_a_side_that_does_not_fit(side: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.detector", str(tmp_path), "--side", side]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "multiple of 32" in ended.stderr
    assert not list(tmp_path.iterdir())


def detector() -> onnx.ModelProto:
    """A backbone with partial residual stages, one way back up, and two heads: a YOLO of few layers."""
    net = zoo.Net(3)

    def conv(x: str, cin: int, cout: int, k: int = 3, stride: int = 1) -> str:
        y = net.conv(x, cin, cout, k, stride=stride)
        return str(net.op("Mul", y, net.op("Sigmoid", y)))

    def stage(x: str, cin: int, cout: int) -> str:
        x = conv(x, cin, cout, stride=2)
        half = conv(x, cout, cout // 2, 1)
        inner = net.op("Add", half, conv(conv(half, cout // 2, cout // 2, 1), cout // 2, cout // 2))
        return conv(net.op("Concat", inner, conv(x, cout, cout // 2, 1), axis=1), cout, cout, 1)

    early = stage(stage(conv(net.input("images", [1, 3, 256, 256]), 3, 24, stride=2), 24, 48), 48, 96)
    deep = stage(early, 96, 192)
    up = net.op("Resize", conv(deep, 192, 96, 1), "", net.weight(np.float32([1, 1, 2, 2])), mode="nearest")
    fine = conv(net.op("Concat", up, early, axis=1), 192, 96)
    heads = [net.conv(conv(x, channels, 96), 96, 6, 1) for x, channels in ((fine, 96), (deep, 192))]
    return net.model([net.op("Reshape", head, net.ints(1, 6, -1)) for head in heads])


@pytest.mark.slow
def test_a_nano_halves_and_prunes_it_or_names_the_nearest(desk: Desk) -> None:
    onnx.save(detector(), desk.folder / "detector.onnx")
    rng = np.random.default_rng(0)
    np.savez(desk.folder / "pictures.npz", images=rng.standard_normal((12, 3, 256, 256)).astype(np.float32))
    model = ("detector.onnx", "--target", "jetson-nano")
    in_halves = desk.succeed("predict", *model, "--precision", "fp16", "--json").document["latency_ms"]["value"]
    arguments = ("plan", *model, "--data", "pictures.npz", "--max-drop", "50%", "--out", "plan.json")
    budget = 0.9 * in_halves
    plan = desk.succeed(*arguments, "--latency", f"{budget}ms", "--json").document["plan"]
    assert {layer["precision"] for layer in plan["layers"]} == {"fp16"}
    assert min(layer["keep"] for layer in plan["layers"]) < 1
    assert plan["predicted"]["latency_ms"]["value"] <= budget
    refused = desk.run(*arguments, "--latency", f"{in_halves / 50}ms")
    assert refused.code == 3
    nearest = float(refused.err.split("nearest latency_ms: ")[1].split()[0])
    assert in_halves / 50 < nearest < budget
