"""What is offered to a plan: keep counts that fill steps of the device, lose little enough, and save time; zeros among
the weights where they save size or time, and few values for them where they save size.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from edgekit.cost.shapes import ShapeTable
from edgekit.cost.table import CostTable
from edgekit.graph.layers import shape_of
from edgekit.results import DroppedOption
from edgekit.tables.channels import PruningTables, fit_tables, keep_counts
from edgekit.tables.weights import MaskTables, Option
from edgekit.types import Mask, Precision
from edgekit.workbench.stages import Workbench
from edgekit.workbench.weights import able_to, can_pay

# Alone it leaves less than 13 dB between signal and noise: no plan that keeps a metric has room for it.
HOPELESS_LOSS = 0.05
# Of the whole model's latency: what saves less is not resolved by any race.
WORTHWHILE = 0.001
# "Sparsity only has benefit when channels are large enough": github.com/NVIDIA/TensorRT/issues/4065.
LEAST_SPARSE = 256
# What saves size alone, and the milder one that must not have been hopeless before it is tried.
_SMALLER: Mapping[Mask, Mask | None] = {
    Mask.HALF: None,
    Mask.THREE_QUARTERS: Mask.HALF,
    Mask.SIXTEEN_VALUES: None,
    Mask.POWERS_OF_TWO: Mask.SIXTEEN_VALUES,
    Mask.FIFTEEN_STEPS: Mask.SIXTEEN_VALUES,
    Mask.FOUR_VALUES: Mask.FIFTEEN_STEPS,
    Mask.TERNARY: Mask.FOUR_VALUES,
    Mask.BINARY: Mask.TERNARY,
}


def offer_pruning(
    bench: Workbench, table: CostTable, sized: bool
) -> tuple[CostTable, PruningTables | None, tuple[DroppedOption, ...]]:
    """What pruning offers on this device, and what it does not, with the reason; None where it offers nothing. The cost
    table comes back with what was learnt of it by the way.

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
        return table, None, tuple(dropped)
    tables = PruningTables(pruner.channels, pruner.sizes, ShapeTable({}), losses, {})
    offered = {index: tables.counts(index) for index in tables.offered}
    table, tables = fit_tables(tables, table, bench.job.graph.edges, bench.shape_profiles(table, offered))
    if not sized:
        tables, useless = _worthwhile(tables, table)
        dropped += useless
    return table, (tables if tables.offered else None), tuple(dropped)


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


def offer_masks(
    bench: Workbench, table: CostTable, base_loss: float, compressed: bool
) -> tuple[MaskTables | None, tuple[DroppedOption, ...]]:
    """What masks and codebooks offer on this target: time, where its profile says so (2:4); and size, where the weights
    are to be stored ``compressed``. None where neither.

    ``base_loss`` is what each layer loses by the float precision of the model. Milder ones go first, and what leaves
    less only where they were not hopeless.
    """
    job, masker = bench.job, bench.masker
    wanted = list(_SMALLER) if compressed else []
    if "2:4" in job.target.sparsity and job.profile.sparse_speedup > 1:
        wanted.append(Mask.TWO_OF_FOUR)
    if not wanted:
        return None, ()
    offered = {layer.name: list(table.latency_ms[layer.name]) for layer in job.graph.layers}
    names = set(offered)
    stored: dict[str, dict[Option, int]] = {}
    least, worth, other_bytes = dict[str, int](), 0.0, 0
    if compressed:
        stored = _stored_bytes(bench, dict.fromkeys(offered, Mask.NONE), offered)
        least = {name: min(row.values()) for name, row in stored.items()}
        worth = WORTHWHILE * sum(least.values())
        names = {name for name in names if least[name] > worth}
        smallest = {name: min(row, key=lambda option: row[option])[0] for name, row in stored.items()}
        whole = bench.artifact(smallest, table.base, compressed=True).weight_bytes
        other_bytes = max(0, math.ceil((whole - sum(least.values())) / len(least)))
    sparse = {precision: _skipping(bench, kinds) for precision, kinds in job.device.backend.sparse_op_types.items()}
    losses: dict[str, dict[Option, float]] = {}
    hopeless: set[tuple[str, Precision, Mask]] = set()
    dropped: list[DroppedOption] = []
    for mask in wanted:
        milder = _SMALLER.get(mask)
        able = [
            (name, precision)
            for name in able_to(job.graph, mask)
            for precision in offered[name]
            if name in names
            and can_pay(mask, precision)
            and (mask is not Mask.TWO_OF_FOUR or name in sparse.get(precision, ()))
        ]
        if milder is not None:
            hopeless |= {(name, precision, mask) for name, precision in able if (name, precision, milder) in hopeless}
        trying = [(name, precision, mask) for name, precision in able if (name, precision, mask) not in hopeless]
        if compressed:
            tried: dict[str, list[Precision]] = {}
            for name, precision, _ in trying:
                tried.setdefault(name, []).append(precision)
            for name, row in _stored_bytes(bench, dict.fromkeys(tried, mask), tried).items():
                stored[name] |= row
        if mask is not Mask.TWO_OF_FOUR:  # else it gains time, whatever its size
            trying = [(n, p, m) for n, p, m in trying if stored[n][p, m] < least[n] - worth]
        for (name, precision, _), loss in masker.losses(trying, bench.ranges).items():
            if loss <= HOPELESS_LOSS:
                losses.setdefault(name, {})[precision, mask] = loss + base_loss
            else:
                hopeless.add((name, precision, mask))
                reason = f"alone adds noise of {loss:.2g} of the signal"
                what = mask.value if mask.is_codebook else f"{mask.value} zeros"
                dropped.append(DroppedOption(f"{what} in {precision.value}", name, reason))
    return MaskTables(losses, stored, other_bytes, job.profile.sparse_speedup), tuple(dropped)


def _skipping(bench: Workbench, kinds: Collection[str]) -> frozenset[str]:
    """The layers of these operator types that are large enough to gain from zeros that their kernels skip."""
    constants = bench.job.graph.model.graph.initializers
    return frozenset(
        layer.name
        for layer in bench.job.graph.layers
        if layer.op_type in kinds and all(min(shape_of(constants[one])) >= LEAST_SPARSE for one in layer.weights)
    )


def _stored_bytes(
    bench: Workbench, masks: Mapping[str, Mask], offered: Mapping[str, Sequence[Precision]]
) -> dict[str, dict[Option, int]]:
    found = bench.masker.stored_bytes(masks, tuple(dict.fromkeys(p for row in offered.values() for p in row)))
    return {name: {(p, masks[name]): found[name][p] for p in offered[name]} for name in found}
