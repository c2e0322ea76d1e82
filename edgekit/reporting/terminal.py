"""The report on one screen of a terminal: the verdict, the candidates, what was decided, where the long form lies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgekit import conditions
from edgekit.reporting import channels, footprint, verdict, wording
from edgekit.reporting.tables import add, safe, say, table

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.results import DeployResult
    from edgekit.types import Candidate, MetricResult

_MARKS = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[yellow]?[/]"}


def print_summary(result: DeployResult, console: Console) -> None:
    """Print ``result``; nothing is lost without colour or at 80 columns."""

    def line(markup: str) -> None:
        say(console, markup)

    found = verdict.verdict(result)
    threads = f"{result.device.threads} thread{'s' if result.device.threads != 1 else ''}"
    line("")
    line(f"[bold]{safe(found.headline)}[/]" + (f" ({safe(found.confidence)})" if found.confidence else ""))
    line(
        f"{safe(result.model.name)} on {safe(result.target)}: {safe(result.device.cpu)}, {threads}, "
        f"{safe(result.device.runtime)}"
    )
    line("")
    rows = table(
        ("", "candidate", "p50 ms", "p99", "speed", _metric_heading(result), "drop", "SQNR", "size"),
        ("p50 ms", "p99", "speed", "drop", "SQNR", "size"),
    )
    for candidate in result.candidates:
        add(rows, *_row(result, candidate), style="bold" if candidate.name == result.chosen else "")
    console.print(rows)
    line(f"[dim]{safe(verdict.how_latencies_came(result))}; metric with 95 % confidence interval[/]")
    if result.conditions is not None:
        line(f"[dim]{safe(conditions.summary(result.conditions))}[/]")
    line("")
    for check in found.checks:
        line(f"{_MARKS[check.passed]} {check.name}: {safe(check.text)} [dim]({check.kind.value})[/]")
    kinds = ", ".join(f"{number} {name}" for name, number in verdict.precision_counts(result))
    line(f"  ships {safe(result.chosen)} ({kinds}): {safe(result.chosen_reason)}")
    kept = verdict.most_sensitive_float(result)
    noise = None if kept is None else verdict.noise_of_int8(kept)
    if kept is not None and noise is not None:
        said = f"  most sensitive, {wording.noise_db(noise)} noise in int8, kept in {kept.precision.value}: "
        line(safe(said + _tail(kept.name, console.width - len(said))))
    if removed := channels.summary(result.groups):
        line(f"  {removed}")
    if stored := channels.stored(result.plan):
        line(f"  weights {stored}")
    if cost := footprint.summary(result):
        line(f"  {cost}")
    if result.vectors is not None:
        where = "an emulated board" if result.vectors.emulated else "the board"
        share = f"{result.vectors.worst_error_share:.1%}"
        line(f"  {result.vectors.count} test vectors on {where}: worst error {share} of the tolerance")
    if result.prediction is not None:
        line(
            f"  plan's latency: predicted {wording.ms(result.prediction.predicted_ms)}, measured "
            f"{wording.ms(result.prediction.measured_ms)} ({wording.percent(result.prediction.error)})"
        )
    measured = [row for row in result.rounds if row.predicted_loss is not None and row.measured_loss is not None]
    if measured:
        last, rounds = measured[-1], len(result.rounds)
        line(
            f"  {rounds} round{'' if rounds == 1 else 's'}: output SNR predicted "
            f"{wording.snr_db(last.predicted_loss or 0.0)}, measured {wording.snr_db(last.measured_loss or 0.0)}"
        )
    for text in channels.prices(result.prices, verdict.is_share(verdict.float_candidate(result).metric)):
        line(f"  {safe(text)}")
    for option in result.options_dropped:
        if option.scope == "model":
            line(f"  dropped {safe(option.option)}: {safe(option.reason)}")
    for warning in result.warnings:
        line(f"[yellow]! {safe(warning)}[/]")
    # Whole, whatever the width: a path cut in two cannot be copied.
    for name, path in (("bundle", result.bundle), ("report", f"{result.bundle}/report.html")):
        console.print(f"{name}  {safe(path)}", highlight=False, emoji=False, soft_wrap=True)


def _tail(name: str, room: int) -> str:
    """The end of a layer's name: that is what tells it from the others."""
    return name if len(name) <= room else "…" + name[-max(room - 1, 1) :]


def _metric_heading(result: DeployResult) -> str:
    unit = " %" if verdict.is_share(verdict.float_candidate(result).metric) else ""
    return result.candidates[0].metric.name.rpartition(":")[2] + unit


def _row(result: DeployResult, candidate: Candidate) -> list[str]:
    reference = verdict.float_candidate(result)
    latency = candidate.latency_ms
    drop = verdict.metric_drop(candidate, reference).value
    share = verdict.is_share(reference.metric)
    return [
        "→" if candidate.name == result.chosen else "",
        candidate.name,
        verdict.ms_column(candidate, latency.p50),
        verdict.ms_column(candidate, latency.p99),
        verdict.speed_column(candidate, reference),
        _metric_text(candidate.metric, share),
        "" if candidate is reference or drop is None else wording.change(drop, share),
        f"{candidate.sqnr_db:.0f} dB" if math.isfinite(candidate.sqnr_db) else "–",
        wording.size(candidate.weight_bytes),
    ]


def _metric_text(metric: MetricResult, share: bool) -> str:
    """ "95.0 (91.9–96.9)": short enough not to be wrapped."""
    low, high = (wording.level(bound, share, unit=False) for bound in (metric.low, metric.high))
    return f"{wording.level(metric.value, share, unit=False)} ({low}–{high})"
