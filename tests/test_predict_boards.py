"""One model on many boards: the same figures as one at a time, in one go, and nothing installed or connected."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgekit import catalog
from edgekit.api import predict, predict_boards
from edgekit.cost.building import Net
from tests.command import Desk

BOARDS = [name for name, one in catalog.targets().items() if one.transport != "local"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """As large as the networks that the boards' costs were fitted on."""
    net = Net("network", 1, 3, 224, 224)
    x = net.input
    for before, after in ((3, 64), (64, 128), (128, 256), (256, 512)):
        x = net.relu(net.conv(x, before, after, 3, 2))
    onnx.save(net.model(net.linear(net.op("Flatten", net.op("GlobalAveragePool", x)), 512, 1000)), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_board_is_there_and_as_it_is_alone(model: Path, precision: str) -> None:
    found = predict_boards(model, precision=precision)
    assert [one.target for one in found.boards] == [name for name in BOARDS if name not in found.refused]
    without_int8 = {"jetson-nano", "jetson-tx2", *(name for name in BOARDS if name.endswith("-dla"))}
    assert set(found.refused) == (without_int8 if precision == "int8" else set())
    together = {one.target: one for one in found.boards}
    for name in ("jetson-orin-nano", "raspberry-pi-4", "intel-n100"):
        assert together[name] == predict(model, name, precision=precision)


def test_a_pruned_plan_has_the_peak_of_its_own_graph_on_each_board(desk: Desk) -> None:
    """Its smaller graph is made anew for each: what is remembered of one must not be told of another."""
    asked = ("--data", "data.npz", "--eval", "eval.npz", "--max-drop", "90%")
    planned = desk.succeed("plan", "model.onnx", "--target", "jetson-nano", *asked, "--out", "plan.json", "--json")
    assert planned.document["plan"]["layers"]
    plan = desk.folder / "plan.json"
    found = predict_boards(desk.folder / "model.onnx", ["jetson-nano", "jetson-tx2"], plan=plan)
    assert [one.target for one in found.boards] == ["jetson-nano", "jetson-tx2"]
    for one in found.boards:
        assert one == predict(desk.folder / "model.onnx", one.target, plan=plan)


def test_the_command(desk: Desk, model: Path) -> None:
    done = desk.succeed("predict", model, "--target", "all", "--precision", "int8", "--json").document
    assert done["schema"] == "edgekit/predictions/1"
    assert len(done["boards"]) + len(done["refused"]) == len(BOARDS)
    shown = desk.succeed("predict", model, "--target", "jetson-nano, raspberry-pi-4").out
    assert "jetson-nano" in shown
    assert "raspberry-pi-4" in shown
    assert not (desk.cache / "toolchains").exists(), "predicting converts nothing"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "jetson-nano,raspbery-pi-4"), "there is no target 'raspbery-pi-4'"),
        (("--target", "host,jetson-nano"), "host is this machine"),
        (("--target", "all", "--host", "x"), "go with one target"),
        (("--target", ","), "names no board"),
        (("--target", "all", "--precision", "bf16"), "does not offer bf16"),
    ],
)
def test_what_cannot_be_asked(desk: Desk, arguments: tuple[str, ...], said: str) -> None:
    done = desk.run("predict", "model.onnx", *arguments)
    assert done.code == 2
    assert len(done.complaint) == 2, "what is wrong, and a hint"
    assert said in done.complaint[0]
    assert not done.out
