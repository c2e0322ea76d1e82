"""What layers take when channels go: learnt from profiles of pruned models, inside the network that they are part of.

A kernel's time has a part that follows its multiply-accumulates, parts that follow what it reads and writes, and a part
that follows nothing. How much of each depends on the layer, on the precision and on the device, so it is fitted: some
models, in which every group keeps another of its offered counts, are profiled in each uniform precision beside the
whole models, and for each layer and precision the four shares are found by non-negative least squares (Lawson and
Hanson, *Solving Least Squares Problems*, 1974, ch. 23). Counts are offered in steps of the device's channel step only,
so the staircase between them is never asked for. Pure numbers: measuring is done elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.cost.table import CostTable
from edgekit.graph.sizes import LayerSizes, Size, Sizes, constant
from edgekit.types import Precision

Shares = tuple[float, float, float, float]

# Before anything is measured: a kernel's time follows its multiply-accumulates.
_PRIOR: Shares = (0.0, 1.0, 0.0, 0.0)
# Weights of the rows, in profiles: the whole model was measured far more often, the prior is worth a fraction of one.
_WHOLE = 30.0
_DOUBT = 0.05


@dataclass(frozen=True)
class ShapeProfile:
    """Layer times in milliseconds of one model, scaled to its raced latency. ``kept`` has a count per group."""

    kept: tuple[int, ...]
    precisions: Mapping[str, Precision]
    times_ms: Mapping[str, float]

    @property
    def latency_ms(self) -> float:
        """The raced latency."""
        return math.fsum(self.times_ms.values())


@dataclass(frozen=True)
class ShapeTable:
    """``shares[layer][precision]``: what of a layer's time is fixed, follows its multiply-accumulates, its inputs, and
    its outputs. They add up to one: at full width a layer takes what the cost table says.
    """

    shares: Mapping[str, Mapping[Precision, Shares]]

    def relative_time(self, name: str, precision: Precision, layer: LayerSizes, full: Sequence[int]) -> Size:
        """A layer's time over its time at full width, as a polynomial in the kept counts. A precision that no profile
        showed (weight-only: a float kernel) goes the way of one that was, the first in the table.
        """
        known = self.shares.get(name, {})
        shares = known.get(precision) or next(iter(known.values()), _PRIOR)
        time = constant(shares[0])
        for share, size in zip(shares[1:], (layer.macs, layer.inputs, layer.outputs), strict=True):
            whole = size.at(full)
            time = time.plus(size.times(share / whole) if whole else constant(share))
        return time


def designs(offered: Sequence[Sequence[int]], count: int) -> tuple[tuple[int, ...], ...]:
    """``count`` assignments of kept counts in which every group sees each of its offered ones about equally often, in
    random company (a Latin hypercube, McKay, Beckman and Conover 1979). The same input gives the same assignments.
    """
    generator = np.random.default_rng(0)
    columns = []
    for counts in offered:
        turns = np.tile(np.arange(len(counts)), count // len(counts) + 1)[:count]
        columns.append([counts[i] for i in generator.permutation(turns)])
    return tuple(zip(*columns, strict=True)) if columns else ()


def fit_shapes(sizes: Sizes, full: Sequence[int], table: CostTable, profiles: Sequence[ShapeProfile]) -> ShapeTable:
    """The shares of every layer and precision that a profile shows; layers that no group touches keep the prior.

    A pruned layer is compared with the whole one of the first whole model among the profiles that shows it; with the
    table's entry where there is none.
    """
    from scipy.optimize import nnls

    whole_of: dict[tuple[str, Precision], float] = {}
    pruned = []
    for profile in profiles:
        if profile.kept != tuple(full):
            pruned.append(profile)
            continue
        for name, time_ms in profile.times_ms.items():
            whole_of.setdefault((name, profile.precisions[name]), time_ms)
    rows: dict[tuple[str, Precision], list[tuple[tuple[float, ...], float]]] = {}
    for profile in pruned:
        for name, time_ms in profile.times_ms.items():
            layer, precision = sizes.layers[name], profile.precisions[name]
            whole_ms = whole_of.get((name, precision), table.latency_ms[name].get(precision, 0.0))
            if whole_ms > 0 and (layer.macs.groups | layer.inputs.groups | layer.outputs.groups):
                features = (_share(layer.macs, profile.kept, full), _share(layer.inputs, profile.kept, full))
                row = (1.0, *features, _share(layer.outputs, profile.kept, full))
                rows.setdefault((name, precision), []).append((row, time_ms / whole_ms))
    shares: dict[str, dict[Precision, Shares]] = {}
    for (name, precision), seen in rows.items():
        matrix = [(*np.full(4, _WHOLE),), *(row for row, _ in seen), *(_DOUBT * np.eye(4))]
        times = [_WHOLE, *(time for _, time in seen), *(_DOUBT * np.asarray(_PRIOR))]
        found, _ = nnls(np.asarray(matrix, float), np.asarray(times, float))
        found = found / found.sum()
        shares.setdefault(name, {})[precision] = (found[0], found[1], found[2], found[3])
    return ShapeTable(shares)


def _share(size: Size, kept: Sequence[int], full: Sequence[int]) -> float:
    whole = size.at(full)
    return size.at(kept) / whole if whole else 1.0
