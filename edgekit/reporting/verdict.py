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
    """The answer in one line, and what it rests on."""

    headline: str
    passed: bool
    checks: tuple[Check, ...]


def verdict(result: DeployResult) -> Verdict:
    """The headline ("1.92x faster than float, ...") and every budget and guard with its figure.

    Raises:
        ValueError: ``result.chosen`` names no candidate, or there is no candidate ``float``.
    """
    chosen, reference = shipped(result), float_candidate(result)
    parts = [speed_text(chosen, reference)]
    if not result.data.synthetic:
        parts.append(f"{chosen.metric.name} {change_text(chosen, reference)}")
    parts.append(wording.size(chosen.weight_bytes))
    checks = (*_budget_checks(result, chosen, reference), *_guard_checks(result, chosen, reference))
    return Verdict(", ".join(parts), all(check.passed is not False for check in checks), checks)


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
    """How many times faster than float: the interleaved ratio where it was measured, else the ratio of medians."""
    if candidate.speedup is not None and candidate.speedup.value is not None:
        return candidate.speedup.value
    return reference.latency_ms.p50 / candidate.latency_ms.p50


def speed_text(candidate: Candidate, reference: Candidate) -> str:
    """ "1.92x faster than float", "the float model itself", "as fast as float"."""
    if candidate.name == reference.name:
        return f"float, {wording.ms(candidate.latency_ms.p50)}"
    ratio = speedup(candidate, reference)
    if abs(ratio - 1) < 0.005:
        return "as fast as float"
    return f"{ratio:.2f}x faster than float" if ratio > 1 else f"{1 / ratio:.2f}x slower than float"


def metric_drop(candidate: Candidate, reference: Candidate) -> Figure:
    """What the metric lost against float, positive = worse; without an interval where no paired one was computed."""
    if candidate.drop is not None:
        return candidate.drop
    sign = 1 if candidate.metric.higher_is_better else -1
    return Figure(Kind.MEASURED, sign * (reference.metric.value - candidate.metric.value))


def change_text(candidate: Candidate, reference: Candidate) -> str:
    """The metric's change in its own direction, "-0.3 points (95 % CI -1.3 to +0.7)", or its value for float."""
    if candidate.name == reference.name:
        return metric_text(candidate.metric)
    drop = metric_drop(candidate, reference)
    if drop.value is None or not math.isfinite(drop.value):
        return "not known"
    sign = -1 if candidate.metric.higher_is_better else 1
    share = is_share(candidate.metric)
    text = wording.change(sign * drop.value, share, unit=True)
    if drop.low is not None and drop.high is not None:
        low, high = sorted((sign * drop.low, sign * drop.high))
        text += f" (95 % CI {wording.change(low, share)} to {wording.change(high, share)})"
    return text


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
    """Relative output noise power when this layer alone takes int8, or the noisiest option where int8 was none."""
    losses = [loss for loss in layer.loss.values() if not math.isnan(loss)]
    return layer.loss.get(Precision.INT8, max(losses, default=0.0)) if losses else None


def most_sensitive_float(result: DeployResult) -> LayerDetail | None:
    """The layer kept in float that int8 would have damaged most."""
    kept = [row for row in result.layers if row.precision is not Precision.INT8 and noise_of_int8(row)]
    return max(kept, key=lambda row: noise_of_int8(row) or 0.0, default=None)


def _budget_checks(result: DeployResult, chosen: Candidate, reference: Candidate) -> list[Check]:
    budget = result.budget
    checks = []
    if budget.latency_ms is not None:
        value = chosen.latency_ms.p50
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
        checks.append(_limit("drop", drop, budget.max_drop, lambda v: wording.drop(v, share), Kind.MEASURED))
    return checks


def _guard_checks(result: DeployResult, chosen: Candidate, reference: Candidate) -> list[Check]:
    ratio = 1.0 if chosen.name == reference.name else speedup(chosen, reference)
    conformance = result.conformance
    return [
        Check("never slower", f"{ratio:.2f}x float", ratio >= 1.0, chosen.kind),
        Check(
            "runs as planned",
            f"{conformance.matched} of {conformance.planned} layers",
            conformance.matched == conformance.planned and not conformance.mismatches,
            Kind.MEASURED,
        ),
    ]


def _limit(name: str, value: float | None, limit: float, text: wording.Wording, kind: Kind) -> Check:
    if value is None:
        return Check(name, f"not known, limit {text(limit)}", None, Kind.NONE)
    passed = value <= limit + 1e-9  # three samples of 300 are one point, whatever their quotient rounds to
    return Check(name, f"{text(value)} {'≤' if passed else '>'} {text(limit)}", passed, kind)
