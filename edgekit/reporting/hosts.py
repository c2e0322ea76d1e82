"""One bundle on several boards, as one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.api import HostsBench


def print_hosts(found: HostsBench, console: Console) -> None:
    """A row for each board: its latency and what it is, or what went wrong there, with what to do about it below."""
    table = Table("board", box=None, header_style="bold", pad_edge=False)
    for heading in ("p50 ms", "p90 ms", "p99 ms", "runs", "threads"):
        table.add_column(heading, justify="right")
    table.add_column("measured on", overflow="fold")
    for row in found.hosts:
        if row.result is None:
            cells = ["-"] * 5 + [f"failed: {row.error}"]
        else:
            latency, device = row.result.latency_ms, row.result.device["after"]
            figures = [f"{value:.3g}" for value in (latency.p50, latency.p90, latency.p99)]
            cells = [*figures, str(latency.n), str(row.result.threads), f"{device['cpu']}, {device['runtime']}"]
        table.add_row(*(Text(cell) for cell in (row.host, *cells)))
    console.print(table, highlight=False)
    for row in found.failed:
        if row.hint:
            console.print(Text(f"hint for {row.host}: {row.hint}"), highlight=False)
