from __future__ import annotations

import numpy as np
import pytest

from edgekit.graph import Tensor
from edgekit.recipes.npz import NpzDataset
from edgekit.recipes.soundness import examine

IMAGE = Tensor("x", (1, 3, 8, 8), "float32")
IDS = Tensor("ids", (1, 6), "int64")


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, 8, 8)).astype(np.float32)


def kinds(calibration: np.ndarray, evaluation: np.ndarray | None = None, tensor: Tensor = IMAGE) -> list[str]:
    def dataset(array: np.ndarray) -> NpzDataset:
        return NpzDataset({tensor.name: array}, (tensor,), None)

    return [
        f.kind
        for f in examine(dataset(calibration), dataset(images(9, 5) if evaluation is None else evaluation), (tensor,))
    ]


def test_sound_samples_raise_nothing() -> None:
    assert kinds(images(16)) == []


@pytest.mark.parametrize(
    ("calibration", "expected"),
    [
        (np.full((16, 3, 8, 8), 0.5, np.float32), ["constant-input"]),
        (np.zeros((16, 3, 8, 8), np.float32), ["constant-input"]),
        (np.repeat(images(1), 16, axis=0), ["same-samples"]),
        (images(16) * 255, ["other-scale"]),
        (images(16) / 255, ["other-scale"]),
        (images(1), ["few-samples"]),
        (np.zeros((1, 3, 8, 8), np.float32), ["constant-input", "few-samples"]),
    ],
)
def test_what_is_odd_is_told(calibration: np.ndarray, expected: list[str]) -> None:
    assert kinds(calibration) == expected


def test_pixels_on_both_sides_are_suspected() -> None:
    whole = np.round(images(16) * 255)
    assert kinds(whole, whole[:8]) == ["pixels"]
    assert kinds(np.round(images(16)), np.round(images(8))) == [], "masks of 0 and 1 are no pixels"


def test_ids_have_no_scale() -> None:
    ids = np.random.default_rng(0).integers(0, 255, (16, 6))
    assert kinds(ids, ids * 40, IDS) == []


def test_scale_is_told_with_both_ranges() -> None:
    data = NpzDataset({"x": images(16) * 255}, (IMAGE,), None)
    (finding,) = examine(data, NpzDataset({"x": images(8)}, (IMAGE,), None), (IMAGE,))
    assert "input x spans" in finding.detail
    assert "255 where it is calibrated" in finding.detail.replace("254.9", "255").replace("254.8", "255")
    assert "preprocess both alike" in finding.advice
