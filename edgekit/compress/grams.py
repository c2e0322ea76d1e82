"""Second moments of what layers read: all that least squares and second-order importance need to know of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgekit.compress.products import View, product_of, rows_of
from edgekit.compress.ranges import observe
from edgekit.errors import InputError

if TYPE_CHECKING:
    from edgekit.compress.ranges import Samples
    from edgekit.graph import Graph

# Wider products are left alone: a Gram matrix grows with the square, its inverse with the cube of the columns.
MAX_COLUMNS = 5000
# More rows than this change the moments less than the choice of the samples does.
_ROWS_PER_COLUMN = 8
_ROWS = 8192
# Ridges to choose from, relative to each column's own variance: noise 30 dB below every input, up to none of the
# correlations trusted.
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Ridge relative to the mean column: a channel that hardly moves on these samples must not be given a weight that
# explodes where it does.
_FLOOR = 1e-3
# So many columns tell which ridge a matrix needs.
_ASKED = 512


@dataclass(frozen=True, eq=False)
class Gram:
    """Mean of r^T r over ``rows`` rows r = [x, 1] of a product's input, float64 [blocks, columns + 1, columns + 1].

    The last column is the constant one that the bias multiplies. ``damping`` is the ridge that the data call for,
    relative to each column's variance.
    """

    second: np.ndarray
    rows: int
    damping: float = DAMPINGS[0]

    @cached_property
    def inverse(self) -> np.ndarray:
        """Inverse of the damped matrix, [blocks, columns + 1, columns + 1]. The constant column is not damped: a bias
        costs nothing, and means are absorbed exactly.
        """
        return self.damped(self.damping)

    def of(self, stay: np.ndarray) -> Gram | None:
        """The moments of the columns that stay, bool [blocks, columns]; blocks without any go. None where blocks would
        differ in width.
        """
        left = stay.sum(axis=1)
        if not left.any() or len(set(left[left > 0].tolist())) > 1:
            return None
        places = np.column_stack([stay, np.ones(len(stay), bool)])
        blocks = [block[np.ix_(at, at)] for block, at, n in zip(self.second, places, left, strict=True) if n]
        return Gram(np.stack(blocks), self.rows, self.damping)

    @cached_property
    def covariance(self) -> np.ndarray:
        """The damped covariance [blocks, columns, columns], whose inverse is the first part of `inverse`."""
        means = self.second[:, :-1, -1]
        found = self.second[:, :-1, :-1] - means[:, :, None] * means[:, None, :]
        diagonal = np.arange(found.shape[1])
        variance = np.maximum(found[:, diagonal, diagonal], 0)
        found[:, diagonal, diagonal] = (1 + self.damping) * variance + self.floor
        return np.asarray(found)

    def damped(self, damping: float) -> np.ndarray:
        """The inverse with another ridge."""
        return np.stack([_inverse(block, damping, self.floor) for block in self.second])

    @property
    def floor(self) -> float:
        """The least ridge, in units of the moments."""
        return _FLOOR * float(np.diagonal(self.second, axis1=1, axis2=2)[:, :-1].mean()) or 1.0


class Moments:
    """Sums up rows [blocks, rows, columns] with the constant column, and what they are multiplied with.

    Samples are dealt to two folds, so that what one half teaches can be judged on the other.
    """

    def __init__(self, blocks: int, columns: int, outputs: int = 0) -> None:
        self._second = np.zeros((2, blocks, columns + 1, columns + 1))
        self._cross = np.zeros((2, blocks, outputs, columns + 1))
        self._rows = [0, 0]

    def add(self, fold: int, rows: np.ndarray, targets: np.ndarray | None = None) -> None:
        """Add rows of a sample of the fold (0 or 1, see `fold_of`), and the ``targets`` [blocks, rows, outputs] that
        belong to them; broken ones (NaN) do not count.
        """
        whole = np.isfinite(rows).all(axis=(0, 2))
        if targets is not None:
            whole &= np.isfinite(targets).all(axis=(0, 2))
            targets = targets[:, whole].astype(np.float64)
        extended = np.ones((rows.shape[0], int(whole.sum()), rows.shape[2] + 1))
        extended[:, :, :-1] = rows[:, whole]
        for block, values in enumerate(extended):
            self._second[fold, block] += values.T @ values
            if targets is not None:
                self._cross[fold, block] += targets[block].T @ values
        self._rows[fold] += extended.shape[1]

    def gram(self) -> Gram:
        """The mean of r^T r, with the ridge under which one half of the samples best tells each column of the other
        half from the rest of its columns.
        """
        whole, halves = self._whole(), self._halves()
        if len(halves) < 2:
            return whole
        known, other = halves
        return replace(whole, damping=_best(lambda damping: _surprise(known, other, damping))[0])

    def regression(self, intercept: bool) -> np.ndarray:
        """What [blocks, outputs, columns + 1] times the rows best gives the targets: least squares with the ridge under
        which each half of the samples best predicts the other. Zero where none predicts better than zero does.
        """
        halves = self._halves()
        crosses = [self._cross[fold] / self._rows[fold] for fold in range(2) if self._rows[fold]]
        if len(halves) < 2:
            return np.zeros(self._cross.shape[1:]) if not halves else _regress(halves[0], crosses[0], 1.0, intercept)

        def loss(damping: float) -> float:
            return sum(
                _excess(halves[1 - fold], crosses[1 - fold], _regress(halves[fold], crosses[fold], damping, intercept))
                for fold in range(2)
            )

        damping, least = _best(loss)
        if not least < 0:
            return np.zeros(self._cross.shape[1:])
        return _regress(self._whole(), self._cross.sum(axis=0) / sum(self._rows), damping, intercept)

    def _whole(self) -> Gram:
        rows = max(1, sum(self._rows))
        return Gram(self._second.sum(axis=0) / rows, rows)

    def _halves(self) -> list[Gram]:
        return [Gram(self._second[fold] / n, n) for fold, n in enumerate(self._rows) if n]


def _best(loss: Callable[[float], float]) -> tuple[float, float]:
    """The largest ridge that the next smaller one does not better, and its loss. Coming from above, because where there
    are fewer rows than columns the loss falls once more on the far side of its peak.
    """
    best, least = DAMPINGS[-1], loss(DAMPINGS[-1])
    for damping in reversed(DAMPINGS[:-1]):
        found = loss(damping)
        if not found < least:
            break
        best, least = damping, found
    return best, least


def _surprise(known: Gram, other: Gram, damping: float) -> float:
    """Mean share of a column's variance in ``other`` that its regression on all other columns, learnt from ``known``,
    leaves unexplained. Row i of an inverse covariance is that regression, times -1 / P_ii. Of wide matrices evenly
    spread columns answer for all.
    """
    total = 0.0
    width = known.second.shape[1] - 1
    asked = np.unique(np.linspace(0, width - 1, min(width, _ASKED)).round().astype(np.int64))
    for learnt, second in zip(known.second, other.second, strict=True):
        mean = learnt[:-1, -1]
        rows = np.zeros((asked.size, width + 1))
        rows[np.arange(asked.size), asked] = 1
        rows[:, :-1] = _solver(learnt, damping, known.floor)(rows[:, :-1].T).T
        rows[:, -1] = -rows[:, :-1] @ mean
        own = rows[np.arange(asked.size), asked]
        errors = np.einsum("ij,ij->i", rows @ second, rows) / own**2
        variance = np.diagonal(second)[asked] - second[asked, -1] ** 2
        moving = variance > 1e-9 * np.diagonal(second)[:-1].mean()
        total += float((errors[moving] / variance[moving]).mean()) if moving.any() else 0.0
    return total


def _regress(gram: Gram, cross: np.ndarray, damping: float, intercept: bool) -> np.ndarray:
    """Least squares of every block: solved, since an inverse takes three times as long."""
    found = np.zeros_like(cross)
    for solution, wanted, second in zip(found, cross, gram.second, strict=True):
        mean = second[:-1, -1] * intercept
        solve = _solver(second, damping, gram.floor, centred=intercept)
        solution[:, :-1] = solve((wanted[:, :-1] - np.outer(wanted[:, -1], mean)).T).T
        solution[:, -1] = (wanted[:, -1] - solution[:, :-1] @ mean) * intercept
    return found


def _excess(gram: Gram, cross: np.ndarray, solution: np.ndarray) -> float:
    """Mean squared error of a solution on the rows of ``gram``, less that of the zero solution."""
    return float((solution @ gram.second * solution).sum() - 2 * (solution * cross).sum())


def collect_grams(
    graph: Graph,
    layers: Sequence[str],
    dataset: Samples,
    on_progress: Callable[[int, int], None] | None = None,
    depthwise: bool = False,
) -> dict[str, Gram]:
    """Layer name -> Gram matrix of the rows that it multiplies, over all samples.

    There is no entry for layers that mix no channels (depthwise convolutions; but with ``depthwise``), that multiply
    two activations, or whose product is wider than `MAX_COLUMNS`. Layers that read the same rows share one object. Of
    samples with many rows some are drawn, the same ones each time. ``on_progress`` is called with the runs done and the
    runs in all.

    Raises:
        InputError: there are no samples, or one does not fit the model's inputs.
    """
    if len(dataset) == 0:
        raise InputError("there are no samples to collect moments on", "pass calibration data with --data")
    views = _views(graph, layers, depthwise)
    moments = {view: Moments(view.blocks, view.columns) for view in views.values()}
    by_source: dict[str, list[View]] = {}
    for view in moments:
        by_source.setdefault(view.source, []).append(view)
    if not moments:
        return {}
    for done, runs, index, values in observe(graph, sorted(by_source), dataset):
        for name, array in values.items():
            for view in by_source[name]:
                moments[view].add(
                    fold_of(index, len(dataset)), rows_of(view, array, drawn_rows(view, index, len(dataset)))
                )
        if on_progress is not None:
            on_progress(done, runs)
    grams = {view: sums.gram() for view, sums in moments.items()}
    return {layer: grams[view] for layer, view in views.items()}


def drawn_rows(view: View, index: int, samples: int) -> np.ndarray | None:
    """Which rows of sample ``index`` of ``samples`` count; None: all. Drawn by nothing but the shapes and the index."""
    least = _ROWS if mixes_channels(view) else _ROWS // 4  # a few taps alone need no more
    wanted = math.ceil(max(least, _ROWS_PER_COLUMN * (view.columns + 1)) / samples)
    if wanted >= view.rows:
        return None
    rng = np.random.default_rng([view.rows, wanted, index])
    return np.sort(rng.choice(view.rows, wanted, replace=False))


def fold_of(index: int, samples: int) -> int:
    """The fold of a sample. Neighbours stay together, because they are often alike (frames of one film, crops of one
    picture) and would tell each other's fold; every other quarter, because data may be sorted by class.
    """
    return min(4, samples) * index // samples % 2


def mixes_channels(view: View) -> bool:
    """Whether several channels meet in one output, in a product small enough to invert."""
    return view.taps < view.columns <= MAX_COLUMNS


def _views(graph: Graph, layers: Sequence[str], depthwise: bool) -> dict[str, View]:
    wanted = frozenset(layers)
    found = {node.name or "": product_of(node) for node in graph.model.graph if node.name in wanted}
    views = {name: p.view for name, p in found.items() if p is not None}
    return {name: view for name, view in views.items() if mixes_channels(view) or (depthwise and view.blocks > 1)}


def _factor(second: np.ndarray, damping: float, floor: float, centred: bool = True) -> np.ndarray:
    """The lower Cholesky factor of the covariance, or of the moments themselves, with the ridge. Works on centred
    moments where it can, so large means cost no digits.
    """
    from scipy.linalg import lapack

    mean = second[:-1, -1]
    covariance = second[:-1, :-1] - np.outer(mean, mean)
    found = np.diagonal(covariance)
    variance = np.maximum(found, 0)
    whole = covariance if centred else second[:-1, :-1]
    while True:
        ridged = np.array(whole, order="F")
        ridged[np.diag_indices_from(ridged)] += (1 + damping) * variance - found + floor
        factor, failed = lapack.dpotrf(ridged, lower=1, clean=0, overwrite_a=1)
        if not failed:
            return np.asarray(factor)
        damping, floor = 10 * damping, 10 * floor  # rounding made it indefinite


def _solver(
    second: np.ndarray, damping: float, floor: float, centred: bool = True
) -> Callable[[np.ndarray], np.ndarray]:
    """Solves with the matrix of `_factor`, for as many right-hand sides as there are columns."""
    from scipy.linalg import lapack

    factor = _factor(second, damping, floor, centred)
    return lambda right: np.asarray(lapack.dpotrs(factor, right, lower=1)[0])


def _inverse(second: np.ndarray, damping: float, floor: float) -> np.ndarray:
    """Inverse of the matrix with the ridge, by blocks around the constant column: (covariance + ridge)^-1 = P, then
    [[P, -P m], [-m^T P, 1 + m^T P m]] with the means m.
    """
    from scipy.linalg import lapack

    mean = second[:-1, -1]
    lower, _ = lapack.dpotri(_factor(second, damping, floor), lower=1, overwrite_c=1)
    inverse = np.tril(lower) + np.tril(lower, -1).T
    solved = inverse @ mean
    return np.block([[inverse, -solved[:, None]], [-solved[None], np.array([[1 + mean @ solved]])]])
