"""Metrics against scipy and hand arithmetic, streaming against batch, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import mannwhitneyu

from edgekit.errors import InputError
from edgekit.recipes import ctc, fidelity
from edgekit.recipes.metrics import NAMES, default_metric, metric, result, rows_of

META = {"character": "a\nb\n\u3000\nc\u2028"}
FLOATS = st.floats(-100, 100, width=32)


def refusal(call, *parts):
    with pytest.raises(InputError) as caught:
        call()
    told = f"{caught.value} | {caught.value.hint}"
    for part in parts:
        assert part in told, told
    assert "\n" not in told
    assert caught.value.hint


def value(name, samples, metadata=None):
    scorer = metric(name, metadata)
    return scorer.aggregate(rows_of(scorer, samples))


def steps(*best, classes=6):
    """CTC scores [1, T, classes] whose best class at step t is best[t]."""
    return np.eye(classes, dtype=np.float32)[list(best)][None]


def test_every_name_makes_a_metric_of_that_name():
    for name in NAMES:
        assert metric(name, META).name == name
    assert [metric(n).higher_is_better for n in NAMES] == [True, True, True, False, True, True]


def test_top_1():
    samples = [({"y": np.array([[0.1, 0.9, 0.0]])}, label, {}) for label in (1, 1, 2, 1)]
    assert value("top-1", samples) == 0.75
    assert value("top-1", [({"y": np.array([[[[0]], [[0]], [[1]]]]), "z": np.ones(9)}, 2, {})]) == 1
    assert value("top-1", [({"y": np.array([np.nan, 1.0])}, 0, {})]) == 0  # numpy's argmax of NaN would be a hit


@pytest.mark.parametrize(
    ("output", "label", "part"),
    [
        (np.zeros((1, 3)), 3, "label 3 is not one of the model's classes 0..2"),
        (np.zeros((1, 3)), -1, "label -1 is not"),
        (np.zeros((1, 3)), "cat", "label 'cat' is not an integer"),
        (np.zeros((1, 3)), None, "label None is not an integer"),
        (np.zeros((1, 1)), 0, "not classes"),
    ],
)
def test_top_1_refuses(output, label, part):
    refusal(lambda: value("top-1", [({"y": output}, label, {})]), part)


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=60).filter(
        lambda rows: len({label for _, label in rows}) == 2
    )
)
def test_auc_is_mann_whitney_s(rows):
    samples = [({"y": np.array([score, score - 1], np.float32)}, int(label), {}) for score, label in rows]
    scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    expected = mannwhitneyu(scores[labels], scores[~labels]).statistic / (labels.sum() * (~labels).sum())
    assert value("auc", samples) == pytest.approx(expected)


def test_auc_scores():
    """The maximum of a sequence; the second of two classes; NaN below everything."""
    scorer = metric("auc")
    assert scorer.row({"y": np.array([0.1, 0.7, 0.3])}, 1, {}) == (0.7, 1.0)
    assert scorer.row({"y": np.array([[0.9, 0.1]])}, False, {}) == (0.1, 0.0)
    assert scorer.row({"y": np.array([np.nan, 0.7])}, 1, {})[0] == -np.inf
    refusal(lambda: scorer.row({"y": np.ones(1)}, 2, {}), "label 2 is neither 0 nor 1")
    refusal(lambda: scorer.row({"y": np.ones(1)}, "1", {}), "'1'")
    refusal(lambda: scorer.aggregate(np.ones((3, 2))), "all 3 labels are 1")


def test_ctc_decoding():
    letters = ctc.alphabet(META, 6)
    assert letters == ("", "a", "b", "\u3000", "c\u2028", " ")
    assert ctc.greedy(steps(0, 1, 1, 0, 1, 2, 2, 5, 5, 0), letters) == "aab "
    assert ctc.greedy(steps(0, 0), letters) == ""
    assert ctc.alphabet(META, 5) == letters[:5]
    assert ctc.characters({"character": "a\r\n\r\nb\r\n"}) == ("a", "", "b")
    refusal(lambda: ctc.alphabet({}, 6), "no key 'character'")
    refusal(lambda: ctc.alphabet(META, 9), "lists 4 characters", "9 classes")


def test_ctc_metrics():
    samples = [({"y": steps(1, 0, 2)}, "ab", {}), ({"y": steps(1, 2, 2)}, "abba b", {}), ({"y": steps(0)}, "", {})]
    assert value("ctc-exact", samples, META) == pytest.approx(2 / 3)
    assert value("cer", samples, META) == pytest.approx(4 / 8)
    refusal(lambda: value("ctc-exact", [({"y": steps(1)}, 3, {})], META), "ctc-exact: label 3 is not text")
    refusal(lambda: value("cer", samples[2:], META), "every label is empty")
    refusal(lambda: value("cer", samples, {}), "no key 'character'")


def test_cosine_and_sqnr_by_hand():
    reference = {"a": np.array([3.0, 4.0]), "b": np.array([1000.0, 0.0]), "n": np.array([1, 2])}
    same = {k: v.copy() for k, v in reference.items()}
    half = same | {"a": np.array([3.0, 0.0]), "n": np.array([7, 7])}
    assert value("cosine", [(same, None, reference)]) == pytest.approx(1)
    assert value("cosine", [(half, None, reference)]) == pytest.approx(0.6)  # the worst float output counts
    assert value("sqnr", [(same, None, reference)]) == fidelity.CEILING_DB
    assert value("sqnr", [(half, None, reference)]) == pytest.approx(-10 * np.log10(16 / 25 / 2))
    broken = same | {"a": np.array([np.nan, np.inf])}
    assert value("cosine", [(broken, None, reference)]) == 0
    assert value("sqnr", [(same, None, reference)] * 9 + [(broken, None, reference)]) == -fidelity.CEILING_DB
    zero = {"a": np.zeros(2), "b": np.zeros(2), "n": np.zeros(2)}
    assert value("cosine", [(zero, None, zero)]) == 1
    assert value("cosine", [(zero, None, reference)]) == 0
    assert value("sqnr", [(zero, None, zero)]) == fidelity.CEILING_DB
    assert value("sqnr", [(reference, None, zero)]) == -fidelity.CEILING_DB


@given(hnp.arrays(np.float32, (7, 2, 5), elements=FLOATS), hnp.arrays(np.float32, (7, 2, 5), elements=FLOATS))
def test_streaming_equals_batch(ours, theirs):
    """Rows summed up say the same as all outputs at once."""
    rows = np.array([fidelity.fidelity_row({"y": a}, {"y": b}) for a, b in zip(ours, theirs, strict=True)])
    signal, noise = (theirs.astype(float) ** 2).sum(), ((ours.astype(float) - theirs) ** 2).sum()
    if signal and noise:
        expected = np.clip(10 * np.log10(signal / noise), -fidelity.CEILING_DB, fidelity.CEILING_DB)
        assert fidelity.sqnr_db(rows) == pytest.approx(expected, abs=1e-6)
    assert fidelity.agreement(rows) == pytest.approx((ours.argmax(-1) == theirs.argmax(-1)).mean())


def test_agreement():
    reference = {"y": np.array([[[0.0, 1.0], [1.0, 0.0]]])}
    swapped = {"y": np.array([[[1.0, 0.0], [1.0, 0.0]]])}
    rows = np.array([fidelity.fidelity_row(swapped, reference), fidelity.fidelity_row(reference, reference)])
    assert fidelity.agreement(rows) == 0.75
    for shape in ((5,), (1, 1), ()):
        one = {"y": np.ones(shape)}
        assert fidelity.agreement(np.array([fidelity.fidelity_row(one, one)])) is None
    broken = {"y": np.array([[np.nan, 1.0]])}
    assert fidelity.fidelity_row(broken, {"y": np.array([[1.0, 0.0]])})[-1] == 0


def test_default_metric():
    assert default_metric(None) == "cosine"
    assert default_metric((1, 2, True)) == "top-1"
    for labels in (("a",), (1, 2.5), ((1, 2),)):
        refusal(lambda labels=labels: default_metric(labels), "--metric")


def test_unknown_metric():
    refusal(lambda: metric("top1"), "there is no metric 'top1'", "did you mean 'top-1'")
    refusal(lambda: metric(""), "there are: top-1, auc")


def test_results_are_complete():
    scorer = metric("cer", META)
    rows = rows_of(scorer, [({"y": steps(1)}, "ab", {}), ({"y": steps(1)}, "a", {})])
    assert rows.shape == (2, 2)
    assert (result(scorer, rows).name, result(scorer, rows).n, result(scorer, rows).higher_is_better) == (
        "cer",
        2,
        False,
    )
