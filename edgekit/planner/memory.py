"""The memory of a program: resident weights and the live activations of every execution step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgekit.planner.rows import Entries, Rows, Shares
from edgekit.planner.table import Condition, most_of


class Level(NamedTuple):
    """Columns that sum to 1 when (a share of) a tensor takes at least so many bytes over its least."""

    size_bytes: float
    columns: tuple[int, ...]


class Crowd(NamedTuple):
    """An execution step: what its tensors and the resident weights may take together over their least, and for each
    tensor, or share of one, the sizes that it can have, largest first.
    """

    room_bytes: float
    tensors: tuple[tuple[Level, ...], ...]


class Memory(NamedTuple):
    """The steps that may not hold all that could be live in them. The resident weights over their least are
    ``resident_bytes`` times a column, if they differ at all.
    """

    resident: int | None = None
    resident_bytes: float = 0.0
    crowds: tuple[Crowd, ...] = ()


def memory_rows(
    rows: Rows, shares: Shares, weights: Entries, slack: float | None, minimise_peak: bool
) -> tuple[Memory, Entries]:
    """Resident weights + live activations of every step, over the least, stay under ``slack``; to minimise their peak,
    also under a column whose bytes are returned as the objective's entry.
    """
    table = shares.table
    room = slack if rows.tight else None
    members = [_large(rows, shares, condition) for condition in table.conditions]
    widest = max(step.least_bytes for step in table.steps)
    unit = math.fsum(weights.values())
    if room is not None:
        unit = min(unit, room)
    resident = None
    if unit > 0:  # resident weights in one column: the rows of the steps stay sparse
        resident = rows.column()
        rows.add({c: amount / unit for c, amount in weights.items()} | {resident: -1.0}, 0.0, 0.0)
    rooms: dict[int, float] = {}  # what a tensor may take over its least
    for step in table.steps:
        for tensor in step.sizes:
            left = math.inf if room is None else room + widest - step.least_bytes
            rooms[tensor] = min(rooms.get(tensor, math.inf), left)
    held, levels = _tensor_columns(rows, shares, rooms)
    crowds = []
    span = unit + max(most_of(step, table.sizes) for step in table.steps)
    if room is not None:
        span = min(span, room)
    peak = rows.column() if minimise_peak and span > 0 else None
    for step in table.steps:
        entries: Entries = {} if resident is None else {resident: unit}
        for which, extra in step.extra.items():
            for column in members[which]:
                entries[column] = entries.get(column, 0.0) + extra
        for tensor in sorted(step.sizes):
            for column, amount in held[tensor].items():
                entries[column] = entries.get(column, 0.0) + amount
        if slack is not None and sum(entries.values()) > (left := slack + widest - step.least_bytes):
            rows.budget("memory_bytes", entries, left)  # drops what can not be used
            alone = [(Level(extra, tuple(members[which])),) for which, extra in step.extra.items() if members[which]]
            crowds.append(Crowd(left, (*alone, *(one for tensor in sorted(step.sizes) for one in levels[tensor]))))
        if peak is not None:
            scaled = {c: amount / span for c, amount in entries.items()}
            rows.add(scaled | {peak: -1.0}, -math.inf, (widest - step.least_bytes) / span)
    return Memory(resident, unit, tuple(crowds)), {} if peak is None else {peak: span}


def _large(rows: Rows, shares: Shares, condition: Condition) -> Entries:
    """Columns that sum to 1 when the condition holds."""
    if not shares.possible(condition):
        return {}
    decisive = shares.decisive(condition.any_of)
    guards = shares.undecided(condition.all_of)
    if len(decisive) + len(guards) == 1:
        return shares.floats[(*decisive, *guards)[0]]
    large = rows.column()
    for decider in decisive or (None,):
        # At least what all of them are, less what they fall short of holding all.
        entries = {large: 1.0}
        for one in guards if decider is None else (*guards, decider):
            for column, value in shares.floats[one].items():
                entries[column] = entries.get(column, 0.0) - value
        rows.add(entries, 1.0 - len(guards) - (decider is not None), math.inf)
    return {large: 1.0}


def _tensor_columns(
    rows: Rows, shares: Shares, rooms: Mapping[int, float]
) -> tuple[dict[int, Entries], dict[int, list[tuple[Level, ...]]]]:
    """For each tensor that changes with channel groups its bytes over its least, as few columns as can say it, and the
    levels of its shares: what each group adds, and what is left.
    """
    held: dict[int, Entries] = {}
    levels: dict[int, list[tuple[Level, ...]]] = {}
    for number, size in shares.table.sizes.items():
        large = _large(rows, shares, size.condition) if size.condition.all_of else None
        decisive = shares.decisive(size.condition.any_of) if large is None else ()
        entries: Entries = {}
        extra = size.extra
        levels[number] = []
        for group, small in size.small.items():
            kept = shares.kept(group)
            sizes = [(amount, columns) for amount, columns in zip(small.tolist(), kept, strict=True)]
            for amount, columns in sizes:
                for column in columns:
                    entries[column] = entries.get(column, 0.0) + amount
            if (decisive or large) and size.extras[group].any():
                amounts = (size.extras[group] + extra).tolist()
                extra = 0.0  # the large and kept ones add up to the large one
                joint = _large_and_kept(rows, shares, decisive, group, large)
                for columns, amount in zip(joint, amounts, strict=True):
                    for column in columns:
                        entries[column] = entries.get(column, 0.0) + amount
                large_sizes = [at + more for (at, _), more in zip(sizes, amounts, strict=True)]
                levels[number].append(_levels(sizes, list(zip(large_sizes, joint, strict=True))))
            else:
                levels[number].append(_levels(sizes))
        if extra and (decisive or large):
            columns = _large(rows, shares, Condition(decisive)) if large is None else large
            for column in columns:
                entries[column] = entries.get(column, 0.0) + extra
            levels[number].append(_levels([(extra, columns)]))
        entries = {column: amount for column, amount in entries.items() if amount}
        room = rooms.get(number, math.inf)
        rows.drop_over(entries, room)
        if len(entries) > 1:
            column = rows.column()
            unit = min(size.most, room)
            rows.add({c: amount / unit for c, amount in entries.items()} | {column: -1.0}, -math.inf, 0.0)
            entries = {column: unit}
        held[number] = entries
    return held, levels


def _levels(
    small: Sequence[tuple[float, Entries]], large: Sequence[tuple[float, Entries]] | None = None
) -> tuple[Level, ...]:
    """The levels of a share that has one of the ``small`` sizes, or that of ``large`` in its place. Each size comes
    with the columns that say so; those of ``large`` are a part of what those of ``small`` say.
    """
    found = []
    for least in sorted({size for size, _ in (*small, *(large or ())) if size > 0}, reverse=True):
        columns: Entries = {}
        for place, (size, entries) in enumerate(small):
            if size >= least:
                columns |= entries
            elif large is not None and large[place][0] >= least:
                columns |= large[place][1]
        if columns:
            found.append(Level(least, tuple(columns)))
    return tuple(found)


def _large_and_kept(
    rows: Rows, shares: Shares, decisive: tuple[int, ...], group: int, large: Entries | None
) -> list[Entries]:
    """By the group's options: columns that sum to 1 when it is chosen and the tensor is large: where one of the
    deciders holds, or where the columns ``large`` say so.
    """
    joint = [(shares.floats[layer], shares.float_and_kept(layer, group)) for layer in decisive]
    if large is not None:
        joint = [(large, None)]
    alone = joint[0][1]
    if len(joint) == 1 and alone is not None:
        return alone
    kept = shares.kept(group)
    found: list[Entries] = [{rows.column(): 1.0} if chosen else {} for chosen in kept]
    for whole, by_option in joint:
        if by_option is None:
            total = {column: 1.0 for entries in found for column in entries}
            rows.add(total | {column: -value for column, value in whole.items()}, 0.0, math.inf)
            continue
        for entries, columns in zip(found, by_option, strict=True):
            for column in entries:
                rows.at_least(column, columns)
    if any(by_option is None for _, by_option in joint):
        for entries, chosen in zip(found, kept, strict=True):
            if chosen:
                rows.add(entries | dict.fromkeys(chosen, -1.0), -math.inf, 0.0)
    return found
