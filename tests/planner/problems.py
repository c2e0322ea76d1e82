"""Planning problems: small random ones with the truth about them by enumeration, and chains of layers."""

from __future__ import annotations

import itertools
import random

from hypothesis import strategies as st

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
    TensorPart,
    Totals,
    evaluate,
)
from edgekit.types import Precision

QUANTITIES = ("latency_ms", "weight_bytes", "memory_bytes", "loss")
CLOSE = 1 + 3e-6  # what `gap=0` resolves
PRECISIONS = (Precision.FP32, Precision.W8, Precision.INT8, Precision.FP16)

times = st.one_of(st.integers(0, 8).map(lambda n: n / 4), st.floats(1e-4, 1e3))
losses = st.one_of(st.just(0.0), st.floats(-9, 2).map(lambda e: 10.0**e))
sizes = st.one_of(st.integers(0, 6), st.integers(0, 10**9))
layer_options = st.builds(
    LayerOption, st.sampled_from(PRECISIONS), times, sizes, sizes, losses, st.sampled_from(["int8", "float"])
)


def table_of(draw: st.DrawFn, values: st.SearchStrategy[float], counts: tuple[int, ...]) -> tuple[object, ...]:
    """Nested tuples of drawn values."""
    if len(counts) == 1:
        return tuple(draw(st.lists(values, min_size=counts[0], max_size=counts[0])))
    return tuple(table_of(draw, values, counts[1:]) for _ in range(counts[0]))


def option(
    latency_ms: float = 1.0, weight: int = 1, loss: float = 0.0, domain: str = "float", memory: int | None = None
) -> LayerOption:
    precision = Precision.INT8 if domain == "int8" else Precision.FP32
    return LayerOption(precision, latency_ms, weight, weight if memory is None else memory, loss, domain)


def problem_of(*layers: tuple[LayerOption, ...], **rest: object) -> Problem:
    return Problem(tuple(PlanningLayer(f"layer{i}", "Conv", o) for i, o in enumerate(layers)), **rest)  # type: ignore[arg-type]


def chain(layers: int, seed: int) -> Problem:
    """Layers with three options each, and a boundary between any two neighbours."""
    rng = random.Random(seed)

    def one() -> tuple[LayerOption, ...]:
        slow = rng.uniform(0.1, 2.0)
        return (
            option(slow, rng.randint(1, 6)),
            option(slow * rng.uniform(0.9, 1.2), rng.randint(1, 6), 1e-3),
            option(slow * rng.uniform(0.3, 1.1), rng.randint(1, 6), 1e-2, "int8"),
        )

    boundaries = [Boundary(i - 1, i, rng.uniform(0, 0.6)) for i in range(layers)]
    return problem_of(*(one() for _ in range(layers)), boundaries=tuple(boundaries))


@st.composite
def problems(draw: st.DrawFn, grouped: bool | None = None) -> Problem:
    """Up to five layers, or four and three channel groups with everything that can depend on a group depending on some;
    ``grouped`` asks for one or the other.
    """
    if grouped is None:
        grouped = draw(st.booleans())
    several = st.lists(st.lists(layer_options, min_size=1, max_size=3).map(tuple), min_size=1, max_size=5 - grouped)
    layers = draw(several)
    keeps = draw(st.lists(st.lists(losses, min_size=1, max_size=3), min_size=1, max_size=3)) if grouped else []
    index, group = st.integers(0, len(layers) - 1), st.integers(0, max(0, len(keeps) - 1))
    pair = st.lists(group, max_size=2) if grouped else st.just([])

    def shape() -> ShapeCost:
        layer, groups = draw(index), tuple(draw(st.lists(group, min_size=1, max_size=2, unique=True)))
        counts = (len(layers[layer]), *(len(keeps[g]) for g in groups))
        tables = [table_of(draw, values, counts) for values in (times, sizes, sizes)]
        return ShapeCost(layer, groups, *tables)  # type: ignore[arg-type]

    def tensor() -> ActivationTensor:
        parts = []
        for g in draw(pair):
            rows = [table_of(draw, sizes, (len(keeps[g]),)) for _ in range(2)]
            parts.append(TensorPart(g, tuple(map(max, *rows)), tuple(map(min, *rows))))
        one, two = draw(sizes), draw(sizes)
        floats, int8s = tuple(draw(st.sets(index))), tuple(draw(st.sets(index, max_size=2)))
        guards = tuple(draw(st.sets(index, max_size=2)))
        return ActivationTensor(max(one, two), min(one, two), floats, tuple(parts), int8s, guards)

    def boundary() -> Boundary:
        parts = tuple(
            BoundaryPart(g, table_of(draw, times, (len(keeps[g]),)))  # type: ignore[arg-type]
            for g in draw(pair)
        )
        return Boundary(draw(st.integers(-1, len(layers) - 1)), draw(index), draw(times), parts)

    tensors = [tensor() for _ in range(draw(st.integers(0, 4)))]
    step = st.lists(st.integers(0, len(tensors) - 1), max_size=4).map(tuple) if tensors else st.just(())
    return Problem(
        layers=tuple(PlanningLayer(f"layer{i}", "Conv", o) for i, o in enumerate(layers)),
        boundaries=tuple(boundary() for _ in range(draw(st.integers(0, 4 if grouped else 6)))),
        tensors=tuple(tensors),
        steps=tuple(draw(st.lists(step, max_size=4))),
        fixed_latency_ms=draw(times),
        groups=tuple(
            PlanningGroup(f"group{i}", tuple(GroupOption(9 - k, loss) for k, loss in enumerate(options)))
            for i, options in enumerate(keeps)
        ),
        shape_costs=tuple(shape() for _ in range(draw(st.integers(0, 5)) if grouped else 0)),
    )


def everything(problem: Problem) -> list[Totals]:
    """What every plan costs."""
    counts = [len(layer.options) for layer in problem.layers] + [len(g.options) for g in problem.groups]
    n = len(problem.layers)
    return [evaluate(problem, pick[:n], pick[n:]) for pick in itertools.product(*map(range, counts))]


@st.composite
def bounded(draw: st.DrawFn, grouped: bool | None = None) -> tuple[Problem, Limits]:
    """Budgets that sit exactly on, just under or around what some plan takes."""
    problem = draw(problems(grouped))
    totals = everything(problem)
    limits = Limits()
    for quantity in draw(st.sets(st.sampled_from(QUANTITIES))):
        value = getattr(draw(st.sampled_from(totals)), quantity)
        if quantity.endswith("bytes"):
            value = max(0, value + draw(st.sampled_from([0, 0, -1, 1, value // 10, -value // 10])))
        else:
            value *= draw(st.sampled_from([1.0, 1.0, 0.9, 1.1, 0.999]))
        limits = limits.with_limit(quantity, value)  # type: ignore[arg-type]
    return problem, limits


def keeps(totals: Totals, limits: Limits) -> bool:
    """Whether the totals are within the limits."""
    for quantity in QUANTITIES:
        limit, value = getattr(limits, quantity), getattr(totals, quantity)
        if limit is not None and value > (limit if quantity.endswith("bytes") else limit * (1 + 1e-9)):
            return False
    return True
