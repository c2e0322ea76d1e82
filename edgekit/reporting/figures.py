"""The report's bar charts as inline SVG. The same result gives the same bytes, and the page's colours apply to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.reporting import verdict, wording
from edgekit.reporting.canvas import PAGE, canvas, inline_svg, limit
from edgekit.results import DeployResult
from edgekit.types import Candidate, Latency

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def latency(result: DeployResult) -> str:
    """Median latency of each candidate, with a whisker from p50 to p99 and a tick at p90."""
    candidates = result.candidates
    with canvas(PAGE, _height(candidates)) as (figure, axes):
        for row, candidate in enumerate(candidates):
            spread, colour = candidate.latency_ms, _colour(result, candidate)
            axes.barh(row, spread.p50, height=0.62, color=colour)
            far = _far_ms(spread)
            axes.plot([spread.p50, far], [row, row], color=PAGE.ink, linewidth=1)
            axes.plot([spread.p90, spread.p99], [row, row], color=PAGE.ink, linewidth=0, marker="|", markersize=5)
            _write(axes, far, row, wording.ms(spread.p50), candidate.name == result.chosen)
        slowest = max((_far_ms(c.latency_ms) for c in candidates if math.isfinite(_far_ms(c.latency_ms))), default=0.0)
        axes.set_xlim(0, 1.28 * slowest or 1.0)
        limit(axes, PAGE, result.budget.latency_ms)
        _rows(axes, candidates)
        return inline_svg(figure, "latency", "Median latency of each candidate")


def _far_ms(latency: Latency) -> float:
    """Where the whisker ends: at p99, or at the end of a prediction's interval."""
    if latency.n == 0 and latency.p50_high is not None:
        return latency.p50_high
    return latency.p99


def metric(result: DeployResult) -> str:
    """The metric of each candidate with its 95 % confidence interval; the line is the worst that the budget allows."""
    candidates = result.candidates
    reference = verdict.float_candidate(result).metric
    scale = 100 if verdict.is_share(reference) else 1
    finite = [c for c in candidates if all(math.isfinite(v) for v in (c.metric.value, c.metric.low, c.metric.high))]
    with canvas(PAGE, _height(candidates)) as (figure, axes):
        for row, candidate in enumerate(candidates):
            if candidate not in finite:
                continue
            found, colour = candidate.metric, _colour(result, candidate)
            axes.plot([scale * found.low, scale * found.high], [row, row], color=colour, linewidth=2)
            axes.plot([scale * found.value], [row], color=colour, marker="o", markersize=6)
            text = wording.level(found.value, scale == 100)
            _write(axes, scale * found.high, row, text, candidate.name == result.chosen)
        if finite:
            low, high = (scale * f(c.metric.low if f is min else c.metric.high for c in finite) for f in (min, max))
            span = (high - low) or abs(high) or 1.0
            left, right = low - 0.06 * span, high + 0.34 * span  # room for the labels
            if scale == 100:
                axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= 100])
            axes.set_xlim(left, right)
        if result.budget.max_drop is not None and math.isfinite(reference.value):
            sign = -1 if reference.higher_is_better else 1
            limit(axes, PAGE, scale * (reference.value + sign * result.budget.max_drop))
        _rows(axes, candidates)
        return inline_svg(figure, "metric", "Metric of each candidate with its confidence interval")


def size(result: DeployResult) -> str:
    """Stored weights of each candidate."""
    candidates = result.candidates
    with canvas(PAGE, _height(candidates)) as (figure, axes):
        for row, candidate in enumerate(candidates):
            megabytes = candidate.weight_bytes / 1e6
            axes.barh(row, megabytes, height=0.62, color=_colour(result, candidate))
            _write(axes, megabytes, row, wording.size(candidate.weight_bytes), candidate.name == result.chosen)
        axes.set_xlim(0, max(1.32 * max(candidate.weight_bytes for candidate in candidates) / 1e6, 1e-6))
        limit(axes, PAGE, None if result.budget.weight_bytes is None else result.budget.weight_bytes / 1e6)
        _rows(axes, candidates)
        return inline_svg(figure, "size", "Stored weights of each candidate")


def _colour(result: DeployResult, candidate: Candidate) -> str:
    return PAGE.chosen if candidate.name == result.chosen else PAGE.other


def _height(candidates: Sequence[Candidate]) -> float:
    return 0.45 + 0.3 * len(candidates)


def _write(axes: Axes, x: float, row: int, text: str, bold: bool) -> None:
    axes.annotate(
        text,
        (x, row),
        xytext=(6, 0),
        textcoords="offset points",
        verticalalignment="center",
        fontweight="bold" if bold else "normal",
        bbox={"facecolor": PAGE.paper, "edgecolor": "none", "pad": 1},
    )


def _rows(axes: Axes, candidates: Sequence[Candidate]) -> None:
    axes.set_yticks(range(len(candidates)), [candidate.name for candidate in candidates])
    axes.set_ylim(len(candidates) - 0.45, -0.55)
