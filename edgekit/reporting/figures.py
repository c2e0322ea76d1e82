"""The report's pictures as inline SVG. The same result gives the same bytes, and the page's colours apply to them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekit.reporting import verdict, wording
from edgekit.results import DeployResult, ParetoPoint
from edgekit.types import Candidate, Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in these colours, then replaced by the page's own variables, so that one picture serves light and dark.
INK, FAINT, CHOSEN, OTHER, LIMIT = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "--ink", FAINT: "--line", CHOSEN: "--accent", OTHER: "--muted", LIMIT: "--bad"}

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgekit",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.parse_math": False,  # a "$" in a name is a "$"
}
WIDTH_INCHES = 4.2


def latency(result: DeployResult) -> str:
    """Median latency of each candidate, with a whisker from p50 to p99 and a tick at p90."""
    candidates = result.candidates
    with _figure(_height(candidates)) as (figure, axes):
        for row, candidate in enumerate(candidates):
            spread, colour = candidate.latency_ms, _colour(result, candidate)
            axes.barh(row, spread.p50, height=0.62, color=colour)
            axes.plot([spread.p50, spread.p99], [row, row], color=INK, linewidth=1)
            axes.plot([spread.p90, spread.p99], [row, row], color=INK, linewidth=0, marker="|", markersize=5)
            _write(axes, spread.p99, row, wording.ms(spread.p50), candidate.name == result.chosen)
        axes.set_xlim(0, 1.28 * max(candidate.latency_ms.p99 for candidate in candidates))
        _limit(axes, result.budget.latency_ms)
        _rows(axes, candidates)
        return _svg(figure, "latency", "Median latency of each candidate")


def metric(result: DeployResult) -> str:
    """The metric of each candidate with its 95 % confidence interval; the line is the worst that the budget allows."""
    candidates = result.candidates
    reference = verdict.float_candidate(result).metric
    scale = 100 if verdict.is_share(reference) else 1
    finite = [c for c in candidates if all(math.isfinite(v) for v in (c.metric.value, c.metric.low, c.metric.high))]
    with _figure(_height(candidates)) as (figure, axes):
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
            axes.set_xlim(low - 0.06 * span, high + 0.34 * span)
        if result.budget.max_drop is not None and math.isfinite(reference.value):
            sign = -1 if reference.higher_is_better else 1
            _limit(axes, scale * (reference.value + sign * result.budget.max_drop))
        _rows(axes, candidates)
        return _svg(figure, "metric", "Metric of each candidate with its confidence interval")


def size(result: DeployResult) -> str:
    """Stored weights of each candidate."""
    candidates = result.candidates
    with _figure(_height(candidates)) as (figure, axes):
        for row, candidate in enumerate(candidates):
            megabytes = candidate.weight_bytes / 1e6
            axes.barh(row, megabytes, height=0.62, color=_colour(result, candidate))
            _write(axes, megabytes, row, wording.size(candidate.weight_bytes), candidate.name == result.chosen)
        axes.set_xlim(0, max(1.32 * max(candidate.weight_bytes for candidate in candidates) / 1e6, 1e-6))
        _limit(axes, None if result.budget.weight_bytes is None else result.budget.weight_bytes / 1e6)
        _rows(axes, candidates)
        return _svg(figure, "size", "Stored weights of each candidate")


def pareto(result: DeployResult) -> str:
    """Every plan considered: latency against output SNR; filled = latency measured, hollow = predicted."""
    points = sorted(result.pareto, key=lambda point: (point.latency_ms, point.loss))
    finite = [_snr_db(point) for point in points if math.isfinite(_snr_db(point))]
    top = max(finite, default=0.0) + 6  # no loss at all has no place on a dB axis: it is drawn above the rest
    with _figure(3.1, WIDTH_INCHES * 1.55) as (figure, axes):
        heights = [min(_snr_db(point), top) for point in points]
        axes.plot([point.latency_ms for point in points], heights, color=FAINT, linewidth=1.2, zorder=1)
        for point, height in zip(points, heights, strict=True):
            measured = point.kind is Kind.MEASURED
            ships = _is_shipped(result, point)
            colour = CHOSEN if ships else OTHER
            axes.plot(
                [point.latency_ms],
                [height],
                marker="o",
                linewidth=0,
                markersize=9 if ships else 6,
                markeredgecolor=colour,
                markerfacecolor=colour if measured else "none",
                zorder=3 if ships else 2,
            )
            if ships or point.metric is not None:
                text = f"{point.int8_layers} int8"
                if point.metric is not None:
                    text += f", {verdict.metric_values(result, point.metric)}"
                axes.annotate(
                    text,
                    (point.latency_ms, height),
                    xytext=(8, -11),
                    textcoords="offset points",
                    fontsize=8.5,
                    fontweight="bold" if ships else "normal",
                )
        _limit(axes, result.budget.latency_ms)
        axes.margins(x=0.12, y=0.14)
        axes.set_xlabel("latency, ms (left is better)")
        axes.set_ylabel("output SNR from layer losses, dB")
        axes.grid(color=FAINT, linewidth=0.5, alpha=0.6)
        axes.set_axisbelow(True)
        return _svg(figure, "pareto", "Plans considered: latency against output signal-to-noise ratio")


def _snr_db(point: ParetoPoint) -> float:
    return -10 * math.log10(point.loss) if point.loss > 0 else math.inf


def _is_shipped(result: DeployResult, point: ParetoPoint) -> bool:
    """The measured point with as many int8 layers as what ships, and its size."""
    shipped = verdict.shipped(result)
    same_count = point.int8_layers == shipped.precisions.get("int8", 0)
    nearest = min(
        (p for p in result.pareto if p.int8_layers == point.int8_layers),
        key=lambda p: abs(p.latency_ms - shipped.latency_ms.p50),
    )
    return same_count and point is nearest


def _colour(result: DeployResult, candidate: Candidate) -> str:
    return CHOSEN if candidate.name == result.chosen else OTHER


def _height(candidates: Sequence[Candidate]) -> float:
    return 0.45 + 0.3 * len(candidates)


def _write(axes: Axes, x: float, row: int, text: str, bold: bool) -> None:
    weight = "bold" if bold else "normal"
    axes.annotate(
        text, (x, row), xytext=(6, 0), textcoords="offset points", verticalalignment="center", fontweight=weight
    )


def _limit(axes: Axes, x: float | None) -> None:
    """A dashed line where the budget ends, if that is within or near the picture."""
    low, high = axes.get_xlim()
    if x is not None and low <= x <= high:
        axes.axvline(x, color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)))


def _rows(axes: Axes, candidates: Sequence[Candidate]) -> None:
    axes.set_yticks(range(len(candidates)), [candidate.name for candidate in candidates])
    axes.set_ylim(len(candidates) - 0.45, -0.55)


@contextmanager
def _figure(height_inches: float, width_inches: float = WIDTH_INCHES) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the report's style alone: not the user's matplotlibrc, no pyplot, no display."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element: no prolog or metadata, ids unique on the page, colours as CSS variables."""
    target = io.StringIO()
    figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", text)
    view_box = re.search(r'viewBox="([^"]*)"', text)
    opening = f'<svg role="img" aria-label="{label}" viewBox="{view_box[1] if view_box else ""}">'
    text = re.sub(r"<svg[^>]*>", opening, text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'font-family: [^;"]*;? ?', "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.strip()
