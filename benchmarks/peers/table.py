"""The comparison as a table, and the verdicts as lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from benchmarks.peers.rows import Missing, Row, Verdict
from edgekit.results import DeviceInfo
from edgekit.types import Figure, Kind

COLUMNS = (
    *("model", "candidate", "p50 ms", "speed-up [95 %]", "metric [95 %]", "drop [95 %]", "SQNR dB", "agree"),
    *("MB", "tool s", "tool MB"),
)


def table(rows: Sequence[Row | Missing], target: str, device: DeviceInfo | None) -> Table:
    """All candidates of all models."""
    title = f"Target {target}"
    if device is not None:
        threads = f"{device.threads} thread{'s' if device.threads != 1 else ''}"
        title += f": {device.cpu}, {threads}, {device.runtime}; measured, interleaved"
    made = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for column in COLUMNS:
        made.add_column(column, justify="left" if column in COLUMNS[:2] else "right", overflow="fold")
    for row in rows:
        if isinstance(row, Missing):
            made.add_row(row.model, row.candidate, "none", *[""] * (len(COLUMNS) - 3))
            continue
        made.add_row(
            row.model,
            row.title,
            _number(row.latency_ms, "{:.3g}"),
            _between(row.speedup, "x{:.2f}", "{:.2f}"),
            f"{row.metric_name} {_between(row.metric, '{:.3f}', '{:.3f}')}",
            _between(row.drop, "{:+.3f}", "{:+.3f}"),
            _number(row.sqnr_db, "{:.1f}"),
            _number(row.agreement, "{:.3f}"),
            _number(row.weight_bytes, "{:.2f}", 1e6),
            _number(row.wall_s, "{:.1f}"),
            _number(row.peak_memory_bytes, "{:.0f}", 1e6),
        )
    return made


def lines(rows: Sequence[Row | Missing], verdicts: Sequence[Verdict], mean: Figure) -> Iterator[str]:
    """Why some have no figures, what edgekit ships, then the verdict on each model and on all."""
    for row in rows:
        if isinstance(row, Missing):
            yield f"{row.model}, {row.candidate}: none: {row.none}"
        elif row.note:
            yield f"{row.model}, {row.title}: {row.note}"
    yield "edgekit beside the fastest other that keeps the metric (float counts):"
    for one in verdicts:
        if one.word == "none":
            yield f"  {one.model}: none: {one.reason}"
            continue
        ours, best = one.edgekit_speedup.value, one.best_speedup.value
        text = "not ahead" if one.word == "behind" else one.word
        text += " (the interval holds 1)" if one.word == "level" else ""
        shown = _between(one.ratio, "x{:.2f}", "{:.2f}")
        yield f"  {one.model}: {text}: {shown}: x{ours:.2f} against x{best:.2f} of {one.best}"
    shown = _between(mean, "x{:.2f}", "{:.2f}")
    yield f"geometric mean: {shown}{f', {mean.source}' if mean.source else ''}"


def _number(figure: Figure, form: str, unit: float = 1.0) -> str:
    return "-" if figure.value is None else form.format(figure.value / unit)


def _between(figure: Figure, form: str, ends: str) -> str:
    if figure.kind is Kind.NONE or figure.value is None:
        return "none"
    text = form.format(figure.value)
    if figure.low is None or figure.high is None:
        return text
    return f"{text} [{ends.format(figure.low)}, {ends.format(figure.high)}]"
