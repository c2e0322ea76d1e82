"""Every command as its user sees it: what it prints where, how it ends, and what it says to bad input."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.errors import InputError
from edgekit.prediction import read_plan
from tests import zoo
from tests.command import INVALID, Desk, Finished, samples, write_target

COMMANDS = ("deploy", "plan", "predict", "inspect", "targets", "bench", "verify", "report")
QUICK = ("--target", "quick", "--overlay", "overlay")
SAMPLES = ("--data", "data.npz", "--eval", "eval.npz")
DEPLOY = ("deploy", "model.onnx", *QUICK, *SAMPLES)


def refused(desk: Desk, *arguments: object, code: int, message: str) -> Finished:
    """The command ends with ``code``, one line that holds ``message``, and a hint; it writes nothing and no result."""
    before = {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*")}
    done = desk.run(*arguments)
    assert done.code == code, done.err
    assert done.out == ""
    first, *rest = done.complaint
    assert first.startswith("edgekit: "), done.err
    assert message in done.err
    assert all(line.startswith(("  hint: ", "  nearest ")) for line in rest), done.err
    after = {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*")}
    own = {desk.folder / "tmp"}
    assert {k: v for k, v in after.items() if k not in own} == {k: v for k, v in before.items() if k not in own}
    return done


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_each_command(self, command: str, desk: Desk) -> None:
        done = desk.succeed(command, "--help")
        assert done.err == ""
        text = " ".join(done.out.split())
        assert f"edgekit {command}" in text
        assert "--json" in text
        if command in ("deploy", "plan", "predict"):
            assert "edgekit " + command + " model.onnx --target host" in text, "an example to copy"
        for line in done.out.splitlines():
            assert len(line) <= 120

    def test_names_every_command_and_every_exit_code(self, desk: Desk) -> None:
        text = desk.succeed("--help").out
        for command in COMMANDS:
            assert f"\n  {command} " in text
        for code in (0, 2, 3, 4, 5, 6, 7, 130):
            assert f" {code} " in " ".join(text.split())
        done = desk.run()
        assert (done.code, done.out, done.err) == (2, "", text), "no command at all is bad usage"

    def test_version(self, desk: Desk) -> None:
        assert desk.succeed("--version").out.startswith("edgekit 0.")

    def test_starts_at_once(self, desk: Desk) -> None:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            desk.succeed("--help")
            times.append(time.perf_counter() - start)
        assert statistics.median(times) < 1.0, times  # 0.2 s on a quiet machine; machines that test are not quiet

    def test_loads_nothing_heavy(self) -> None:
        script = "import sys, edgekit.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
        loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        assert not {"numpy", "onnx", "onnxruntime", "openvino", "scipy", "matplotlib", "cattrs"} & set(loaded.split())


class TestDeploy:
    def test_json_has_the_fields_of_the_contract(self, deployed: tuple[Desk, Finished]) -> None:
        desk, done = deployed
        document = done.document
        assert document["schema"] == "edgekit/deploy/1"
        assert (document["data"]["calibration_samples"], document["data"]["eval_samples"]) == (24, 16)
        assert document["target"] == "quick"
        assert len(document["model"]["sha256"]) == 64
        assert document["budget"] == {"latency_ms": None, "memory_bytes": None, "weight_bytes": None, "max_drop": 0.01}
        plan = document["plan"]
        assert len(plan["digest"]) == 64
        assert {"name", "op_type", "precision", "keep"} <= set(plan["layers"][0])
        assert len(plan["layers"]) == 5
        assert plan["gap"] >= 0
        assert isinstance(plan["binding"], list)
        latency = plan["predicted"]["latency_ms"]
        assert latency["low"] <= latency["value"] <= latency["high"]
        assert latency["kind"] == "predicted"
        assert plan["predicted"]["weight_bytes"] > 0
        assert plan["predicted"]["peak_activation_bytes"] > 0
        rows = {row["name"]: row for row in document["candidates"]}
        assert {"float", "int8", "plan"} <= set(rows)
        assert document["chosen"] in rows
        for row in rows.values():
            assert row["latency_ms"]["p50"] <= row["latency_ms"]["p90"] <= row["latency_ms"]["p99"]
            assert row["latency_ms"]["n"] > 0
            assert row["metric"]["low"] <= row["metric"]["value"] <= row["metric"]["high"]
            assert row["metric"]["name"] == "cosine"
            assert row["weight_bytes"] > 0
            assert row["kind"] == "measured"
        conformance = document["conformance"]
        assert conformance["planned"] == conformance["matched"] == 5
        assert conformance["mismatches"] == []
        assert (desk.folder / document["bundle"] / "manifest.json").is_file()

    def test_text_is_the_report(self, deployed: tuple[Desk, Finished]) -> None:
        desk, _ = deployed
        done = desk.succeed(*DEPLOY, "--out", "again")
        assert done.complaint == []
        for word in ("float", "int8", "plan", "cosine", "measured", "again/report.html"):
            assert word in done.out
        report = desk.succeed("report", "again").out
        assert report == done.out

    def test_labels_are_judged_by_top_1(self, desk: Desk) -> None:
        np.savez(desk.folder / "eval.npz", **samples(20, seed=1), labels=np.arange(20) % 10)
        plan = desk.succeed("plan", *DEPLOY[1:], "--max-drop", "100%", "--json").document
        assert plan["metric"]["name"] == "top-1"
        assert plan["recipe"]["metric"] == "top-1"


class TestPlan:
    def test_files_and_json(self, deployed: tuple[Desk, Finished]) -> None:
        desk, done = deployed
        arguments = (*DEPLOY[1:], "--out", "plan.json", "--pareto", "front.json")
        printed = desk.succeed("plan", *arguments, "--json").document
        written = json.loads((desk.folder / "plan.json").read_text())
        front = json.loads((desk.folder / "front.json").read_text())
        assert printed == written
        assert front["schema"] == "edgekit/pareto/1"
        considered = [{k: v for k, v in point.items() if k not in ("front", "plan")} for point in front["pareto"]]
        assert considered == printed["pareto"] != []
        (chosen,) = (point for point in front["pareto"] if point["plan"])
        assert chosen["latency_ms"] == printed["plan"]["predicted"]["latency_ms"]["value"]
        assert front["plan_digest"] == printed["plan"]["digest"]
        assert b"<svg" in (desk.folder / "front.svg").read_bytes()
        assert printed["schema"] == "edgekit/plan/1"
        planned = {layer["name"] for layer in printed["plan"]["layers"]}
        assert planned == {layer["name"] for layer in done.document["plan"]["layers"]}
        text = desk.succeed("plan", *DEPLOY[1:], "--pareto", "front.png").out
        assert (desk.folder / "front.png").read_bytes().startswith(b"\x89PNG")
        assert "proof    optimal" in text
        assert "predicted" in text

    def test_diff_of_a_bundle_and_a_plan(self, deployed: tuple[Desk, Finished]) -> None:
        desk, done = deployed
        same = desk.succeed("plan", "--diff", "bundle", "bundle/plan.json")
        assert same.out.splitlines()[-1] == "no difference"
        assert same.err == ""
        desk.succeed("plan", *DEPLOY[1:], "--max-drop", "100%", "--out", "loose.json")
        document = desk.succeed("plan", "--json", "--diff", "bundle", "loose.json").document
        assert document["schema"] == "edgekit/plan-diff/1"
        assert document["same"] is False
        assert document["a"]["plan_digest"] == done.document["plan"]["digest"]
        assert document["budget"] == [{"name": "max_drop", "a": 0.01, "b": 1.0}]
        text = desk.succeed("plan", "--diff", "bundle", "loose.json").out
        assert " ".join(text.split()).count("largest drop 1.0 points 100.0 points") == 1

    @pytest.mark.slow
    def test_synthetic_samples_are_said_to_be_so(self, desk: Desk) -> None:
        arguments = ("model.onnx", *QUICK, "--synthetic", "--size", "1MB")  # what predict measures, too
        document = desk.succeed("plan", *arguments, "--json").document
        assert document["data"]["synthetic"] is True
        assert "random inputs" in document["warnings"][0]


class TestPredict:
    @pytest.mark.parametrize("precision", ["fp32", "int8", "w8"])
    def test_uniform(self, precision: str, deployed: tuple[Desk, Finished]) -> None:
        desk, _ = deployed
        arguments = ("predict", "model.onnx", *QUICK, "--precision", precision)
        document = desk.succeed(*arguments, "--json").document
        latency = document["latency_ms"]
        assert 0 < latency["low"] < latency["value"] < latency["high"]
        assert latency["kind"] == "predicted"
        assert document["weight_bytes"] == (35_272 if precision == "fp32" else 9_064)
        assert document["peak_activation_bytes"] > 0
        assert document["profile"]["name"] == "host"
        assert document["profile"]["evidence"]
        assert {layer["precision"] for layer in document["layers"]} == {precision}
        text = desk.succeed(*arguments).out
        assert "90 % interval" in text
        assert precision in text

    def test_of_a_bundle_s_plan(self, deployed: tuple[Desk, Finished]) -> None:
        desk, done = deployed
        arguments = ("predict", "model.onnx", *QUICK, "--plan", "bundle/plan.json", "--json")
        layers = desk.succeed(*arguments).document["layers"]
        planned = [(row["name"], row["precision"]) for row in done.document["plan"]["layers"]]
        assert [(row["name"], row["precision"]) for row in layers] == planned

    @pytest.mark.slow
    def test_of_another_float_precision_on_the_host(self, deployed: tuple[Desk, Finished]) -> None:
        desk, _ = deployed
        arguments = ("predict", "model.onnx", "--target", "host", "--precision", "bf16", "--json")
        document = desk.succeed(*arguments).document
        assert document["latency_ms"]["value"] > 0
        assert {layer["precision"] for layer in document["layers"]} == {"bf16"}

    def test_unoffered(self, desk: Desk) -> None:
        arguments = ("predict", "model.onnx", *QUICK, "--precision")
        refused(desk, *arguments, "bf16", code=2, message="does not offer bf16")
        refused(desk, *arguments, "int7", code=2, message="'int7' is not a precision")


class TestInspect:
    def test_json(self, desk: Desk) -> None:
        document = desk.succeed("inspect", "model.onnx", "--target", "host", "--json").document
        assert document["schema"] == "edgekit/inspect/1"
        assert [layer["op_type"] for layer in document["layers"]] == ["Conv"] * 4 + ["Gemm"]
        assert document["macs"] == sum(layer["macs"] for layer in document["layers"])
        assert document["inputs"] == [{"name": "x", "shape": [1, 3, 16, 16], "dtype": "float32"}]
        assert "int8" in document["layers"][0]["options"]

    def test_text(self, desk: Desk) -> None:
        done = desk.succeed("inspect", "model.onnx")
        assert done.err == ""
        assert "5 layers" in done.out
        assert "Gemm_36" in done.out

    def test_shape(self, desk: Desk) -> None:
        onnx.save(zoo.dynamic_image(), desk.folder / "dynamic.onnx")
        document = desk.succeed("inspect", "dynamic.onnx", "--shape", "x=1x3x8x12", "--json").document
        assert document["inputs"][0]["shape"] == [1, 3, 8, 12]


class TestTargets:
    def test_list(self, desk: Desk) -> None:
        names = [row["name"] for row in desk.succeed("targets", "--json", "--overlay", "overlay").document["targets"]]
        assert {"host", "quick"} <= set(names)
        assert "host" in desk.succeed("targets").out

    def test_one(self, desk: Desk) -> None:
        document = desk.succeed("targets", "host", "--json").document
        assert document["target"]["backend"] == "openvino"
        assert document["device_profile"]["sources"]
        assert "evidence" in desk.succeed("targets", "host").out


class TestBundleCommands:
    def test_bench(self, deployed: tuple[Desk, Finished]) -> None:
        desk, _ = deployed
        arguments = ("bench", "bundle", "--seconds", "0.2", "--overlay", "overlay")
        document = desk.succeed(*arguments, "--json").document
        assert document["schema"] == "edgekit/bench/1"
        assert document["latency_ms"]["p50"] > 0
        assert document["threads"] == 1
        assert "measured" in desk.succeed(*arguments).out

    def test_verify(self, deployed: tuple[Desk, Finished]) -> None:
        desk, _ = deployed
        document = desk.succeed("verify", "bundle", "--overlay", "overlay", "--json").document
        assert document["ok"] is True
        assert document["vectors_run"] is True
        assert document["files"] == len(list((desk.folder / "bundle").iterdir())) - 2
        assert "every digest holds" in desk.succeed("verify", "bundle", "--overlay", "overlay").out

    def test_report(self, deployed: tuple[Desk, Finished]) -> None:
        desk, done = deployed
        assert desk.succeed("report", "bundle", "--json").document == done.document

    def test_the_bundle_runs_itself(self, deployed: tuple[Desk, Finished]) -> None:
        desk, _ = deployed
        command = [sys.executable, "bundle/run", "--seconds", "0"]
        done = subprocess.run(command, cwd=desk.folder, capture_output=True, text=True, check=True)
        vectors = json.loads(done.stdout)["vectors"]
        assert len(vectors.pop("outputs_sha256")) == 64
        assert vectors == {"count": 3, "worst_error_share": 0.0, "ok": True}

    @pytest.mark.parametrize("command", ["bench", "verify", "report"])
    def test_on_what_is_no_bundle(self, command: str, desk: Desk) -> None:
        (desk.folder / "empty").mkdir()
        refused(desk, command, "nothing", code=2, message="no bundle is there")
        refused(desk, command, "data.npz", code=2, message="no bundle is there")
        refused(desk, command, "empty", code=7, message="not a bundle")
        refused(desk, command, ".", code=7, message="not a bundle")


class TestOutput:
    @pytest.mark.parametrize("arguments", [("report", "bundle"), ("report", "bundle", "--json"), ("--help",)])
    def test_a_reader_that_has_gone(self, arguments: tuple[str, ...], deployed: tuple[Desk, Finished]) -> None:
        desk, _ = deployed
        reader, writer = os.pipe()
        os.close(reader)
        with desk.start(*arguments, stdout=writer) as process:
            os.close(writer)
            err = process.communicate(timeout=60)[1]
        assert (process.returncode, err) == (1, "")

    @pytest.mark.parametrize("arguments", [("report", "bundle"), ("report", "bundle", "--json"), ("--help",)])
    def test_a_full_disk(self, arguments: tuple[str, ...], deployed: tuple[Desk, Finished]) -> None:
        desk, _ = deployed
        with Path("/dev/full").open("w") as full, desk.start(*arguments, stdout=full) as process:
            err = process.communicate(timeout=60)[1]
        assert (process.returncode, err) == (2, "edgekit: No space left on device\n")

    def test_nothing_to_write_to(self, deployed: tuple[Desk, Finished]) -> None:
        desk, _ = deployed
        command = 'exec "$0" report bundle --json >&- 2>&-'
        done = subprocess.run(
            ["sh", "-c", command, *map(str, [Path(sys.executable).with_name("edgekit")])], cwd=desk.folder, check=False
        )
        assert done.returncode == 0

    def test_markup_in_names_is_text(self, desk: Desk) -> None:
        model = zoo.conv_net()
        model.graph.node[0].name = "[bold red]stem[/]"
        onnx.save(model, desk.folder / "[link].onnx")
        done = desk.succeed("inspect", "[link].onnx")
        assert "[link].onnx" in done.out
        assert "[bold red]stem[/]" in done.out


# --- bad input -------------------------------------------------------------------------------------------------------


def nan_weights(folder: Path) -> None:
    model = zoo.conv_net()
    values = np.array(onnx.numpy_helper.to_array(model.graph.initializer[0]))
    values.flat[3] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, model.graph.initializer[0].name))
    onnx.save(model, folder / "bad.onnx")


def unknown_op(folder: Path) -> None:
    model = zoo.conv_net()
    model.graph.node[1].op_type = "Rleu"
    onnx.save(model, folder / "bad.onnx")


def without_layers(folder: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "bad.onnx")


def external(folder: Path, *, location: str = "", keep: bool = True) -> None:
    model = zoo.save_external(zoo.conv_net(), folder / "bad.onnx")
    if location:
        proto = onnx.load(model, load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        onnx.save(proto, model)
    if not keep:
        (folder / "weights.bin").unlink()


def written(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "bad.onnx").write_bytes(content) and None


BAD_MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (written(zoo.conv_net().SerializeToString()[:20_000]), "bad.onnx"),
    "not-onnx": (written(b"This is no model.\n" * 50), "not an ONNX model"),
    "empty": (written(b""), "the file is empty"),
    "folder": (lambda folder: (folder / "bad.onnx").mkdir(), "is a directory"),
    "missing": (lambda folder: None, "no such file"),
    "external-missing": (lambda folder: external(folder, keep=False), "weights.bin"),
    "external-outside": (lambda folder: external(folder, location="../../../etc/passwd"), "outside"),
    "external-absolute": (lambda folder: external(folder, location="/etc/passwd"), "/etc/passwd"),
    "nan-weights": (nan_weights, "NaN or inf"),
    "unknown-op": (unknown_op, "Rleu"),
    "dynamic": (lambda folder: onnx.save(zoo.dynamic_image(), folder / "bad.onnx"), "--shape x="),
    "no-layers": (without_layers, "no layer"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_model(name: str, desk: Desk) -> None:
    make, message = BAD_MODELS[name]
    make(desk.folder)
    refused(desk, "deploy", "bad.onnx", *QUICK, *SAMPLES, "--out", "out", code=2, message=message)


def test_bad_model_of_the_other_commands(desk: Desk) -> None:
    (desk.folder / "bad.onnx").write_bytes(b"\x08")
    for command in (("inspect",), ("predict", *QUICK), ("plan", *QUICK, "--synthetic", "--out", "plan.json")):
        refused(desk, command[0], "bad.onnx", *command[1:], "--json", code=2, message="bad.onnx")


def nan_samples() -> dict[str, Any]:
    bad = samples()
    bad["x"][5, 0, 0, 0] = np.nan
    return bad


BAD_SAMPLES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "nan": (nan_samples, "sample 5"),
    "keys": (lambda: {"image": samples()["x"]}, "'image' is not an input"),
    "shape": (lambda: {"x": np.zeros((8, 3, 16, 17), np.float32)}, "(8, 3, 16, 17)"),
    "rank": (lambda: {"x": np.zeros((8, 3), np.float32)}, "(8, 3)"),
    "none": (lambda: {"x": np.zeros((0, 3, 16, 16), np.float32)}, "0 samples"),
    "no-arrays": (dict, "data.npz"),
    "object": (lambda: {"x": np.array([{"a": 1}, None], object)}, "object"),
    "labels": (lambda: samples() | {"labels": np.arange(5)}, "labels"),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_bad_samples(name: str, desk: Desk) -> None:
    make, message = BAD_SAMPLES[name]
    np.savez(desk.folder / "data.npz", **make())
    refused(desk, *DEPLOY, "--out", "out", code=2, message=message)


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", b"PK\x03\x04" + bytes(100)])
def test_samples_that_are_no_npz(content: bytes, desk: Desk) -> None:
    (desk.folder / "eval.npz").write_bytes(content)
    refused(desk, *DEPLOY, "--out", "out", code=2, message="eval.npz")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data", "none.npz"), "no such file"),
        (("--data", "overlay"), "overlay"),
        (("--eval", "data.npz"), "--eval without --data"),
        ((), "--synthetic"),
    ],
)
def test_no_samples(flags: tuple[str, ...], message: str, desk: Desk) -> None:
    refused(desk, "deploy", "model.onnx", *QUICK, *flags, "--out", "out", code=2, message=message)


def test_samples_cut_short(desk: Desk) -> None:
    (desk.folder / "data.npz").write_bytes((desk.folder / "data.npz").read_bytes()[:5000])
    refused(desk, *DEPLOY, "--out", "out", code=2, message="data.npz")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--latency", "10 parsecs"), "'parsecs' is not a unit of time"),
        (("--latency", "-5ms"), "negative"),
        (("--latency", "fast"), "--latency"),
        (("--memory", "64"), "--memory"),
        (("--size", "5ms"), "--size"),
        (("--max-drop", "5"), "5 or 5%"),
        (("--shape", "x=1x3"), "x"),
        (("--shape", "1x3x16x16"), "--shape"),
        (("--recipe", "imagenet"), "there is no recipe 'imagenet'"),
        (("--target", "hots"), "did you mean 'host'"),
        (("--overlay", "nowhere"), "nowhere is not a folder"),
        (("--metric", "accuracy"), "accuracy"),
        (("--metric", "none.py:score"), "none.py"),
    ],
)
def test_bad_flags(flags: tuple[str, str], message: str, desk: Desk) -> None:
    refused(desk, *DEPLOY, *flags, "--out", "out", code=2, message=message)


def test_bad_usage(desk: Desk) -> None:
    for arguments in ((*DEPLOY, "--threads", "0"), (*DEPLOY, "--lateny", "5ms"), ("depoly",), ("deploy", "model.onnx")):
        done = desk.run(*arguments)
        assert done.code == 2
        assert done.out == ""
        assert "Error: " in done.err


RAISING = "def score(outputs, label, reference):\n    return 1 / 0\n"
NOT_A_NUMBER = "def score(outputs, label, reference):\n    return float('nan')\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RAISING, "division by zero"),
        (NOT_A_NUMBER, "nan"),
        ("def scroe(a, b, c): pass\n", "score"),
        ("def (", "own.py"),
    ],
)
def test_bad_metric(text: str, message: str, desk: Desk) -> None:
    (desk.folder / "own.py").write_text(text)
    desk = Desk(desk.folder, desk.cache, {"PYTHONDONTWRITEBYTECODE": "1"})
    refused(desk, *DEPLOY, "--metric", "own.py:score", "--out", "out", code=2, message=message)


@pytest.mark.parametrize(
    ("name", "message"), [("unknown_key", "did you mean 'samples'?"), ("not_toml", "not valid TOML")]
)
def test_bad_recipe_of_an_overlay(name: str, message: str, desk: Desk) -> None:
    arguments = (*DEPLOY, "--recipe", name, "--overlay", INVALID / f"overlay_{name}", "--out", "out")
    done = refused(desk, *arguments, code=2, message=message)
    assert f"{name}.toml" in done.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "host"\nthreads = "two"\n', "threads"),
        ('extends = "hots"\n', "did you mean 'host'"),
    ],
)
def test_bad_target_of_an_overlay(text: str, message: str, desk: Desk) -> None:
    write_target(desk.folder / "overlay", "board", text)
    refused(desk, *DEPLOY, "--target", "board", "--out", "out", code=2, message=message)


NO_PLAN = "not an edgekit plan"
NO_JSON = "not a JSON document"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", NO_JSON),
        (b'{"plan": {"layers": [{"na', NO_JSON),
        (b"\xff\xfe\x00", NO_JSON),
        (b"[" * 100_000, NO_JSON),
        (b"[]", NO_PLAN),
        (b"{}", NO_PLAN),
        (b'{"plan": {"layers": 3}}', NO_PLAN),
        (b'{"plan": {"layers": [{"name": "a"}]}}', NO_PLAN),
        (b'{"plan": {"layers": [{"name": "a", "precision": "int3"}]}}', "int3"),
    ],
)
def test_what_is_no_plan(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_bad_plan_file(deployed: tuple[Desk, Finished], desk: Desk) -> None:
    bundle = deployed[0].folder / "bundle"
    arguments = ("predict", "model.onnx", *QUICK, "--plan")
    refused(desk, *arguments, "model.onnx", code=2, message=NO_JSON)
    refused(desk, *arguments, "none.json", code=2, message="No such file")
    refused(desk, *arguments, "overlay", code=2, message="Is a directory")
    plan = (bundle / "plan.json").read_text()
    (desk.folder / "plan.json").write_text(plan.replace('"int8"', '"fp16"').replace('"fp32"', '"fp16"'))
    refused(desk, *arguments, "plan.json", code=2, message="does not offer fp16")
    onnx.save(zoo.inverted_residual(), desk.folder / "model.onnx")
    refused(desk, *arguments, bundle / "plan.json", code=2, message="belongs to another model")


def test_impossible_budgets_name_what_is_nearest(deployed: tuple[Desk, Finished]) -> None:
    desk, _ = deployed
    done = refused(desk, *DEPLOY, "--out", "out", "--latency", "1us", code=3, message="latency")
    assert 0 < float(done.err.split("nearest latency_ms: ")[1]) < 1
    plan = ("plan", "model.onnx", *QUICK, "--synthetic", "--out", "out.json")
    done = refused(desk, *plan, "--size", "1kB", code=3, message="weight size")
    assert 1000 < float(done.err.split("nearest weight_bytes: ")[1]) < 9064, "9064 without zeros and compression"
    done = refused(desk, *plan, "--memory", "10kB", code=3, message="memory")
    nearest = float(done.err.split("nearest memory_bytes: ")[1])
    assert nearest > 10_000
    found = desk.succeed(*plan, "--memory", f"{nearest + 1:.0f}B", "--json").document
    assert found["plan"]["predicted"]["memory_bytes"] <= nearest + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "quick"), "plan needs MODEL"),
        (("model.onnx",), "plan needs --target"),
        (("--diff", "bundle", "model.onnx"), NO_JSON),
        (("--diff", "bundle", "none.json"), "none.json: No such file"),
        (("--diff", "overlay", "bundle"), "overlay/plan.json: No such file"),
        (("--diff", "bundle", "bundle/manifest.json"), NO_PLAN),
        (("--diff", "bundle", "changed.json"), "plan.digest"),
        (("--diff", "other.json", "bundle"), "different models"),
        (("--diff", "bundle", "bundle", "--size", "5MB"), "--diff does not go with --size"),
        (("--diff", "bundle", "bundle", "--out", "out.json", "--json"), "--diff does not go with --out"),
        (("--diff", "bundle", "bundle", "bundle"), "--diff does not go with MODEL bundle"),
    ],
)
def test_bad_plans_to_compare(
    arguments: tuple[str, ...], message: str, deployed: tuple[Desk, Finished], desk: Desk
) -> None:
    bundle = desk.folder / "bundle"
    subprocess.run(["cp", "-r", deployed[0].folder / "bundle", bundle], check=True)
    plan = json.loads((bundle / "plan.json").read_text())
    (desk.folder / "other.json").write_text(json.dumps(plan | {"model": {"name": "other.onnx", "sha256": "0" * 64}}))
    plan["plan"]["layers"].pop()
    (desk.folder / "changed.json").write_text(json.dumps(plan))
    done = refused(desk, "plan", *arguments, code=2, message=message)
    assert len(done.complaint) == 2, "what is wrong, and what to do"


class TestOut:
    def test_one_file_for_two_things(self, desk: Desk) -> None:
        for out, pareto in (("a.json", "a.json"), ("a.svg", "a.json"), ("a.json", "a.png")):
            flags = ("--out", out, "--pareto", pareto)
            done = refused(desk, "plan", *DEPLOY[1:], *flags, code=2, message=f"would both write {out}")
            assert "load" not in done.err

    def test_that_cannot_be_written(self, desk: Desk) -> None:
        for out in ("model.onnx/bundle", "/proc/bundle", "/dev/null"):
            done = refused(desk, *DEPLOY, "--out", out, code=2, message=out)
            assert "load" not in done.err, "said before any work"
        for out in ("model.onnx/plan.json", "/proc/plan.json", "none/plan.json", "overlay"):
            for flag in ("--out", "--pareto"):
                done = refused(desk, "plan", *DEPLOY[1:], flag, out, code=2, message=out)
                assert "load" not in done.err

    def test_that_holds_something_else(self, deployed: tuple[Desk, Finished], desk: Desk) -> None:
        refused(desk, *DEPLOY, "--out", "overlay", code=2, message="not empty")
        refused(desk, *DEPLOY, "--out", ".", code=2, message="not empty")
        refused(desk, *DEPLOY, "--out", "data.npz", code=2, message="a file is there")
        bundle = desk.folder / "bundle"
        subprocess.run(["cp", "-r", deployed[0].folder / "bundle", bundle], check=True)
        (bundle / "notes.txt").write_text("mine")
        refused(desk, *DEPLOY, "--out", "bundle", code=2, message="notes.txt")
        assert (bundle / "notes.txt").read_text() == "mine"

    def test_that_may_not_be_written(self, desk: Desk) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere; the other cases stand in for it")
        (desk.folder / "closed").mkdir(mode=0o500)
        refused(desk, *DEPLOY, "--out", "closed/bundle", code=2, message="Permission denied")

    def test_an_old_bundle_is_replaced(self, deployed: tuple[Desk, Finished], desk: Desk) -> None:
        bundle = desk.folder / "bundle"
        subprocess.run(["cp", "-r", deployed[0].folder / "bundle", bundle], check=True)
        before = bundle.stat().st_ino
        desk.succeed(*DEPLOY, "--out", "bundle", "--json")
        assert bundle.stat().st_ino != before
        assert sorted(path.name for path in desk.folder.iterdir() if path.name.startswith(".")) == []
