"""Splitting, synthetic samples, and the preprocessing contract."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import catalog
from edgekit.errors import InputError
from edgekit.graph import Tensor
from edgekit.recipes.samples import open_dataset, preprocess_contract, split, spread, synthetic

X = Tensor("x", (1, 2), "float32")


@given(st.integers(2, 300), st.integers(1, 400), st.integers(0, 5))
def test_split_is_disjoint_complete_even_and_repeatable(n, calibration, seed):
    data = synthetic([X], n)
    chosen, rest = split(data, calibration, seed)
    assert sorted(chosen.indices + rest.indices) == list(range(n))
    assert len(chosen) == min(calibration, n // 2)
    assert list(chosen.indices) == sorted(chosen.indices)
    again = split(data, calibration, seed)
    assert (again[0].indices, again[0].digest) == (chosen.indices, chosen.digest)
    stretch = n / len(chosen)
    for j, index in enumerate(chosen.indices):  # one from each stretch
        assert int(j * stretch) <= index <= (j + 1) * stretch


def test_split_does_not_alias_alternating_data():
    chosen, _ = split(synthetic([X], 200), 50)
    assert 0.2 < np.mean([i % 2 for i in chosen.indices]) < 0.8


def test_subsets_show_their_samples(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.arange(20, dtype=np.float32).reshape(10, 2), labels=np.arange(10))
    data = open_dataset(tmp_path / "d.npz", catalog.recipe("npz"), [X])
    chosen, rest = split(data, 3)
    for part in (chosen, rest):
        assert part.labels == part.indices
        for i, index in enumerate(part.indices):
            assert part.sample(i)["x"].tolist() == [[2 * index, 2 * index + 1]]
    assert len({data.digest, chosen.digest, rest.digest}) == 3
    assert spread(data, 99).indices == tuple(range(10))


def test_one_sample_cannot_be_split():
    with pytest.raises(InputError, match="1 sample") as caught:
        split(synthetic([X], 1), 1)
    assert "--eval" in caught.value.hint


def test_synthetic_samples_fit_and_repeat():
    inputs = [X, Tensor("ids", (1, 7), "int64"), Tensor("mask", (3,), "bool"), Tensor("s", (), "float32")]
    data = synthetic(inputs, 3, seed=1)
    for i in range(3):
        sample, again = data.sample(i), synthetic(inputs, 3, seed=1).sample(i)
        for tensor in inputs:
            value = sample[tensor.name]
            assert (value.shape, value.dtype) == (tensor.shape, tensor.dtype)
            assert ((value >= 0) & (value <= 1)).all()
            np.testing.assert_array_equal(value, again[tensor.name])
    assert data.labels is None
    assert data.digest != synthetic(inputs, 3, seed=2).digest
    assert (data.sample(0)["x"] != data.sample(1)["x"]).any()
    with pytest.raises(InputError):
        synthetic(inputs, 0)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("npz", [X]),
        ("image-classification", [Tensor("x", (1, 3, 224, 224), "float32")]),
        ("text-line", [Tensor("x", (1, 3, 48, 320), "float32")]),
        ("audio-16k", [Tensor("x", (60, 576), "float32"), Tensor("h", (1, 1, 128), "float32")]),
    ],
)
def test_the_contract_is_json_and_says_everything(name, inputs):
    recipe = catalog.recipe(name)
    contract = preprocess_contract(recipe, inputs)
    assert json.loads(json.dumps(contract, allow_nan=False))["recipe"] == {"name": name, "digest": recipe.digest}
    assert contract["inputs"][0]["shape"] == list(inputs[0].shape)
    for block in (recipe.image, recipe.audio):
        if block is not None:
            told = json.dumps(contract["steps"])
            for key in ("mean", "std", "rate_hz", "context", "channels"):
                if hasattr(block, key):
                    assert json.dumps(getattr(block, key)) in told
    assert preprocess_contract(recipe, inputs, raw=True)["steps"] == []
