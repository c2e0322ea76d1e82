"""A deployment that prunes, from the command to the verified bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests import zoo
from tests.command import QUICK_TARGET, Desk, bundle_files, write_target

pytestmark = pytest.mark.slow

JOB = ("model.onnx", "--target", "quick", "--overlay", "overlay", "--data", "data.npz", "--eval", "eval.npz")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("pruned")
    onnx.save(zoo.redundant_net(), folder / "model.onnx")
    for name, count, seed in (("data", 32, 0), ("eval", 24, 1)):
        values = np.random.default_rng(seed).standard_normal((count, 3, 32, 32)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=values)
    write_target(folder / "overlay", "quick", QUICK_TARGET)
    return Desk(folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def deployed(desk: Desk) -> Any:
    return desk.succeed("deploy", *JOB, "--out", "bundle", "--json", timeout_s=600).document


def test_superfluous_channels_go_and_the_metric_stays(deployed: Any) -> None:
    assert any(group["kept"] < group["channels"] for group in deployed["plan"]["groups"]), deployed["rounds"]
    (plan,) = [c for c in deployed["candidates"] if c["name"] == deployed["chosen"]]
    bits = next(c for c in deployed["candidates"] if c["name"] == "bits only")
    assert plan["drop"]["value"] <= 0.01
    assert plan["latency_ms"]["p50"] < bits["latency_ms"]["p50"]
    assert plan["weight_bytes"] < bits["weight_bytes"]
    assert any(layer["keep"] < 1 for layer in deployed["plan"]["layers"])


def test_what_was_promised_of_sizes_is_what_is_in_the_bundle(deployed: Any, desk: Desk) -> None:
    promised = deployed["plan"]["predicted"]["weight_bytes"]
    assert promised == sum(layer["weight_bytes"] for layer in deployed["layers"])
    stored = (desk.folder / "bundle" / "model.bin").stat().st_size
    assert promised <= stored <= promised * 1.02 + 4096  # scales, zero points and shapes beside the weights


def test_rounds_groups_and_fixed_layers_are_told(deployed: Any) -> None:
    assert deployed["rounds"]
    assert all(row["predicted_loss"] > 0 and row["measured_loss"] > 0 for row in deployed["rounds"])
    assert len(deployed["groups"]) == 3
    assert [row["layer"] for row in deployed["fixed"]] == [deployed["layers"][-1]["name"]]
    for group in deployed["groups"]:
        assert group["kept"] == group["channels"] or not group["reason"]
    assert {price["budget"] for price in deployed["prices"]} >= {"latency"}


def test_the_bundle_verifies_and_the_second_run_gives_the_same_bytes(deployed: Any, desk: Desk) -> None:
    desk.succeed("verify", "bundle", "--overlay", "overlay")
    assert desk.succeed("report", "bundle", "--json").document["plan"] == deployed["plan"]
    desk.succeed("deploy", *JOB, "--out", "again", "--json")
    assert bundle_files(desk.folder / "again") == bundle_files(desk.folder / "bundle")


def test_a_plan_with_groups_is_predicted_and_compared(deployed: Any, desk: Desk) -> None:
    common = ("--target", "quick", "--overlay", "overlay")
    found = desk.succeed("predict", "model.onnx", *common, "--plan", "bundle/plan.json", "--json").document
    assert found["weight_bytes"] == deployed["plan"]["predicted"]["weight_bytes"]
    assert found["latency_ms"]["value"] > 0
    desk.succeed("plan", *JOB, "--no-prune", "--out", "bits.json")
    bits = json.loads((desk.folder / "bits.json").read_text())
    assert all(layer["keep"] == 1 for layer in bits["plan"]["layers"])
    difference = desk.succeed("plan", "--diff", "bits.json", "bundle", "--json").document
    assert difference["groups"]


def test_a_plan_of_other_groups_is_refused(deployed: Any, desk: Desk) -> None:
    document = json.loads((desk.folder / "bundle" / "plan.json").read_text())
    document["plan"]["groups"][0] |= {"channels": 1000, "kept": 999}
    Path(desk.folder / "odd.json").write_text(json.dumps(document))
    done = desk.run("predict", "model.onnx", "--target", "quick", "--overlay", "overlay", "--plan", "odd.json")
    assert done.code == 2
    assert "another model" in done.err


def test_the_front_of_a_plan_that_prunes(deployed: Any, desk: Desk) -> None:
    desk.succeed("plan", *JOB, "--pareto", "front.json")
    document = json.loads((desk.folder / "front.json").read_text())
    assert any(point["pruned_channels"] for point in document["pareto"])
    assert (desk.folder / "front.svg").read_text().lstrip().startswith("<?xml")
