"""Layers that int8 hurts and samples that are to blame: planted, and found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from edgekit import api
from edgekit.diagnosis import Diagnosis, _Trials
from edgekit.errors import InputError
from edgekit.job import prepare
from edgekit.results import unstructure
from edgekit.workbench.stages import Workbench
from tests import zoo
from tests.command import Desk, samples


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, session_cache: Path) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(session_cache))


def diagnose(
    folder: Path, calibration: np.ndarray, model: onnx.ModelProto | None = None, name: str = "host"
) -> Diagnosis:
    onnx.save(model or zoo.conv_net(), folder / "model.onnx")
    np.savez(folder / "data.npz", x=calibration)
    np.savez(folder / "eval.npz", **samples(16, seed=1))
    return api.diagnose(folder / "model.onnx", name, data=folder / "data.npz", evaluation=folder / "eval.npz")


def test_a_layer_with_outliers_is_blamed_for_its_activations(tmp_path: Path) -> None:
    """The last layer reads some channels that are a thousand times as loud as the others, and no more important."""
    model = zoo.conv_net()
    *_, conv, gemm = (node for node in model.graph.node if node.op_type in ("Conv", "Gemm"))
    by_name = {init.name: init for init in model.graph.initializer}
    louder = [(conv.input[1], np.s_[::6], 1e3), (conv.input[2], np.s_[::6], 1e3), (gemm.input[1], np.s_[:, ::6], 1e-3)]
    for name, where, factor in louder:
        values = onnx.numpy_helper.to_array(by_name[name]).copy()
        values[where] *= factor
        by_name[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    sick = diagnose(tmp_path, samples()["x"], model)
    healthy = diagnose(tmp_path, samples()["x"])
    assert sick.int8_db < healthy.int8_db - 6
    worst = sick.layers[0]
    assert (worst.op_type, worst.share > 0.6) == ("Gemm", True)
    assert worst.weights_share is not None
    assert worst.weights_share < 0.5
    best = worst.trials[0]
    assert best.action == "scaled channels", "what outliers in a few channels ask for"
    assert best.gain_db > 6
    assert sick.without_db > sick.int8_db
    assert sick.layers == tuple(sorted(sick.layers, key=lambda layer: -layer.loss))


def test_sound_samples_have_no_findings_but_small_ones(tmp_path: Path) -> None:
    found = diagnose(tmp_path, samples(64)["x"])
    assert [f.kind for f in found.findings if f.kind not in ("uncovered-ranges", "unsettled-ranges")] == []
    assert all(trial.gain_db > 0 for layer in found.layers for trial in layer.trials)
    assert unstructure(found)["schema"] == "edgekit/diagnose/1"


@pytest.mark.parametrize(
    ("calibration", "kind"),
    [
        (np.full((16, 3, 16, 16), 0.5, np.float32), "constant-input"),
        (samples()["x"] * 255, "other-scale"),
        (samples(1)["x"], "few-samples"),
    ],
)
def test_bad_samples_are_named(tmp_path: Path, calibration: np.ndarray, kind: str) -> None:
    assert kind in [finding.kind for finding in diagnose(tmp_path, calibration).findings]


def test_ranges_that_miss_the_other_samples_are_told(tmp_path: Path) -> None:
    found = diagnose(tmp_path, samples()["x"] / 3)
    (finding,) = [finding for finding in found.findings if finding.kind == "uncovered-ranges"]
    assert "leave the range of the calibration samples" in finding.detail


def test_half_of_the_samples_are_quantized_around_zero_too_where_the_runtime_does(tmp_path: Path) -> None:
    """Every sample twice: half of them have the same ranges, so they can lose nothing, whatever the grid."""
    once = samples(12)["x"]
    found = diagnose(tmp_path, np.repeat(once, 2, axis=0), name="jetson-xavier-nx")
    assert "unsettled-ranges" not in [finding.kind for finding in found.findings]
    job = prepare(
        tmp_path / "model.onnx", "jetson-xavier-nx", data=tmp_path / "data.npz", evaluation=tmp_path / "eval.npz"
    )
    trials = _Trials(Workbench(job))
    assert trials._ranges_of_half() == trials.bench.ranges


def test_a_target_without_int8_has_nothing_to_diagnose(tmp_path: Path) -> None:
    folder = tmp_path / "overlay" / "targets" / "floats"
    folder.mkdir(parents=True)
    (folder / "target.toml").write_text('extends = "host"\nprecisions = ["fp32"]\n')
    onnx.save(zoo.conv_net(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **samples())
    with pytest.raises(InputError, match="floats offers int8 for no layer"):
        api.diagnose(tmp_path / "model.onnx", "floats", data=tmp_path / "data.npz", overlays=[tmp_path / "overlay"])


class TestCommand:
    def test_text_and_json(self, desk: Desk) -> None:
        flags = ("diagnose", "model.onnx", "--target", "host", "--data", "data.npz", "--eval", "eval.npz")
        text = desk.succeed(*flags).out
        assert "int8 on host: everything that can be" in text
        assert "Conv" in text
        document = desk.succeed(*flags, "--json").document
        assert document["layers"][0]["loss"] >= document["layers"][-1]["loss"]

    def test_not_a_number(self, desk: Desk) -> None:
        broken = samples()
        broken["x"][3, 0, 0, 0] = np.nan
        np.savez(desk.folder / "data.npz", **broken)
        done = desk.run("diagnose", "model.onnx", "--target", "host", "--data", "data.npz")
        assert done.code == 2
        assert len(done.complaint) <= 2
        assert "NaN" in done.complaint[0]

    def test_no_samples(self, desk: Desk) -> None:
        done = desk.run("diagnose", "model.onnx", "--target", "host")
        assert (done.code, "no samples" in done.complaint[0]) == (2, True)
