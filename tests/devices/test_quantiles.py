"""Percentiles and their intervals: the intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.devices.runner_modules import load

quantiles = load("quantiles")

TRIALS = 300


@given(samples=st.lists(st.floats(0, 1e6), min_size=1, max_size=200), share=st.floats(0, 1))
def test_percentiles_are_those_of_numpy(samples: list[float], share: float) -> None:
    assert quantiles.percentile(sorted(samples), share) == pytest.approx(
        np.percentile(samples, share * 100), rel=1e-9, abs=1e-9
    )
    assert quantiles.median(samples) == pytest.approx(np.median(samples))
    found: dict[str, float] = quantiles.summary(samples)
    assert found.pop("n") == len(samples)
    for key, value in found.items():
        assert value == pytest.approx(np.percentile(samples, int(key[1:])), rel=1e-9, abs=1e-9)


@given(count=st.integers(1, 3000), share=st.floats(0.02, 0.99), confidence=st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_ranks_are_those_of_the_binomial_distribution(count: int, share: float, confidence: float) -> None:
    low, high = quantiles.order_ranks(count, share, confidence)
    tail = (1 - confidence) / 2
    below = stats.binom(count, share).cdf
    slack = 1e-9
    if low is None:
        assert below(0) > tail - slack
    else:
        assert below(low - 1) <= tail + slack
        assert below(low) > tail - slack
    if high is None:
        assert below(count - 1) < 1 - tail + slack
    else:
        assert below(high - 1) >= 1 - tail - slack
        assert high == 1 or below(high - 2) < 1 - tail + slack


def test_ranks_of_many_samples_are_quick_and_right() -> None:
    low, high = quantiles.order_ranks(200_000, 0.5)
    assert (low, high) == (99_561, 100_440) or abs(low + high - 200_001) <= 1
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(200_000) / 2, rel=0.01)


def test_too_few_samples_have_no_interval() -> None:
    assert quantiles.order_ranks(5, 0.5) == (None, None)
    assert quantiles.order_ranks(6, 0.5) == (1, 6), "0.5 ** 6 * 2 is 3 %"
    low, high = quantiles.order_ranks(200, 0.99)
    assert low is not None
    assert high is None, "nothing bounds the 99th percentile of 200 samples from above"
    assert quantiles.order_ranks(1, 0.99) == (1, None), "99 % of samples lie below it"
    found = quantiles.with_intervals([[1.0]])
    assert (found["p50"], found["p50_low"], found["p50_high"], found["n"]) == (1.0, None, None, 1)


def draw(rng: np.random.Generator, rounds: int, spread: float) -> list[list[float]]:
    """Skewed latencies; each round of 12 has an offset of its own."""
    offsets = rng.normal(0, spread, (rounds, 1))
    return np.asarray(np.exp(0.2 * (offsets + rng.gumbel(size=(rounds, 12))))).tolist()


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_interval_of_a_quantile_covers_it(spread: float, share: float) -> None:
    """Also where the samples of a round resemble each other: there the plain interval would not."""
    rng = np.random.default_rng(1)
    true = np.percentile(draw(rng, 60_000, spread), 100 * share)
    covered = plain = 0
    for _ in range(TRIALS):
        rounds = draw(rng, 60, spread)
        low, high = quantiles.quantile_interval(rounds, share)
        covered += low <= true <= high
        ordered = sorted(sample for samples in rounds for sample in samples)
        first, last = quantiles.order_ranks(len(ordered), share)
        plain += ordered[first - 1] <= true <= ordered[last - 1]
    assert 0.91 <= covered / TRIALS <= 0.995
    assert spread == 0.0 or plain / TRIALS < 0.85


def test_independent_samples_have_the_plain_order_statistics() -> None:
    samples = np.random.default_rng(0).permutation(101).astype(float).tolist()
    assert quantiles.quantile_interval([samples], 0.5) == (40.0, 60.0), "ranks 41 and 61 of 101"


@pytest.mark.parametrize("drift", [0.0, 0.7])
def test_the_interval_of_a_ratio_covers_it(drift: float) -> None:
    """``drift``: how much of its error a round inherits from the one before."""
    rng = np.random.default_rng(2)
    covered = 0
    trials = 80
    for _ in range(trials):
        noise = rng.normal(0, 0.05, 120)
        for index in range(1, len(noise)):
            noise[index] += drift * noise[index - 1]
        low, high = quantiles.median_interval((0.6 + noise).tolist())
        covered += low <= 0.6 <= high
    assert covered / trials >= (0.88 if drift == 0 else 0.75)


def test_the_same_rounds_give_the_same_interval() -> None:
    values = np.random.default_rng(3).random(40).tolist()
    assert quantiles.median_interval(values) == quantiles.median_interval(values)
    assert quantiles.median_interval([0.5]) == (0.5, 0.5)
