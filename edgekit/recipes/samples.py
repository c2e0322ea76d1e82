"""Data sets: what ``--data`` and ``--eval`` name, opened, checked, split into calibration and evaluation."""

from __future__ import annotations

import hashlib
import json
import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgekit.errors import InputError
from edgekit.recipes import ctc, folder, npz, preprocess

if TYPE_CHECKING:
    from edgekit.catalog import Recipe
    from edgekit.graph import Tensor


class Dataset(Protocol):
    """Samples that fit a model."""

    @property
    def labels(self) -> tuple[object, ...] | None:
        """What each sample should come out as; ``None`` where nobody said."""

    @property
    def digest(self) -> str:
        """SHA-256 over the content: samples and labels."""

    def __len__(self) -> int:
        """Number of samples."""

    def sample(self, i: int) -> dict[str, np.ndarray[Any, Any]]:
        """Sample ``i`` as model inputs: exactly the model's names, shapes and dtypes."""


@dataclass(frozen=True)
class Subset:
    """Some samples of a data set, in its order."""

    base: Dataset
    indices: tuple[int, ...]

    @property
    def labels(self) -> tuple[object, ...] | None:
        """The labels of these samples."""
        labels = self.base.labels
        return None if labels is None else tuple(labels[i] for i in self.indices)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the base's digest and the indices."""
        return _sha256([self.base.digest, list(self.indices)])

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, i: int) -> dict[str, np.ndarray[Any, Any]]:
        """Sample ``i`` of the subset."""
        return self.base.sample(self.indices[i])


@dataclass(frozen=True)
class Synthetic:
    """Random inputs: good for latency, worthless for ranges and metrics."""

    inputs: tuple[Tensor, ...]
    count: int
    seed: int

    @property
    def labels(self) -> None:
        """Nobody knows what noise should come out as."""
        return None

    @property
    def digest(self) -> str:
        """SHA-256 over what the samples are drawn from."""
        inputs = [[t.name, list(t.shape), t.dtype] for t in self.inputs]
        return _sha256(["synthetic", inputs, self.count, self.seed])

    def __len__(self) -> int:
        return self.count

    def sample(self, i: int) -> dict[str, np.ndarray[Any, Any]]:
        """Uniform floats in [0, 1), integers and booleans 0 or 1 (valid as token ids and masks)."""
        if not 0 <= i < self.count:
            raise IndexError(i)
        random = np.random.default_rng([self.seed, i])
        return {
            t.name: (
                random.random(t.shape) if np.dtype(t.dtype).kind == "f" else random.integers(0, 2, t.shape)
            ).astype(t.dtype)
            for t in self.inputs
        }


def synthetic(inputs: Sequence[Tensor], n: int, seed: int = 0) -> Synthetic:
    """``n`` random samples, the same for the same seed. For latency work only."""
    if n < 1:
        raise InputError(f"{n} synthetic samples are none", hint="ask for at least 1")
    return Synthetic(tuple(inputs), n, seed)


def open_dataset(
    path: str | Path, recipe: Recipe, inputs: Sequence[Tensor], metadata: Mapping[str, str] | None = None
) -> Dataset:
    """Open an ``.npz`` (whatever the recipe: it holds model inputs already) or a folder that the recipe can read.

    ``inputs`` are the model's inputs with frozen shapes; ``metadata`` the model's own, where an alphabet may stand. An
    ``.npz`` is checked as a whole; files of a folder are read, and checked, when their sample is asked for.

    Raises ``InputError`` when the path, a key, a shape, a dtype, a value, a label or the recipe does not fit.
    """
    # os.path says no where pathlib raises: overlong names, folders that may not be entered, unknown users' homes.
    path = Path(os.path.expanduser(path))  # noqa: PTH111
    if os.path.isdir(path):  # noqa: PTH112
        dataset: Dataset = folder.read(path, recipe, tuple(inputs))
    elif os.path.isfile(path):  # noqa: PTH113
        dataset = npz.read(path, tuple(inputs))
    else:
        raise InputError(
            f"data {path}: no such file or folder",
            hint="pass an .npz whose keys are the model's input names, or a folder that the recipe can read",
        )
    if recipe.labels == "text" and dataset.labels is not None:
        _check_spelling(path, dataset.labels, metadata or {})
    return dataset


def _check_spelling(path: Path, labels: tuple[object, ...], metadata: Mapping[str, str]) -> None:
    """Refuse labels of which the model's alphabet can spell none: every metric over them would be 0."""
    alphabet = set(ctc.characters(metadata))
    if alphabet and labels and not any(set(str(label)) <= alphabet | {" "} for label in labels):
        label = str(labels[0])
        missing = next(c for c in label if c not in alphabet | {" "})
        raise InputError(
            f"data {path}: the model can spell none of its labels: {label!r} has {missing!r}, which its alphabet lacks",
            hint="check that the labels are UTF-8 text in the model's language and case",
        )


def spread(dataset: Dataset, count: int, seed: int = 0) -> Subset:
    """At most ``count`` samples, one from each of ``count`` equal stretches of the data set, so that sorted data is
    covered evenly and alternating data is not aliased (stratified sampling). The same seed gives the same samples.
    """
    if count < 1:
        raise ValueError(f"{count} samples are none")
    count = min(count, len(dataset))
    edges = [j * len(dataset) // count for j in range(count + 1)]
    random = np.random.default_rng(seed)
    return Subset(dataset, tuple(int(random.integers(low, high)) for low, high in pairwise(edges)))


def split(dataset: Dataset, calibration: int, seed: int = 0) -> tuple[Subset, Subset]:
    """Disjoint (calibration, evaluation): ``calibration`` samples spread over the data set, and the rest.

    Calibration takes at most half, so that small sets leave enough to judge by. Raises ``InputError`` for a data set of
    one sample, which cannot serve both.
    """
    if len(dataset) < 2:
        raise InputError(
            "the data holds 1 sample, which cannot both calibrate and evaluate",
            hint="pass more samples, or others with --eval",
        )
    chosen = spread(dataset, min(calibration, len(dataset) // 2), seed)
    taken = set(chosen.indices)
    return chosen, Subset(dataset, tuple(i for i in range(len(dataset)) if i not in taken))


def preprocess_contract(recipe: Recipe, inputs: Sequence[Tensor], raw: bool = False) -> dict[str, Any]:
    """What has to be done to raw data before this model sees it, ready for JSON: the bundle's ``preprocess.json``.

    ``raw`` is for data that came as model inputs already (an ``.npz``), whatever the recipe.
    """
    reader = "npz" if raw else recipe.reader
    return {
        "schema": "edgekit/preprocess/1",
        "recipe": {"name": recipe.name, "digest": recipe.digest},
        "reader": reader,
        "inputs": [{"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in inputs],
        "steps": [] if reader == "npz" else preprocess.steps(recipe, tuple(inputs)),
    }


def _sha256(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()
