"""The plans that were considered as a picture and as a document: latency against the noise that they add."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.reporting import verdict, wording
from edgekit.reporting.canvas import FILE, PAGE, WIDTH_INCHES, Palette, canvas, inline_svg, label, limit
from edgekit.results import DeployResult, LayerDetail, ModelInfo, ParetoPoint, unstructure
from edgekit.types import Budget, Kind, MetricResult, Precision

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from edgekit.outcome import PlanResult

SCHEMA = "edgekit/pareto/1"
_FLOATS = (Precision.FP32, Precision.BF16, Precision.FP16)


@dataclass(frozen=True)
class FrontPoint(ParetoPoint):
    """A plan that was considered. ``front``: no other is both faster and less noisy; else it is merely considered, as a
    step of the search. ``plan``: it is the one that was chosen.
    """

    front: bool = False
    plan: bool = False


@dataclass(frozen=True)
class Uniform:
    """Every layer in one precision and no channel pruned, where every layer can: what the plans compete with."""

    precision: str
    latency_ms: float
    loss: float


@dataclass(frozen=True)
class Front:
    """What ``edgekit plan --pareto FILE`` writes; ``pareto`` is ordered by latency. ``metric`` is the float model's,
    ``plan_digest`` that of the decisions in ``edgekit plan --out``. ``loss`` is noise power relative to the output's.
    """

    target: str
    model: ModelInfo
    budget: Budget
    plan_digest: str
    metric: MetricResult
    pareto: tuple[FrontPoint, ...]
    uniform: tuple[Uniform, ...]
    schema: str = SCHEMA


@dataclass(frozen=True)
class _Mark:
    """A point of the picture."""

    latency_ms: float
    snr_db: float
    text: str = ""
    front: bool = False
    filled: bool = False
    chosen: bool = False
    uniform: bool = False


def front_of(found: PlanResult) -> Front:
    """The front of a planning. The plan is one of its points, whether or not it is among those considered."""
    planned = _plan_point(found)
    points = found.pareto if any(_alike(point, planned) for point in found.pareto) else (*found.pareto, planned)
    points = tuple(sorted(points, key=lambda point: (point.latency_ms, point.loss)))
    best = on_front(points)
    chosen = next(point for point in points if _alike(point, planned))
    return Front(
        target=found.target,
        model=found.model,
        budget=found.budget,
        plan_digest=found.plan.digest,
        metric=found.metric,
        pareto=tuple(FrontPoint(**asdict(p), front=id(p) in best, plan=p is chosen) for p in points),
        uniform=_uniform(found.layers) if not found.plan.kept() else (),  # else layers' times are at fewer channels
    )


def document(front: Front) -> dict[str, Any]:
    """The front as JSON-able values."""
    values: dict[str, Any] = unstructure(front)
    return {"schema": values.pop("schema"), **values}


def files(path: Path) -> tuple[Path, Path]:
    """(document, picture) that ``--pareto path`` writes: front.json and front.svg, or front.png where that is named."""
    if path.suffix in (".svg", ".png"):
        return path.with_suffix(".json"), path
    return path, path.with_suffix(".svg") if path.suffix == ".json" else path.with_name(path.name + ".svg")


def picture(front: Front, suffix: str) -> bytes:
    """The front as an image file, ``suffix`` ".svg" or ".png". The same front gives the same bytes."""
    share = verdict.is_share(front.metric)
    marks = [
        _Mark(
            point.latency_ms,
            snr_db(point),
            _point_label(point, share) if point.plan or point.metric is not None else "",
            front=point.front,
            filled=point.front,
            chosen=point.plan,
        )
        for point in front.pareto
    ]
    marks += [
        _Mark(one.latency_ms, snr_db(one), f"all {one.precision}", uniform=True, filled=True) for one in front.uniform
    ]
    title = f"{front.model.name} on {front.target}"
    with _drawn(FILE, marks, front.budget.latency_ms, "predicted latency, ms (left is better)", 6.4) as (figure, axes):
        axes.set_title(wording.plain(title), loc="left", fontsize=10, color=FILE.ink)
        _legend(axes, front)
        _labels(figure, axes, FILE, marks)
        target = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
        figure.savefig(target, format=suffix.removeprefix("."), dpi=144, facecolor=FILE.paper, metadata=metadata)
    return target.getvalue()


def pareto(result: DeployResult) -> str:
    """Every plan considered, as an <svg> element for the report: latency against output SNR; filled = latency measured,
    hollow = predicted. "" where there are not two points to compare.
    """
    best, shipped = on_front(result.pareto), shipped_point(result)
    share = verdict.is_share(verdict.float_candidate(result).metric)
    marks = [
        _Mark(
            point.latency_ms,
            snr_db(point),
            _point_label(point, share) if point is shipped or point.metric is not None else "",
            front=id(point) in best,
            filled=point.kind is Kind.MEASURED,
            chosen=point is shipped,
        )
        for point in result.pareto
    ]
    if len(_shown(marks)) < 2:
        return ""
    limit_ms = result.budget.latency_ms
    with _drawn(PAGE, marks, limit_ms, "latency, ms (left is better)", WIDTH_INCHES * 1.55) as (figure, axes):
        _labels(figure, axes, PAGE, marks)
        return inline_svg(figure, "pareto", "Plans considered: latency against output signal-to-noise ratio")


def on_front(points: Iterable[ParetoPoint]) -> set[int]:
    """The ids of the points than which no other is at least as fast and less noisy, or faster and as little noisy."""
    best: set[int] = set()
    least = math.inf
    for point in sorted(points, key=lambda point: (point.latency_ms, point.loss)):
        if math.isfinite(point.latency_ms) and point.loss < least:
            best.add(id(point))
            least = point.loss
    return best


def snr_db(point: ParetoPoint | Uniform) -> float:
    """The output's signal over the noise that the losses add up to."""
    return -10 * math.log10(point.loss) if point.loss > 0 else math.inf if point.loss == 0 else math.nan


def shipped_point(result: DeployResult) -> ParetoPoint | None:
    """The point with as many int8 layers, and pruned channels, as the plan that ships, and nearest to it; None where no
    plan ships.
    """
    if not verdict.is_planned(result):
        return None
    shipped = verdict.shipped(result)
    pruned = sum(group.channels - group.kept for group in result.plan.groups)
    alike = [point for point in result.pareto if point.int8_layers == shipped.precisions.get("int8", 0)]
    alike = [point for point in alike if point.pruned_channels == pruned] or alike
    return min(alike, key=lambda point: abs(point.latency_ms - shipped.latency_ms.p50), default=None)


def _plan_point(found: PlanResult) -> ParetoPoint:
    predicted, metric = found.plan.predicted, found.metric
    value = predicted.latency_ms.value
    return ParetoPoint(
        latency_ms=math.nan if value is None else value,
        loss=predicted.loss,
        weight_bytes=predicted.weight_bytes,
        int8_layers=sum(choice.precision is Precision.INT8 for choice in found.plan.layers),
        metric=metric.value - found.drop if metric.higher_is_better else metric.value + found.drop,
        kind=predicted.latency_ms.kind,
        pruned_channels=sum(group.channels - group.kept for group in found.plan.groups),
    )


def _alike(one: ParetoPoint, other: ParetoPoint) -> bool:
    decided = ("weight_bytes", "int8_layers")
    return all(getattr(one, name) == getattr(other, name) for name in decided) and all(
        math.isclose(a, b, rel_tol=1e-9) or (math.isnan(a) and math.isnan(b))
        for a, b in ((one.latency_ms, other.latency_ms), (one.loss, other.loss))
    )


def _uniform(layers: Sequence[LayerDetail]) -> tuple[Uniform, ...]:
    """The precisions that every layer was timed in. Float ones are summed together: not every kernel has 16 bits."""
    found = []
    floats = [[p for p in _FLOATS if p in row.latency_ms] for row in layers]
    if layers and all(len(offered) == 1 for offered in floats):
        name = " or ".join(sorted({offered[0].value for offered in floats}))
        pairs = [(row, offered[0]) for row, offered in zip(layers, floats, strict=True)]
        found.append(_summed(name, pairs))
    for precision in (Precision.INT8, Precision.W8):
        if layers and all(precision in row.latency_ms and precision in row.loss for row in layers):
            found.append(_summed(precision.value, [(row, precision) for row in layers]))
    return tuple(one for one in found if math.isfinite(one.latency_ms))


def _summed(name: str, pairs: Iterable[tuple[LayerDetail, Precision]]) -> Uniform:
    rows = [(row.latency_ms[precision], row.loss.get(precision, 0.0)) for row, precision in pairs]
    return Uniform(name, sum(ms for ms, _ in rows), sum(loss for _, loss in rows))


def _point_label(point: ParetoPoint, share: bool) -> str:
    parts = [f"{point.int8_layers} int8"]
    if point.pruned_channels:
        parts.append(f"{wording.MINUS}{point.pruned_channels} ch.")
    if point.metric is not None:
        parts.append(wording.level(point.metric, share))
    return ", ".join(parts)


def _shown(marks: Iterable[_Mark]) -> list[_Mark]:
    return [mark for mark in marks if math.isfinite(mark.latency_ms) and mark.snr_db > -1e3]


def _placed(marks: Iterable[_Mark]) -> list[tuple[_Mark, float]]:
    """What can be drawn, with its height: no loss at all has no place on a dB axis and stands above the rest."""
    shown = sorted(_shown(marks), key=lambda mark: (mark.latency_ms, -mark.snr_db))
    top = max((mark.snr_db for mark in shown if math.isfinite(mark.snr_db)), default=0.0) + 6
    return [(mark, min(mark.snr_db, top)) for mark in shown]


@contextmanager
def _drawn(
    palette: Palette, marks: Sequence[_Mark], limit_ms: float | None, x_label: str, width_inches: float
) -> Iterator[tuple[Figure, Axes]]:
    placed = _placed(marks)
    line = [(mark.latency_ms, height) for mark, height in placed if mark.front]
    with canvas(palette, 0.55 * width_inches, width_inches) as (figure, axes):
        axes.plot([x for x, _ in line], [y for _, y in line], color=palette.faint, linewidth=1.4)
        for mark, height in placed:
            colour = palette.chosen if mark.chosen else palette.ink if mark.uniform else palette.other
            axes.plot(
                [mark.latency_ms],
                [height],
                marker="s" if mark.uniform else "o",
                linewidth=0,
                markersize=9 if mark.chosen else 6 if mark.front else 5,
                markeredgecolor=colour,
                markerfacecolor=colour if mark.filled else "none",
                zorder=3 if mark.chosen else 2,
            )
        axes.margins(x=0.16, y=0.16)
        limit(axes, palette, limit_ms)
        axes.set_xlabel(x_label)
        axes.set_ylabel("output SNR, dB (up is better)")
        axes.grid(color=palette.faint, linewidth=0.5, alpha=0.6)
        axes.set_axisbelow(True)
        yield figure, axes


def _labels(figure: Figure, axes: Axes, palette: Palette, marks: Sequence[_Mark]) -> None:
    placed = _placed(marks)
    texts = [(mark.latency_ms, y, mark.text, mark.chosen) for mark, y in placed if mark.text]
    label(figure, axes, palette, [(m.latency_ms, y) for m, y in placed], sorted(texts, key=lambda text: not text[3]))


def _legend(axes: Axes, front: Front) -> None:
    """What the marks mean, below the picture; only those that are there."""
    from matplotlib.lines import Line2D

    def key(text: str, marker: str, colour: str, filled: bool = True, line: float = 0) -> Line2D:
        face = colour if filled else "none"
        return Line2D(
            [], [], color=FILE.faint, linewidth=line, marker=marker, markerfacecolor=face, markeredgecolor=colour,
            markersize=6, label=text,
        )  # fmt: skip

    keys = [key("the plan", "o", FILE.chosen)]
    if any(point.front for point in front.pareto):
        keys.append(key("the front", "o", FILE.other, line=1.4))
    if any(not point.front for point in front.pareto):
        keys.append(key("considered", "o", FILE.other, filled=False))
    if front.uniform:
        keys.append(key("one precision", "s", FILE.ink))
    low, high = axes.get_xlim()
    if front.budget.latency_ms is not None and low <= front.budget.latency_ms <= high:
        keys.append(Line2D([], [], color=FILE.limit, linewidth=1.2, linestyle=(0, (4, 3)), label="latency budget"))
    figure = axes.get_figure()
    assert figure is not None
    figure.legend(handles=keys, loc="outside lower left", ncols=len(keys), frameon=False, fontsize=8.5)
