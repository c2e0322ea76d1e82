"""Profiles pruned models on a device that is at hand (what is made of them is told in `edgekit.cost.shapes`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edgekit.backends import Artifact
from edgekit.cost.crossings import alternating
from edgekit.cost.shapes import ShapeProfile, designs
from edgekit.cost.table import CostTable, anchored, layer_times_ms
from edgekit.types import Precision

if TYPE_CHECKING:
    from edgekit.devices.race import Device
    from edgekit.graph import Graph

# A plan of this graph with so many channels kept in each group as an artifact.
Build = Callable[[Sequence[int], Mapping[str, Precision], Precision], Artifact]

DESIGNS = 6
_PROFILE_S = 0.3
_COMPILES = 2
_RACE_S = 9.0


def profile_shapes(
    graph: Graph,
    device: Device,
    build: Build,
    table: CostTable,
    full: Sequence[int],
    offered: Mapping[int, Sequence[int]],
) -> tuple[ShapeProfile, ...]:
    """Profile `DESIGNS` pruned models in each uniform precision of the cost table; and the whole ones, first in these
    precisions, then in the plans that alternate. All of them are one race.

    ``full`` holds every group's channels, ``offered`` the counts of those groups (by index) that have a choice.
    """
    counts = [offered.get(index, (channels,)) for index, channels in enumerate(full)]
    assignments = designs(counts, DESIGNS)
    floats = dict(table.floats)
    uniform = [floats]
    able = [name for name, row in table.latency_ms.items() if Precision.INT8 in row]
    mixed = []
    if able:
        uniform.append(floats | dict.fromkeys(able, Precision.INT8))
        mixed = [floats | dict.fromkeys(some, Precision.INT8) for some in alternating(able).values()]
    plans = [
        *((tuple(full), plan) for plan in uniform + mixed),
        *((tuple(kept), plan) for plan in uniform for kept in assignments),
    ]
    models = {str(number): build(kept, plan, table.base) for number, (kept, plan) in enumerate(plans)}
    raced = device.race(models, _RACE_S)
    rows = device.profile(models, _PROFILE_S, _COMPILES)
    found = []
    for (name, row), (kept, plan) in zip(rows.items(), plans, strict=True):
        times = layer_times_ms(device.backend.executed_nodes(row, graph), graph.layers)
        latency_ms = table.anchors_ms[table.base] * raced[name].ratio
        found.append(ShapeProfile(kept, plan, anchored(times, latency_ms)))
    return tuple(found)
