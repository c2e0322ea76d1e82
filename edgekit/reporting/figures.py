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
    from matplotlib.transforms import Bbox

# Drawn in these colours, then replaced by the page's own variables, so that one picture serves light and dark.
INK, FAINT, CHOSEN, OTHER, LIMIT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {INK: "--ink", FAINT: "--line", CHOSEN: "--accent", OTHER: "--muted", LIMIT: "--bad", PAPER: "--paper"}

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
WIDTH_INCHES = 3.7


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
        slowest = max((c.latency_ms.p99 for c in candidates if math.isfinite(c.latency_ms.p99)), default=0.0)
        axes.set_xlim(0, 1.28 * slowest or 1.0)
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
            left, right = low - 0.06 * span, high + 0.34 * span  # room for the labels
            if scale == 100:
                axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= 100])
            axes.set_xlim(left, right)
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
    """Every plan considered: latency against output SNR; filled = latency measured, hollow = predicted. "" where there
    are not two points to compare.
    """
    points = [
        (point, snr_db(point)) for point in result.pareto if math.isfinite(point.latency_ms) and snr_db(point) > -1e3
    ]
    if len(points) < 2:
        return ""
    points.sort(key=lambda pair: (pair[0].latency_ms, -pair[1]))
    finite = [height for _, height in points if math.isfinite(height)]
    top = max(finite, default=0.0) + 6  # no loss at all has no place on a dB axis: it is drawn above the rest
    points = [(point, min(height, top)) for point, height in points]
    shipped = shipped_point(result)
    with _figure(3.1, WIDTH_INCHES * 1.55) as (figure, axes):
        axes.plot([p.latency_ms for p, _ in points], [height for _, height in points], color=FAINT, linewidth=1.2)
        for point, height in points:
            ships = point is shipped
            colour = CHOSEN if ships else OTHER
            axes.plot(
                [point.latency_ms],
                [height],
                marker="o",
                linewidth=0,
                markersize=9 if ships else 6,
                markeredgecolor=colour,
                markerfacecolor=colour if point.kind is Kind.MEASURED else "none",
                zorder=3 if ships else 2,
            )
        _limit(axes, result.budget.latency_ms)
        axes.margins(x=0.16, y=0.16)
        axes.set_xlabel("latency, ms (left is better)")
        axes.set_ylabel("output SNR, dB (up is better)")
        axes.grid(color=FAINT, linewidth=0.5, alpha=0.6)
        axes.set_axisbelow(True)
        labels = [
            (point.latency_ms, height, _point_label(result, point), point is shipped)
            for point, height in points
            if point is shipped or point.metric is not None
        ]
        _label(figure, axes, [(p.latency_ms, h) for p, h in points], sorted(labels, key=lambda label: not label[3]))
        return _svg(figure, "pareto", "Plans considered: latency against output signal-to-noise ratio")


def _point_label(result: DeployResult, point: ParetoPoint) -> str:
    text = f"{point.int8_layers} int8"
    return text if point.metric is None else f"{text}, {verdict.metric_values(result, point.metric)}"


def _label(
    figure: Figure,
    axes: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[tuple[float, float, str, bool]],
) -> None:
    """Write each label (x, y, text, bold) where it covers no point and no label before it. One that fits nowhere near
    its point is left out: the table below the picture has it.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles where things are
    frame = axes.get_window_extent()
    em = 9.0
    taken = [
        Bbox.from_bounds(x - em / 2, y - em / 2, em, em) for x, y in axes.transData.transform(list(points)).tolist()
    ]
    for x, y, text, bold in labels:
        note = axes.annotate(
            text,
            (x, y),
            (0, 0),
            textcoords="offset points",
            fontsize=8.5,
            fontweight="bold" if bold else "normal",
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
        )
        note.set_in_layout(False)
        extent = note.get_window_extent()
        width, height = 1.12 * extent.width, extent.height  # the page's font may be wider than the one measured here
        at_x, at_y = axes.transData.transform((x, y)).tolist()
        places = [(dx, dy) for dy in (-1.3 * em, 0.5 * em, -2.4 * em, 1.6 * em) for dx in (em * 0.9, -em * 0.9 - width)]
        boxes = [Bbox.from_bounds(at_x + dx, at_y + dy, width, height) for dx, dy in places]
        free = next((n for n, box in enumerate(boxes) if _is_free(box, frame, taken)), None)
        if free is None:
            note.remove()
            continue
        note.set_position(places[free])
        taken.append(boxes[free])


def _is_free(box: Bbox, frame: Bbox, taken: Sequence[Bbox]) -> bool:
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 + 12 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return inside and not any(box.overlaps(other) for other in taken)


def snr_db(point: ParetoPoint) -> float:
    """The output's signal over the noise that the layers' losses add up to."""
    return -10 * math.log10(point.loss) if point.loss > 0 else math.inf if point.loss == 0 else math.nan


def shipped_point(result: DeployResult) -> ParetoPoint | None:
    """The point with as many int8 layers as the plan that ships, and nearest to it; None where no plan ships."""
    shipped = verdict.shipped(result)
    count = shipped.precisions.get("int8", 0)
    alike = [point for point in result.pareto if point.int8_layers == count] if verdict.is_planned(result) else []
    return min(alike, key=lambda point: abs(point.latency_ms - shipped.latency_ms.p50), default=None)


def _colour(result: DeployResult, candidate: Candidate) -> str:
    return CHOSEN if candidate.name == result.chosen else OTHER


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
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
    )


def _limit(axes: Axes, x: float | None) -> None:
    """A dashed line where the budget ends, if that is within or near the picture."""
    low, high = axes.get_xlim()
    if x is not None and low <= x <= high:
        axes.axvline(x, color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0.5)


def _rows(axes: Axes, candidates: Sequence[Candidate]) -> None:
    axes.set_yticks(range(len(candidates)), [candidate.name for candidate in candidates])
    axes.set_ylim(len(candidates) - 0.45, -0.55)


@contextmanager
def _figure(height_inches: float, width_inches: float = WIDTH_INCHES) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the report's style alone: not the user's matplotlibrc, no pyplot, no display."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        # At 72 dots per inch, as SVG has, a pixel is a point: what is measured while drawing holds in the file.
        figure = Figure(figsize=(width_inches, height_inches), dpi=72, layout="constrained")
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
