"""What each tensor costs that passes between an int8 and a float layer: learnt from the profiles of mixed plans.

A coefficient per element says what a conversion costs, not where fusion hides it: quantizing a convolution's result is
free inside its kernel, and dear where a padding, a pooling or a residual stands between. In plans that switch after
every layer, or after every second one, each tensor is seen crossing; what its two layers then take beyond their times
in the uniform models is its cost. Pure numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.types import Edge, Precision

# How much evidence a crossing needs: seen n times, n / (n + this) of what was measured is believed.
_DOUBT = 0.1

Times = Mapping[str, float]
Plan = Mapping[str, Precision]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Crossings:
    """``cost_ms[producer][consumer]`` is paid for each edge between the two where their domains differ.

    A crossing that costs more one way than the other is a cost for both ways, and time that moves from the int8 entry
    of one layer to that of the other: ``shift_ms`` is to be added to them. It adds up to zero over all layers.
    """

    cost_ms: Mapping[str, Mapping[str, float]]
    shift_ms: Times


def alternating(names: Sequence[str]) -> dict[str, list[str]]:
    """Plans, as their int8 layers, that switch after every layer and after every second one, each both ways round."""
    return {
        f"alternating {run} {turn}": [name for place, name in enumerate(names) if place // run % 2 == turn]
        for run in (1, 2)
        for turn in (0, 1)
        if len(names) > run
    }


def fit_crossings(
    edges: Iterable[Edge], float_ms: Times, int8_ms: Times, mixed: Sequence[tuple[Plan, Times]]
) -> Crossings:
    """``float_ms`` and ``int8_ms`` are the layers' entries in the table (int8 only of those that have one), ``mixed``
    the layers' times in other plans, scaled to the latencies of these. Edges that never cross in them get no entry.
    """
    pairs = list(dict.fromkeys((edge.producer, edge.consumer) for edge in edges))
    touching: dict[str, list[Pair]] = {name: [] for name in float_ms}
    for pair in pairs:
        for name in pair:
            if name:
                touching[name].append(pair)
    out_ms, in_ms = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 0.0)
    for name, near in touching.items():
        rows = [[way for pair in near for way in _ways(pair, plan)] for plan, _ in mixed]
        beyond = [times[name] - (int8_ms if plan[name] is Precision.INT8 else float_ms)[name] for plan, times in mixed]
        if near and rows:
            seen = np.asarray(rows, float)
            found = np.linalg.solve(seen.T @ seen + _DOUBT * np.eye(seen.shape[1]), seen.T @ np.asarray(beyond))
            for place, pair in enumerate(near):
                out_ms[pair] += float(found[2 * place])
                in_ms[pair] += float(found[2 * place + 1])
    cost_ms: dict[str, dict[str, float]] = {}
    shift_ms = dict.fromkeys(float_ms, 0.0)
    for pair in pairs:
        ways = np.sum([_ways(pair, plan) for plan, _ in mixed], axis=0) if mixed else np.zeros(2)
        if not ways.any():
            continue
        producer, consumer = pair
        if not ways.all():  # seen one way only: the other is thought to cost the same
            cost_ms.setdefault(producer, {})[consumer] = max(out_ms[pair] if ways[0] else in_ms[pair], 0.0)
            continue
        cost_ms.setdefault(producer, {})[consumer] = max((out_ms[pair] + in_ms[pair]) / 2, 0.0)
        moved_ms = (out_ms[pair] - in_ms[pair]) / 2
        loser = consumer if moved_ms > 0 else producer
        moved_ms = float(np.copysign(min(abs(moved_ms), int8_ms[loser] + shift_ms[loser]), moved_ms))
        shift_ms[producer] += moved_ms
        shift_ms[consumer] -= moved_ms
    return Crossings(cost_ms, shift_ms)


def _ways(pair: Pair, plan: Plan) -> tuple[bool, bool]:
    """Whether the edge crosses from int8 to float, and from float to int8 (model inputs are float)."""
    producer, consumer = (plan.get(name) is Precision.INT8 for name in pair)
    return producer and not consumer, consumer and not producer
