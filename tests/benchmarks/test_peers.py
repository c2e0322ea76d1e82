from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.peers import mct_search, metered, picture
from benchmarks.peers.__main__ import Found, main
from benchmarks.peers.contest import default_precision, hold
from benchmarks.peers.metered import TooSlowError
from benchmarks.peers.nncf_ptq import ROOT
from benchmarks.peers.rows import FLOAT, Missing, Row, Verdict, geometric_mean, none, ratio, verdict
from benchmarks.peers.samples import read_evaluation, write_evaluation
from benchmarks.peers.table import lines, table
from benchmarks.peers.tools import EDGEKIT, NotHereError, Setting, Tool, make
from benchmarks.zoo import ZooEntry
from edgekit.errors import InputError
from edgekit.job import prepare
from edgekit.types import Figure, Kind
from edgekit.workbench.stages import Workbench
from tests import zoo

# -- verdicts ---------------------------------------------------------------------------------------------------------


def row(candidate: str, speed: float, drop: float = 0.0, spread: float = 0.02, model: str = "net") -> Row:
    def figure(value: float) -> Figure:
        return Figure(Kind.MEASURED, value, value * (1 - spread), value * (1 + spread), "made up")

    return Row(
        model,
        candidate,
        "fp32",
        figure(10 / speed),
        figure(speed),
        "top-1",
        figure(0.9 - drop),
        Figure(Kind.MEASURED, drop, drop - 0.01, drop + 0.01, "made up"),
        figure(30.0),
        none("no classes"),
        Figure(Kind.COUNTED, 1e6, source="made up"),
        figure(12.0),
        figure(3e8),
    )


def test_only_what_keeps_the_metric_is_compared_with() -> None:
    rows = [row(FLOAT, 1.0), row("fast and wrong", 4.0, drop=0.011), row("peer", 2.0, drop=0.01), row(EDGEKIT, 3.0)]
    found = verdict("net", rows, EDGEKIT)
    assert (found.word, found.best) == ("ahead", "peer")
    assert found.ratio.value == pytest.approx(1.5)


def test_float_counts_and_edgekit_may_be_behind_or_level() -> None:
    slow = [row(FLOAT, 1.0), row("peer", 0.8), row(EDGEKIT, 0.7)]
    assert verdict("net", slow, EDGEKIT).best == FLOAT
    assert verdict("net", slow, EDGEKIT).word == "behind"
    assert verdict("net", [row(FLOAT, 1.0), row(EDGEKIT, 0.99)], EDGEKIT).word == "level"


def test_float_in_another_precision_is_a_peer_of_its_own() -> None:
    half = replace(row(FLOAT, 1.7), floats="bf16")
    assert verdict("net", [row(FLOAT, 1.0), half, row(EDGEKIT, 1.5)], EDGEKIT).best == "float, bf16"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row(FLOAT, 1.0)], "no result"),
        ([row(FLOAT, 1.0), row(EDGEKIT, 3.0, drop=0.02)], "drops by 0.020"),
        ([row(EDGEKIT, 3.0)], "nothing else"),
        ([row(FLOAT, 1.0, model="other"), row(EDGEKIT, 3.0, model="other")], "no result"),
    ],
)
def test_no_ratio_where_there_is_nothing_to_compare(rows: list[Row], reason: str) -> None:
    found = verdict("net", rows, EDGEKIT)
    assert (found.word, found.ratio.kind, found.ratio.value) == ("none", Kind.NONE, None)
    assert reason in found.reason
    assert geometric_mean([found]).kind is Kind.NONE


speeds = st.floats(0.1, 20.0)


@given(st.lists(st.tuples(speeds, speeds), min_size=1, max_size=9), st.floats(0.0, 0.3))
def test_geometric_mean_of_ratios(pairs: list[tuple[float, float]], spread: float) -> None:
    found = []
    for index, (ours, theirs) in enumerate(pairs):
        rows = [
            row("peer", theirs, spread=spread, model=str(index)),
            row(EDGEKIT, ours, spread=spread, model=str(index)),
        ]
        found.append(verdict(str(index), rows, EDGEKIT))
    mean = geometric_mean(found)
    assert mean.value is not None
    assert mean.low is not None
    assert mean.high is not None
    product = math.prod(ours / theirs for ours, theirs in pairs)
    assert mean.value ** len(pairs) == pytest.approx(product)
    assert mean.low <= mean.value * (1 + 1e-9)
    assert mean.value <= mean.high * (1 + 1e-9)
    missing = Verdict("x", "none", "", none(""), none(""), none(""), "no result")
    assert geometric_mean([*found, missing]).value == mean.value
    assert geometric_mean([*found, missing]).source == f"{len(pairs)} of {len(pairs) + 1} models"


def test_the_ratio_is_as_wide_as_both() -> None:
    exact = Figure(Kind.MEASURED, 2.0, 2.0, 2.0)
    wide = Figure(Kind.MEASURED, 1.0, 0.9, 1 / 0.9)
    one = ratio(exact, wide)
    assert (one.low, one.high) == (pytest.approx(1.8), pytest.approx(2 / 0.9))
    both = ratio(wide, wide)
    assert both.low is not None
    assert 0.81 < both.low < 0.9  # wider than either, narrower than the extremes


# -- what is printed --------------------------------------------------------------------------------------------------


def found_rows() -> Found:
    found = Found("host")
    found.rows = [row(FLOAT, 1.0), row("peer", 2.0, drop=0.3), replace(row(EDGEKIT, 1.5), note="ships plan: 3 int8")]
    found.rows.append(Missing("net", "mct", "it needs a torch model", asked=False))
    found.rows.append(row(FLOAT, 1.0, model="other"))
    found.rows.append(row(EDGEKIT, 0.9, model="other"))
    return found


def test_the_table_and_the_lines_say_it_all() -> None:
    found = found_rows()
    console = Console(width=220, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(table(found.rows, "host", None))
    for line in lines(found.rows, *found.verdicts()):
        console.print(line, soft_wrap=True)
    said = console.export_text()
    assert "net, mct: none: it needs a torch model" in said
    assert "net, edgekit: ships plan: 3 int8" in said
    assert "net: ahead: x1.50" in said
    assert "x1.50 against x1.00 of float" in said
    assert "other: not ahead: x0.90" in said
    assert f"geometric mean: x{math.sqrt(1.5 * 0.9):.2f}" in said
    assert "2 of 2 models" in said


def test_a_document_keeps_the_models_that_are_not_measured_again(tmp_path: Path) -> None:
    found, path = found_rows(), tmp_path / "peers.json"
    path.write_text(json.dumps(found.document(), allow_nan=False))
    again = Found.read(path, "host", ["other"])
    assert again.document()["rows"] == [one for one in found.document()["rows"] if one["model"] == "net"]
    assert again.document()["missing"] == found.document()["missing"]
    assert again.rows == [one for one in found.rows if one.model == "net"]


@pytest.mark.parametrize("content", ["", "[]", '{"schema": "edgekit/peers/1", "target": "other"}', '{"schema": 1}'])
def test_no_document_is_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text(content)
    with pytest.raises(InputError, match="no earlier comparison on host"):
        Found.read(path, "host", [])


def test_variants_of_edgekit_are_no_peers() -> None:
    rows = [row(FLOAT, 1.0), row(f"{EDGEKIT}, no pruning", 4.0), row(EDGEKIT, 3.0)]
    assert verdict("net", rows, EDGEKIT).best == FLOAT


def test_every_figure_of_the_document_has_a_kind() -> None:
    document = json.loads(json.dumps(found_rows().document(), allow_nan=False))
    assert document["schema"] == "edgekit/peers/1"
    kinds = {kind.value for kind in Kind}

    def numbers(value: Any, inside: bool) -> None:
        if isinstance(value, dict):
            figure = "kind" in value
            assert not figure or value["kind"] in kinds
            for one in value.values():
                numbers(one, inside or figure)
        elif isinstance(value, list):
            for one in value:
                numbers(one, inside)
        elif isinstance(value, float):
            assert inside

    numbers({key: document[key] for key in ("rows", "missing", "verdicts", "geometric_mean")}, False)
    assert [one["word"] for one in document["verdicts"]] == ["ahead", "behind"]


def test_the_picture_is_the_same_each_time_and_hollow_where_the_metric_is_lost() -> None:
    rows = [one for one in found_rows().rows if isinstance(one, Row)]
    svg = picture.draw(rows, ".svg")
    assert svg == picture.draw(rows, ".svg")
    text = svg.decode()
    assert all(f">{word}<" in text for word in ("net", "other", "edgekit", "peer", "float"))
    kept = [replace(one, drop=Figure(Kind.MEASURED, 0.0)) for one in rows]
    assert picture.draw(kept, ".svg") != svg
    assert picture.draw(rows, ".png").startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to draw"):
        picture.draw([], ".svg")


# -- running tools ----------------------------------------------------------------------------------------------------


def python(source: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", source]


def test_memory_is_the_tools_and_that_of_its_largest_child(tmp_path: Path) -> None:
    ballast = bytearray(200_000_000)  # this process is large; that must not count
    ballast[::4096] = b"x" * len(ballast[::4096])
    small = metered.run(python("pass"), tmp_path / "log", 60)
    hold_100 = "x = bytearray(100_000_000); x[::4096] = b'x' * len(x[::4096])"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', {hold_100!r}], check=True)"
    large = metered.run(python(child), tmp_path / "log", 60)
    assert small.peak_memory_bytes < 60e6
    assert 100e6 < large.peak_memory_bytes < 170e6
    assert large.wall_s > 0
    assert (small.status, large.status) == (0, 0)


def test_a_tool_past_its_time_is_ended_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = "import time; time.sleep(600)"
    source = (
        "import pathlib, signal, subprocess, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # a stubborn one
        f"child = subprocess.Popen([sys.executable, '-I', '-S', '-c', {child!r}])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    before, metered.GRACE_S = metered.GRACE_S, 0.5
    try:
        with pytest.raises(TooSlowError, match="not finished in 3 s"):
            metered.run(python(source), tmp_path / "log", 3)
    finally:
        metered.GRACE_S = before
    deadline = time.monotonic() + 10
    while _runs(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(int(pid.read_text()))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_tool_too(sent: signal.Signals, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    tool = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"
    source = (
        "import pathlib, signal, sys\n"
        "from benchmarks.peers import metered\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"  # as the command does
        f"metered.run([sys.executable, '-I', '-S', '-c', {tool!r}], pathlib.Path({str(tmp_path / 'log')!r}), 600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE, cwd=ROOT)
    while process.poll() is None and not (pid.exists() and pid.read_text()):
        time.sleep(0.05)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    assert not _runs(int(pid.read_text()))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_failing_tool_gives_its_last_words_and_leaves_no_files(tmp_path: Path) -> None:
    def tool(source: str) -> Tool:
        return Tool("broken", lambda _: python(source), lambda *_: pytest.fail("nothing to read"))

    folder = tmp_path / "broken"
    spoils = f"open({str(folder / 'half')!r}, 'w').write('x')\nraise SystemExit('it is the wrong opset')"
    with pytest.raises(NotHereError, match=r"failed after \d+ s: it is the wrong opset"):
        make(tool(spoils), folder, 60)
    assert not folder.exists()
    with pytest.raises(NotHereError, match="not finished in 1 s"):
        make(tool("import time; time.sleep(60)"), folder, 1)
    absent = Tool("absent", lambda _: [tmp_path / "no-such-program"], lambda *_: pytest.fail("nothing to read"))
    with pytest.raises(NotHereError, match=r"cannot be started: .*no-such-program: No such file"):
        make(absent, folder, 60)
    assert not folder.exists()


# -- real models ------------------------------------------------------------------------------------------------------


def setting_of(model: onnx.ModelProto, shape: tuple[int, ...], folder: Path) -> Setting:
    onnx.save(model, folder / "model.onnx")
    random = np.random.default_rng(0)
    name = model.graph.input[0].name
    for file, count in (("data.npz", 8), ("eval.npz", 12)):
        np.savez(folder / file, **{name: random.standard_normal((count, *shape)).astype(np.float32)})
    entry = ZooEntry("tiny", folder / "model.onnx", folder / "data.npz", folder / "eval.npz", None, "cosine", {})
    job = prepare(entry.model, "host", data=entry.data, evaluation=entry.eval, metric_name=entry.metric, threads=1)
    return Setting(entry, Workbench(job), folder / "out", (), None, None)


@pytest.fixture
def setting(tmp_path: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setenv("EDGEKIT_CACHE", str(session_cache))
    return setting_of(zoo.conv_net(size=32), (1, 3, 32, 32), tmp_path)


def test_evaluation_samples_come_back_as_they_were(setting: Setting, tmp_path: Path) -> None:
    write_evaluation(setting.bench.job, "cosine", tmp_path / "stored")
    found = read_evaluation(tmp_path / "stored")
    data = setting.bench.job.data.evaluation
    session = onnxruntime.InferenceSession(setting.entry.model)
    assert (len(found), found.metric, found.label(3)) == (len(data), "cosine", None)
    for index in range(len(data)):
        sample = data.sample(index)
        for name, array in found.sample(index).items():
            np.testing.assert_array_equal(array, sample[name])
        (expected,) = session.run(None, sample)
        (stored,) = found.reference(index).values()
        np.testing.assert_allclose(stored, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_onnxruntimes_quantization_races_and_is_scored(setting: Setting) -> None:
    found, conditions = hold(setting, ("ort", "nncf", "mct"), seconds=1.0, limit_s=300)
    rows = {one.candidate: one for one in found if isinstance(one, Row) and one.floats == "fp32"}
    assert {"float", "onnxruntime static", "onnxruntime static, Conv/Gemm/MatMul"} <= set(rows)
    assert rows["float"].speedup.value == 1.0
    for name in ("onnxruntime static", "onnxruntime static, Conv/Gemm/MatMul"):
        one = rows[name]
        assert one.sqnr_db.value is not None
        assert 15 < one.sqnr_db.value < 60  # quantized, and not broken
        assert one.weight_bytes.value is not None
        assert one.weight_bytes.value < 0.5 * (rows["float"].weight_bytes.value or 0)
        assert (one.wall_s.value or 0) > 0
        assert (one.peak_memory_bytes.value or 0) > 30e6
    missing = {one.candidate: one for one in found if isinstance(one, Missing)}
    assert missing["nncf"].none == "no --nncf-python was passed"
    assert "torch model" in missing["mct"].none
    assert not missing["mct"].asked
    assert conditions is not None
    assert not setting.samples.exists()


def test_old_opsets_are_quantized_per_channel(tmp_path: Path) -> None:
    model = zoo.old_opset()
    assert model.opset_import[0].version < 13
    onnx.save(model, tmp_path / "model.onnx")
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    samples = np.random.default_rng(0).standard_normal((6, *shape)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", **{model.graph.input[0].name: samples})
    from benchmarks.peers import ort_static

    command = ort_static.command(tmp_path / "model.onnx", tmp_path / "samples.npz", tmp_path / "out.onnx", True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = onnx.load(tmp_path / "out.onnx")
    scales = [one for one in made.graph.initializer if one.name.endswith("_scale") and "weight" not in one.name]
    assert any(one.dims and one.dims[0] > 1 for one in scales)
    plain, quantized = (
        onnxruntime.InferenceSession(tmp_path / file).run(None, {model.graph.input[0].name: samples[0]})[0]
        for file in ("model.onnx", "out.onnx")
    )
    assert np.sum((plain - quantized) ** 2) < 0.02 * np.sum(plain**2)
    assert not list(tmp_path.glob("*.float.onnx"))


def test_weights_of_mct_become_integers_without_loss(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    net = zoo.Net()
    scales = {"a.layer.weight": np.array([2.0**-5, 0.013, 0.4, 1e-3]), "b.layer.weight": np.full(5, 2.0**-4)}
    bits = {"a.layer.weight": 8, "b.layer.weight": 4}
    shapes = {"a.layer.weight": (4, 3, 3, 3), "b.layer.weight": (5, 4, 1, 1)}
    value = net.input("x", [1, 3, 8, 8])
    for name, shape in shapes.items():
        half = 2 ** (bits[name] - 1)
        grid = random.integers(-half, half, shape) * scales[name].reshape(-1, 1, 1, 1)
        value = net.op("Conv", value, net.weight(grid.astype(np.float32), name), kernel_shape=list(shape[2:]))
    model = net.model([value])
    onnx.save(model, tmp_path / "before.onnx")
    assert mct_search.as_integers(model, scales) == 2
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "after.onnx")
    sample = {"x": random.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    before, after = (
        onnxruntime.InferenceSession(tmp_path / file).run(None, sample)[0] for file in ("before.onnx", "after.onnx")
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    stored = {one.name: one.data_type for one in model.graph.initializer}
    assert stored["b.layer.weight.codes"] == onnx.TensorProto.INT8
    with pytest.raises(ValueError, match="not on MCT's grid"):
        mct_search.codes(np.full((2, 3), 0.15), np.array([0.1, 0.1]))


def test_the_runtimes_own_choice_is_a_float_precision(setting: Setting) -> None:
    import openvino

    from edgekit.types import Precision

    found = default_precision(setting.bench.artifact({}, Precision.FP32))
    listed = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert found is Precision.FP32 or found.value.upper() in listed


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--picture", "plot.jpg"], "its name has to end in .png or .svg"),
        (["--nncf-python", "absent/python"], "there is no such Python"),
        (["--target", "host", "--tools", "aeq"], "not for openvino, which has"),
        (["no-such-net"], "no model 'no-such-net' in the zoo"),
        (["--target", "no-such-target"], "no-such-target"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers", "--out", str(tmp_path / "out"), *flags])
    status: object
    try:
        status = main()
    except SystemExit as ended:  # argparse's own
        status = ended.code
    assert status == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
