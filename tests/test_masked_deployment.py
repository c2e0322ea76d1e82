"""A deployment under a size budget that no plan holds without zeros among its weights or few values for them."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.graph import load
from edgekit.types import Mask
from tests import zoo
from tests.command import QUICK_TARGET, Desk, bundle_files, write_target

pytestmark = pytest.mark.slow

MOST_VALUES = {"16 values": 16, "15 steps": 15, "powers of two": 15, "4 values": 4, "ternary": 3, "binary": 2}
SIZE_BYTES = 47_000  # 60 % of the model in int8
COMMON = ("model.onnx", "--overlay", "overlay", "--data", "data.npz", "--eval", "eval.npz", "--no-prune")
JOB = (*COMMON, "--target", "quick", "--size", f"{SIZE_BYTES}B")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("masked")
    onnx.save(zoo.redundant_net(), folder / "model.onnx")
    for name, count, seed in (("data", 32, 0), ("eval", 24, 1)):
        values = np.random.default_rng(seed).standard_normal((count, 3, 32, 32)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=values)
    write_target(folder / "overlay", "quick", QUICK_TARGET)
    write_target(folder / "overlay", "plain", QUICK_TARGET + "sparsity = []\n")
    return Desk(folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def deployed(desk: Desk) -> Any:
    return desk.succeed("deploy", *JOB, "--out", "bundle", "--json", timeout_s=600).document


def test_without_compressed_weights_no_plan_fits(desk: Desk) -> None:
    done = desk.run("plan", *COMMON, "--target", "plain", "--size", f"{SIZE_BYTES}B")
    assert done.code == 3
    assert "size" in done.err


def test_weights_go_and_the_metric_stays(deployed: Any) -> None:
    plan = deployed["plan"]
    assert plan["compressed"]
    masks = {layer["mask"] for layer in plan["layers"]}
    assert any(Mask(mask).is_codebook for mask in masks), "they lose less than zeros do at the same size"
    assert plan["layers"] == [{key: layer[key] for key in plan["layers"][0]} for layer in deployed["layers"]]
    (chosen,) = [c for c in deployed["candidates"] if c["name"] == deployed["chosen"]]
    assert chosen["weight_bytes"] <= SIZE_BYTES
    assert chosen["drop"]["value"] <= 0.01


def test_sizes_are_those_of_the_bundle_and_memory_is_expanded(deployed: Any, desk: Desk) -> None:
    promised = deployed["plan"]["predicted"]["weight_bytes"]
    assert promised == sum(layer["weight_bytes"] for layer in deployed["layers"])
    stored = (desk.folder / "bundle" / "model.bin.gz").read_bytes()
    assert len(stored) == next(c["weight_bytes"] for c in deployed["candidates"] if c["name"] == deployed["chosen"])
    assert len(stored) == pytest.approx(promised, rel=0.02)
    expanded = gzip.decompress(stored)
    predicted = deployed["plan"]["predicted"]
    resident = predicted["memory_bytes"] - predicted["peak_activation_bytes"]
    assert 0.9 < len(expanded) / resident < 1.05  # w8 takes more once it is loaded than in the file
    assert not (desk.folder / "bundle" / "model.bin").exists()


def test_few_values_are_expanded_to_the_codes_that_run(deployed: Any, desk: Desk) -> None:
    """Each codebook's codes lie in the expanded file, one after the other, as many as the layer has weights."""
    layers = {layer.name: layer for layer in load(desk.folder / "model.onnx").layers}
    content = np.frombuffer(gzip.decompress((desk.folder / "bundle" / "model.bin.gz").read_bytes()), np.int8)
    for choice in deployed["plan"]["layers"]:
        if (most := MOST_VALUES.get(choice["mask"])) is not None:
            count = layers[choice["name"]].weight_elements
            assert any(
                len(np.unique(content[start : start + count - 64])) <= most
                for start in range(0, content.size - count + 1, 64)
            ), choice


def test_the_bundle_verifies_and_runs_by_itself(deployed: Any, desk: Desk) -> None:
    desk.succeed("verify", "bundle", "--overlay", "overlay")
    run = [sys.executable, str(desk.folder / "bundle" / "run"), "--seconds", "0"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["ok"]


def test_weights_that_expand_to_others_do_not_run(deployed: Any, desk: Desk) -> None:
    other = desk.folder / "other"
    shutil.copytree(desk.folder / "bundle", other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["artifact"]["expanded"]["model.bin"]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    done = subprocess.run([sys.executable, str(other / "run"), "--seconds", "0"], capture_output=True, text=True)
    assert done.returncode == 7
    assert "does not expand" in json.loads(done.stdout)["error"]


def test_the_second_run_gives_the_same_bytes(deployed: Any, desk: Desk) -> None:
    desk.succeed("deploy", *JOB, "--out", "again", "--json", timeout_s=600)
    assert bundle_files(desk.folder / "again") == bundle_files(desk.folder / "bundle")


def test_the_plan_is_predicted_and_compared(deployed: Any, desk: Desk) -> None:
    common = ("--target", "quick", "--overlay", "overlay")
    found = desk.succeed("predict", "model.onnx", *common, "--plan", "bundle/plan.json", "--json").document
    assert found["weight_bytes"] == pytest.approx(deployed["plan"]["predicted"]["weight_bytes"], rel=0.05)
    desk.succeed("plan", *COMMON, "--target", "quick", "--size", "90kB", "--out", "loose.json")
    loose = json.loads((desk.folder / "loose.json").read_text())["plan"]
    assert not loose["compressed"], "a budget that holds without masks takes none"
    assert {layer["mask"] for layer in loose["layers"]} == {"none"}
    difference = desk.succeed("plan", "--diff", "loose.json", "bundle", "--json").document
    assert (difference["a"]["compressed"], difference["b"]["compressed"]) == (False, True)
    assert any(layer["b"]["mask"] != "none" for layer in difference["layers"])
    said = desk.succeed("plan", "--diff", "loose.json", "bundle").out
    assert "weights stored" in said
    assert "values" in said or "steps" in said
    assert "size only" in said
