"""What the numbers of a planning problem must satisfy before it is solved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from edgekit.planner.problem import QUANTITIES, Limits, Problem, ShapeCost


def validate(problem: Problem, limits: Limits) -> None:
    """Raise ``ValueError``, naming the layer or group, for numbers that no cost model may produce."""
    for layer in problem.layers:
        if not layer.options:
            raise ValueError(f"layer {layer.name}: no options")
        for o in layer.options:
            where = f"layer {layer.name}, option {o.precision}"
            _check(
                where, latency_ms=o.latency_ms, loss=o.loss, weight_bytes=o.weight_bytes, memory_bytes=o.memory_bytes
            )
            if o.domain not in ("int8", "float"):
                raise ValueError(f"{where}: domain is {o.domain!r}; it must be 'int8' or 'float'")
    for group in problem.groups:
        if not group.options:
            raise ValueError(f"group {group.name}: no options")
        for choice in group.options:
            _check(f"group {group.name}, option {choice.kept}", kept=choice.kept, loss=choice.loss)
    _check("problem", fixed_latency_ms=problem.fixed_latency_ms)
    for i, shape in enumerate(problem.shape_costs):
        _check_shape(problem, i, shape)
    for i, b in enumerate(problem.boundaries):
        _check_indices(f"boundary {i}", (b.producer,), -1, len(problem.layers))
        _check_indices(f"boundary {i}", (b.consumer,), 0, len(problem.layers))
        where = f"boundary {i} into layer {problem.layers[b.consumer].name}"
        _check(where, cost_ms=b.cost_ms)
        for part in b.parts:
            _check_part(problem, where, part.group, cost_ms=part.cost_ms)
    for i, t in enumerate(problem.tensors):
        _check(f"tensor {i}", bytes_full=t.bytes_full, bytes_small=t.bytes_small)
        _check_indices(f"tensor {i}", (*t.deciders, *t.int8_deciders, *t.int8_guards), 0, len(problem.layers))
        pairs = [(t.bytes_small, t.bytes_full)]
        for piece in t.parts:
            sizes = {"bytes_full": piece.bytes_full, "bytes_small": piece.bytes_small}
            _check_part(problem, f"tensor {i}", piece.group, **sizes)
            pairs += zip(piece.bytes_small, piece.bytes_full, strict=True)
        for small, full in pairs:
            if small > full:
                raise ValueError(f"tensor {i}: bytes_small {small} is more than bytes_full {full}")
    for i, step in enumerate(problem.steps):
        _check_indices(f"step {i}", step, 0, len(problem.tensors))
    for quantity in QUANTITIES:
        limit = getattr(limits, quantity)
        if limit is not None:
            _check("limits", **{quantity: limit})


def _check(where: str, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{where}: {name} is {value}; it must be finite and not negative")


def _check_indices(where: str, indices: Iterable[int], low: int, high: int) -> None:
    for index in indices:
        if not low <= index < high:
            raise ValueError(f"{where}: index {index} is outside {low}..{high - 1}")


def _check_part(problem: Problem, where: str, group: int, **rows: Sequence[float]) -> None:
    _check_indices(where, (group,), 0, len(problem.groups))
    where = f"{where}, group {problem.groups[group].name}"
    for name, row in rows.items():
        if len(row) != len(problem.groups[group].options):
            raise ValueError(f"{where}: {name} has {len(row)} values for {len(problem.groups[group].options)} options")
        for value in row:
            _check(where, **{name: value})


def _check_shape(problem: Problem, number: int, shape: ShapeCost) -> None:
    _check_indices(f"shape cost {number}", (shape.layer,), 0, len(problem.layers))
    _check_indices(f"shape cost {number}", shape.groups, 0, len(problem.groups))
    layer = problem.layers[shape.layer]
    where = f"shape cost {number} of layer {layer.name}"
    if len(shape.groups) not in (1, 2) or len(set(shape.groups)) != len(shape.groups):
        raise ValueError(f"{where}: its groups are {shape.groups}; it must have one or two distinct ones")
    expected = (len(layer.options), *(len(problem.groups[group].options) for group in shape.groups))
    for name in ("latency_ms", "weight_bytes", "memory_bytes"):
        level: list[Any] = [getattr(shape, name)]
        for count in expected:
            if any(len(row) != count for row in level):
                raise ValueError(f"{where}: {name} must have the shape {' x '.join(map(str, expected))}")
            level = [value for row in level for value in row]
        for value in level:
            _check(where, **{name: value})
            if name != "latency_ms" and value != int(value):
                raise ValueError(f"{where}: {name} is {value}; bytes are whole numbers")
