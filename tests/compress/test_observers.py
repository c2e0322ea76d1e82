import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekit.compress.observers import (
    BINS,
    OBSERVERS,
    Histogram,
    Range,
    choose_range,
    from_arrays,
    grid_error,
    to_arrays,
)
from edgekit.compress.weights import affine_parameters

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
values = arrays(np.float32, st.integers(1, 200), elements=floats)


def observed(*parts: np.ndarray) -> Histogram:
    histogram = Histogram("t")
    for part in parts:
        histogram.update(part)
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    state = [(h.minimum, h.maximum, h.zeros, h.exponent, h.first) for h in (a, b)]
    return state[0] == state[1] and np.array_equal(a.counts, b.counts)


@given(values, st.lists(st.integers(0, 200)), st.randoms(use_true_random=False))
def test_any_order_and_cutting_gives_the_same_state(array, cuts, random):
    shuffled = array.tolist()
    random.shuffle(shuffled)
    parts = np.split(np.array(shuffled, np.float32), sorted(min(cut, len(array)) for cut in cuts))
    assert same(observed(array), observed(*parts))


@given(values)
def test_what_is_counted(array):
    histogram = observed(array)
    assert histogram.minimum == array.min()
    assert histogram.maximum == array.max()
    assert histogram.count == array.size
    assert histogram.zeros == np.count_nonzero(array == 0)
    edges = np.ldexp(histogram.first + np.arange(BINS + 1.0), histogram.exponent)
    nonzero = array[array != 0].astype(np.float64)
    expected = [
        np.count_nonzero((edges[i] <= nonzero) & (nonzero < edges[i + 1])) for i in np.flatnonzero(histogram.counts)
    ]
    assert expected == histogram.counts[histogram.counts > 0].tolist()


def test_bins_are_at_least_half_used_when_values_spread():
    histogram = observed(np.random.default_rng(0).normal(size=10_000))
    assert histogram.width * BINS / 2 <= histogram.maximum - histogram.minimum + 2 * histogram.width


def test_arrays_longer_than_a_chunk_and_scalars_and_empty_ones():
    big = np.random.default_rng(0).normal(size=(3, 400_000)).astype(np.float32)
    histogram = observed(big, np.zeros((0, 4)), np.float32(2))
    assert histogram.count == big.size + 1


@given(values, st.sampled_from([50.0, 90.0, 99.0, 99.99, 100.0]))
def test_percentile_is_within_a_bin_of_the_exact_one(array, percentile):
    histogram = observed(array)
    bounds = choose_range(histogram, "percentile", percentile)
    cut = (1 - percentile / 100) / 2
    low, high = np.quantile(array.astype(np.float64), [cut, 1 - cut], method="inverted_cdf")
    slack = histogram.width
    assert min(0, low) - slack <= bounds.low <= min(0, low)
    assert max(0, high) <= bounds.high <= max(0, high) + slack
    assert bounds.low >= min(0, histogram.minimum)
    assert bounds.high <= max(0, histogram.maximum)


@settings(max_examples=40, deadline=None)
@given(values, st.sampled_from(OBSERVERS))
def test_every_range_holds_zero_and_stays_within_what_was_seen(array, observer):
    histogram = observed(array)
    bounds = choose_range(histogram, observer)
    assert min(0.0, histogram.minimum) <= bounds.low <= 0 <= bounds.high <= max(0.0, histogram.maximum)
    scale, zero_point = affine_parameters(bounds)
    assert np.isfinite(scale)
    assert scale > 0
    assert 0 <= zero_point <= 255


@settings(max_examples=40, deadline=None)
@given(values)
def test_least_error_is_never_worse_than_min_max(array):
    histogram = observed(array)
    both = [choose_range(histogram, observer) for observer in ("mse", "min-max")]
    best, plain = grid_error(histogram, np.array([b.low for b in both]), np.array([b.high for b in both]))
    assert best <= plain


def real_error(array: np.ndarray, bounds: Range) -> float:
    scale, zero_point = affine_parameters(bounds)
    codes = np.clip(np.rint(array.astype(np.float32) / scale) + zero_point, 0, 255)
    return float(np.mean(((codes - zero_point) * np.float64(scale) - array) ** 2))


RNG = np.random.default_rng(1)
GAUSS = RNG.normal(size=200_000)
SHAPES = {
    "relu": np.maximum(GAUSS, 0),
    "relu6": np.clip(GAUSS * 4, 0, 6),
    "gauss": GAUSS,
    "laplace": RNG.laplace(size=200_000) - 1,
    "swish": 3 * GAUSS / (1 + np.exp(-3 * GAUSS)),
    "outlier": np.append(GAUSS, 80.0),
    "negative": -np.abs(GAUSS),
    "tiny": GAUSS * 1e-30,
    "huge": GAUSS * 1e37,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_expected_error_is_the_real_error(shape):
    array = SHAPES[shape]
    histogram = observed(array)
    for observer in OBSERVERS:
        bounds = choose_range(histogram, observer)
        expected = grid_error(histogram, np.array([bounds.low]), np.array([bounds.high]))[0]
        assert expected == pytest.approx(real_error(array, bounds), rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_least_error_is_near_an_exhaustive_search(shape):
    array = SHAPES[shape]
    histogram = observed(array)
    low, high = min(0.0, histogram.minimum), max(0.0, histogram.maximum)
    factors = np.linspace(0.02, 1, 60)
    grid = np.stack(np.meshgrid(factors if low else [0.0], factors if high else [0.0]), -1).reshape(-1, 2)
    least = min(
        grid_error(histogram, low * part[:, 0], high * part[:, 1]).min()
        for part in np.array_split(grid, len(grid) // 60)
    )
    bounds = choose_range(histogram, "mse")
    found = grid_error(histogram, np.array([bounds.low]), np.array([bounds.high]))[0]
    assert found <= 1.02 * least


def test_clipping_pays_with_a_long_tail():
    histogram = observed(SHAPES["laplace"])
    plain, best = choose_range(histogram, "min-max"), choose_range(histogram, "mse")
    assert real_error(SHAPES["laplace"], best) < 0.8 * real_error(SHAPES["laplace"], plain)


def test_entropy_cuts_a_lone_outlier_and_keeps_what_is_even():
    outlier = choose_range(observed(SHAPES["outlier"]), "entropy")
    assert outlier.high < 10
    even = choose_range(observed(RNG.uniform(-1, 1, 100_000)), "entropy")
    assert min(-even.low, even.high) > 0.9


def migacz(counts: np.ndarray, levels: int) -> int:
    """The published procedure, loop by loop: number of bins that diverge least (candidates every 8 bins)."""
    best, least = 0, np.inf
    for length in sorted({*range(levels, counts.size, 8), counts.size}):
        p = counts[:length].astype(float)
        p[-1] += counts[length:].sum()
        q = np.zeros(length)
        for level in range(levels):
            begin, end = level * length // levels, (level + 1) * length // levels
            filled = [i for i in range(begin, end) if counts[i] > 0]
            for i in filled:
                q[i] = counts[begin:end].sum() / len(filled)
        if q.sum() == 0:
            continue
        p, q = p / p.sum(), q / q.sum()
        divergence = sum(a * np.log(a / max(b, 1e-4 / BINS)) for a, b in zip(p, q, strict=True) if a > 0)
        if divergence < least:
            best, least = length, divergence
    return best


def test_entropy_is_the_published_procedure():
    array = RNG.laplace(size=5_000)
    histogram = observed(array)
    index = histogram.first + np.arange(BINS)
    magnitude = np.where(index >= 0, index, -index - 1)
    counts = np.bincount(magnitude, histogram.counts)
    counts = counts[: np.flatnonzero(counts)[-1] + 1]
    bounds = choose_range(histogram, "entropy")
    assert max(-bounds.low, bounds.high) == min(
        max(-histogram.minimum, histogram.maximum), migacz(counts, 128) * histogram.width
    )


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros(5), (0, 0)),
        (np.full(5, 3.0), (0, 3)),
        (np.full(5, -3.0), (-3, 0)),
        (np.array([1e-45, 3e38], np.float32), (0, float(np.float32(3e38)))),
        (np.array([-3e38, 3e38], np.float32), (float(np.float32(-3e38)), float(np.float32(3e38)))),
        (np.array([np.float32(-1e-45)]), (float(np.float32(-1e-45)), 0)),
    ],
)
def test_degenerate_tensors(array, expected):
    for observer in OBSERVERS:
        bounds = choose_range(observed(array), observer)
        assert expected[0] <= bounds.low <= 0 <= bounds.high <= expected[1]
    bounds = choose_range(observed(array), "min-max")
    assert (bounds.low, bounds.high) == expected


def test_tiny_values_then_huge_ones():
    parts = [np.float32([1e-45, -1e-45]), np.float32([1e-20]), np.float32([3e38])]
    assert same(observed(*parts), observed(*parts[::-1]))
    assert observed(*parts).count == 4


@pytest.mark.parametrize(
    ("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite"), (1e39, "infinite")]
)
def test_values_that_are_not_finite_name_the_tensor_and_change_nothing(bad, word):
    histogram = observed(np.ones(3))
    with pytest.raises(ValueError, match=f"'t' holds {word}"):
        histogram.update(np.array([1.0, bad, 0.0]))
    assert same(histogram, observed(np.ones(3)))


def test_bad_use():
    with pytest.raises(ValueError, match="'t' was never observed"):
        choose_range(Histogram("t"), "mse")
    with pytest.raises(ValueError, match="min-max, percentile, mse, entropy"):
        choose_range(observed(np.ones(3)), "median")
    with pytest.raises(ValueError, match="percentile"):
        choose_range(observed(np.ones(3)), "percentile", 0)
    for low, high in [(1, 2), (-2, -1), (float("nan"), 1), (0, float("inf"))]:
        with pytest.raises(ValueError, match="hold zero"):
            Range(low, high)


@given(st.lists(values, max_size=3))
def test_stored_and_read_back(several):
    histograms = []
    for i, array in enumerate(several):
        histograms.append(Histogram(f"/layer {i}:0"))
        histograms[-1].update(array)
    back = from_arrays(to_arrays(histograms))
    assert list(back) == [h.name for h in histograms]
    for histogram in histograms:
        assert same(back[histogram.name], histogram)
        back[histogram.name].update(np.ones(1))  # is its own: not a view of what was stored


@pytest.mark.parametrize("key", ["names", "limits", "layout", "counts"])
def test_other_arrays_are_refused(key):
    stored = to_arrays([observed(np.ones(3))])
    for broken in ({k: v for k, v in stored.items() if k != key}, {**stored, key: stored[key][:0]}):
        with pytest.raises(ValueError, match="not a set of histograms"):
            from_arrays(broken)
