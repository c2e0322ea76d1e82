"""A measured device profile, and two profiles side by side, on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgekit.reporting.tables import add, count, safe, say, table
from edgekit.types import Precision

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.profiles.differences import CostDifference, CostSide, ProfileDifference
    from edgekit.profiles.measuring import MeasuredProfile, NetworkLatency


def print_profile(found: MeasuredProfile, console: Console) -> None:
    """Every small network, then what the fit makes of them, then where the profile went."""
    precisions = list(dict.fromkeys(row.precision for row in found.networks))
    columns = [f"{precision.value} ms" for precision in precisions]
    rows = table(("small network", "MACs", *columns), ("small network", "MACs", *columns))
    rows.columns[0].justify = "left"
    for name in dict.fromkeys(row.network for row in found.networks):
        mine = {row.precision: row for row in found.networks if row.network == name}
        macs = next(iter(mine.values())).macs
        add(rows, name, count(macs), *(_cell(mine.get(precision)) for precision in precisions))
    console.print(rows)
    say(console, "[dim]behind each latency: how far off a fit without this network is[/]")
    for option in found.dropped:
        say(console, f"dropped  {safe(option.option)}: {safe(option.reason)}")
    for name, reason in found.left_out.items():
        say(console, f"left out  {safe(name)}: {safe(reason)}")
    steps = ", ".join(f"{p.value} {step or 'not clear'}" for p, step in found.channel_steps.items())
    say(console, f"channel step  {steps}: the profile takes {found.profile.channel_step}")
    if found.boundary_ms_per_element is not None:
        say(console, f"change of precision  {found.boundary_ms_per_element * 1e5:.3g} ms for 1e5 elements (measured)")
    if found.profile.memory is not None:
        say(console, f"memory  {found.profile.memory.bandwidth_gbs:.3g} GB/s")
    for cost in found.profile.costs[-len(precisions) :]:  # the new ones come last
        say(console, f"costs  {cost.precision.value}: {safe(cost.evidence)}")
    say(console, f"{found.seconds:.0f} s on {safe(found.device.cpu)}; written to {safe(found.file)}")


def _cell(row: NetworkLatency | None) -> str:
    return "–" if row is None else f"{row.latency_ms:.3g} {row.held_out_ms / row.latency_ms - 1:>+5.0%}"


def print_profile_difference(found: ProfileDifference, console: Console) -> None:
    """Facts first, then the costs that differ."""
    say(console, f"[bold]device profile {safe(found.name)}[/]")
    say(console, f"A  {safe(found.a)}")
    say(console, f"B  {safe(found.b)}")
    if found.same:
        say(console, "no difference")
        return
    if found.facts:
        rows = table(("", "A", "B"), ("A", "B"))
        for fact in found.facts:
            add(rows, fact.name, *("none" if v is None else f"{v:.4g}" for v in (fact.a, fact.b)))
        console.print(rows)
    if found.costs:
        if found.facts:
            say(console, "")
        timed = any(side is not None and side.kernels for cost in found.costs for side in (cost.a, cost.b))
        columns = (
            "costs",
            "rows",
            "races",
            *(["kernels"] if timed else []),
            "90 % interval",
            "latency",
            "most changed",
        )
        rows = table(columns, columns[1:-1])
        for cost in found.costs:
            changed = "" if cost.most_factor is None else f"{cost.most_changed} x{cost.most_factor:.3g}"
            add(
                rows,
                _named(cost),
                _both(cost, lambda side: str(side.rows)),
                _both(cost, lambda side: str(side.anchors)),
                *([_kernels(cost)] if timed else []),
                _both(cost, lambda side: f"x/÷ {side.reach:.2f}"),
                "" if cost.factor is None else f"x{cost.factor:.3g}",
                changed,
            )
        console.print(rows)
        say(console, "[dim]latency: what B predicts over what A does, for a network of the kinds that were measured[/]")
        if timed:
            say(console, "[dim]kernels: how many were timed on the board; B's over A's, the median of those in both[/]")


def _named(cost: CostDifference) -> str:
    threads = f", {cost.threads} threads" if cost.threads else ""
    return f"{cost.runtime} {cost.processor} {Precision(cost.precision).value}{threads}"


def _kernels(cost: CostDifference) -> str:
    counts = _both(cost, lambda side: str(side.kernels))
    return counts if cost.kernel_factor is None else f"{counts}, x{cost.kernel_factor:.3g}"


def _both(cost: CostDifference, text: Callable[[CostSide], str]) -> str:
    a, b = ("none" if side is None else text(side) for side in (cost.a, cost.b))
    return a if a == b else f"{a} → {b}"
