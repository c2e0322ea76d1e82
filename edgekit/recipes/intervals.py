"""95 % confidence intervals of metrics and of their drop: Wilson for 0/1 scores, otherwise the seeded bootstrap.

The bootstrap draws samples with replacement (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, percentile
interval); labels' groups keep their sizes where the metric says so. Its intervals are extended to hold the estimate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.recipes.scores import Mean, Metric, Weighted
from edgekit.types import Figure, Kind, MetricResult

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_RESAMPLES = 2000
_RESAMPLES_USER = 300  # a user's aggregate is called once for each
_CELLS = 4_000_000  # weights held at a time


def result(metric: Metric, rows: Array, seed: int = 0) -> MetricResult:
    """The metric over rows [n, k] with its 95 % confidence interval.

    Means of 0/1 scores: Wilson's interval (Wilson, J. Am. Stat. Assoc. 22, 1927). Else the bootstrap, which cannot see
    beyond the sample: a perfect score has no width there. Raises ``ValueError`` without rows.
    """
    _check_rows(rows)
    value = metric.aggregate(rows)
    if _is_binary(metric, rows):
        from scipy.stats import binomtest

        interval = binomtest(int(rows[:, 0].sum()), len(rows)).proportion_ci(method="wilson")
        low, high = float(interval.low), float(interval.high)
    else:
        low, high = _percentiles(np.concatenate([a for (a,) in _resampled(metric, (rows,), seed)]))
    return MetricResult(
        metric.name, value, min(low, value), max(high, value), len(rows), higher_is_better=metric.higher_is_better
    )


def drop(metric: Metric, reference_rows: Array, rows: Array, seed: int = 0) -> Figure:
    """How much worse ``rows`` are than ``reference_rows`` of the same samples, positive = worse, with a 95 % interval.

    Paired: both are resampled alike, so that what the samples have in common cancels. For 0/1 scores Agresti & Min's
    interval of matched proportions (Stat. Med. 24, 2005, Wald after half a pair is added to each cell), which keeps a
    width where no pair differs. Raises ``ValueError`` when the rows do not pair.
    """
    _check_rows(rows)
    if reference_rows.shape[0] != rows.shape[0]:
        raise ValueError(f"{len(reference_rows)} reference rows do not pair with {len(rows)} rows")
    sign = 1.0 if metric.higher_is_better else -1.0
    value = sign * (metric.aggregate(reference_rows) - metric.aggregate(rows))
    if _is_binary(metric, rows) and _is_binary(metric, reference_rows):
        method = "matched proportions"
        low, high = sorted(sign * bound for bound in _matched(reference_rows[:, 0], rows[:, 0]))
    else:
        method = "paired bootstrap"
        pairs = _resampled(metric, (reference_rows, rows), seed)
        low, high = _percentiles(np.concatenate([sign * (theirs - ours) for theirs, ours in pairs]))
    source = f"{method}, 95 %, {len(rows)} samples"
    return Figure(Kind.MEASURED, value, min(low, value), max(high, value), source)


def _matched(theirs: Array, ours: Array) -> tuple[float, float]:
    count = len(ours) + 2
    lost = float(((theirs == 1) & (ours == 0)).sum()) + 0.5
    won = float(((theirs == 0) & (ours == 1)).sum()) + 0.5
    middle = (lost - won) / count
    spread = 1.959964 * np.sqrt(lost + won - (lost - won) ** 2 / count) / count
    return float(middle - spread), float(middle + spread)


def _is_binary(metric: Metric, rows: Array) -> bool:
    return isinstance(metric, Mean) and bool(np.isin(rows, (0.0, 1.0)).all())


def _check_rows(rows: Array) -> None:
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"rows of shape {rows.shape} hold no samples")


def _percentiles(values: Array) -> tuple[float, float]:
    # "nearest" instead of interpolation: between -inf dB and a number there is nothing.
    low, high = np.percentile(values, [2.5, 97.5], method="nearest")
    return float(low), float(high)


def _resampled(metric: Metric, tables: tuple[Array, ...], seed: int) -> Iterator[tuple[Array, ...]]:
    """The metric [b] of each table over the same resamples, a block of resamples at a time."""
    random = np.random.default_rng(seed)
    count = len(tables[0])
    if not isinstance(metric, Weighted):
        draws = random.integers(0, count, (_RESAMPLES_USER, count))
        yield tuple(np.array([metric.aggregate(table[draw]) for draw in draws]) for table in tables)
        return
    groups = metric.strata(tables[0])
    block = max(1, _CELLS // count)
    for start in range(0, _RESAMPLES, block):
        size = min(block, _RESAMPLES - start)
        weights = np.empty((size, count))
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            weights[:, members] = _draws(random, size, len(members))
        yield tuple(metric.weighted(table, weights) for table in tables)


def _draws(random: np.random.Generator, size: int, count: int) -> Array:
    """How often [size, count] each of ``count`` rows is drawn in ``count`` draws with replacement."""
    drawn = random.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
