"""What pruning offers to a plan: the keep counts of each channel group, what each loses, and what layers take then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from edgekit.cost.levels import fit_levels, levelled, sum_of
from edgekit.cost.shapes import ShapeProfile, ShapeTable, fit_shapes
from edgekit.cost.table import CostTable
from edgekit.graph.sizes import Size, Sizes
from edgekit.types import Edge, Precision

if TYPE_CHECKING:
    from edgekit.graph.channels import ChannelGroup, Channels


RATIOS = (0.875, 0.75, 0.625, 0.5)
"""What groups may keep, beside all: four more options, as many as keep a plan of 1,000 layers quick."""


def keep_counts(group: ChannelGroup, step: int) -> tuple[int, ...]:
    """The counts below all of a group's channels that fill whole steps of the device, nearest to `RATIOS`, most first.

    A unit that is several positions wide (an attention head) counts with its width. A group of less than a step has
    none: the device would take as long for fewer.
    """
    whole = group.channels * group.width
    found = []
    for ratio in RATIOS:
        steps = max(1, round(ratio * whole / step))
        count = max(1, steps * step // group.width)
        if count < group.channels and -(-count * group.width // step) < -(-whole // step):
            found.append(count)
    return tuple(sorted(set(found), reverse=True))


@dataclass(frozen=True)
class PruningTables:
    """``losses[group][kept]`` for every offered count, the whole group first (it loses nothing); groups that are not
    in it stay whole. ``factor`` scales a group's losses to what realised plans showed, ``profiles`` is what ``shapes``
    was fitted to.
    """

    channels: Channels
    sizes: Sizes
    shapes: ShapeTable
    losses: Mapping[str, Mapping[int, float]]
    factor: Mapping[str, float]
    profiles: tuple[ShapeProfile, ...] = ()

    @cached_property
    def full(self) -> tuple[int, ...]:
        """Every group's channels."""
        return tuple(group.channels for group in self.channels.groups)

    @cached_property
    def offered(self) -> tuple[int, ...]:
        """Indices of the groups that have a choice."""
        return tuple(i for i, group in enumerate(self.channels.groups) if len(self.losses.get(group.name, ())) > 1)

    def counts(self, index: int) -> tuple[int, ...]:
        """The offered counts of a group, all of its channels first."""
        return tuple(self.losses[self.channels.groups[index].name])

    def loss(self, index: int, kept: int) -> float:
        """What keeping only so many channels of a group loses, corrected."""
        name = self.channels.groups[index].name
        return self.losses[name][kept] * self.factor.get(name, 1.0)

    def kept(self, named: Mapping[str, int]) -> tuple[int, ...]:
        """A count for every group, from those of the groups that lose channels."""
        return tuple(named.get(group.name, group.channels) for group in self.channels.groups)

    def keep_ratio(self, layer: str, kept: Sequence[int]) -> float:
        """The kept share of a layer's output channels."""
        channels = self.sizes.layers[layer].channels
        return channels.at(kept) / channels.at(self.full)

    def latency_ms(self, table: CostTable, layer: str, precision: Precision) -> Size:
        """A layer's latency as a polynomial in the kept counts."""
        relative = self.shapes.relative_time(layer, precision, self.sizes.layers[layer], self.full)
        return relative.times(table.latency_ms[layer][precision])

    def tensor_share(self, tensor: str, kept: Sequence[int]) -> float:
        """What is left of a tensor's elements."""
        size = self.sizes.tensors.get(tensor)
        return size.at(kept) / size.at(self.full) if size is not None else 1.0

    def edges(self, edges: Iterable[Edge], kept: Sequence[int]) -> tuple[Edge, ...]:
        """The edges of the pruned model; ``edges`` are those of the whole one."""
        return tuple(
            replace(edge, elements=round(edge.elements * self.tensor_share(edge.tensor, kept))) for edge in edges
        )

    def at(self, table: CostTable, edges: Iterable[Edge], kept: Sequence[int]) -> CostTable:
        """The cost table of the pruned model; ``edges`` are those of the whole one."""
        share = {(edge.producer, edge.consumer): self.tensor_share(edge.tensor, kept) for edge in edges}
        return replace(
            table,
            latency_ms={
                name: {p: self.latency_ms(table, name, p).at(kept) for p in row}
                for name, row in table.latency_ms.items()
            },
            crossing_ms={
                producer: {consumer: ms * share.get((producer, consumer), 1.0) for consumer, ms in row.items()}
                for producer, row in table.crossing_ms.items()
            },
        )


def fit_tables(
    tables: PruningTables, table: CostTable, edges: Sequence[Edge], profiles: Sequence[ShapeProfile]
) -> tuple[CostTable, PruningTables]:
    """Both tables, fitted to profiles of pruned and of whole models; ``edges`` are those of the whole one."""
    shapes = fit_shapes(tables.sizes, tables.full, table, profiles)
    fitted = replace(tables, shapes=shapes, profiles=tuple(profiles))
    sums = []
    for profile in profiles:
        at = fitted.at(table, edges, profile.kept)
        sums.append(sum_of(at, fitted.edges(edges, profile.kept), profile.precisions, profile.latency_ms))
    return levelled(table, fit_levels(sums)), fitted
