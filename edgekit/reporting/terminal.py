"""The report on one screen of a terminal: the verdict, the candidates, what was decided, where the long form lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from edgekit.reporting import verdict, wording
from edgekit.reporting.tables import table

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.results import DeployResult
    from edgekit.types import Candidate, MetricResult

_MARKS = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[yellow]?[/]"}


def print_summary(result: DeployResult, console: Console) -> None:
    """Print ``result``; nothing is lost without colour or at 80 columns."""

    def line(text: str) -> None:
        console.print(text, highlight=False)

    found = verdict.verdict(result)
    threads = f"{result.device.threads} thread{'s' if result.device.threads != 1 else ''}"
    line("")
    line(f"[bold]{escape(found.headline)}[/]")
    line(
        f"{escape(result.model.name)} on {escape(result.target)}: {escape(result.device.cpu)}, {threads}, "
        f"{escape(result.device.runtime)}"
    )
    line("")
    rows = table(
        ("", "candidate", "p50 ms", "p99", "speed", _metric_heading(result), "drop", "SQNR", "size"),
        ("p50 ms", "p99", "speed", "drop", "SQNR", "size"),
    )
    for candidate in result.candidates:
        rows.add_row(*_row(result, candidate), style="bold" if candidate.name == result.chosen else "")
    console.print(rows)
    line("[dim]measured on this device, interleaved; metric with 95 % confidence interval[/]")
    line("")
    for check in found.checks:
        line(f"{_MARKS[check.passed]} {check.name}: {escape(check.text)} [dim]({check.kind.value})[/]")
    kinds = ", ".join(f"{number} {name}" for name, number in verdict.precision_counts(result))
    line(f"  ships {escape(result.chosen)} ({kinds}): {escape(result.chosen_reason)}")
    kept = verdict.most_sensitive_float(result)
    noise = None if kept is None else verdict.noise_of_int8(kept)
    if kept is not None and noise is not None:
        line(
            f"  most sensitive layer kept in {kept.precision.value}: {escape(kept.name)} "
            f"(int8 alone adds noise of {wording.noise_db(noise)})"
        )
    if result.prediction is not None:
        line(
            f"  plan's latency: predicted {wording.ms(result.prediction.predicted_ms)}, measured "
            f"{wording.ms(result.prediction.measured_ms)} ({wording.percent(result.prediction.error)})"
        )
    for option in result.options_dropped:
        if option.scope == "model":
            line(f"  dropped {escape(option.option)}: {escape(option.reason)}")
    for warning in result.warnings:
        line(f"[yellow]! {escape(warning)}[/]")
    line(f"bundle {escape(result.bundle)}   report {escape(result.bundle)}/report.html")


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
        escape(candidate.name),
        wording.bare_ms(latency.p50),
        wording.bare_ms(latency.p99),
        f"{verdict.speedup(candidate, reference):.2f}x",
        _metric_text(candidate.metric, share),
        "" if candidate is reference or drop is None else wording.change(drop, share),
        f"{candidate.sqnr_db:.0f} dB",
        wording.size(candidate.weight_bytes),
    ]


def _metric_text(metric: MetricResult, share: bool) -> str:
    """ "95.0 (91.9–96.9)": short enough not to be wrapped."""
    low, high = (wording.level(bound, share, unit=False) for bound in (metric.low, metric.high))
    return f"{wording.level(metric.value, share, unit=False)} ({low}–{high})"
