"""A sweep as one table: a page with links to each bundle's report, and lines for a terminal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from edgekit.reporting import wording
from edgekit.reporting.tables import add, safe, say, table

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.sweeping.table import Row, SweepResult

# What an exit code means in a word or two.
_ENDS = {
    0: "done",
    1: "crashed",
    2: "bad input",
    3: "no plan fits",
    4: "tool missing",
    5: "device failed",
    6: "guard refused",
    7: "does not verify",
}


@dataclass(frozen=True)
class _Cells:
    """A row as text."""

    model: str
    target: str
    budget: str
    chosen: str
    latency: str
    kind: str
    speedup: str
    metric: str
    drop: str
    size: str
    end: str
    error: str
    hint: str
    device: str
    link: str
    done: bool


def render(result: SweepResult, name: str) -> str:
    """The page. The same rows give the same text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("edgekit.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [_cells(row) for row in result.rows]
    text = environment.get_template("sweep.html.j2").render(
        name=wording.plain(name), rows=rows, headline=headline(result), ends=_counts(result), version=result.edgekit
    )
    return text.encode("utf-8", "replace").decode()


def print_sweep(result: SweepResult, console: Console, out: str) -> None:
    """Print the table, the errors below it, and where the long form lies."""
    say(console, "")
    say(console, f"[bold]{safe(headline(result))}[/]")
    say(console, "")
    columns = ("model", "target", "budget", "chosen", "p50 ms", "speed", "latency", "metric", "drop", "size")
    rows = table(columns, ("p50 ms", "speed", "drop", "size"))
    for one in map(_cells, result.rows):
        if one.done:
            numbers = (one.latency, one.speedup, one.kind, one.metric, one.drop, one.size)
            add(rows, one.model, one.target, one.budget, one.chosen, *numbers)
        else:
            add(rows, one.model, one.target, one.budget, one.end, "–", "", "", "", "", "", style="dim")
    console.print(rows)
    if any(row.exit_code == 0 for row in result.rows):
        say(console, "[dim]drop is what the metric lost against float[/]")
    for row in result.rows:
        if row.exit_code:
            say(console, f"[red]✗[/] {safe(line(row))}")
            if row.hint:
                say(console, f"    hint: {safe(row.hint)}")
    for name in ("results.json", "report.html"):
        console.print(f"{name}  {safe(f'{out}/{name}')}", highlight=False, emoji=False, soft_wrap=True)


def headline(result: SweepResult) -> str:
    """ "10 of 12 cells done: 1 no plan fits, 1 device failed"."""
    done = sum(row.exit_code == 0 for row in result.rows)
    others = ", ".join(f"{count} {end}" for end, count in _counts(result) if end != _ENDS[0])
    return f"{done} of {len(result.rows)} cells done" + (f": {others}" if others else "")


def line(row: Row) -> str:
    """How one cell ended, in a line of plain text."""
    shown = _cells(row)
    where = f"{shown.model} on {shown.target}, {shown.budget}"
    if not shown.done:
        return f"{where}: {shown.error} (exit code {row.exit_code})"
    if row.latency_p50_ms is None:
        return f"{where}: {shown.chosen}, no latency known"
    return f"{where}: {shown.chosen}, {shown.latency} ms, {shown.speedup} ({shown.kind})"


def _counts(result: SweepResult) -> list[tuple[str, int]]:
    counted = Counter(row.exit_code for row in result.rows)
    return [(_end(code), counted[code]) for code in sorted(counted)]


def _end(code: int) -> str:
    return _ENDS.get(code, f"exit code {code}")


def _speedup(row: Row) -> str:
    if row.speedup is None:
        return "–"
    reach = "" if row.speedup_low is None else f" ({row.speedup_low:.2f}x to {row.speedup_high:.2f}x)"
    return f"{row.speedup:.2f}x{reach}"


def _cells(row: Row) -> _Cells:
    # A metric beyond [0, 1] is no share: its drops are no points.
    share = row.metric_value is not None and 0 <= row.metric_value <= 1
    place = row.bundle and f"{row.bundle}/report.html"
    return _Cells(
        model=wording.plain(row.model),
        target=wording.plain(f"{row.target} ({row.host})" if row.host else row.target),
        budget=wording.plain(row.budget),
        chosen=wording.plain(row.chosen),
        latency="–" if row.latency_p50_ms is None else wording.bare_ms(row.latency_p50_ms),
        kind=row.latency_kind,
        speedup=_speedup(row),
        metric=""
        if row.metric_value is None
        else f"{wording.plain(row.metric.rpartition(':')[2])} {wording.level(row.metric_value, share)}",
        drop="–" if row.metric_drop is None else wording.change(row.metric_drop, share),
        size="–" if row.weight_bytes is None else wording.size(row.weight_bytes),
        end=_end(row.exit_code),
        error=wording.plain(row.error),
        hint=wording.plain(row.hint),
        device=wording.plain(row.device),
        link=quote(place or row.log),
        done=row.exit_code == 0,
    )


__all__ = ["headline", "line", "print_sweep", "render"]
