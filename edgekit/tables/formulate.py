"""From a graph with its measured costs and losses to the numbers that the planner optimises, and back to a plan.

Every amount is a polynomial in the kept channels (`edgekit.graph.sizes`); what of it no group changes belongs to the
layer's option, the rest becomes a table by the options of one or two groups, which the planner counts exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgekit.cost.table import CostTable
from edgekit.graph import Graph
from edgekit.graph.liveness import arena_bytes, lowered_steps, peak_activation_bytes, planning_steps
from edgekit.graph.sizes import Size, constant
from edgekit.planner import (
    ActivationTensor,
    Boundary,
    BoundaryPart,
    GroupOption,
    LayerOption,
    Limits,
    PlanningGroup,
    PlanningLayer,
    Problem,
    ShapeCost,
    Solution,
    TensorPart,
)
from edgekit.planner.problem import Cells
from edgekit.tables.channels import PruningTables
from edgekit.tables.weights import MaskTables, Option
from edgekit.types import EIGHT_BITS, Budget, GroupChoice, Layer, LayerChoice, Mask, Plan, Precision, Predicted

Losses = Mapping[str, Mapping[Precision, float]]

# What the planner's limits are called where users set them. Loss stands in for the metric.
BUDGETS = {"latency_ms": "latency", "weight_bytes": "size", "memory_bytes": "memory", "loss": "max_drop"}
_INT8 = "int8"
_FLOAT = "float"


@dataclass(frozen=True)
class Planning:
    """The problem beside what it was made from, so that a solution can be read as a plan."""

    graph: Graph
    table: CostTable
    losses: Losses
    problem: Problem
    pruning: PruningTables | None = None
    loss_factor: float = 1.0
    masks: MaskTables | None = None

    def weight_bytes(self, layer: Layer, precision: Precision, mask: Mask, compressed: bool) -> int:
        """Stored bytes of a layer of this graph, or of what pruning left of it."""
        plain = weight_bytes(layer.weight_elements, layer.bias_elements, precision)
        if self.masks is None or not compressed:
            return plain
        whole = next(one for one in self.graph.layers if one.name == layer.name)
        return round(_compressed_share(whole, (precision, mask), self.masks) * plain) + self.masks.other_bytes

    def loss(self, layer: str, precision: Precision, mask: Mask = Mask.NONE) -> float:
        """What a layer's option loses, as it was measured alone."""
        if mask is Mask.NONE or self.masks is None:
            return self.losses[layer][precision]
        return self.masks.losses[layer][precision, mask]

    def kept(self, solution: Solution) -> dict[str, int]:
        """Channel group -> kept channels, of the groups that had a choice."""
        return {
            group.name: group.options[index].kept
            for group, index in zip(self.problem.groups, solution.kept, strict=True)
        }

    def plan(self, solution: Solution) -> Plan:
        """The solution in words, with its predicted totals."""
        totals = solution.totals
        choices = [layer.options[index] for layer, index in zip(self.problem.layers, solution.choice, strict=True)]
        named = self.kept(solution)
        precisions = {x.name: o.precision for x, o in zip(self.problem.layers, choices, strict=True)}
        peak = self._arena_bytes(precisions, named)
        return Plan(
            layers=tuple(
                LayerChoice(
                    layer.name, layer.op_type, option.precision, self.keep_ratio(layer.name, named), option.mask
                )
                for layer, option in zip(self.problem.layers, choices, strict=True)
            ),
            predicted=Predicted(
                self.table.figure(totals.latency_ms),
                totals.weight_bytes,
                peak,
                totals.memory_bytes - totals.peak_activation_bytes + peak,
                totals.loss,
            ),
            gap=solution.search_gap,
            binding=tuple(BUDGETS[limit] for limit in solution.binding),
            groups=tuple(
                GroupChoice(group.name, group.options[0].kept, named[group.name]) for group in self.problem.groups
            ),
            compressed=self.masks is not None and self.masks.compressed,
        )

    def _arena_bytes(self, precisions: Mapping[str, Precision], kept: Mapping[str, int]) -> int:
        """Live bytes are what the planner can count; a runtime packs the tensors, which may leave holes."""
        tensors, steps = lowered_steps(self.graph, precisions)
        if self.pruning is not None:
            counts, sizes = self.pruning.kept(kept), self.pruning.sizes.tensors
            tensors = tuple(
                replace(t, elements=round(sizes[t.name].at(counts))) if t.name in sizes else t for t in tensors
            )
        float_bits = self.table.base.activation_bits
        return arena_bytes(tensors, steps, [t.bytes_in(precisions, float_bits) for t in tensors])

    def keep_ratio(self, layer: str, kept: Mapping[str, int]) -> float:
        """The kept share of a layer's output channels."""
        if self.pruning is None:
            return 1.0
        return self.pruning.keep_ratio(layer, self.pruning.kept(kept))


def limits_of(budget: Budget, loss: float | None = None) -> Limits:
    """The budget's hard limits; ``loss`` stands in for the metric."""
    return Limits(budget.latency_ms, budget.weight_bytes, budget.memory_bytes, loss)


def formulate(
    graph: Graph,
    table: CostTable,
    losses: Losses,
    runtime_weight_bits: Mapping[Precision, int],
    forbidden: frozenset[tuple[str, Precision]] = frozenset(),
    pruning: PruningTables | None = None,
    loss_factor: float = 1.0,
    masks: MaskTables | None = None,
) -> Planning:
    """One option for each entry of the cost table that is not ``forbidden``, one more for each mask that ``masks``
    offers it, and one for each keep count that ``pruning`` offers.

    ``runtime_weight_bits`` says how wide a weight is in memory once the runtime has loaded it: weight-only int8 of a
    convolution is unpacked at load, so it saves storage and no memory. ``loss_factor`` scales the losses of the layers.
    """
    index = {layer.name: number for number, layer in enumerate(graph.layers)}
    groups = _Groups(pruning)
    offered = masks or MaskTables({})
    layers: list[PlanningLayer] = []
    shape_costs: list[ShapeCost] = []
    for number, layer in enumerate(graph.layers):
        precisions = [p for p in table.latency_ms[layer.name] if (layer.name, p) not in forbidden]
        chosen = offered.options(layer.name, precisions)
        latency = [
            _split(groups.latency_ms(table, layer.name, p).times(1 / offered.speedup(mask)), groups)
            for p, mask in chosen
        ]
        weights, biases = groups.parameters(layer)
        stored = [_split(_stored(layer, option, weights, biases, offered), groups) for option in chosen]
        bits = {p: loaded_weight_bits(layer, p, runtime_weight_bits) for p in precisions}
        resident = [_split(weights.times(bits[p] / 8).plus(biases.times(4)), groups) for p, _ in chosen]
        options = tuple(
            LayerOption(
                precision=precision,
                latency_ms=time.fixed,
                weight_bytes=round(disk.fixed),
                memory_bytes=round(memory.fixed),
                loss=loss_factor
                * (losses[layer.name][precision] if mask is Mask.NONE else offered.losses[layer.name][precision, mask]),
                domain=_INT8 if precision in EIGHT_BITS else _FLOAT,
                mask=mask,
            )
            for (precision, mask), time, disk, memory in zip(chosen, latency, stored, resident, strict=True)
        )
        layers.append(PlanningLayer(layer.name, layer.op_type, options))
        shape_costs += _shape_costs(number, latency, stored, resident, groups)
    boundaries = tuple(
        Boundary(index.get(edge.producer, -1), index[edge.consumer], time.fixed, _boundary_parts(time, groups))
        for edge in graph.edges
        for time in [_split(groups.tensor_share(edge.tensor).times(table.boundary_ms(edge)), groups)]
    )
    tensors, steps = planning_steps(graph)
    activations = []
    for tensor in tensors:
        large, small = tensor.bytes_large(table.base.activation_bits), tensor.small_bytes
        elements = _split(groups.tensor_share(tensor.name).times(tensor.elements), groups)
        deciders = tuple(index[name] for name in tensor.deciders)
        activations.append(
            ActivationTensor(
                bytes_full=round(elements.fixed) * large,
                bytes_small=round(elements.fixed) * small,
                deciders=deciders if tensor.domain == _FLOAT else (),
                parts=tuple(
                    TensorPart(g, tuple(round(v) * large for v in values), tuple(round(v) * small for v in values))
                    for g, values in _by_option(elements, groups)
                ),
                int8_deciders=deciders if tensor.domain == _INT8 else (),
                int8_guards=tuple(index[name] for name in tensor.int8_guards),
            )
        )
    problem = Problem(
        tuple(layers),
        boundaries,
        tuple(activations),
        steps,
        groups=groups.planning,
        shape_costs=tuple(shape_costs),
    )
    return Planning(graph, table, losses, problem, pruning, loss_factor, masks)


def _stored(layer: Layer, option: Option, weights: Size, biases: Size, masks: MaskTables) -> Size:
    """Stored bytes of a layer's option. Fewer channels are taken to compress as all do."""
    plain = weights.times(option[0].weight_bits / 8).plus(biases.times(4))
    if not masks.compressed:
        return plain
    return plain.times(_compressed_share(layer, option, masks)).plus(constant(masks.other_bytes))


def _compressed_share(layer: Layer, option: Option, masks: MaskTables) -> float:
    plain = weight_bytes(layer.weight_elements, layer.bias_elements, option[0])
    return masks.stored_bytes[layer.name][option] / plain if plain else 0.0


class _Groups:
    """The groups that have a choice, as the planner numbers them; all others are at full width."""

    def __init__(self, pruning: PruningTables | None) -> None:
        self.pruning = pruning
        offered = pruning.offered if pruning is not None else ()
        self.place = {group: number for number, group in enumerate(offered)}
        self.counts = [pruning.counts(group) for group in offered] if pruning is not None else []
        self.full = pruning.full if pruning is not None else ()
        self.planning = tuple(
            PlanningGroup(
                pruning.channels.groups[group].name,
                tuple(GroupOption(kept, pruning.loss(group, kept)) for kept in counts),
            )
            for group, counts in zip(offered, self.counts, strict=True)
            if pruning is not None
        )

    def latency_ms(self, table: CostTable, layer: str, precision: Precision) -> Size:
        if self.pruning is None:
            return constant(table.latency_ms[layer][precision])
        return self.pruning.latency_ms(table, layer, precision)

    def parameters(self, layer: Layer) -> tuple[Size, Size]:
        """Weight and bias elements."""
        if self.pruning is None:
            return constant(layer.weight_elements), constant(layer.bias_elements)
        sizes = self.pruning.sizes.layers[layer.name]
        return sizes.weights, sizes.biases

    def tensor_share(self, tensor: str) -> Size:
        """A tensor's elements over its elements at full width."""
        if self.pruning is None or tensor not in self.pruning.sizes.tensors:
            return constant(1)
        size = self.pruning.sizes.tensors[tensor]
        whole = size.at(self.full)
        return size.times(1 / whole) if whole else constant(1)


@dataclass(frozen=True)
class _Split:
    """A polynomial in the planner's groups: what no choice changes, and the rest by one or two groups."""

    fixed: float
    terms: Mapping[tuple[int, ...], float]


def _split(size: Size, groups: _Groups) -> _Split:
    fixed = 0.0
    terms: dict[tuple[int, ...], float] = {}
    for term, c in size.terms.items():
        free = tuple(groups.place[g] for g in term if g in groups.place)
        amount = c * math.prod(groups.full[g] for g in term if g not in groups.place)
        if free:
            terms[free] = terms.get(free, 0.0) + amount
        else:
            fixed += amount
    return _Split(fixed, terms)


def _shape_costs(
    layer: int, latency: list[_Split], stored: list[_Split], resident: list[_Split], groups: _Groups
) -> list[ShapeCost]:
    """One table for a layer of one or two groups, whatever their terms; beyond that one for each group and each pair,
    which add up to the same.
    """
    terms = {term for splits in (latency, stored, resident) for split in splits for term in split.terms}
    touched = tuple(sorted({g for term in terms for g in term}))
    if len(touched) <= 2:
        blocks = {touched: terms} if touched else {}
    else:
        blocks = {}
        for term in sorted(terms):
            blocks.setdefault(tuple(sorted(set(term))), set()).add(term)
    return [
        ShapeCost(
            layer,
            block,
            _cells(latency, block, of_block, groups, exact=False),
            _cells(stored, block, of_block, groups, exact=True),
            _cells(resident, block, of_block, groups, exact=True),
        )
        for block, of_block in blocks.items()
    ]


def _cells(
    splits: list[_Split], block: tuple[int, ...], terms: set[tuple[int, ...]], groups: _Groups, exact: bool
) -> Cells:
    """The amounts of each layer option at each kept count of the block's groups; whole numbers where ``exact``."""

    def amount(split: _Split, kept: Mapping[int, int]) -> float:
        value = math.fsum(split.terms.get(term, 0.0) * math.prod(kept[g] for g in term) for term in terms)
        return round(value) if exact else value

    first = groups.counts[block[0]]
    if len(block) == 1:
        return [[amount(split, {block[0]: a}) for a in first] for split in splits]
    second = groups.counts[block[1]]
    return [[[amount(split, {block[0]: a, block[1]: b}) for b in second] for a in first] for split in splits]


def _by_option(split: _Split, groups: _Groups) -> list[tuple[int, list[float]]]:
    """Amounts by group and option. Where two groups multiply (an outer product of channels: rare in tensors), the
    second counts as whole, which errs on the safe side.
    """
    rows: dict[int, list[float]] = {}
    for term, c in split.terms.items():
        counts = groups.counts[term[0]]
        rest = math.prod(groups.counts[g][0] for g in term[1:] if g != term[0])
        power = sum(g == term[0] for g in term)
        row = rows.setdefault(term[0], [0.0] * len(counts))
        for place, kept in enumerate(counts):
            row[place] += c * rest * kept**power
    return sorted(rows.items())


def _boundary_parts(split: _Split, groups: _Groups) -> tuple[BoundaryPart, ...]:
    return tuple(BoundaryPart(group, tuple(row)) for group, row in _by_option(split, groups))


def weight_bytes(weight_elements: int, bias_elements: int, precision: Precision) -> int:
    """Stored bytes of a layer's parameters: biases stay float."""
    return weight_elements * precision.weight_bits // 8 + 4 * bias_elements


def loaded_weight_bits(layer: Layer, precision: Precision, runtime_weight_bits: Mapping[Precision, int]) -> int:
    """Bits of one weight element in memory. In bf16, which is OpenVINO's alone, a matrix [inputs, outputs] is held
    twice: transposed, and laid out for the kernel. One that is stored as [outputs, inputs], and a convolution's, is
    held once (measured on the heap of 2026.4 with 1024 x 1024 weights: 4 and 2 bytes).
    """
    twice = precision is Precision.BF16 and layer.op_type in ("MatMul", "Gemm") and layer.weight_axis > 0
    return runtime_weight_bits[precision] * (2 if twice else 1)


def memory_bytes(
    graph: Graph,
    precisions: Mapping[str, Precision],
    runtime_weight_bits: Mapping[Precision, int],
    base: Precision = Precision.FP32,
) -> int:
    """Loaded weights + peak activations of any assignment of precisions, also one that the planner did not offer.
    ``base`` is the float type that the model runs in.
    """
    weights = sum(
        layer.weight_elements * loaded_weight_bits(layer, precisions[layer.name], runtime_weight_bits) // 8
        + 4 * layer.bias_elements
        for layer in graph.layers
    )
    return weights + peak_activation_bytes(graph, precisions, base)
