import importlib.util
import io
import os
import pickle
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.zoo import TRAINED, characters, imu_cnn, prepare, sources, stamp, stamped

PHOTOS = [np.random.default_rng(0).integers(0, 256, (200, 260, 3)).astype(np.uint8)]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), hardness=st.floats(0, 1))
def test_characters_are_seeded_and_in_range(seed: int, hardness: float) -> None:
    pixels, labels = characters.batch(np.random.default_rng(seed), 3, PHOTOS, hardness)
    again, _ = characters.batch(np.random.default_rng(seed), 3, PHOTOS, hardness)
    assert np.array_equal(pixels, again)
    assert pixels.shape == (3, 3, 96, 96)
    assert (pixels.dtype, labels.dtype) == (np.float32, np.int64)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    assert set(labels.tolist()) <= set(range(characters.CLASSES))


def test_the_label_is_what_is_drawn() -> None:
    drawn = {}
    for label in range(characters.CLASSES):
        rng = np.random.default_rng(4)  # one face, size and ground for all
        drawn[label] = characters.picture(rng, label, PHOTOS, 0.0)
        assert len(np.unique(drawn[label].reshape(-1, 3), axis=0)) >= 4, "ink with soft edges on a flat ground"
    assert len({picture.tobytes() for picture in drawn.values()}) == characters.CLASSES
    assert len(set(characters.ALPHABET)) == characters.CLASSES


def test_evaluation_is_harder_than_the_start() -> None:
    rng = np.random.default_rng(1)
    easy, hard = (np.stack([characters.picture(rng, 3, PHOTOS, h) for _ in range(20)]) for h in (0.0, 1.0))
    edge = (slice(None), slice(0, 8))  # above the character: ground alone
    assert hard[edge].astype(float).std(axis=(1, 2)).mean() > 5 + easy[edge].astype(float).std(axis=(1, 2)).mean()


def dataset(recordings: int = 20) -> dict[str, object]:
    """As the package's file has it; the first channel of a recording counts up, the second holds the person."""
    people = np.array([1 + index % 10 for index in range(recordings)])
    inputs = [np.full((300 + index, 6), float(person)) for index, person in enumerate(people)]
    for recording in inputs:
        recording[:, 0] = np.arange(len(recording))
    return {"X": inputs, "y": np.arange(recordings) % 7, "subject": people, "y_labels": ["a"], "side": np.zeros(3)}


def stored(content: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(content, dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    content = stored(dataset())
    monkeypatch.setattr(sources, "member", lambda _package, _path: content)


@pytest.mark.usefixtures("package")
def test_nobody_is_in_training_and_evaluation() -> None:
    draw, samples = imu_cnn.make()
    training, _ = draw(np.random.default_rng(0), 500, 0.0)
    seen = np.concatenate([training, samples.calibration[0]])[:, 1].mean(1)
    unseen = samples.evaluation[0][:, 1, 0]
    # Scaled and up to a tenth larger or smaller; people 8 to 10 are above all others, whose mean is 4.
    assert unseen.min() > 1.1 * (7 - 4) / 2 > 0
    assert seen.max() <= 1.1 * (7 - 4) / 2 + 1e-4
    assert samples.evaluation[0].shape[1:] == samples.calibration[0].shape[1:] == (6, imu_cnn.WINDOW)


@pytest.mark.usefixtures("package")
def test_windows_cover_a_recording_and_keep_its_label() -> None:
    _, samples = imu_cnn.make()
    windows, labels = samples.evaluation
    lengths = [300 + index for index in range(20) if 1 + index % 10 in imu_cnn.UNSEEN]
    assert len(windows) == len(labels) == sum((length - imu_cnn.WINDOW) // imu_cnn.STEP + 1 for length in lengths)
    first = (300 + 7 - imu_cnn.WINDOW) // imu_cnn.STEP + 1
    assert set(labels[:first].tolist()) == {7 % 7}
    assert np.allclose(windows[0][0, imu_cnn.STEP :], windows[1][0, : -imu_cnn.STEP])


class _Shell:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, ("false",)


def test_a_data_file_that_runs_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = stored({**dataset(), "X": _Shell()})
    monkeypatch.setattr(sources, "member", lambda _package, _path: content)
    with pytest.raises(pickle.UnpicklingError, match=r"names \w+\.system"):
        imu_cnn.make()


def torch_model(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_model", folder / "torch_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "weights_mb"),
    [("imu-cnn", (6, 128), 0.6), ("mobilenetv2-like", (3, 96, 96), 9.1), ("resnet18-like", (3, 96, 96), 2.8)],
)
def test_what_is_written_is_one_network(name: str, shape: tuple[int, ...], weights_mb: float, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import onnx
    import onnxruntime

    from benchmarks.zoo import training

    net = importlib.import_module(f"benchmarks.zoo.nets.{name.replace('-', '_')}")
    built = training.seeded(net.network, 7)
    same = training.seeded(net.network, 7)
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), same.parameters(), strict=True))
    model = tmp_path / f"{name}.onnx"
    training.write(built.eval(), Path(net.__file__), shape, model)
    assert sorted(path.name for path in tmp_path.iterdir()) == [model.name, "torch_model.py", "weights.safetensors"]
    assert (tmp_path / "weights.safetensors").stat().st_size / 1e6 == pytest.approx(weights_mb, rel=0.05)
    loaded = onnx.load(model)
    assert [entry.version for entry in loaded.opset_import] == [17]
    assert [d.dim_value for d in loaded.graph.input[0].type.tensor_type.shape.dim] == [1, *shape]
    x = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    (ours,) = onnxruntime.InferenceSession(str(model)).run(None, {"x": x})
    with torch.no_grad():
        theirs = torch_model(tmp_path).module()(torch.from_numpy(x)).numpy()
    assert np.allclose(ours, theirs, rtol=1e-3, atol=1e-5 + 1e-4 * np.abs(theirs).max())


@pytest.mark.slow
def test_the_imu_net_learns_what_it_is_asked(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import onnxruntime

    entry = prepare("imu-cnn", tmp_path)
    session = onnxruntime.InferenceSession(str(entry.model))
    with np.load(entry.eval) as scored:
        inputs, labels = scored["x"], scored["labels"]
    right = [np.argmax(session.run(None, {"x": x[None]})[0]) == y for x, y in zip(inputs, labels, strict=True)]
    assert len(labels) >= 500
    assert 0.75 < np.mean(right) < 0.98
    assert prepare("imu-cnn", tmp_path) == entry


def test_trained_entries_stand_alone() -> None:
    """A net's file is copied to where no benchmarks package is."""
    for name in TRAINED:
        text = (Path(characters.__file__).parent / "nets" / f"{name.replace('-', '_')}.py").read_text()
        assert "import" in text
        assert "benchmarks" not in text
        assert "edgekit" not in text


def test_a_finished_entry_is_made_again_when_its_code_changes_not_when_its_comments_do(tmp_path: Path) -> None:
    source = tmp_path / "entry.py"
    source.write_text('"""A model."""\nRATE = 1  # slow\n\n\ndef made():\n    """Made."""\n    return RATE\n')
    assert not stamped(tmp_path, str(source))
    stamp(tmp_path, str(source))
    source.write_text("# Another word.\nRATE = (1)\ndef made():\n    'Another.'\n    return RATE\n")
    assert stamped(tmp_path, str(source))
    source.write_text("RATE = 2\ndef made():\n    return RATE\n")
    assert not stamped(tmp_path, str(source))
