"""The planning problem in plain numbers, and the exact totals of a choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgekit.types import Mask, Precision

Quantity = Literal["latency_ms", "weight_bytes", "memory_bytes", "loss"]
QUANTITIES: tuple[Quantity, ...] = ("latency_ms", "weight_bytes", "memory_bytes", "loss")
Cells = Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]
"""Numbers by layer option and one group's option, or by layer option and two groups' options."""


@dataclass(frozen=True)
class LayerOption:
    """One way to execute a layer. ``memory_bytes`` are its resident weights, ``loss`` its relative output noise power,
    ``domain`` what crosses its edges: "int8" or "float", ``mask`` which weights are zero.
    """

    precision: Precision
    latency_ms: float
    weight_bytes: int
    memory_bytes: int
    loss: float
    domain: str
    mask: Mask = Mask.NONE


@dataclass(frozen=True)
class PlanningLayer:
    """A layer with its options, at least one."""

    name: str
    op_type: str
    options: tuple[LayerOption, ...]


@dataclass(frozen=True)
class GroupOption:
    """One keep count of a channel group, and what removing the other channels adds to the loss."""

    kept: int
    loss: float


@dataclass(frozen=True)
class PlanningGroup:
    """A channel group with its options, at least one."""

    name: str
    options: tuple[GroupOption, ...]


@dataclass(frozen=True)
class ShapeCost:
    """What ``layer`` (index) costs on top of its option's own amounts, by what one or two channel groups (indices,
    distinct) keep. A layer may have several; they add up.

    Every table is indexed [layer option][first group's option], with two groups [layer option][first][second].
    """

    layer: int
    groups: tuple[int, ...]
    latency_ms: Cells
    weight_bytes: Cells
    memory_bytes: Cells


@dataclass(frozen=True)
class BoundaryPart:
    """The share of a boundary's cost that shrinks with a channel group (index): milliseconds by the group's option."""

    group: int
    cost_ms: tuple[float, ...]


@dataclass(frozen=True)
class Boundary:
    """``cost_ms`` and the ``parts`` are paid when two layers (indices) choose different domains. Producer -1 is a model
    input: float.
    """

    producer: int
    consumer: int
    cost_ms: float
    parts: tuple[BoundaryPart, ...] = ()


@dataclass(frozen=True)
class TensorPart:
    """The share of a tensor that shrinks with a channel group (index): bytes by the group's option."""

    group: int
    bytes_full: tuple[int, ...]
    bytes_small: tuple[int, ...]


@dataclass(frozen=True)
class ActivationTensor:
    """Takes ``bytes_full`` when one of the ``deciders`` (layer indices) chose "float" or one of the ``int8_deciders``
    chose "int8", else ``bytes_small``; with neither it always takes ``bytes_full``. Where there are ``int8_guards``,
    all of these must have chosen "int8" besides. The ``parts`` come on top, each in the same way.
    """

    bytes_full: int
    bytes_small: int
    deciders: tuple[int, ...]
    parts: tuple[TensorPart, ...] = ()
    int8_deciders: tuple[int, ...] = ()
    int8_guards: tuple[int, ...] = ()

    @property
    def literals(self) -> frozenset[int]:
        """What makes it large: ``i`` stands for layer ``i`` being float, ``~i`` for its being int8."""
        return frozenset(self.deciders) | {~i for i in self.int8_deciders}

    def is_large(self, is_int8: Sequence[bool]) -> bool:
        """Whether it takes ``bytes_full``, given which layers chose "int8"."""
        decided = [is_int8[~i] if i < 0 else not is_int8[i] for i in self.literals]
        return (any(decided) or not decided) and all(is_int8[i] for i in self.int8_guards)


@dataclass(frozen=True)
class Problem:
    """``steps`` lists, for each execution step, the indices of the tensors that are live in it."""

    layers: tuple[PlanningLayer, ...]
    boundaries: tuple[Boundary, ...] = ()
    tensors: tuple[ActivationTensor, ...] = ()
    steps: tuple[tuple[int, ...], ...] = ()
    fixed_latency_ms: float = 0.0
    groups: tuple[PlanningGroup, ...] = ()
    shape_costs: tuple[ShapeCost, ...] = ()


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
    """``choice`` holds one option index per layer, ``kept`` one per channel group. ``gap`` is (value - proven lower
    bound) / value of the objective; it includes what was deliberately given back for the second objective,
    ``search_gap`` does not. ``binding`` names the limits (fields of ``Limits``) that hold the objective back,
    ``seconds`` is wall time.
    """

    choice: tuple[int, ...]
    totals: Totals
    gap: float
    search_gap: float
    binding: tuple[str, ...]
    seconds: float = field(compare=False)
    kept: tuple[int, ...] = ()


def evaluate(problem: Problem, choice: Sequence[int], kept: Sequence[int] = ()) -> Totals:
    """Exact totals of a choice (one option index per layer) and of what is kept (one per channel group). The truth that
    the MILP must equal.
    """
    chosen = [layer.options[index] for layer, index in zip(problem.layers, choice, strict=True)]
    pruned = [group.options[index] for group, index in zip(problem.groups, kept, strict=True)]
    small = [option.domain == "int8" for option in chosen]
    latencies = [problem.fixed_latency_ms, *(option.latency_ms for option in chosen)]
    weights = sum(option.weight_bytes for option in chosen)
    resident = sum(option.memory_bytes for option in chosen)
    for shape in problem.shape_costs:
        at = (choice[shape.layer], *(kept[group] for group in shape.groups))
        latencies.append(cell(shape.latency_ms, at))
        weights += int(cell(shape.weight_bytes, at))
        resident += int(cell(shape.memory_bytes, at))
    for b in problem.boundaries:
        if (b.producer >= 0 and small[b.producer]) != small[b.consumer]:
            latencies += (b.cost_ms, *(part.cost_ms[kept[part.group]] for part in b.parts))
    sizes = _tensor_bytes(problem, choice, kept)
    peak = max((sum(sizes[t] for t in set(step)) for step in problem.steps), default=0)
    return Totals(
        latency_ms=math.fsum(latencies),
        weight_bytes=weights,
        memory_bytes=resident + peak,
        peak_activation_bytes=peak,
        loss=math.fsum((*(option.loss for option in chosen), *(option.loss for option in pruned))),
    )


def _tensor_bytes(problem: Problem, choice: Sequence[int], kept: Sequence[int] = ()) -> list[int]:
    """What each tensor of the problem takes with these options, one a layer, and these kept counts, one a group."""
    is_int8 = [layer.options[at].domain == "int8" for layer, at in zip(problem.layers, choice, strict=True)]
    sizes: list[int] = []
    for t in problem.tensors:
        if t.is_large(is_int8):
            sizes.append(t.bytes_full + sum(part.bytes_full[kept[part.group]] for part in t.parts))
        else:
            sizes.append(t.bytes_small + sum(part.bytes_small[kept[part.group]] for part in t.parts))
    return sizes


def cell(cells: Cells, at: Sequence[int]) -> float:
    """The number at one option of the layer and of each group."""
    found: Any = cells
    for index in at:
        found = found[index]
    return float(found)
