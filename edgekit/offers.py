"""Which keep counts are offered to a plan: those that fill steps of the device, lose little enough, and save time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgekit.cost.measured import MeasuredCosts
from edgekit.cost.shapes import ShapeTable, fit_shapes
from edgekit.cost.table import CostTable
from edgekit.pruning import PruningTables, keep_counts
from edgekit.results import DroppedOption
from edgekit.stages import Workbench

# Alone it leaves less than 13 dB between signal and noise: no plan that keeps a metric has room for it.
HOPELESS_LOSS = 0.05
# Of the whole model's latency: what saves less is not resolved by any race.
WORTHWHILE = 0.001


def offer_pruning(
    bench: Workbench, costs: MeasuredCosts, sized: bool
) -> tuple[PruningTables | None, tuple[DroppedOption, ...]]:
    """What pruning offers on this device, and what it does not, with the reason; None where it offers nothing.

    The mildest option of every group is tried first, and the next one only where that one was not hopeless. ``sized``
    offers what saves size alone as well.
    """
    pruner = bench.pruner
    groups = pruner.channels.groups
    step = bench.job.profile.channel_step
    dropped: list[DroppedOption] = []
    waiting: dict[str, list[int]] = {}
    for group in groups:
        counts = keep_counts(group, step)
        if counts:
            waiting[group.name] = list(counts)
        else:
            reason = f"its {group.channels * group.width} channels are no more than one step of {step} on this device"
            dropped.append(DroppedOption("pruning", group.name, reason))
    channels = {group.name: group.channels for group in groups}
    losses = {name: {channels[name]: 0.0} for name in waiting}
    while waiting:
        tried = pruner.losses([(name, counts[0]) for name, counts in waiting.items()])
        for (name, kept), loss in tried.items():
            if loss <= HOPELESS_LOSS:
                losses[name][kept] = loss
                waiting[name].pop(0)
            else:
                reason = f"alone adds noise of {loss:.2g} of the signal"
                dropped.append(DroppedOption(f"keep {kept} of {channels[name]}", name, reason))
                waiting[name] = []
        waiting = {name: counts for name, counts in waiting.items() if counts}
    losses = {name: row for name, row in losses.items() if len(row) > 1}
    if not losses:
        return None, tuple(dropped)
    tables = PruningTables(pruner.channels, pruner.sizes, ShapeTable({}), losses, {})
    offered = {index: tables.counts(index) for index in tables.offered}
    profiles = bench.shape_profiles(costs.table, offered)
    tables = replace(tables, shapes=fit_shapes(tables.sizes, tables.full, costs.table, profiles), profiles=profiles)
    if not sized:
        tables, useless = _worthwhile(tables, costs.table)
        dropped += useless
    return (tables if tables.offered else None), tuple(dropped)


def saved_ms(tables: PruningTables, table: CostTable) -> dict[str, dict[int, float]]:
    """What each offered count of each group alone saves of the latency, in the precision where it saves most."""
    saved: dict[str, dict[int, float]] = {}
    times = {
        name: [(ms, tables.latency_ms(table, name, precision)) for precision, ms in row.items()]
        for name, row in table.latency_ms.items()
    }
    for index in tables.offered:
        group = tables.channels.groups[index]
        touched = [row for row in times.values() if any(index in size.groups for _, size in row)]
        for kept in tables.counts(index):
            counts = tables.kept({group.name: kept})
            saved.setdefault(group.name, {})[kept] = sum(
                max(ms - size.at(counts) for ms, size in row) for row in touched
            )
    return saved


def _worthwhile(tables: PruningTables, table: CostTable) -> tuple[PruningTables, list[DroppedOption]]:
    least_ms = WORTHWHILE * table.anchors_ms[table.base]
    kept_losses: dict[str, Mapping[int, float]] = dict(tables.losses)
    dropped = []
    for name, saved in saved_ms(tables, table).items():
        channels = max(saved)
        useless = {kept for kept, ms in saved.items() if kept < channels and ms < least_ms}
        kept_losses[name] = {kept: loss for kept, loss in tables.losses[name].items() if kept not in useless}
        dropped += [
            DroppedOption(f"keep {kept} of {channels}", name, f"saves {saved[kept]:.3g} ms on this device")
            for kept in sorted(useless, reverse=True)
        ]
    return replace(tables, losses=kept_losses), dropped
