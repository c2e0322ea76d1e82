"""Profiles pruned models on a device that is at hand (what is made of them is told in `edgekit.cost.shapes`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edgekit.backends import Artifact
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
_RACE_S = 6.0


def profile_shapes(
    graph: Graph,
    device: Device,
    build: Build,
    table: CostTable,
    full: Sequence[int],
    offered: Mapping[int, Sequence[int]],
) -> tuple[ShapeProfile, ...]:
    """Profile `DESIGNS` pruned models in each uniform precision of the cost table, raced beside the whole model.

    ``full`` holds every group's channels, ``offered`` the counts of those groups (by index) that have a choice.
    """
    counts = [offered.get(index, (channels,)) for index, channels in enumerate(full)]
    assignments = designs(counts, DESIGNS)
    plans = [table.floats]
    int8 = {
        name: Precision.INT8 if Precision.INT8 in row else table.floats[name] for name, row in table.latency_ms.items()
    }
    if Precision.INT8 in int8.values():
        plans.append(int8)
    whole = build(full, table.floats, table.base)
    models = {
        (number, turn): build(kept, plan, table.base)
        for number, plan in enumerate(plans)
        for turn, kept in enumerate(assignments)
    }
    named = {f"pruned {number} {turn}": artifact for (number, turn), artifact in models.items()}
    raced = device.race({"whole": whole, **named}, _RACE_S)
    rows = device.profile(named, _PROFILE_S, _COMPILES)
    found = []
    for number, plan in enumerate(plans):
        for turn, kept in enumerate(assignments):
            name = f"pruned {number} {turn}"
            times = layer_times_ms(device.backend.executed_nodes(rows[name], graph), graph.layers)
            latency_ms = table.anchors_ms[table.base] * raced[name].ratio
            found.append(ShapeProfile(tuple(kept), dict(plan), anchored(times, latency_ms)))
    return tuple(found)
