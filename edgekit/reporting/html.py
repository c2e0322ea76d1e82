"""The report as one HTML page that needs nothing but itself: no script, no request, text escaped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from edgekit.reporting import figures, verdict, wording
from edgekit.results import DeployResult, LayerDetail
from edgekit.types import Precision


@dataclass(frozen=True)
class LayerRow:
    """A layer as the table shows it; shares are of the table's largest, in percent, for the bars."""

    number: int
    name: str
    op_type: str
    precision: str
    keep: str
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
    kind: str
    note: str


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
    pictures = [figures.latency(result), figures.metric(result), figures.size(result)]
    return environment.get_template("template.html.j2").render(
        result=result,
        verdict=verdict.verdict(result),
        precisions=verdict.precision_counts(result),
        candidates=candidate_rows(result),
        layers=layer_rows(result),
        pictures=[Markup(picture) for picture in pictures],  # noqa: S704 - made by figures.py, which escapes texts
        pareto=Markup(figures.pareto(result)) if result.pareto else None,  # noqa: S704
        finite=lambda value: value is not None and math.isfinite(value),
        metric_value=lambda value: verdict.metric_values(result, value),
        drop=lambda value: wording.drop(value, verdict.is_share(verdict.float_candidate(result).metric)),
        budget_text=budget_text(result),
        wording=wording,
    )


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
        rows.append(
            CandidateRow(
                name=candidate.name,
                chosen=candidate.name == result.chosen,
                p50=wording.bare_ms(spread.p50),
                p90=wording.bare_ms(spread.p90),
                p99=wording.bare_ms(spread.p99),
                runs=spread.n,
                speed=f"{verdict.speedup(candidate, reference):.2f}x",
                metric=verdict.metric_text(candidate.metric),
                change="–" if is_reference else verdict.change_text(candidate, reference),
                sqnr=wording.decibel(candidate.sqnr_db),
                agreement="–" if candidate.agreement is None else wording.level(candidate.agreement, share=True),
                size=wording.size(candidate.weight_bytes),
                kind=candidate.kind.value,
                note=candidate.note,
            )
        )
    return rows


def layer_rows(result: DeployResult) -> list[LayerRow]:
    """The plan as text, in execution order."""
    slowest = max((time for row in result.layers for time in row.latency_ms.values()), default=0.0) or 1.0
    noises = [noise for row in result.layers if (noise := verdict.noise_of_int8(row)) and math.isfinite(noise)]
    scale = (10 * math.log10(min(noises)) - 3, 10 * math.log10(max(noises))) if noises else (-1.0, 0.0)
    return [_layer_row(number, row, slowest, scale) for number, row in enumerate(result.layers, 1)]


def _layer_row(number: int, row: LayerDetail, slowest_ms: float, scale_db: tuple[float, float]) -> LayerRow:
    reference, chosen = row.latency_ms.get(Precision.FP32), row.latency_ms.get(row.precision)
    noise = verdict.noise_of_int8(row)
    texts: dict[str, Any] = {
        "float_ms": "–" if reference is None else wording.bare_ms(reference),
        "chosen_ms": "–" if chosen is None else wording.bare_ms(chosen),
        "noise": "–" if noise is None else "not finite" if math.isinf(noise) else wording.noise_db(noise),
    }
    return LayerRow(
        number=number,
        name=row.name,
        op_type=row.op_type,
        precision=row.precision.value,
        keep="" if row.keep >= 1 else f"{100 * row.keep:.0f} %",
        macs=wording.count(row.macs),
        size=wording.size(row.weight_bytes),
        float_share=_share(reference or 0.0, 0.0, slowest_ms),
        chosen_share=_share(chosen or 0.0, 0.0, slowest_ms),
        noise_share=_share(10 * math.log10(noise) if noise else -math.inf, *scale_db),
        reason=row.reason,
        kind=row.latency_kind.value,
        **texts,
    )


def _share(value: float, low: float, high: float) -> float:
    if math.isnan(value):
        return 0.0
    return round(100 * min(max((value - low) / (high - low), 0.0), 1.0), 1)
