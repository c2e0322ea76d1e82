from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.cost.fit import Array, Cell, Coefficients, Row, fit, predict
from edgekit.cost.work import FEATURES
from edgekit.types import Precision

FP32, INT8 = Precision.FP32, Precision.INT8
HERE = Cell("board", "core", "cpu", FP32, 4)
THERE = Cell("other board", "core", "cpu", FP32, 4)
STRANGE = Cell("third board", "other core", "cpu", FP32, 4)
KINDS = ("conv3x3", "pointwise", "depthwise")


def network(rng: np.random.Generator) -> Array:
    """Features of a random convolutional network: starts, milliseconds at the peak."""
    x = np.zeros(len(FEATURES))
    x[0], x[1], x[2] = 1, rng.integers(20, 60), rng.integers(0, 20)
    for kind in KINDS:
        x[FEATURES.index(kind)] = np.exp(rng.normal(1, 1))
    x[-2], x[-1] = np.exp(rng.normal(0, 0.5)), np.exp(rng.normal(-1, 0.5))
    return x


def truth(cell: Cell) -> Array:
    slower = {"board": 1.0, "other board": 1.3, "third board": 2.0}[cell.device]
    return slower * np.array([0.05, 0.004, 0.004, 1.5, 2.5, 2.0, 4.0, *[2.0] * 4, 1.2, 1.5])


def rows(cells: tuple[Cell, ...], each: int = 30, noise: float = 0.03, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    made = []
    for cell in cells:
        for i in range(each):
            x = network(rng)
            made.append(Row(cell, f"family {i % 6}", x, float(truth(cell) @ x * np.exp(rng.normal(0, noise)))))
    return made


def test_a_planted_device_is_recovered() -> None:
    found = fit(rows((HERE, THERE)), [HERE, THERE])
    rng = np.random.default_rng(9)
    for cell in (HERE, THERE):
        errors = []
        for _ in range(50):
            x = network(rng)
            errors.append(abs(predict(found[cell], x)[0] / float(truth(cell) @ x) - 1))
        assert np.median(errors) < 0.03
        assert max(errors) < 0.12


def test_a_few_bad_rows_do_not_move_the_fit() -> None:
    good = rows((HERE,))
    bad = [replace(row, latency_ms=row.latency_ms * 5) if i in (3, 17) else row for i, row in enumerate(good)]
    x = network(np.random.default_rng(5))
    assert predict(fit(bad, [HERE])[HERE], x)[0] == pytest.approx(predict(fit(good, [HERE])[HERE], x)[0], rel=0.05)


def test_the_less_is_known_the_wider() -> None:
    """Own rows < a board of the same architecture < a board of another one < nothing at all."""
    known = rows((HERE,))
    x = network(np.random.default_rng(5))
    found = fit(known, [HERE, THERE, STRANGE])
    nothing = fit([], [HERE])
    widths = [predict(found[cell], x)[1] for cell in (HERE, THERE, STRANGE)] + [predict(nothing[HERE], x)[1]]
    assert widths == sorted(widths)
    assert widths[1] > 1.5 * widths[0]


def test_a_kind_that_no_row_had_is_not_known_well() -> None:
    found = fit(rows((HERE,)), [HERE])[HERE]
    seen = network(np.random.default_rng(5))
    unseen = seen.copy()
    unseen[FEATURES.index("recurrent")] = unseen[FEATURES.index("conv3x3")]
    unseen[FEATURES.index("conv3x3")] = 0
    assert predict(found, unseen)[1] > predict(found, seen)[1]


def test_boards_of_one_architecture_help_each_other() -> None:
    """Two rows of a board, beside thirty of its like, say more than two rows alone."""
    few = rows((THERE,), each=2, seed=3)
    alone, together = fit(few, [THERE])[THERE], fit(few + rows((HERE,)), [THERE])[THERE]
    rng = np.random.default_rng(8)
    tests = [network(rng) for _ in range(40)]

    def error(found: Coefficients) -> float:
        return float(np.median([abs(predict(found, x)[0] / float(truth(THERE) @ x) - 1) for x in tests]))

    assert error(together) < error(alone)
    assert error(together) < 0.15


def test_the_same_rows_in_another_order_fit_the_same() -> None:
    given_rows = rows((HERE, THERE), each=10)
    one, other = fit(given_rows, [HERE])[HERE], fit(given_rows[::-1], [HERE])[HERE]
    np.testing.assert_allclose(one.log_mean, other.log_mean, atol=2e-3)


def test_no_rows_at_all_is_the_expectation() -> None:
    found = fit([], [HERE])[HERE]
    assert found.log_mean[FEATURES.index("conv")] == pytest.approx(math.log(2.0) + 2 * 0.15)
    assert np.all(np.linalg.eigvalsh(found.covariance) > 0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 100), min_size=13, max_size=13), st.integers(0, 12), st.floats(0, 100))
def test_more_work_never_costs_less(work: list[float], place: int, more: float) -> None:
    found = fit([], [HERE])[HERE]
    less = np.array([1.0, *work[1:]])
    greater = less.copy()
    greater[place] += more
    assert predict(found, greater)[0] >= predict(found, less)[0]
