"""The report as one HTML page that needs nothing but itself: no script, no request, text escaped."""

from __future__ import annotations

import math
import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekit import conditions
from edgekit.reporting import channels, figures, footprint, front, verdict, wording
from edgekit.results import DeployResult, LayerDetail
from edgekit.types import Kind, Latency, Precision

# What a binding budget is called in a sentence.
_LIMITS = {"loss": "accuracy", "max_drop": "accuracy", "latency_ms": "latency", "weight_bytes": "size"}
_SHORTEST_PREFIX = 12


@dataclass(frozen=True)
class LayerRow:
    """A layer as the table shows it; shares are of the table's largest, in percent, for the bars. ``name`` lacks the
    prefix that all layers share; ``width`` is the layer's part of the plan's time, for the ribbon.
    """

    number: int
    name: str
    full_name: str
    width: float
    op_type: str
    precision: str
    keep: str
    weights: str
    macs: str
    size: str
    float_ms: str
    chosen_ms: str
    float_share: float
    chosen_share: float
    noise: str
    noise_share: float
    reason: str
    kind: str


@dataclass(frozen=True)
class Dropped:
    """An option that was set aside for one reason in one place or many."""

    option: str
    model: bool
    where: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Expected:
    """The predicted latency that the race is compared with. ``ships`` is False where it is of a plan that lost."""

    ms: str
    kind: str
    source: str
    ships: bool


@dataclass(frozen=True)
class CandidateRow:
    """A contestant of the race as the table shows it."""

    name: str
    chosen: bool
    p50: str
    p90: str
    p99: str
    runs: int
    speed: str
    metric: str
    change: str
    sqnr: str
    agreement: str
    size: str
    note: str
    interval: str
    energy: str
    memory: str


def render(result: DeployResult) -> str:
    """The page. The same result gives the same text.

    Raises:
        ValueError: as `verdict.verdict`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("edgekit.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    share = verdict.is_share(verdict.float_candidate(result).metric)
    pictures = [figures.latency(result), figures.metric(result), figures.size(result)]
    text = environment.get_template("template.html.j2").render(
        result=result,
        verdict=verdict.verdict(result),
        shipped=verdict.shipped(result),
        reference=verdict.float_candidate(result),
        planned=verdict.is_planned(result),
        measured=verdict.float_candidate(result).kind is Kind.MEASURED,
        latencies=verdict.how_latencies_came(result),
        precisions=verdict.precision_counts(result),
        candidates=candidate_rows(result),
        layers=layer_rows(result),
        prefix=_common_prefix([row.name for row in result.layers]),
        base=_base(result.layers).value,
        ships_in={row.name: row.precision.value for row in result.layers},
        dropped=dropped_options(result),
        expected=expected(result),
        channels=channels.summary(result.groups),
        groups=channels.group_rows(result.groups, _common_prefix([row.name for row in result.layers])),
        fixed=channels.fixed_rows(result.fixed),
        prices=channels.prices(result.prices, share),
        losses=channels.has_losses(result.rounds),
        conditions="" if result.conditions is None else conditions.summary(result.conditions),
        no_footprint="; ".join(footprint.reasons(result)),
        limits=", ".join(sorted({_LIMITS.get(name, name) for name in result.plan.binding})),
        pictures=[Markup(picture) for picture in pictures],  # noqa: S704 - made by figures.py, which escapes texts
        pareto=Markup(front.pareto(result)),  # noqa: S704
        points=sorted(result.pareto, key=lambda point: point.latency_ms),
        shipped_point=front.shipped_point(result),
        finite=lambda value: value is not None and math.isfinite(value),
        metric_value=lambda value: verdict.metric_values(result, value),
        drop=lambda value: wording.drop(value, share),
        budget_text=budget_text(result),
        wording=wording,
        snr=lambda point: wording.decibel(front.snr_db(point)),
    )
    return text.encode("utf-8", "replace").decode()  # file names need not be valid text


def budget_text(result: DeployResult) -> str:
    """What was asked for, "latency 10.0 ms, drop 1.0 points"."""
    budget = result.budget
    share = verdict.is_share(verdict.float_candidate(result).metric)
    parts = [
        None if budget.latency_ms is None else f"latency {wording.ms(budget.latency_ms)}",
        None if budget.weight_bytes is None else f"size {wording.size(budget.weight_bytes)}",
        None if budget.memory_bytes is None else f"memory {wording.size(budget.memory_bytes)}",
        None if budget.max_drop is None else f"drop {wording.drop(budget.max_drop, share)}",
    ]
    return ", ".join(part for part in parts if part) or "none"


def candidate_rows(result: DeployResult) -> list[CandidateRow]:
    """The race as text, in the order of the result."""
    reference = verdict.float_candidate(result)
    rows = []
    for candidate in result.candidates:
        spread = candidate.latency_ms
        is_reference = candidate.name == reference.name
        change, interval = verdict.change_text(candidate, reference), verdict.interval_text(candidate, reference)
        rows.append(
            CandidateRow(
                name=candidate.name,
                chosen=candidate.name == result.chosen,
                p50=verdict.ms_column(candidate, spread.p50),
                p90=verdict.ms_column(candidate, spread.p90),
                p99=verdict.ms_column(candidate, spread.p99),
                runs=spread.n,
                speed=verdict.speed_column(candidate, reference),
                metric=verdict.metric_text(candidate.metric),
                change="–" if is_reference else f"{change} ({interval})" if interval else change,
                sqnr=wording.decibel(candidate.sqnr_db),
                agreement="–" if candidate.agreement is None else wording.level(candidate.agreement, share=True),
                size=wording.size(candidate.weight_bytes),
                note="ships" if candidate.name == result.chosen else verdict.why_not(result, candidate),
                interval=_interval(spread),
                energy=footprint.energy(candidate),
                memory=footprint.memory(candidate),
            )
        )
    return rows


def _interval(latency: Latency) -> str:
    """The median's 95 % confidence interval, "9.28 to 9.34"; "" where there is none."""
    if latency.p50_low is None or latency.p50_high is None:
        return ""
    return f"{wording.bare_ms(latency.p50_low)} to {wording.bare_ms(latency.p50_high)}"


def layer_rows(result: DeployResult) -> list[LayerRow]:
    """The plan as text, in execution order."""
    rows = result.layers
    noises = [noise for row in rows if 0 < (noise := verdict.noise_of_int8(row) or 0.0) < math.inf]
    scale = _Scale(
        base=_base(rows),
        set_aside=frozenset(one.scope for one in result.options_dropped if one.option == Precision.INT8),
        prefix=len(_common_prefix([row.name for row in rows])),
        slowest_ms=max((time for row in rows for time in row.latency_ms.values() if 0 < time < math.inf), default=1.0),
        total_ms=sum(_chosen_ms(row) for row in rows) or 1.0,
        quiet_db=10 * math.log10(min(noises)) - 3 if noises else -1.0,
        loud_db=10 * math.log10(max(noises)) if noises else 0.0,
    )
    return [_layer_row(number, row, scale) for number, row in enumerate(rows, 1)]


def dropped_options(result: DeployResult) -> list[Dropped]:
    """The options set aside, those of the whole model first; layers with the same option and reason in one row."""
    grouped: dict[tuple[bool, str, str], list[str]] = {}
    for one in result.options_dropped:
        grouped.setdefault((one.scope != "model", one.option, one.reason), []).append(one.scope)
    rows = [Dropped(option, not layer, tuple(where), reason) for (layer, option, reason), where in grouped.items()]
    return sorted(rows, key=lambda row: not row.model)


def expected(result: DeployResult) -> Expected:
    """The prediction that the race judged, else that of what ships. Its interval is relative, as profiles state it."""
    figure = result.plan.predicted.latency_ms
    if figure.value is None or not math.isfinite(figure.value):
        shown = result.prediction
        if shown is None:
            return Expected("none", figure.kind.value, figure.source, True)
        return Expected(wording.bare_ms(shown.predicted_ms), "predicted, no interval", "", False)
    value = figure.value if result.prediction is None else result.prediction.predicted_ms
    text = wording.bare_ms(value)
    kind = figure.kind.value
    if figure.low is not None and figure.high is not None and figure.value > 0:
        low, high = (wording.bare_ms(bound * value / figure.value) for bound in (figure.low, figure.high))
        text += f" ({low} to {high})"
        kind += ", 90 % interval"
    return Expected(text, kind, figure.source, verdict.is_planned(result))


@dataclass(frozen=True)
class _Scale:
    """What the rows of one table have in common."""

    base: Precision
    set_aside: frozenset[str]  # layers that were not offered int8
    prefix: int
    slowest_ms: float
    total_ms: float
    quiet_db: float
    loud_db: float


def _layer_row(number: int, row: LayerDetail, scale: _Scale) -> LayerRow:
    reference, chosen = row.latency_ms.get(scale.base), row.latency_ms.get(row.precision)
    noise = verdict.noise_of_int8(row)
    loudness_db = 10 * math.log10(noise) if noise is not None and noise > 0 else -math.inf
    texts: dict[str, Any] = {
        "float_ms": "–" if reference is None else wording.bare_ms(reference),
        "chosen_ms": "–" if chosen is None else wording.bare_ms(chosen),
        "noise": "–" if noise is None else wording.noise_db(noise),
    }
    return LayerRow(
        number=number,
        name=row.name[scale.prefix :],
        full_name=row.name,
        width=round(100 * _chosen_ms(row) / scale.total_ms, 2),
        op_type=row.op_type,
        precision=row.precision.value,
        keep="" if row.keep >= 1 else wording.share(row.keep),
        weights=wording.weights(row.mask),
        macs=wording.count(row.macs),
        size=wording.size(row.weight_bytes),
        float_share=_share(reference or 0.0, 0.0, scale.slowest_ms),
        chosen_share=_share(chosen or 0.0, 0.0, scale.slowest_ms),
        noise_share=_share(loudness_db, scale.quiet_db, scale.loud_db),
        reason="int8 set aside (see below)" if row.name in scale.set_aside else row.reason or ", ".join(row.cures),
        kind=row.latency_kind.value,
        **texts,
    )


def _base(rows: Sequence[LayerDetail]) -> Precision:
    """The float precision that layers were timed in."""
    timed = {precision for row in rows for precision in row.latency_ms}
    return next((p for p in (Precision.FP32, Precision.BF16, Precision.FP16) if p in timed), Precision.FP32)


def _chosen_ms(row: LayerDetail) -> float:
    time = row.latency_ms.get(row.precision, 0.0)
    return time if math.isfinite(time) and time > 0 else 0.0


def _common_prefix(names: Sequence[str]) -> str:
    """What all names begin with, up to a separator; "" where it is short or there is little to compare."""
    if len(names) < 2:
        return ""
    shared = os.path.commonprefix(list(names))  # noqa: RUF071 - cut at a separator below
    cut = max(shared.rfind(mark) for mark in "/.") + 1
    return shared[:cut] if cut >= _SHORTEST_PREFIX else ""


def _share(value: float, low: float, high: float) -> float:
    if math.isnan(value) or not high > low:
        return 0.0
    return round(100 * min(max((value - low) / (high - low), 0.0), 1.0), 1)
