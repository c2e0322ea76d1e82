"""What trtexec is told in each release, and what is made of its reports. The stand-in for trtexec is run here without a
board; tests/devices/test_jetson_program.py has it on one.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edgekit import graph, releases
from edgekit.backends import trtexec, trtexec_document, trtexec_output
from edgekit.errors import DeviceError, EdgekitError, InputError, MissingToolError, VerifyError
from edgekit.types import Precision
from tests.trtexec import stand_in_path
from tests.trtexec.jetson import NANO, build_json, float_model, make_bundle, model, release

KNOWN = trtexec.known_releases()
# Patches of releases whose options are those of the release, and one that nobody knows the options of yet.
VERSIONS = (*KNOWN, *(one.tensorrt for one in releases.releases().values()))


def requests(typing: str, names_layers: bool) -> list[dict[str, Any]]:
    """Every kind of thing that a plan can ask of a builder."""
    choices = (False, True)
    return [
        {
            "typing": typing,
            "flags": {"fp16": fp16, "int8": int8, "sparsity": sparse},
            "layer_precisions": {"conv1": "fp32", "/a/b.c": "fp16"} if layers else {},
            "accelerator": accelerator,
        }
        for fp16 in choices
        for int8 in choices
        for sparse in choices
        for layers in (choices if names_layers else (False,))
        for accelerator in ("", "dla")
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_no_option_that_a_release_does_not_take(version: str) -> None:
    """Exhaustive: every option that can be chosen, against the parser's own list of that release."""
    number = trtexec.number(version)
    taken = trtexec.flags(version)
    said: set[str] = set()
    for typing in ("flags",) if number < (10, 0) else ("strong",):
        for request in requests(typing, typing == "flags" and number >= (8, 4)):
            said.update(trtexec.build_flags(version, request))
    for inputs, accelerator in (("", ""), ("x:vectors/0/0.bin", ""), ("x:vectors/0/0.bin", "dla")):
        for chosen in trtexec.run_flags(version, inputs, accelerator).values():
            said.update(chosen)
    assert {"--useDLACore=0", "--allowGPUFallback"} <= said
    said |= {"--loadInputs=", "--exportOutput=", "--duration="}  # added by the program on the board
    names = {word.partition("=")[0] for word in said}
    assert names <= taken, names - taken
    assert len(names) > 15


def test_the_program_on_the_board_adds_nothing_else() -> None:
    from edgekit.catalog import data_root

    text = (data_root() / "targets/runners/tensorrt.sh").read_text()
    found = {word.strip('"').partition("=")[0] for word in text.split() if word.startswith('"--')}
    assert found == {"--exportOutput", "--duration"}


def test_releases_differ_where_they_should() -> None:
    strong = {"typing": "strong", "flags": {"fp16": False, "int8": True, "sparsity": False}}
    typed = {"typing": "flags", "flags": {"fp16": True, "int8": True, "sparsity": True}}
    old, new = trtexec.build_flags("8.2.1", typed), trtexec.build_flags("8.5.2", typed)
    assert "--workspace=512" in old
    assert "--memPoolSize=workspace:512" in new
    assert {"--fp16", "--int8", "--sparsity=enable", "--buildOnly"} <= set(old) & set(new)
    assert "--stronglyTyped" in trtexec.build_flags("10.3.0", strong)
    newest = trtexec.build_flags("11.4.1", strong)
    assert not {"--stronglyTyped", "--int8", "--fp16"} & set(newest), "there the types of the file are all there is"
    timed = {version: set(trtexec.run_flags(version, "")["time"]) for version in ("8.2.1", "10.13.3", "11.1")}
    assert {"--useCudaGraph", "--useSpinWait"} <= timed["8.2.1"] & timed["10.13.3"]
    assert "--includeDataTransfers" in timed["11.1"], "what was the default is none any more"
    assert "--noCudaGraph" in trtexec.run_flags("11.1", "")["profile"]
    assert "--useCudaGraph" not in trtexec.run_flags("10.3", "")["profile"]
    assert not any("LayerInfo" in word for word in trtexec.run_flags("8.0.1", "")["profile"])


def test_types_of_single_layers() -> None:
    request = {"typing": "flags", "flags": {"fp16": True}, "layer_precisions": {"b": "fp32", "a": "fp32"}}
    said = trtexec.build_flags("8.5.2", request)
    assert {"--precisionConstraints=obey", "--layerPrecisions=a:fp32,b:fp32", "--layerOutputTypes=a:fp32,b:fp32"} <= {
        *said
    }
    with pytest.raises(InputError, match=r"TensorRT 8\.2\.1 cannot be told the types of single layers, as .* a asks"):
        trtexec.build_flags("8.2.1", request)
    for name in ("a,b", "a:b", "a*", "it's"):
        with pytest.raises(InputError, match="cannot be told the type of layer"):
            trtexec.build_flags("8.5.2", {**request, "layer_precisions": {name: "fp32"}})
    many = {f"layer_with_a_long_name_{index}": "fp32" for index in range(5000)}
    with pytest.raises(InputError, match="--layerPrecisions for trtexec is too long"):
        trtexec.build_flags("8.5.2", {**request, "layer_precisions": many})


def test_an_engine_for_the_accelerator_is_built_and_loaded_with_its_core() -> None:
    request = {"typing": "flags", "flags": {"fp16": True}, "accelerator": "dla"}
    assert set(trtexec.build_flags("8.5.2", request)) >= {"--fp16", "--useDLACore=0", "--allowGPUFallback"}
    for chosen in trtexec.run_flags("8.5.2", "", "dla").values():
        assert "--useDLACore=0" in chosen
        assert "--allowGPUFallback" not in chosen
    for chosen in (
        trtexec.build_flags("8.5.2", {**request, "accelerator": ""}),
        *trtexec.run_flags("8.5.2", "").values(),
    ):
        assert not any("DLA" in word for word in chosen)


@pytest.mark.parametrize(
    ("version", "known"), [("8.6.2", "8.6"), ("10.3.0.30", "10.3"), ("10.99", "10.16"), ("11.4", "11.1")]
)
def test_releases_without_a_list_of_their_own(version: str, known: str) -> None:
    assert trtexec.release_of(version) == known


@pytest.mark.parametrize("version", ["7.1.3", "9.9", "12.0", "", "8", "8.x"])
def test_unknown_releases_are_refused(version: str) -> None:
    with pytest.raises(InputError) as caught:
        trtexec.flags(version)
    assert caught.value.hint


def test_what_is_known_of_the_options() -> None:
    """Facts that were looked up once more, at the tags."""
    for flag, since, until in (
        ("--fp16", "8.0", "10.16"),
        ("--layerPrecisions", "8.4", "10.16"),
        ("--workspace", "8.0", "8.6"),
        ("--exportLayerInfo", "8.2", "11.1"),
        ("--int8", "8.0", "10.16"),
        ("--noCudaGraph", "11.0", "11.1"),
    ):
        has = [version for version in KNOWN if flag in trtexec.flags(version)]
        assert (has[0], has[-1]) == (since, until)
    assert "--consistency" not in trtexec.flags("10.7"), "a gap"
    assert "--layerPrecision" not in trtexec.flags("8.5"), "a slip of its help text"


# --- what travels -----------------------------------------------------------------------------------------------------


def test_the_board_file() -> None:
    kinds = [NANO, release("8.0.1")]
    inputs = [{"x": np.full((1, 3, 16, 16), float(index), np.float64)} for index in range(2)]
    files = trtexec.board_files(build_json(kinds), 10_000_000, inputs)
    assert set(files) == {"board.txt", "vectors/0/0.bin", "vectors/1/0.bin"}
    assert np.frombuffer(files["vectors/1/0.bin"], np.float32).tolist() == [1.0] * 768, "as the model takes them"
    lines = files["board.txt"].decode().splitlines()
    assert lines[:2] == ["schema edgekit/tensorrt/1", "chip tegra210"]
    assert f"memory_kib {(1312 << 10) + 3 * 10_000_000 // 1024}" in lines
    assert "vector --loadInputs=x:vectors/1/0.bin" in lines
    assert [line for line in lines if line.startswith(("release", "tensorrt", "l4t"))] == [
        *("release jetpack-of-8.2.1", "tensorrt 8.2", "l4t 32.7"),
        *("release jetpack-of-8.0.1", "tensorrt 8.0", "l4t 38.0"),
    ]
    assert files == trtexec.board_files(build_json(kinds), 10_000_000, inputs), "the same each time"


def test_what_cannot_travel() -> None:
    build = build_json([NANO])
    with pytest.raises(InputError, match=r"no Jetson has a GPU of compute capability 9\.9"):
        trtexec.board_files({**build, "compute": "9.9"}, 1, [])
    build["inputs"][0]["name"] = "a,b"
    with pytest.raises(InputError, match="cannot be given a file for input 'a,b'"):
        trtexec.board_files(build, 1, [{"a,b": np.zeros(1)}])


# --- reports of every release, from the stand-in ----------------------------------------------------------------------


def run_stand_in(folder: Path, version: str, *words: str) -> subprocess.CompletedProcess[str]:
    settings_file = {"version": version, "flags": sorted(trtexec.flags(version))}
    (folder / "stand_in.json").write_text(json.dumps(settings_file))
    program = folder / "trtexec.py"
    program.write_text(stand_in_path().read_text())
    (folder / "built").mkdir(exist_ok=True)
    command = [sys.executable, str(program), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(params=["8.0.1", "8.2.1", "8.4.1", "8.6.1", "10.7.0", "10.13.3", "11.1.0"])
def reports(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """What trtexec of a release writes, told what the board's program tells it."""
    version = request.param
    build = build_json([release(version)])
    content = model(build["typing"] == "strong")
    (tmp_path / "model.onnx").write_bytes(content)
    built = run_stand_in(tmp_path, version, *trtexec.build_flags(version, build))
    assert built.returncode == 0, built.stdout
    (tmp_path / "built/engine.part").rename(tmp_path / "built/model.engine")
    for kind in ("time", "profile"):
        ran = run_stand_in(tmp_path, version, *trtexec.run_flags(version, "")[kind], "--duration=1")
        assert ran.returncode == 0, ran.stdout
    found = {path.stem: path.read_text() for path in (tmp_path / "built").glob("*.json")}
    return version, found


def test_reports_of_every_release(reports: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    version, found = reports
    timings = trtexec_output.read_times(found["times"])
    assert len(timings) == 150
    assert max(one.latency_ms for one in timings) < 5
    assert timings[0].h2d_ms == 0.125, "transfers are on in every release"
    assert timings[0].latency_ms == pytest.approx(timings[0].h2d_ms + timings[0].compute_ms + timings[0].d2h_ms)
    assert ("endToEndMs" in found["times"]) == (trtexec.number(version) < (8, 3))
    assert ("medianMs" in found["profile"]) == (trtexec.number(version) >= (8, 4))
    rows = trtexec_output.rows_of(found.get("layers"), found["profile"])
    body = graph.load(save(float_model(), tmp_path))
    nodes = trtexec_output.executed_nodes(rows, body)
    executed = {layer: node.precision for node in nodes if node.computes for layer in node.layers}
    if version == "8.0.1":
        assert set(executed.values()) == {""}, "it tells no types"
        return
    planned = {"conv1": Precision.FP16, "conv2": Precision.INT8}
    planned["fc"] = Precision.FP32 if version[0] == "1" else Precision.FP16
    assert executed.keys() == planned.keys()
    assert all(trtexec_output.executes_as(planned[name], executed[name]) for name in planned)
    moved = [node for node in nodes if not node.computes]
    assert [node.layers for node in moved] == [("conv1",)]


def save(content: bytes, folder: Path) -> Path:
    path = folder / "plain.onnx"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("version", ["8.2.1", "10.3.0", "11.1.0"])
def test_the_stand_in_takes_no_other_release_s_options(version: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model(False))
    for flag in ("--fp16", "--memPoolSize=workspace:1", "--noCudaGraph", "--layerPrecision=a:fp16"):
        ran = run_stand_in(tmp_path, version, "--onnx=model.onnx", flag)
        unknown = flag.partition("=")[0] not in trtexec.flags(version)
        assert ("Unknown option: " + flag.partition("=")[0] in ran.stdout) == unknown
        assert ran.returncode == 1


# --- reports as they have been seen elsewhere -------------------------------------------------------------------------

# The engine inspector's rows of TensorRT 8.4, from the examples of NVIDIA's trt-engine-explorer (names shortened).
SEEN = {
    "Name": "conv1.weight + QuantizeLinear_7 + conv1 + PWN(relu1)",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "q", "Format/Datatype": "Four wide channel vectorized row major Int8 format"}],
    "Outputs": [{"Name": "a1", "Format/Datatype": "Row major linear FP32"}],
    "Weights": {"Type": "Int8", "Count": 9408},
}
COPY = "Reformatting CopyNode for Output Tensor 0 to conv1 + relu1"


def test_layers_of_the_inspector() -> None:
    text = json.dumps(
        {"Layers": [SEEN, COPY, "conv2 || fc", {**SEEN, "Metadata": "[ONNX Layer: a]\x1f[ONNX Layer: b]"}]}
    )
    fused, copy, side_by_side, told = trtexec_output.read_layers(text)
    assert set(fused.nodes) >= {"conv1", "relu1"}
    assert (fused.executed, fused.moves) == ("int8", False)
    assert copy.moves
    assert set(copy.nodes) == {"conv1", "relu1"}
    assert side_by_side.nodes == ("conv2", "fc")
    assert side_by_side.executed == "", "names alone tell no types"
    assert told.nodes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Row major linear FP32", "fp32"),
        ("Row major linear FP16 format", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Two wide channel vectorized row major FP16 format", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("BFloat16", "bf16"),
        ("Int8", "int8"),
        ("Row major INT8 format", "int8"),
        ("Int32", "int32"),
        ("FP8", "fp8"),
        ("", ""),
    ],
)
def test_words_for_types(text: str, word: str) -> None:
    assert trtexec_output.type_word(text) == word


def test_a_fused_region_hides_its_types(tmp_path: Path) -> None:
    body = graph.load(save(float_model(), tmp_path))
    layer = {"Name": "{ForeignNode[conv1...conv2]}", "LayerType": "Myelin", "Inputs": SEEN["Inputs"]}
    rows = trtexec_output.rows_of(json.dumps({"Layers": [layer, "fc"]}), None)
    region, last = trtexec_output.executed_nodes(rows, body)
    assert region.layers == ("conv1", "conv2")
    assert region.precision == "not shown"
    assert last.layers == ("fc",)
    assert not any(trtexec_output.executes_as(precision, "not shown") for precision in Precision)


@pytest.mark.parametrize(
    ("title", "layers"),
    [
        ("{ForeignNode[conv1]}", ("conv1",)),
        ("{ForeignNode[relu1...conv2]}", ("conv2",)),
        ("{ForeignNode[conv1...fc + fc.bias + (Unnamed Layer* 19) [Shuffle]]}", ("conv1", "conv2", "fc")),
    ],
)
def test_regions_of_an_accelerator(title: str, layers: tuple[str, ...], tmp_path: Path) -> None:
    """One node can be a region, and the last can be named with what was fused into it (jetson_dla_tutorial)."""
    body = graph.load(save(float_model(), tmp_path))
    rows = trtexec_output.rows_of(json.dumps({"Layers": [{**SEEN, "Name": title, "LayerType": "DLA"}]}), None)
    (region,) = trtexec_output.executed_nodes(rows, body)
    assert (region.layers, region.precision) == (layers, "not shown")
    found = trtexec_document.conformance(rows, build_json([NANO])["layers"])
    assert (found.matched, found.mismatches) == (0, ())
    assert found.unknown == "all layers are in regions that show no types"


def test_names_of_the_file_become_those_of_the_model(tmp_path: Path) -> None:
    body = graph.load(save(float_model(), tmp_path))
    rows = trtexec_output.rows_of(json.dumps({"Layers": [{**SEEN, "Name": "conv_1"}]}), None, {"conv_1": "conv1"})
    assert trtexec_output.executed_nodes(rows, body)[0].layers == ("conv1",)


def test_the_engine_against_the_plan() -> None:
    build = build_json([NANO])
    fused = {**SEEN, "Name": "conv1 + relu1", "Weights": {"Type": "Half"}}
    half = {**SEEN, "Name": "conv2", "Weights": {"Type": "Half"}}
    rows = trtexec_output.rows_of(json.dumps({"Layers": [COPY, fused, half]}), None)
    found = trtexec_document.conformance(rows, build["layers"])
    assert (found.planned, found.matched) == (3, 1)
    assert [(one.layer, one.planned.value, one.executed) for one in found.mismatches] == [
        ("conv2", "int8", "fp16"),
        ("fc", "fp16", "no layer of the engine by that name"),
    ]
    told = trtexec_document.executed(rows, build["layers"])
    assert [row["planned"] for row in told] == [{}, {"conv1": "fp16"}, {"conv2": "int8"}], "a copy computes nothing"
    silent = trtexec_document.conformance(trtexec_output.rows_of(None, profile_of("conv1 + relu1")), build["layers"])
    assert (silent.matched, silent.mismatches) == (0, ())
    assert silent.unknown


def profile_of(name: str) -> str:
    return f'[\n  {{ "count" : 3 }}\n, {{ "name" : "{name}", "timeMs" : 3, "averageMs" : 1, "percentage" : 100 }}\n]\n'


@pytest.mark.parametrize("text", ["", "[", "{}", '["a"]', '{"Layers": 3}', '[{"name": "y"}]', "null"])
@pytest.mark.parametrize(
    "read",
    [trtexec_output.read_times, trtexec_output.read_profile, trtexec_output.read_layers, trtexec_output.read_outputs],
)
def test_reports_that_are_none(read: Any, text: str) -> None:
    with pytest.raises(DeviceError):
        read(text)


def test_what_is_no_number_is_read_as_such() -> None:
    outputs = trtexec_output.read_outputs('[ { "name" : "y", "dimensions" : "4", "values" : [ 1, nan, -inf, inf ] } ]')
    assert math.isnan(outputs["y"][1])
    assert outputs["y"][2:].tolist() == [-math.inf, math.inf]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 1e3), min_size=1, max_size=60), st.integers(0, 40), st.booleans())
def test_times_survive_their_form(values: list[float], warm_up: int, has_end: bool) -> None:
    """Whatever was measured comes back, without what ran in the warm-up, and percentiles enclose what they should."""
    rows = [
        {"startComputeMs": float(index), "h2dMs": 0.0, "computeMs": value, "d2hMs": 0.0, "latencyMs": value}
        | ({"endToEndMs": value} if has_end else {})
        for index, value in enumerate([1e6] * warm_up + values)
    ]
    found = trtexec_output.read_times(json.dumps(rows), warm_up)
    assert [one.latency_ms for one in found] == values
    latency = trtexec_document._latency(values)
    for name in ("p50", "p90", "p99"):
        low, high = latency[f"{name}_low"], latency[f"{name}_high"]
        assert min(values) <= latency[name] <= max(values)
        assert low is None or low <= latency[name] + 1e-9
        assert high is None or high >= latency[name] - 1e-9


def test_a_warm_up_that_never_ends() -> None:
    row = {"startComputeMs": 3.0, "h2dMs": 0.0, "computeMs": 1.0, "d2hMs": 0.0, "latencyMs": 1.0}
    with pytest.raises(DeviceError, match="no inference after its warm-up"):
        trtexec_output.read_times(json.dumps([row]))


# --- the board's document ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "kind"), [(2, InputError), (4, MissingToolError), (5, DeviceError), (7, VerifyError)])
def test_failures_of_the_board_are_raised(code: int, kind: type[EdgekitError]) -> None:
    raw = {"failed": {"exit_code": code, "message": "it is off", "hint": "switch it on"}}
    with pytest.raises(kind, match="it is off") as caught:
        trtexec_document.document(raw, {"action": "bundle"})
    assert (caught.value.hint, caught.value.exit_code) == ("switch it on", code)


def test_a_document_of_another_program() -> None:
    with pytest.raises(DeviceError, match="the board's program says 'x/9'"):
        trtexec_document.document({"schema": "x/9"}, {"action": "bundle", "folder": "."})


def test_settings_that_did_not_take() -> None:
    with pytest.raises(DeviceError, match="trtexec measured with Data transfers disabled"):
        trtexec_document._require_settings("[I] Data transfers: Disabled\n[I] CUDA Graph: Enabled\n")


def test_outputs_against_those_expected(tmp_path: Path) -> None:
    packed = make_bundle(tmp_path / "out", vectors=1)
    with np.load(packed / "vectors.npz") as vectors:
        expected = vectors["output/0/y"]

    def report(values: np.ndarray) -> str:
        numbers = ", ".join(format(float(value), ".6g") for value in values.ravel())
        return f'[ {{ "name" : "y", "dimensions" : "1x5", "values" : [ {numbers} ] }} ]'

    assert trtexec_document.compare_outputs([report(expected)], packed)["worst_error_share"] < 0.01
    off = trtexec_document.compare_outputs([report(expected + 0.002)], packed)
    assert not off["ok"]
    assert off["worst_error_share"] == pytest.approx(2, rel=0.02)
    broken = trtexec_document.compare_outputs([report(np.full_like(expected, np.nan))], packed)
    assert broken["worst_error_share"] == math.inf
    with pytest.raises(DeviceError, match="0 of 1 test vectors"):
        trtexec_document.compare_outputs([], packed)
    with pytest.raises(DeviceError, match="no output y of 5 values"):
        trtexec_document.compare_outputs(['[ { "name" : "z", "dimensions" : "1", "values" : [ 1 ] } ]'], packed)


def test_models_of_these_tests_are_what_they_say() -> None:
    """The strong one holds halves, and both hold a pair around zero."""
    for strong in (False, True):
        body = onnx.load_model_from_string(model(strong)).graph
        kinds = {one.name: one.data_type for one in body.initializer}
        assert (kinds["w1"] == onnx.TensorProto.FLOAT16) == strong
        assert kinds["zero"] == onnx.TensorProto.INT8
    assert helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT8) == np.int8
