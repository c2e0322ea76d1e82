import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.compress import ranges
from edgekit.compress.observers import Histogram, choose_range
from edgekit.errors import InputError
from edgekit.graph import load

SIZE = 16


def small_net() -> onnx.ModelProto:
    """x -> Conv -> Relu -> Conv; z -> Log, and its ArgMax."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in [("w1", (4, 3, 3, 3)), ("w2", (2, 4, 1, 1))]
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="conv2"),
        helper.make_node("Log", ["z"], ["l"], name="log"),
        helper.make_node("Neg", ["l"], ["n"], name="neg"),
        helper.make_node("ArgMax", ["n"], ["k"], name="argmax", axis=1, keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIZE, SIZE]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 5]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, SIZE, SIZE]),
        helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
    ]
    graph = helper.make_graph(nodes, "small", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Drawn:
    """Random samples, each changed by what the test wants."""

    labels = None
    digest = ""

    def __init__(self, count: int, **changes: object) -> None:
        self.count, self.changes = count, changes

    def __len__(self) -> int:
        return self.count

    def sample(self, i: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(i)
        drawn = {
            "x": rng.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32) * (i + 1),
            "z": rng.uniform(0.1, 1, size=(1, 5)).astype(np.float32),
        }
        if i == self.count - 1:
            drawn |= self.changes
        return {name: array for name, array in drawn.items() if array is not None}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(small_net(), path)
    return path


@pytest.fixture(scope="module")
def graph(path):
    return load(path)


def expected(tensors, samples):
    model = small_net()
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in present | {"x", "z"})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rows = [
        samples.sample(i) | dict(zip(names, session.run(names, samples.sample(i)), strict=True))
        for i in range(len(samples))
    ]
    return {name: np.stack([row[name] for row in rows]) for name in tensors}


def test_histograms_of_activations_inputs_and_outputs(graph):
    tensors = ["x", "a", "b", "y", "n"]
    samples = Drawn(5)
    calls = []
    histograms = ranges.collect_ranges(graph, tensors, samples, lambda done, total: calls.append((done, total)))
    assert list(histograms) == tensors
    assert calls == [(i, 5) for i in range(1, 6)]
    for name, values in expected(tensors, samples).items():
        histogram = histograms[name]
        assert histogram.name == name
        assert histogram.count == values.size
        assert histogram.minimum == pytest.approx(values.min(), rel=1e-5, abs=1e-6)
        assert histogram.maximum == pytest.approx(values.max(), rel=1e-5, abs=1e-6)
        plain = Histogram(name)
        plain.update(values)
        assert np.abs(np.cumsum(histogram.counts) - np.cumsum(plain.counts)).max() <= 2  # of values next to an edge
    bounds = choose_range(histograms["b"], "mse")
    assert bounds.low == 0


def test_the_graph_is_not_touched(graph):
    before = [value.name for value in graph.model.graph.outputs]
    ranges.collect_ranges(graph, ["a"], Drawn(1))
    assert [value.name for value in graph.model.graph.outputs] == before


def test_tensors_beyond_the_memory_take_more_passes(graph, monkeypatch):
    tensors = ["x", "a", "b", "y"]
    whole = ranges.collect_ranges(graph, tensors, Drawn(3))
    monkeypatch.setattr(ranges, "_PASS_BYTES", 4 * 4 * SIZE * SIZE)
    calls = []
    parts = ranges.collect_ranges(graph, tensors, Drawn(3), lambda done, total: calls.append((done, total)))
    assert calls == [(i, 9) for i in range(1, 10)]
    for name in tensors:
        assert parts[name].count == whole[name].count
        assert parts[name].zeros == whole[name].zeros
        assert parts[name].minimum == pytest.approx(whole[name].minimum, rel=1e-6)
        assert parts[name].maximum == pytest.approx(whole[name].maximum, rel=1e-6)


def test_inputs_alone_and_nothing_at_all(graph):
    assert ranges.collect_ranges(graph, ["z"], Drawn(2))["z"].count == 10
    assert ranges.collect_ranges(graph, [], Drawn(2)) == {}


def test_float_outputs_are_those_of_the_original(graph, path):
    samples = Drawn(3)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows = list(ranges.run_float(graph, samples))
    assert len(rows) == 3
    for i, row in enumerate(rows):
        assert list(row) == ["y", "k"]
        for name, array in zip(row, session.run(list(row), samples.sample(i)), strict=True):
            np.testing.assert_allclose(row[name], array, rtol=1e-4, atol=1e-4)


NAN = np.full((1, 3, SIZE, SIZE), np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": NAN}, "sample 1: tensor 'x' holds NaN"),
        ({"z": np.full((1, 5), -1, np.float32)}, "sample 1: tensor 'n' holds NaN"),
        ({"z": np.zeros((1, 5), np.float32)}, "sample 1: tensor 'n' holds infinite"),
        ({"z": None}, "sample 1 has no input 'z'"),
        ({"z": np.zeros((2, 5), np.float32)}, r"sample 1, input 'z': float32\[2, 5\] does not fit"),
        ({"z": np.zeros((1, 5))}, r"sample 1, input 'z': float64\[1, 5\] does not fit"),
    ],
)
def test_bad_samples_are_named(graph, change, message):
    with pytest.raises(InputError, match=message) as caught:
        ranges.collect_ranges(graph, ["n", "x"] if "z" in change else ["x"], Drawn(2, **change))
    assert caught.value.hint


def test_no_samples(graph):
    with pytest.raises(InputError, match="no samples"):
        ranges.collect_ranges(graph, ["a"], Drawn(0))


@pytest.mark.parametrize(
    ("tensor", "message"), [("nowhere", "no tensor 'nowhere'"), ("k", "'k' is not of a float type")]
)
def test_tensors_that_cannot_be_observed(graph, tensor, message):
    with pytest.raises(ValueError, match=message):
        ranges.collect_ranges(graph, [tensor], Drawn(1))


MEMORY = """
import resource, sys
sys.path[:0] = [{tests!r}]
from test_ranges import Drawn, load, ranges
graph = load({path!r})
before = 0
for count in (20, {count}):
    ranges.collect_ranges(graph, ["x", "a", "b", "y", "n"], Drawn(count))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = before or peak
print(peak - before)
"""


def test_memory_does_not_grow_with_samples(path):
    script = MEMORY.format(tests=str(Path(__file__).parent), path=str(path), count=1500)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    held = 1500 * 4 * SIZE * SIZE * (3 + 4 + 4 + 2) // 1024  # KiB, were every value kept
    assert int(done.stdout) < held / 10
