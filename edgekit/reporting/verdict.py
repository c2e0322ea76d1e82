"""What the result says, in a few facts: shared by the page and the terminal, so that both say the same."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from edgekit.reporting import wording
from edgekit.results import DeployResult, LayerDetail
from edgekit.types import Candidate, Figure, Kind, MetricResult, Precision


@dataclass(frozen=True)
class Check:
    """One budget or guard. ``passed`` is None where there is no figure to judge by; ``kind`` is that of the figure."""

    name: str
    text: str
    passed: bool | None
    kind: Kind


@dataclass(frozen=True)
class Verdict:
    """The answer in one line, how sure its metric is ("95 % CI ...", may be empty), and what it rests on."""

    headline: str
    confidence: str
    passed: bool
    checks: tuple[Check, ...]


def verdict(result: DeployResult) -> Verdict:
    """The headline ("1.92x faster than float, ctc-exact −0.3 points, 3.21 MB"), every budget and guard with its figure.

    Raises:
        ValueError: ``result.chosen`` names no candidate, or there is no candidate ``float``.
    """
    chosen, reference = shipped(result), float_candidate(result)
    parts = [speed_text(chosen, reference)]
    if not result.data.synthetic:
        parts.append(f"{chosen.metric.name} {change_text(chosen, reference)}")
    parts.append(wording.size(chosen.weight_bytes))
    checks = (*_budget_checks(result, chosen, reference), *_guard_checks(result, chosen, reference))
    passed = all(check.passed is not False for check in checks)
    interval = "" if result.data.synthetic else interval_text(chosen, reference)
    return Verdict(", ".join(parts), f"95 % CI {interval}" if interval else "", passed, checks)


def shipped(result: DeployResult) -> Candidate:
    """The candidate that ships."""
    candidate = result.candidate(result.chosen)
    if candidate is None:
        raise ValueError(f"chosen {result.chosen!r} is not one of the candidates")
    return candidate


def float_candidate(result: DeployResult) -> Candidate:
    """The unmodified model's candidate."""
    candidate = result.candidate("float")
    if candidate is None:
        raise ValueError("no candidate 'float'")
    return candidate


def speedup(candidate: Candidate, reference: Candidate) -> float:
    """How many times faster than float: the interleaved ratio where it was measured, else the ratio of medians. NaN
    where no latency is known.
    """
    if candidate.speedup is not None and candidate.speedup.value is not None:
        return candidate.speedup.value
    return reference.latency_ms.p50 / (candidate.latency_ms.p50 or math.nan)


def speed_text(candidate: Candidate, reference: Candidate) -> str:
    """ "1.92x faster than float", "as fast as float", "float ships unchanged, 17.9 ms"."""
    if candidate.name == reference.name:
        return f"float ships unchanged, {wording.ms(candidate.latency_ms.p50)}"
    ratio = speedup(candidate, reference)
    if not math.isfinite(ratio):
        return "speed not known"
    if abs(ratio - 1) < 0.005:
        return "as fast as float"
    text = f"{ratio:.2f}x faster than float" if ratio > 1 else f"{1 / ratio:.2f}x slower than float"
    return text if candidate.kind is Kind.MEASURED else f"{text} ({candidate.kind.value}{_reach(candidate, ', ')})"


def _reach(candidate: Candidate, before: str = "") -> str:
    """The 90 % interval of a predicted speed-up, "1.31x to 2.80x"; nothing where it was measured, or none is known."""
    figure = candidate.speedup
    if figure is None or figure.kind is not Kind.PREDICTED or figure.low is None or figure.high is None:
        return ""
    return f"{before}{figure.low:.2f}x to {figure.high:.2f}x"


def metric_drop(candidate: Candidate, reference: Candidate) -> Figure:
    """What the metric lost against float, positive = worse; without an interval where no paired one was computed."""
    if candidate.drop is not None:
        return candidate.drop
    sign = 1 if candidate.metric.higher_is_better else -1
    return Figure(Kind.MEASURED, sign * (reference.metric.value - candidate.metric.value))


def change_text(candidate: Candidate, reference: Candidate) -> str:
    """The metric's change in its own direction, "−0.3 points"; float's own is its value, "93.0 %"."""
    if candidate.name == reference.name:
        return wording.level(candidate.metric.value, is_share(candidate.metric))
    drop = metric_drop(candidate, reference).value
    if drop is None or not math.isfinite(drop):
        return "not known"
    sign = -1 if candidate.metric.higher_is_better else 1
    return wording.change(sign * drop, is_share(candidate.metric), unit=True)


def interval_text(candidate: Candidate, reference: Candidate) -> str:
    """The 95 % confidence interval of `change_text`, "−1.3 to +0.7", or nothing where it is not known."""
    share = is_share(candidate.metric)
    if candidate.name == reference.name:
        low, high = candidate.metric.low, candidate.metric.high
        return f"{wording.level(low, share, unit=False)} to {wording.level(high, share, unit=False)}"
    drop = metric_drop(candidate, reference)
    if drop.low is None or drop.high is None or not (math.isfinite(drop.low) and math.isfinite(drop.high)):
        return ""
    sign = -1 if candidate.metric.higher_is_better else 1
    low, high = sorted((sign * drop.low, sign * drop.high))
    return f"{wording.change(low, share)} to {wording.change(high, share)}"


def is_share(metric: MetricResult) -> bool:
    """Whether the metric reads as a percentage: its whole interval lies in [0, 1]."""
    return all(math.isfinite(value) and 0 <= value <= 1 for value in (metric.value, metric.low, metric.high))


def metric_text(metric: MetricResult) -> str:
    """The value with its 95 % confidence interval, "92.7 % (89.2 to 95.1)"."""
    share = is_share(metric)
    low, high = wording.level(metric.low, share, unit=False), wording.level(metric.high, share, unit=False)
    return f"{wording.level(metric.value, share)} ({low} to {high})"


def metric_values(result: DeployResult, value: float | None) -> str:
    """A bare value of the result's metric, "92.7 %", or a dash."""
    return "–" if value is None else wording.level(value, is_share(float_candidate(result).metric))


def precision_counts(result: DeployResult) -> list[tuple[str, int]]:
    """Layers a precision of what ships, most first."""
    counts = Counter(shipped(result).precisions) or Counter(c.precision.value for c in result.plan.layers)
    return sorted(((name, n) for name, n in counts.items() if n), key=lambda item: (-item[1], item[0]))


def noise_of_int8(layer: LayerDetail) -> float | None:
    """Relative output noise power when this layer alone takes int8, infinite where that ruins the output; None where
    int8 was no option.
    """
    noise = layer.loss.get(Precision.INT8)
    return math.inf if noise is not None and math.isnan(noise) else noise


def most_sensitive_float(result: DeployResult) -> LayerDetail | None:
    """The layer kept in float that int8 would have damaged most."""
    kept = [row for row in result.layers if row.precision is not Precision.INT8 and noise_of_int8(row)]
    return max(kept, key=lambda row: noise_of_int8(row) or 0.0, default=None)


def why_not(result: DeployResult, candidate: Candidate) -> str:
    """Why a candidate does not ship, "drops too much"; its own note where it has one."""
    chosen, reference = shipped(result), float_candidate(result)
    budget = result.budget
    lost = 0.0 if candidate.name == reference.name else metric_drop(candidate, reference).value
    if candidate.note and candidate.kind is Kind.MEASURED:
        return candidate.note
    if budget.max_drop is not None and not result.data.synthetic:
        if lost is None or not math.isfinite(lost):
            return "metric not known"
        if not _within(lost, budget.max_drop):
            return "drops too much"
    if budget.weight_bytes is not None and candidate.weight_bytes > budget.weight_bytes:
        return "too large"
    if budget.latency_ms is not None and candidate.latency_ms.p50 > budget.latency_ms:
        return "over the latency budget"
    if speedup(candidate, reference) < speedup(chosen, reference):
        return "slower"
    return "less faithful" if candidate.sqnr_db < chosen.sqnr_db else ""


def ms_column(candidate: Candidate, latency_ms: float) -> str:
    """ "7.33"; "none" where no latency is known, and a dash for a percentile that a prediction does not have."""
    if candidate.kind is Kind.MEASURED or math.isfinite(latency_ms):
        return wording.bare_ms(latency_ms)
    return "none" if candidate.kind is Kind.NONE else "–"


def speed_column(candidate: Candidate, reference: Candidate) -> str:
    """ "1.92x", with the interval where it is predicted; a dash where no latency is known."""
    ratio = speedup(candidate, reference)
    if not math.isfinite(ratio):
        return "–"
    reach = "" if candidate.name == reference.name else _reach(candidate)
    return f"{ratio:.2f}x ({reach.replace('x to ', '–').removesuffix('x')})" if reach else f"{ratio:.2f}x"


def how_latencies_came(result: DeployResult) -> str:
    """ "measured on this device, interleaved", or what else the latencies are."""
    kind = float_candidate(result).kind
    if kind is Kind.MEASURED:
        return "measured on this device, interleaved"
    source = float_candidate(result).note.removeprefix(f"{kind.value}: ")
    return f"latencies {kind.value}: {source}"


def is_planned(result: DeployResult) -> bool:
    """Whether what ships is a plan, not the unmodified model or one precision for all layers."""
    return result.chosen.split(" ")[0] in ("plan", "bits")


def _budget_checks(result: DeployResult, chosen: Candidate, reference: Candidate) -> list[Check]:
    budget = result.budget
    checks = []
    if budget.latency_ms is not None:
        value = chosen.latency_ms.p50 if math.isfinite(chosen.latency_ms.p50) else None
        checks.append(_limit("latency", value, budget.latency_ms, wording.ms, chosen.kind))
    if budget.weight_bytes is not None:
        checks.append(_limit("size", chosen.weight_bytes, budget.weight_bytes, wording.size, Kind.COUNTED))
    if budget.memory_bytes is not None:
        memory = result.plan.predicted.memory_bytes
        checks.append(_limit("memory", memory, budget.memory_bytes, wording.size, Kind.PREDICTED))
    if budget.max_drop is not None:
        drop = 0.0 if chosen.name == reference.name else metric_drop(chosen, reference).value
        if result.data.synthetic or (drop is not None and not math.isfinite(drop)):
            drop = None
        share = is_share(reference.metric)

        def text(value: float) -> str:
            return wording.drop(value, share) if value >= 0 else f"none ({wording.drop(-value, share)} gained)"

        checks.append(_limit("drop", drop, budget.max_drop, text, Kind.MEASURED))
    return checks


def _guard_checks(result: DeployResult, chosen: Candidate, reference: Candidate) -> list[Check]:
    ratio = 1.0 if chosen.name == reference.name else speedup(chosen, reference)
    known = math.isfinite(ratio)
    measured = known and chosen.kind is Kind.MEASURED  # a prediction proves nothing
    reach = "" if chosen.name == reference.name else _reach(chosen, ", ")
    text = f"{ratio:.2f}x the speed of float{reach}" if known else "not known"
    conformance = result.conformance
    return [
        Check("never slower", text, ratio >= 1.0 if measured else None, chosen.kind if known else Kind.NONE),
        Check("runs as planned", conformance.unknown, None, Kind.NONE)
        if conformance.unknown
        else Check(
            "runs as planned",
            f"{conformance.matched} of {conformance.planned} layers",
            conformance.matched == conformance.planned and not conformance.mismatches,
            Kind.MEASURED,
        ),
    ]


def _limit(name: str, value: float | None, limit: float, text: wording.Wording, kind: Kind) -> Check:
    if value is None:
        return Check(name, f"not known, limit {text(limit)}", None, Kind.NONE)
    passed = _within(value, limit)
    return Check(name, f"{text(value)} {'≤' if passed else '>'} {text(limit)}", passed, kind)


def _within(value: float, limit: float) -> bool:
    return value <= limit + 1e-9  # three samples of 300 are one point, whatever their quotient rounds to
