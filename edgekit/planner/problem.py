"""The planning problem in plain numbers, and the exact totals of a choice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edgekit.types import Precision

Quantity = Literal["latency_ms", "weight_bytes", "memory_bytes", "loss"]
QUANTITIES: tuple[Quantity, ...] = ("latency_ms", "weight_bytes", "memory_bytes", "loss")


@dataclass(frozen=True)
class LayerOption:
    """One way to execute a layer. ``memory_bytes`` are its resident weights, ``loss`` its relative output noise power,
    ``domain`` what crosses its edges: "int8" or "float".
    """

    precision: Precision
    latency_ms: float
    weight_bytes: int
    memory_bytes: int
    loss: float
    domain: str


@dataclass(frozen=True)
class PlanningLayer:
    """A layer with its options, at least one."""

    name: str
    op_type: str
    options: tuple[LayerOption, ...]


@dataclass(frozen=True)
class Boundary:
    """``cost_ms`` is paid when two layers (indices) choose different domains. Producer -1 is a model input: float."""

    producer: int
    consumer: int
    cost_ms: float


@dataclass(frozen=True)
class ActivationTensor:
    """Takes ``bytes_small`` when all ``deciders`` (layer indices) chose "int8", else ``bytes_full``; with no deciders
    it always takes ``bytes_full``.
    """

    bytes_full: int
    bytes_small: int
    deciders: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """``steps`` lists, for each execution step, the indices of the tensors that are live in it."""

    layers: tuple[PlanningLayer, ...]
    boundaries: tuple[Boundary, ...] = ()
    tensors: tuple[ActivationTensor, ...] = ()
    steps: tuple[tuple[int, ...], ...] = ()
    fixed_latency_ms: float = 0.0


@dataclass(frozen=True)
class Limits:
    """Budgets; ``None`` means unlimited. ``memory_bytes`` bounds resident weights + live activations at every step."""

    latency_ms: float | None = None
    weight_bytes: int | None = None
    memory_bytes: int | None = None
    loss: float | None = None

    def with_limit(self, quantity: Quantity, value: float | None) -> Limits:
        """These limits with one of them set, or removed by ``None``."""
        return replace(self, **{quantity: value})  # type: ignore[arg-type]  # byte limits stay whole numbers


@dataclass(frozen=True)
class Totals:
    """What a choice costs. ``memory_bytes`` is resident weights + ``peak_activation_bytes``."""

    latency_ms: float
    weight_bytes: int
    memory_bytes: int
    peak_activation_bytes: int
    loss: float


@dataclass(frozen=True)
class Solution:
    """``choice`` holds one option index per layer. ``gap`` is (value - proven lower bound) / value of the objective;
    it includes what was deliberately given back for the second objective, ``search_gap`` does not. ``binding`` names
    the limits (fields of ``Limits``) that hold the objective back, ``seconds`` is wall time.
    """

    choice: tuple[int, ...]
    totals: Totals
    gap: float
    search_gap: float
    binding: tuple[str, ...]
    seconds: float = field(compare=False)


def evaluate(problem: Problem, choice: Sequence[int]) -> Totals:
    """Exact totals of a choice (one option index per layer). The truth that the MILP must equal."""
    chosen = [layer.options[index] for layer, index in zip(problem.layers, choice, strict=True)]
    small = [option.domain == "int8" for option in chosen]
    crossings = (b.cost_ms for b in problem.boundaries if (b.producer >= 0 and small[b.producer]) != small[b.consumer])
    sizes = [
        t.bytes_small if t.deciders and all(small[i] for i in t.deciders) else t.bytes_full for t in problem.tensors
    ]
    peak = max((sum(sizes[t] for t in set(step)) for step in problem.steps), default=0)
    return Totals(
        latency_ms=math.fsum((problem.fixed_latency_ms, *(option.latency_ms for option in chosen), *crossings)),
        weight_bytes=sum(option.weight_bytes for option in chosen),
        memory_bytes=sum(option.memory_bytes for option in chosen) + peak,
        peak_activation_bytes=peak,
        loss=math.fsum(option.loss for option in chosen),
    )


def validate(problem: Problem, limits: Limits) -> None:
    """Raise ``ValueError``, naming the layer, for numbers that no cost model may produce."""

    def check(where: str, **values: float) -> None:
        for name, value in values.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{where}: {name} is {value}; it must be finite and not negative")

    def check_indices(where: str, indices: Iterable[int], low: int, high: int) -> None:
        for index in indices:
            if not low <= index < high:
                raise ValueError(f"{where}: index {index} is outside {low}..{high - 1}")

    count = len(problem.layers)
    check("problem", fixed_latency_ms=problem.fixed_latency_ms)
    for layer in problem.layers:
        if not layer.options:
            raise ValueError(f"layer {layer.name}: no options")
        for o in layer.options:
            where = f"layer {layer.name}, option {o.precision}"
            sizes = {"weight_bytes": o.weight_bytes, "memory_bytes": o.memory_bytes}
            check(where, latency_ms=o.latency_ms, loss=o.loss, **sizes)
            if o.domain not in ("int8", "float"):
                raise ValueError(f"{where}: domain is {o.domain!r}; it must be 'int8' or 'float'")
    for i, b in enumerate(problem.boundaries):
        check_indices(f"boundary {i}", (b.producer,), -1, count)
        check_indices(f"boundary {i}", (b.consumer,), 0, count)
        check(f"boundary {i} into layer {problem.layers[b.consumer].name}", cost_ms=b.cost_ms)
    for i, t in enumerate(problem.tensors):
        check(f"tensor {i}", bytes_full=t.bytes_full, bytes_small=t.bytes_small)
        check_indices(f"tensor {i}", t.deciders, 0, count)
        if t.bytes_small > t.bytes_full:
            raise ValueError(f"tensor {i}: bytes_small {t.bytes_small} is more than bytes_full {t.bytes_full}")
    for i, step in enumerate(problem.steps):
        check_indices(f"step {i}", step, 0, len(problem.tensors))
    for quantity in QUANTITIES:
        limit = getattr(limits, quantity)
        if limit is not None:
            check("limits", **{quantity: limit})
