"""The planning problem as arrays, with everything removed that no best plan can use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from edgekit.planner.checks import validate
from edgekit.planner.problem import QUANTITIES, ActivationTensor, Limits, Problem, Quantity

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Mask = npt.NDArray[np.bool_]

SHAPED: tuple[Quantity, ...] = ("latency_ms", "weight_bytes", "memory_bytes")
"""The quantities that a layer's shape changes; loss is each decision's own."""


class Factor(NamedTuple):
    """Amounts that two or three decisions (nodes) set together, indexed by their options in that order."""

    nodes: tuple[int, ...]
    amount: dict[Quantity, Floats]


class Pair(NamedTuple):
    """A boundary between layers: what is paid when their domains differ."""

    producer: int
    consumer: int
    cost_ms: float
    parts: dict[int, Floats]  # node of a channel group -> milliseconds by its option


class Condition(NamedTuple):
    """What makes a tensor large: one of ``any_of``, where there are any, and all of ``all_of``. Each is a layer's being
    float, or int8 where it is negative, as in `ActivationTensor.literals`.
    """

    any_of: tuple[int, ...] = ()
    all_of: tuple[int, ...] = ()


class Size(NamedTuple):
    """A tensor whose bytes change with channel groups, over its least."""

    condition: Condition
    extra: float  # bytes added when the condition holds
    small: dict[int, Floats]  # node of a channel group -> bytes over the least by its option, while it does not
    extras: dict[int, Floats]  # the same, added when it holds

    @property
    def most(self) -> float:
        """Bytes over the least that it can have."""
        return self.extra + sum(float((s + self.extras[node]).max()) for node, s in self.small.items())


class Step(NamedTuple):
    """One execution step's live activations."""

    least_bytes: int  # with every tensor at its smallest
    extra: dict[int, int]  # condition -> bytes added when it holds
    sizes: frozenset[int]  # tensors that change with channel groups too


@dataclass(frozen=True, eq=False)
class Table:
    """The problem with dominated options and redundant steps removed, and what does not depend on a choice folded in.

    A *node* is a decision: the layers first, then the channel groups. A column is an option of a node that may be
    chosen; ``node``, ``option``, ``is_float`` and ``amount`` are indexed by column, in the order of nodes.
    """

    problem: Problem
    node: npt.NDArray[np.intp]
    option: npt.NDArray[np.intp]
    is_float: Mask  # of a layer's option
    amount: dict[Quantity, Floats]  # memory_bytes without activations
    starts: npt.NDArray[np.intp]  # of each node's columns, and their number
    factors: list[Factor]
    pairs: list[Pair]
    conditions: list[Condition]  # distinct ones
    sizes: dict[int, Size]  # by tensor
    steps: list[Step]

    @property
    def nodes(self) -> int:
        """How many decisions there are."""
        return len(self.starts) - 1


def tabulate(problem: Problem, limits: Limits) -> Table:
    """Check the input (``ValueError``) and turn it into arrays."""
    import numpy as np

    validate(problem, limits)
    layers = len(problem.layers)
    own, domains = _own_amounts(problem)
    pairs = _pairs(problem)
    factors = _factors(problem)
    kept = _undominated(problem, own, domains, factors, pairs)

    factors = [
        Factor(f.nodes, {q: a[np.ix_(*(kept[n] for n in f.nodes))] for q, a in f.amount.items()}) for f in factors
    ]
    own = {q: [a[k] for a, k in zip(amounts, kept, strict=True)] for q, amounts in own.items()}
    factors = _merged(factors, own)
    for pair in pairs.values():
        for node in list(pair.parts):
            pair.parts[node] = pair.parts[node][kept[node]]
    sizes, base = _sizes(problem, kept)
    distinct: dict[Condition, int] = {}
    steps: list[Step] = []
    for step in _maximal_steps(problem.steps) or [()]:
        least, extra = 0, dict[int, int]()
        for index in step:
            tensor, smallest, largest = problem.tensors[index], *base[index]
            least += smallest
            if index not in sizes and largest > smallest:
                which = distinct.setdefault(_condition(tensor), len(distinct))
                extra[which] = extra.get(which, 0) + largest - smallest
        steps.append(Step(least, extra, frozenset(step) & sizes.keys()))
    floor = max(step.least_bytes for step in steps)
    steps = [s for s in steps if s.least_bytes == floor or s.least_bytes + most_of(s, sizes) > floor]
    widths = [len(k) for k in kept]
    nodes = np.repeat(np.arange(len(widths)), widths)
    option = np.concatenate([np.empty(0, np.intp), *kept]).astype(np.intp)
    return Table(
        problem=problem,
        node=nodes,
        option=option,
        is_float=np.array([n < layers and domains[n][o] for n, o in zip(nodes, option, strict=True)], dtype=np.bool_),
        amount={q: np.concatenate([np.empty(0), *amounts]) for q, amounts in own.items()},
        starts=np.concatenate([[0], np.cumsum(widths)]).astype(np.intp),
        factors=factors,
        pairs=[p for p in (_simple(pair) for _, pair in sorted(pairs.items())) if p.cost_ms > 0 or p.parts],
        conditions=list(distinct),
        sizes=sizes,
        steps=[s for i, s in enumerate(steps) if s not in steps[:i]],
    )


def most_of(step: Step, sizes: dict[int, Size]) -> float:
    """Bytes over the least that a step can take."""
    return sum(step.extra.values()) + sum(sizes[t].most for t in step.sizes)


def _own_amounts(problem: Problem) -> tuple[dict[Quantity, list[Floats]], list[list[bool]]]:
    """For each node its options' own amounts, a model input's boundary included; for each layer which are float."""
    import numpy as np

    into_int8 = [0.0] * len(problem.layers)
    for b in problem.boundaries:
        if b.producer < 0:
            into_int8[b.consumer] += b.cost_ms
    domains = [[o.domain == "float" for o in layer.options] for layer in problem.layers]
    own: dict[Quantity, list[Floats]] = {q: [] for q in QUANTITIES}
    for layer, entry in zip(problem.layers, into_int8, strict=True):
        own["latency_ms"].append(np.array([o.latency_ms + entry * (o.domain == "int8") for o in layer.options]))
        own["weight_bytes"].append(np.array([o.weight_bytes for o in layer.options], dtype=np.float64))
        own["memory_bytes"].append(np.array([o.memory_bytes for o in layer.options], dtype=np.float64))
        own["loss"].append(np.array([o.loss for o in layer.options], dtype=np.float64))
    for group in problem.groups:
        for quantity in SHAPED:
            own[quantity].append(np.zeros(len(group.options)))
        own["loss"].append(np.array([o.loss for o in group.options], dtype=np.float64))
    return own, domains


def _pairs(problem: Problem) -> dict[tuple[int, int], Pair]:
    """Boundaries between two layers, those between the same two added up."""
    import numpy as np

    pairs: dict[tuple[int, int], Pair] = {}
    for b in problem.boundaries:
        if b.producer < 0 or b.producer == b.consumer:
            continue
        key = (min(b.producer, b.consumer), max(b.producer, b.consumer))
        old = pairs.get(key, Pair(*key, 0.0, {}))
        parts = dict(old.parts)
        for part in b.parts:
            node = len(problem.layers) + part.group
            parts[node] = parts.get(node, 0.0) + np.array(part.cost_ms, dtype=np.float64)
        pairs[key] = Pair(*key, old.cost_ms + b.cost_ms, parts)
    return pairs


def _simple(pair: Pair) -> Pair:
    """What every option of a group pays is paid by the boundary itself."""
    cost, parts = pair.cost_ms, dict[int, "Floats"]()
    for node, costs in pair.parts.items():
        least = float(costs.min())
        cost += least
        if costs.max() > least:
            parts[node] = costs - least
    return Pair(pair.producer, pair.consumer, cost, parts)


def _factors(problem: Problem) -> list[Factor]:
    """Shape costs and the boundaries from model inputs that change with a channel group."""
    import numpy as np

    layers = len(problem.layers)
    factors = [
        Factor(
            (shape.layer, *(layers + g for g in shape.groups)),
            {q: np.array(getattr(shape, q), dtype=np.float64) for q in SHAPED},
        )
        for shape in problem.shape_costs
    ]
    for b in problem.boundaries:
        for part in b.parts if b.producer < 0 else ():
            is_int8 = np.array([o.domain == "int8" for o in problem.layers[b.consumer].options])
            latency = np.outer(is_int8, part.cost_ms)
            amount: dict[Quantity, Floats] = {q: np.zeros_like(latency) for q in SHAPED}
            factors.append(Factor((b.consumer, layers + part.group), amount | {"latency_ms": latency}))
    return factors


def _undominated(
    problem: Problem,
    own: dict[Quantity, list[Floats]],
    domains: list[list[bool]],
    factors: list[Factor],
    pairs: dict[tuple[int, int], Pair],
) -> list[npt.NDArray[np.intp]]:
    """For each node the options that are not dominated: by one of the same domain that is nowhere worse, whatever the
    other nodes choose. Of two equal options the first stays.
    """
    import numpy as np

    layers = len(problem.layers)
    rows: list[list[Floats]] = [[np.array([a[n] for a in own.values()]).T] for n in range(len(own["loss"]))]
    for factor in factors:
        for axis, node in enumerate(factor.nodes):
            for amounts in factor.amount.values():
                rows[node].append(np.moveaxis(amounts, axis, 0).reshape(amounts.shape[axis], -1))
    for pair in pairs.values():
        for node, costs in pair.parts.items():
            rows[node].append(costs[:, None])
    for tensor in problem.tensors:
        for part in tensor.parts:
            rows[layers + part.group].append(np.array([part.bytes_full, part.bytes_small], dtype=np.float64).T)
    kept = []
    for node, pieces in enumerate(rows):
        amounts = np.concatenate(pieces, axis=1)
        no_worse = (amounts[:, None, :] <= amounts[None, :, :]).all(axis=2)  # [one][other]
        order = np.arange(len(amounts))
        dominates = no_worse & (~no_worse.T | (order[:, None] < order[None, :]))
        if node < layers:
            domain = np.array(domains[node])
            dominates &= domain[:, None] == domain[None, :]
        kept.append(np.flatnonzero(~dominates.any(axis=0)))
    return kept


def _merged(factors: list[Factor], own: dict[Quantity, list[Floats]]) -> list[Factor]:
    """Fewer and fuller factors: decisions with one option left go, one within another is added to it, and a node's own
    amounts go to its first factor. What is left with one node is added to ``own``.
    """
    import numpy as np

    loose = sorted(
        (Factor(tuple(n for n in f.nodes if len(own["loss"][n]) > 1) or f.nodes[:1], f.amount) for f in factors),
        key=lambda f: -len(f.nodes),
    )
    found: dict[tuple[int, ...], dict[Quantity, Floats]] = {}
    holders: dict[int, list[tuple[int, ...]]] = {}
    for nodes, amount in loose:
        shape = tuple(len(own["loss"][n]) for n in nodes)
        if len(nodes) == 1 and nodes[0] not in holders:
            for quantity, amounts in amount.items():
                own[quantity][nodes[0]] = own[quantity][nodes[0]] + amounts.reshape(shape)
            continue
        home = next((h for h in holders.get(nodes[0], ()) if set(nodes) <= set(h)), None)
        if home is None:
            found[nodes] = {q: amounts.reshape(shape) for q, amounts in amount.items()}
            for node in nodes:
                holders.setdefault(node, []).append(nodes)
            continue
        axes = [home.index(n) for n in nodes]
        for quantity, amounts in amount.items():
            ordered = np.transpose(amounts.reshape(shape), np.argsort(axes))
            wide = [shape[axes.index(i)] if i in axes else 1 for i in range(len(home))]
            found[home][quantity] = found[home][quantity] + ordered.reshape(wide)
    for node, homes in holders.items():
        wide = [len(own["loss"][node]) if n == node else 1 for n in homes[0]]
        for quantity in SHAPED:
            found[homes[0]][quantity] = found[homes[0]][quantity] + own[quantity][node].reshape(wide)
            own[quantity][node] = np.zeros_like(own[quantity][node])
    return [Factor(nodes, amount) for nodes, amount in found.items()]


def _sizes(problem: Problem, kept: list[npt.NDArray[np.intp]]) -> tuple[dict[int, Size], list[tuple[int, int]]]:
    """Tensors that change with a group, and each tensor's smallest bytes, with what it has instead when it is large."""
    import numpy as np

    layers = len(problem.layers)
    sizes: dict[int, Size] = {}
    base: list[tuple[int, int]] = []
    for index, t in enumerate(problem.tensors):
        varies = _condition(t) != Condition()
        smallest, extra = (t.bytes_small, t.bytes_full - t.bytes_small) if varies else (t.bytes_full, 0)
        small: dict[int, Floats] = {}
        extras: dict[int, Floats] = {}
        for part in t.parts:
            node = layers + part.group
            full = np.array(part.bytes_full, dtype=np.float64)[kept[node]]
            low = np.array(part.bytes_small, dtype=np.float64)[kept[node]] if varies else full
            small[node] = small.get(node, 0.0) + low
            extras[node] = extras.get(node, 0.0) + full - low
        for node in list(small):
            lowest, least_extra = float(small[node].min()), float(extras[node].min())
            smallest, extra = smallest + int(lowest), extra + int(least_extra)
            small[node], extras[node] = small[node] - lowest, extras[node] - least_extra
            if not small[node].any() and not extras[node].any():
                del small[node], extras[node]
        if small:
            changes = extra > 0 or any(e.any() for e in extras.values())
            sizes[index] = Size(_condition(t) if changes else Condition(), extra, small, extras)
        base.append((smallest, smallest + extra))
    return sizes, base


def _condition(tensor: ActivationTensor) -> Condition:
    return Condition(tuple(sorted(tensor.literals)), tuple(sorted({~i for i in tensor.int8_guards})))


def _maximal_steps(steps: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Steps whose live tensors are not a subset of another step's."""
    distinct = sorted({frozenset(step) for step in steps}, key=lambda s: (-len(s), sorted(s)))
    kept: list[frozenset[int]] = []
    holders: dict[int, list[frozenset[int]]] = {}
    for step in distinct:
        candidates = min((holders.get(t, []) for t in step), key=len, default=kept)
        if not any(step <= other for other in candidates):
            kept.append(step)
            for t in step:
                holders.setdefault(t, []).append(step)
    return [tuple(sorted(step)) for step in kept]
