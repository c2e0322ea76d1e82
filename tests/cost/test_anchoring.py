"""Races correct costs: surely where they agree, and never by much where one is wild."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.cost.anchoring import corrected, most_moved, re_anchor, typical_deviation, typical_shares
from edgekit.cost.profile import predict_work
from edgekit.cost.work import FEATURES, Work
from edgekit.entries import Anchor, Costs, DeviceProfile, Memory, Processor
from edgekit.types import Precision

FP32, INT8 = Precision.FP32, Precision.INT8
COVARIANCE = tuple("0.05 " * i + "0.3" for i in range(len(FEATURES)))
KINDS = ("conv", "conv3x3", "pointwise", "depthwise", "matmul")
COST = Costs(
    "tflite", "cpu", FP32, 12, "12 rows", dict.fromkeys(FEATURES, 1.0), COVARIANCE, 0.15, 1.7, KINDS, (1e6, 1e9),
    (1e4, 1e8), 4,
)  # fmt: skip
PART = Processor("four cores", "cpu", "core", {FP32: 30.0, INT8: 60.0}, 4)
BOARD = DeviceProfile(
    "board", "", "", memory=Memory(10.0, ()), processors=(PART,), costs=(COST, replace(COST, precision=INT8))
)
NET = [Work("a", "conv3x3", 10**8, 10**5, 10**4, 10**5)]
ratios = st.floats(0.2, 5)


def anchor(ratio: float, model: str = "m", precision: Precision = FP32, day: str = "2026-01-01") -> Anchor:
    return Anchor("tflite", "cpu", precision, model, 10.0, 10.0 * ratio, day, 4)


def anchors(*given_ratios: float) -> list[Anchor]:
    return [anchor(ratio, f"m{i}") for i, ratio in enumerate(given_ratios)]


def moved(rows: list[Anchor]) -> float:
    """Logarithm of the factor that the rows give."""
    return math.log(corrected(COST, rows).factors["call"])


def test_without_anchors_nothing_changes() -> None:
    assert corrected(COST, []) is COST
    assert corrected(COST, [anchor(2.0, precision=INT8)]) is COST
    assert corrected(COST, [replace(anchor(2.0), threads=1)]) is COST


@given(st.lists(ratios, min_size=1, max_size=6), st.randoms())
def test_the_order_does_not_matter(given_ratios: list[float], random) -> None:
    rows = anchors(*given_ratios)
    shuffled = random.sample(rows, len(rows))
    assert re_anchor(BOARD, rows) == re_anchor(BOARD, shuffled)
    assert re_anchor(re_anchor(BOARD, shuffled[:2]), shuffled[2:]) == re_anchor(BOARD, rows)
    assert corrected(COST, rows) == corrected(COST, shuffled)


@given(st.lists(ratios, max_size=6), st.floats(1e-9, 1e9))
def test_one_wild_race_moves_it_by_a_bounded_amount(given_ratios: list[float], wild: float) -> None:
    rows = anchors(*given_ratios)
    before = moved(rows) if rows else 0.0
    assert abs(moved([*rows, anchor(wild, "wild")]) - before) <= most_moved(COST) + 1e-6
    assert most_moved(COST) < 0.5


@given(ratios)
def test_it_converges_where_races_agree(ratio: float) -> None:
    gaps = [abs(moved(anchors(*[ratio] * count)) - math.log(ratio)) for count in (1, 4, 16, 64, 256)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.02 + 0.02 * abs(math.log(ratio))


@given(st.floats(0.8, 1.25))
def test_the_interval_shrinks_as_races_agree(ratio: float) -> None:
    widths = [typical_deviation(corrected(COST, anchors(*[ratio] * count))) for count in range(1, 9)]
    assert typical_deviation(COST) > widths[0]
    assert widths == sorted(widths, reverse=True)


def test_the_interval_widens_where_races_disagree() -> None:
    agreeing, scattered = anchors(*[1.0] * 8), anchors(*[0.5, 2.0] * 4)
    assert typical_deviation(corrected(COST, scattered)) > typical_deviation(corrected(COST, agreeing))


@given(st.lists(ratios, min_size=1, max_size=6))
def test_a_correction_lies_between_nothing_and_what_the_races_say(given_ratios: list[float]) -> None:
    said = [0.0, *map(math.log, given_ratios)]
    assert min(said) - 1e-9 <= moved(anchors(*given_ratios)) <= max(said) + 1e-9


def test_predictions_follow() -> None:
    def ask(board: DeviceProfile, precision: Precision = FP32):
        return predict_work(NET, {"a": precision}, board, "tflite", 4)

    learnt = re_anchor(BOARD, anchors(*[1.3] * 12))
    before, after = ask(BOARD), ask(learnt)
    assert 1.2 < after.value / before.value < 1.3
    assert after.high / after.value < before.high / before.value
    assert "by 12 networks raced on this device" in after.source
    assert ask(learnt, INT8) == ask(BOARD, INT8)


def test_a_network_counts_once_by_its_newest_race() -> None:
    rows = [anchor(1.0, day="2026-01-01"), anchor(2.0, day="2026-02-01"), anchor(3.0, day="2026-02-01")]
    assert re_anchor(BOARD, rows).anchors == (rows[1],)
    assert re_anchor(re_anchor(BOARD, rows[1:]), rows[:1]).anchors == (rows[1],)


def test_rows_without_costs_are_left_out() -> None:
    assert re_anchor(BOARD, [replace(anchor(2.0), runtime="openvino")]) == BOARD


def test_typical_shares_are_shares() -> None:
    assert sum(typical_shares(COST).values()) == pytest.approx(1)
    assert set(typical_shares(COST)) == set(FEATURES) - {"grouped", "attention", "recurrent"}
