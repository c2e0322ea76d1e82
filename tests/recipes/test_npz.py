"""Samples from .npz files: exactly the model's inputs, or a refusal that names the place."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit import catalog
from edgekit.errors import InputError
from edgekit.graph import Tensor
from edgekit.recipes import npz
from edgekit.recipes.samples import open_dataset

X = Tensor("x", (1, 3, 4), "float32")
IDS = Tensor("ids", (1, 5), "int64")
RECIPE = catalog.recipe("npz")


def save(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def x(n=6):
    return np.random.default_rng(0).normal(size=(n, 3, 4)).astype(np.float32)


def refusal(path, *parts, inputs=(X,)):
    with pytest.raises(InputError) as caught:
        open_dataset(path, RECIPE, inputs)
    told = f"{caught.value} | {caught.value.hint}"
    for part in (str(path), *parts):
        assert part in told, told
    assert "\n" not in told
    assert caught.value.hint


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("in_memory", [1 << 30, 0])
@pytest.mark.parametrize("order", ["C", "F"])
def test_samples_are_the_model_s_inputs(tmp_path, monkeypatch, compressed, in_memory, order):
    monkeypatch.setattr(npz, "IN_MEMORY_BYTES", in_memory)
    values, ids = np.asarray(x(), order=order), np.arange(30).reshape(6, 1, 5)
    path = save(tmp_path / "d.npz", compressed, x=values, ids=ids, labels=np.arange(6))
    if compressed and not in_memory:
        return refusal(path, "savez_compressed", inputs=(X, IDS))
    dataset = open_dataset(path, RECIPE, (X, IDS))
    assert (len(dataset), dataset.labels) == (6, (0, 1, 2, 3, 4, 5))
    for i in range(6):
        sample = dataset.sample(i)
        assert list(sample) == ["x", "ids"]
        for tensor in (X, IDS):
            assert (sample[tensor.name].shape, sample[tensor.name].dtype) == (tensor.shape, tensor.dtype)
        np.testing.assert_array_equal(sample["x"][0], values[i])
        np.testing.assert_array_equal(sample["ids"], ids[i])
    sample["x"][:] = 0  # a caller's own copy
    np.testing.assert_array_equal(dataset.sample(5)["x"][0], values[5])


def test_digest_is_of_the_content(tmp_path):
    digests = [
        open_dataset(save(tmp_path / f"{i}.npz", compressed, x=values, **labels), RECIPE, (X,)).digest
        for i, (compressed, values, labels) in enumerate(
            [(False, x(), {}), (True, x(), {}), (False, x()[::-1], {}), (False, x(), {"labels": np.arange(6)})]
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.just(3), st.just(4)), elements=st.floats(-1e30, 1e30)),
    st.booleans(),
)
def test_values_survive(tmp_path_factory, values, leading):
    path = save(tmp_path_factory.mktemp("npz") / "d.npz", x=values[:, None] if leading else values)
    dataset = open_dataset(path, RECIPE, (X,))
    for i, value in enumerate(values):
        np.testing.assert_array_equal(dataset.sample(i)["x"], value[None].astype(np.float32))


@pytest.mark.parametrize("given_dtype", ["int32", "int64", "uint8", "uint64", "int16"])
def test_integers_that_fit_are_cast(tmp_path, given_dtype):
    path = save(tmp_path / "d.npz", ids=np.arange(10, dtype=given_dtype).reshape(2, 5))
    for taken in ("int32", "int64"):
        sample = open_dataset(path, RECIPE, (Tensor("ids", (1, 5), taken),)).sample(1)
        assert sample["ids"].dtype == taken
        assert sample["ids"].tolist() == [[5, 6, 7, 8, 9]]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([[1], [2]]), (1, 2)),
        (np.array(["a", "é"]), ("a", "é")),
        (np.array([b"a", "é".encode()]), ("a", "é")),
        (np.array([True, False]), (True, False)),
        (np.array([0.5, 1.5]), (0.5, 1.5)),
        (np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
    ],
)
def test_labels(tmp_path, labels, expected):
    assert open_dataset(save(tmp_path / "d.npz", x=x(2), labels=labels), RECIPE, (X,)).labels == expected


def test_an_input_named_labels_is_an_input(tmp_path):
    tensor = Tensor("labels", (1, 5), "int64")
    dataset = open_dataset(save(tmp_path / "d.npz", labels=np.zeros((2, 5), int)), RECIPE, (tensor,))
    assert dataset.labels is None
    assert list(dataset.sample(0)) == ["labels"]


def test_scalar_and_batched_inputs(tmp_path):
    inputs = (Tensor("rate", (), "int64"), Tensor("batch", (2, 3), "float32"))
    path = save(tmp_path / "d.npz", rate=np.array([8, 16]), batch=np.zeros((2, 2, 3)))
    sample = open_dataset(path, RECIPE, inputs).sample(1)
    assert (sample["rate"].shape, sample["batch"].shape) == ((), (2, 3))


def nan_at(i):
    values = x()
    values[i, 1, 2] = np.nan
    return values


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({}, ["holds no arrays", "x"]),
        ({"y": x()}, ["key 'y' is not an input", "its inputs: x"]),
        ({"X": x()}, ["key 'X' is not an input", "did you mean 'x'"]),
        ({"x": x(), "extra": x()}, ["key 'extra'"]),
        ({"labels": np.arange(6)}, ["no array for the model's input 'x'", "labels"]),
        ({"x": x()[:, :2]}, ["'x' has shape (6, 2, 4)", "(n, 1, 3, 4) or (n, 3, 4)"]),
        ({"x": x()[0]}, ["'x' has shape (3, 4)"]),
        ({"x": np.float32(1)}, ["'x' has shape ()"]),
        ({"x": x(0)}, ["0 samples"]),
        ({"x": nan_at(3)}, ["'x' holds NaN or Inf in sample 3"]),
        ({"x": np.where(np.isnan(nan_at(4)), np.inf, 0)}, ["NaN or Inf in sample 4"]),
        ({"x": np.full((2, 3, 4), 1e300)}, ["values beyond float32 in sample 0"]),
        ({"x": np.zeros((2, 3, 4), np.uint8)}, ["is uint8; the model takes float32", "normalise"]),
        ({"x": np.zeros((2, 3, 4), complex)}, ["is complex128"]),
        ({"x": np.zeros((2, 3, 4), "U3")}, ["the model takes float32"]),
        ({"x": x(), "labels": np.arange(5)}, ["'labels' has shape (5,)", "6 samples"]),
        ({"x": x(), "labels": np.int64(3)}, ["'labels' has shape ()"]),
        ({"x": x(2), "labels": np.array([1, np.nan])}, ["'labels' holds NaN or Inf at sample 1"]),
        ({"x": x(2), "labels": np.zeros(2, complex)}, ["'labels' is complex128"]),
        ({"x": np.array([{}, {}], dtype=object)}, ["'x' holds Python objects"]),
        ({"x": x(2), "labels": np.array([[1], None], dtype=object)}, ["'labels' holds Python objects"]),
        ({"x": np.zeros(6, [("a", "f4", (3, 4))])}, ["'x' has shape (6,)"]),
    ],
)
def test_refusals(tmp_path, arrays, parts):
    refusal(save(tmp_path / "d.npz", **arrays), *parts)


def test_integers_that_do_not_fit(tmp_path):
    ids = np.zeros((3, 5), np.int64)
    ids[2, 1] = 2**40
    path = save(tmp_path / "d.npz", ids=ids)
    refusal(path, "values beyond int32 in sample 2", inputs=(Tensor("ids", (1, 5), "int32"),))
    refusal(save(tmp_path / "f.npz", ids=ids + 0.5), "is float64; the model takes int64", inputs=(IDS,))


def test_nothing_is_ever_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    refusal(save(tmp_path / "d.npz", x=np.array([Bomb()], dtype=object)), "Python objects")
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:
        archive.writestr("x.npy", b"cos\nsystem\n(S'true'\ntR.")
    refusal(tmp_path / "e.npz", "'x' is not a NumPy array")
    assert not (tmp_path / "ran").exists()


def test_not_a_zip(tmp_path):
    for name, content in {"a.npz": b"", "b.npz": b"hello", "c.npz": b"PK\x03\x04" + b"\0" * 50}.items():
        (tmp_path / name).write_bytes(content)
        refusal(tmp_path / name, "not an .npz")
    np.save(tmp_path / "d.npy", x())
    refusal(tmp_path / "d.npy", "not an .npz")
    refusal(tmp_path / "missing.npz", "no such file")


def test_headers_that_lie(tmp_path):
    """A header that promises more, or less, than is stored is refused before anything is allocated."""
    for count in (10**12, 3):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (count, 3, 4)})
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.writestr("x.npy", head.getvalue() + bytes(100))
        refusal(tmp_path / "d.npz", "'x' says shape")
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:  # a header of 1 GB of spaces
        archive.writestr("x.npy", b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + b" " * 10_000_000)
    refusal(tmp_path / "d.npz", "'x' is not a NumPy array")


@pytest.mark.parametrize("compressed", [False, True])
def test_every_damage_is_an_input_error_or_harmless(tmp_path, compressed):
    whole = save(tmp_path / "d.npz", compressed, x=x(), labels=np.arange(6)).read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "damaged.npz"
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(data if random.random() < 0.7 else data[: random.integers(len(data))])
        try:
            open_dataset(path, RECIPE, (X,)).sample(0)
        except InputError:
            refused += 1
    assert refused > 200
