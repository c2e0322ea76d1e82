"""Confidence intervals: they hold the estimate, cover the truth, shrink with n, and repeat."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgekit.recipes.intervals import drop, result
from edgekit.recipes.metrics import metric
from edgekit.types import Kind

ROWS = {"top-1": 1, "auc": 2, "cer": 2, "cosine": 1, "sqnr": 4}


def rows(name, n, seed):
    """Plausible rows of each metric."""
    random = np.random.default_rng(seed)
    match name:
        case "top-1":
            return random.integers(0, 2, (n, 1)).astype(float)
        case "auc":
            labels = np.arange(n) % 2
            return np.stack([random.normal(size=n).round(1) + labels, labels], axis=1)
        case "cer":
            return random.integers([0, 1], [3, 12], (n, 2)).astype(float)
        case "cosine":
            return 1 - random.random((n, 1)) ** 4
    return np.abs(random.normal(size=(n, 4))) * [1, 0.01, 9, 0.02]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(ROWS)), st.integers(2, 80), st.integers(0, 99))
def test_intervals_hold_the_estimate_and_repeat(name, n, seed):
    scorer, table = metric(name), rows(name, n, seed)
    found = result(scorer, table, seed)
    assert found.low <= found.value <= found.high
    assert found.value == scorer.aggregate(table)
    assert found == result(scorer, table, seed)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(ROWS)), st.integers(2, 60), st.integers(0, 99))
def test_drop_is_antisymmetric(name, n, seed):
    scorer, one = metric(name), rows(name, n, seed)
    other = rows(name, n, seed + 1)
    there, back = drop(scorer, one, other), drop(scorer, other, one)
    assert there.low <= there.value <= there.high
    assert (there.value, there.kind) == (-back.value, Kind.MEASURED)
    assert there.low == pytest.approx(-back.high, abs=0.02 * (1 + abs(back.high)))
    assert there.high == pytest.approx(-back.low, abs=0.02 * (1 + abs(back.low)))
    assert there.value == pytest.approx(
        (1 if scorer.higher_is_better else -1) * (scorer.aggregate(one) - scorer.aggregate(other))
    )
    same = drop(scorer, one, one)
    assert same.value == 0
    assert same.low <= 0 <= same.high


@pytest.mark.parametrize("name", sorted(ROWS))
def test_weighted_equals_repeated(name):
    """A row that counts k times is a row that stands there k times."""
    scorer, table = metric(name), rows(name, 30, 3)
    weights = np.random.default_rng(1).integers(0, 4, (5, 30))
    expected = [scorer.aggregate(np.repeat(table, w, axis=0)) for w in weights]
    np.testing.assert_allclose(scorer.weighted(table, weights.astype(float)), expected)


def test_proportions_are_wilson_s():
    found = result(metric("ctc-exact"), np.array([[1.0]] * 48 + [[0.0]] * 2))
    expected = binomtest(48, 50).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == (0.96, expected.low, expected.high)
    assert result(metric("top-1"), np.ones((50, 1))).low < 0.95  # 50 of 50 do not prove 95 %


def test_worse_is_positive_whatever_the_metric_s_direction():
    right, wrong = np.array([[0.0, 9.0]] * 20), np.array([[3.0, 9.0]] * 20)
    assert drop(metric("cer"), right, wrong).value == pytest.approx(1 / 3)
    assert drop(metric("top-1"), np.ones((20, 1)), np.zeros((20, 1))).value == 1


def test_pairing_narrows_the_drop():
    """Both models fail on the same samples: the drop is far surer than either value."""
    reference = rows("cosine", 200, 0)
    candidate = reference - 0.01
    figure, alone = drop(metric("cosine"), reference, candidate), result(metric("cosine"), reference)
    assert figure.value == pytest.approx(0.01)
    assert figure.high - figure.low < 0.01 * (alone.high - alone.low)


def test_no_difference_in_few_samples_proves_little():
    ones = np.ones((40, 1))
    assert 0.02 < drop(metric("top-1"), ones, ones).high < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["top-1", "auc", "cer", "cosine"])
def test_coverage(name):
    """About 95 % of the intervals hold the value of a very large sample; 90 % is the least that small n may cost."""
    scorer = metric(name)
    truth = scorer.aggregate(rows(name, 200_000, 999))
    held = [found.low <= truth <= found.high for s in range(200) if (found := result(scorer, rows(name, 100, s), s))]
    assert np.mean(held) > 0.9


@pytest.mark.slow
def test_coverage_of_paired_drops():
    """Two classifiers of 90 % and 87 % that mostly fail together."""
    held = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        reference = (random.random((120, 1)) < 0.90).astype(float)
        candidate = np.where(random.random((120, 1)) < 0.96, reference, (random.random((120, 1)) < 0.15))
        figure = drop(metric("top-1"), reference, candidate)
        held.append(figure.low <= 0.04 * (0.90 - 0.15) <= figure.high)
    assert np.mean(held) > 0.92


def test_metrics_without_weights_are_resampled_too():
    @dataclasses.dataclass(frozen=True)
    class Median:
        name: str = "median"
        higher_is_better: bool = False

        def row(self, outputs, label, reference):
            raise AssertionError

        def aggregate(self, rows):
            return float(np.median(rows))

    table = np.random.default_rng(0).normal(5, 1, (100, 1))
    found = result(Median(), table)
    assert found.low < found.value < found.high
    assert found.high - found.low < 1
    assert drop(Median(), table, table + 1).value == pytest.approx(1)


@pytest.mark.parametrize("table", [np.zeros((0, 1)), np.zeros(3)])
def test_no_rows(table):
    with pytest.raises(ValueError, match="no samples"):
        result(metric("cosine"), table)


def test_rows_that_do_not_pair():
    with pytest.raises(ValueError, match="do not pair"):
        drop(metric("cosine"), np.ones((3, 1)), np.ones((2, 1)))
