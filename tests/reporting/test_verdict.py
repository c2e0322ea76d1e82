"""The facts that page and terminal share: what is said of speed, metric, size, budgets and guards."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import results
from edgekit.reporting import verdict, wording
from edgekit.types import Budget, Candidate, Conformance, Figure, Kind, Mismatch, Precision
from tests.reporting.sample_result import sample_result

anything = st.floats(allow_nan=True, allow_infinity=True)


def named(name: str) -> Candidate:
    found = sample_result().candidate(name)
    assert found is not None
    return found


def with_candidate(changed: Candidate, **fields: object) -> results.DeployResult:
    """The sample with one candidate changed, which ships."""
    sample = sample_result()
    candidates = tuple(changed if c.name == changed.name else c for c in sample.candidates)
    return replace(sample, candidates=candidates, chosen=changed.name, **fields)  # type: ignore[arg-type]


def check(result: results.DeployResult, name: str) -> verdict.Check:
    return next(one for one in verdict.verdict(result).checks if one.name == name)


class TestSpeed:
    @pytest.mark.parametrize(
        ("ratio", "text"),
        [
            (1.924, "1.92x faster than float"),
            (1.004, "as fast as float"),
            (0.996, "as fast as float"),
            (0.5, "2.00x slower than float"),
            (math.nan, "speed not known"),
            (math.inf, "speed not known"),
        ],
    )
    def test_words(self, ratio: float, text: str) -> None:
        candidate = replace(named("plan"), speedup=Figure(Kind.MEASURED, ratio))
        assert verdict.speed_text(candidate, named("float")) == text

    def test_float_itself(self) -> None:
        assert verdict.speed_text(named("float"), named("float")) == "float ships unchanged, 17.9 ms"

    def test_ratio_of_medians_where_none_was_interleaved(self) -> None:
        candidate = replace(named("plan"), speedup=None)
        assert verdict.speedup(candidate, named("float")) == pytest.approx(17.92 / 9.31)

    def test_no_time_at_all_is_not_infinitely_fast(self) -> None:
        at_once = replace(named("plan"), speedup=None, latency_ms=replace(named("plan").latency_ms, p50=0.0))
        assert verdict.speed_text(at_once, named("float")) == "speed not known"


class TestMetric:
    @pytest.mark.parametrize(
        ("better", "drop", "text", "interval"),
        [
            (True, (0.003, -0.007, 0.013), "−0.3 points", "−1.3 to +0.7"),
            (True, (-0.02, -0.03, -0.01), "+2.0 points", "+1.0 to +3.0"),
            (False, (0.02, 0.01, 0.03), "+2.0 points", "+1.0 to +3.0"),
            (True, (0.0, None, None), "0.0 points", ""),
            (True, (math.nan, math.nan, math.nan), "not known", ""),
        ],
    )
    def test_change_is_in_the_metrics_own_direction(
        self, better: bool, drop: tuple[float, float | None, float | None], text: str, interval: str
    ) -> None:
        plan = named("plan")
        candidate = replace(
            plan, metric=replace(plan.metric, higher_is_better=better), drop=Figure(Kind.MEASURED, *drop)
        )
        assert verdict.change_text(candidate, named("float")).lstrip("+−") == text.lstrip("+−")
        assert verdict.change_text(candidate, named("float")).startswith(text[0]) or text[0] == "0"
        assert verdict.interval_text(candidate, named("float")) == interval

    def test_drop_without_a_paired_one_follows_the_metrics_direction(self) -> None:
        plan = replace(named("plan"), drop=None)
        assert verdict.metric_drop(plan, named("float")).value == pytest.approx(0.003)
        lower = replace(plan, metric=replace(plan.metric, higher_is_better=False))
        assert verdict.metric_drop(lower, named("float")).value == pytest.approx(-0.003)

    def test_metric_outside_zero_to_one_is_no_share(self) -> None:
        metric = replace(named("float").metric, value=31.2, low=30.0, high=32.0)
        assert not verdict.is_share(metric)
        assert verdict.metric_text(metric) == "31.2 (30 to 32)"
        assert verdict.metric_text(named("float").metric) == "93.0 % (89.6 to 95.4)"


class TestChecks:
    @pytest.mark.parametrize(
        ("limit", "passed", "text"),
        [(9.31, True, "9.31 ms ≤ 9.31 ms"), (9.30, False, "9.31 ms > 9.30 ms"), (10.0, True, "9.31 ms ≤ 10.0 ms")],
    )
    def test_latency(self, limit: float, passed: bool, text: str) -> None:
        found = check(replace(sample_result(), budget=Budget(latency_ms=limit)), "latency")
        assert (found.passed, found.text, found.kind) == (passed, text, Kind.MEASURED)

    def test_three_of_three_hundred_are_one_point(self) -> None:
        lost = 0.95 - 0.94  # 0.010000000000000009
        assert lost > 0.01
        candidate = replace(named("plan"), drop=Figure(Kind.MEASURED, lost))
        assert check(with_candidate(candidate), "drop").passed
        candidate = replace(named("plan"), drop=Figure(Kind.MEASURED, 0.0101))
        assert check(with_candidate(candidate), "drop").passed is False

    def test_gain_is_no_negative_drop(self) -> None:
        candidate = replace(named("plan"), drop=Figure(Kind.MEASURED, -0.02))
        assert check(with_candidate(candidate), "drop").text == "none (2.0 points gained) ≤ 1.0 points"

    @pytest.mark.parametrize("drop", [math.nan, math.inf, -math.inf, None])
    def test_drop_that_is_not_known_is_open(self, drop: float | None) -> None:
        candidate = replace(named("plan"), drop=Figure(Kind.MEASURED, drop))
        found = check(with_candidate(candidate), "drop")
        assert (found.passed, found.kind) == (None, Kind.NONE)

    def test_float_loses_nothing(self) -> None:
        sample = replace(sample_result(), chosen="float")
        assert check(sample, "drop").passed
        assert check(sample, "never slower").passed

    def test_synthetic_data_prove_no_accuracy(self) -> None:
        sample = sample_result()
        found = verdict.verdict(replace(sample, data=replace(sample.data, synthetic=True)))
        assert next(one for one in found.checks if one.name == "drop").passed is None
        assert found.confidence == ""
        assert "ctc-exact" not in found.headline

    def test_no_budget_no_check(self) -> None:
        found = verdict.verdict(replace(sample_result(), budget=Budget(max_drop=None)))
        assert [one.name for one in found.checks] == ["never slower", "runs as planned"]

    @pytest.mark.parametrize(("ratio", "passed"), [(1.0, True), (0.999, False), (math.nan, None)])
    def test_never_slower(self, ratio: float, passed: bool | None) -> None:
        candidate = replace(named("plan"), speedup=Figure(Kind.MEASURED, ratio))
        assert check(with_candidate(candidate), "never slower").passed is passed

    def test_conformance(self) -> None:
        mismatch = Mismatch("conv", Precision.INT8, "f32")
        for found, passed in ((Conformance(47, 47), True), (Conformance(47, 46, (mismatch,)), False)):
            result = replace(sample_result(), conformance=found)
            assert check(result, "runs as planned").passed is passed
            assert verdict.verdict(result).passed is passed

    def test_open_questions_do_not_fail(self) -> None:
        sample = sample_result()
        assert verdict.verdict(replace(sample, data=replace(sample.data, synthetic=True))).passed


class TestWhyNot:
    def because(self, name: str, budget: Budget | None = None, chosen: str = "plan", **fields: object) -> str:
        candidate = replace(named(name), note="", **fields)  # type: ignore[arg-type]
        sample = sample_result()
        candidates = tuple(candidate if c.name == name else c for c in sample.candidates)
        result = replace(sample, candidates=candidates, chosen=chosen, budget=budget or Budget())
        return verdict.why_not(result, candidate)

    def test_reasons(self) -> None:
        assert self.because("int8") == "drops too much"
        assert self.because("int8", drop=Figure(Kind.MEASURED, math.nan)) == "metric not known"
        assert self.because("int8", Budget(max_drop=None, weight_bytes=1000)) == "too large"
        assert self.because("bf16", Budget(latency_ms=20.0)) == "over the latency budget"
        assert self.because("bf16") == "slower"
        assert self.because("float") == "slower"
        assert self.because("int8", Budget(max_drop=None), sqnr_db=1.0) == "less faithful"
        assert self.because("int8", Budget(max_drop=None), sqnr_db=90.0) == ""

    def test_own_note_first(self) -> None:
        assert verdict.why_not(sample_result(), named("int8")) == "metric drop above 1 point"


class TestLayers:
    def test_counts_most_first(self) -> None:
        assert verdict.precision_counts(sample_result()) == [("int8", 38), ("fp32", 9)]
        unknown = with_candidate(replace(named("plan"), precisions={}))
        assert verdict.precision_counts(unknown) == [("int8", 38), ("fp32", 9)]

    def test_most_sensitive_is_of_those_that_stayed_float(self) -> None:
        sample = sample_result()
        kept = verdict.most_sensitive_float(sample)
        assert kept is not None
        assert kept.precision is Precision.FP32
        assert kept.loss[Precision.INT8] == max(
            row.loss[Precision.INT8] for row in sample.layers if row.precision is Precision.FP32
        )

    def test_layer_that_int8_ruins_is_the_most_sensitive(self) -> None:
        sample = sample_result()
        ruined = replace(sample.layers[3], loss={Precision.INT8: math.nan})  # as it comes back from JSON
        rows = (*sample.layers[:3], ruined, *sample.layers[4:])
        assert verdict.noise_of_int8(ruined) == math.inf
        assert verdict.most_sensitive_float(sample_result(rows)) is ruined

    def test_no_int8_no_noise_of_it(self) -> None:
        row = replace(sample_result().layers[0], loss={Precision.BF16: 1e-6})
        assert verdict.noise_of_int8(row) is None

    @pytest.mark.parametrize(
        ("chosen", "planned"), [("plan", True), ("plan 2", True), ("float", False), ("int8", False), ("planet", False)]
    )
    def test_what_is_a_plan(self, chosen: str, planned: bool) -> None:
        assert verdict.is_planned(replace(sample_result(), chosen=chosen)) is planned


class TestWording:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (wording.ms(9.314), "9.31 ms"),
            (wording.ms(0.64731), "0.647 ms"),
            (wording.ms(1234.5), "1234 ms"),
            (wording.ms(0), "0 ms"),
            (wording.bare_ms(0.00421), "0.0042"),
            (wording.size(3_214_336), "3.21 MB"),
            (wording.size(999), "999 B"),
            (wording.size(0), "0 B"),
            (wording.size(5e9), "5.00 GB"),
            (wording.count(14_200_000), "14.2 M"),
            (wording.change(-0.003, True, unit=True), "−0.3 points"),
            (wording.change(-0.0001, True), "0.0"),
            (wording.change(2.5, False), "+2.5"),
            (wording.percent(-0.0279), "−2.8 %"),
            (wording.noise_db(0.0), "none"),
            (wording.noise_db(0.01), "−20.0 dB"),
            (wording.decibel(math.inf), "identical"),
            (wording.decibel(-14.1), "−14.1 dB"),
            (wording.level(0.927, True), "92.7 %"),
            (wording.level(-3.25, False), "−3.25"),
            (wording.plain("a\nb\x1b[0m"), "a�b�[0m"),
        ],
    )
    def test_words(self, text: str, said: str) -> None:
        assert text == said

    @given(value=anything, share=st.booleans())
    def test_no_number_breaks_it_or_prints_nan(self, value: float, share: bool) -> None:
        said = (
            wording.ms(value),
            wording.level(value, share),
            wording.change(value, share, unit=True),
            wording.drop(value, share),
            wording.decibel(value),
            wording.noise_db(value),
            wording.percent(value),
        )
        assert all(text and "nan" not in text and "-" not in text for text in said)

    @given(value=st.floats(1e-3, 1e6))
    def test_milliseconds_keep_three_digits(self, value: float) -> None:
        text = wording.bare_ms(value)
        assert float(text) == pytest.approx(value, rel=5.1e-3, abs=6e-5)

    @given(text=st.text())
    def test_plain_text_is_printable_and_as_long(self, text: str) -> None:
        assert wording.plain(text).isprintable()
        assert len(wording.plain(text)) == len(text)
