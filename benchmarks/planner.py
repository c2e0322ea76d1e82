"""Planner: time, proven gap, and what a greedy leaves on the table, on synthetic cost tables.

A chain with residual connections and long skips (about 20 live tensors at each execution step), three options a layer
(fp32, w8, int8), loss drawn over six orders of magnitude. Task: lowest latency under a loss budget and a memory
budget; then lowest loss at that latency, against the greedy that most tools use (from float, repeatedly move the layer
with the best latency gain per loss).

    python benchmarks/planner.py [--layers 50 200 1000] [--seed 0 1] [--json]

With ``--joint``, channels too: inverted-residual stages with shared residual groups, depthwise layers, concatenations
and boundaries, five keep ratios a group. Task: lowest latency under loss, weight and memory budgets; then the lowest
loss at one latency and the same budgets, against the greedy, bits alone and channels alone.

    python benchmarks/planner.py --joint [--memory 0.3] [--no-losses] [--layers 50 200 1000] [--seed 0 1] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgekit.errors import InfeasibleError
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
    evaluate,
    greedy,
    solve,
)
from edgekit.types import Precision

LIVE = 20
LONG_SKIPS = 16


def synthetic(layers: int, seed: int) -> Problem:
    rng = random.Random(seed)
    planned, boundaries = [], []
    for i in range(layers):
        latency = rng.lognormvariate(-2.5, 1.0)
        elements = int(rng.lognormvariate(10.5, 1.2))
        loss = 10 ** rng.uniform(-7, -1)
        speedup = rng.choice((0.9, 1.5, 2.2, 3.5)) * rng.uniform(0.9, 1.1)
        planned.append(
            PlanningLayer(
                f"layer{i}",
                "Conv",
                (
                    LayerOption(Precision.FP32, latency, 4 * elements, 4 * elements, 0.0, "float"),
                    LayerOption(Precision.W8, latency * rng.uniform(0.97, 1.1), elements, elements, loss / 30, "float"),
                    LayerOption(Precision.INT8, latency / speedup, elements, elements, loss, "int8"),
                ),
            )
        )
    bytes_full = [4 * int(rng.lognormvariate(11, 0.7)) for _ in range(layers)]
    last_use = [i + 1 for i in range(layers)]
    for i in range(0, layers - 3, 3):  # residual connections
        last_use[i] = i + 3
    for k in range(LONG_SKIPS):  # as in a U-Net: early tensors used late
        source = k * layers // (3 * LONG_SKIPS)
        last_use[source] = layers - 1 - source
    tensors: list[ActivationTensor] = []
    steps: list[list[int]] = [[] for _ in range(layers)]
    for i in range(layers):
        consumers = sorted({c for c in (i + 1, last_use[i]) if c < layers})
        tensors.append(ActivationTensor(bytes_full[i], bytes_full[i] // 4, tuple(consumers)))
        boundaries += [Boundary(i, c, bytes_full[i] / 4 * 2e-7) for c in consumers]
        for step in range(i, min(max((i, *consumers)), layers - 1) + 1):
            steps[step].append(i)
    boundaries.append(Boundary(-1, 0, 0.01))
    return Problem(tuple(planned), tuple(boundaries), tuple(tensors), tuple(map(tuple, steps)), 0.1)


RATIOS = (1.0, 0.75, 0.5, 0.375, 0.25)
PRECISIONS = ((Precision.FP32, "float", 4), (Precision.W8, "float", 1), (Precision.INT8, "int8", 1))


class _Net:
    """A network under construction: inverted-residual stages whose blocks share one residual group, some stages
    starting with a concatenation of an earlier stage's channels.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.groups: list[PlanningGroup] = []
        self.layers: list[PlanningLayer] = []
        self.shapes: list[ShapeCost] = []
        self.outputs: list[tuple[int, int]] = []  # each layer's output: channel group, pixels
        self.edges: list[tuple[int, int]] = []  # (producer, consumer)

    def group(self, channels: int, ratios: tuple[float, ...] = RATIOS) -> int:
        scale, power = 10 ** self.rng.uniform(-5, -1), self.rng.uniform(1.2, 2.5)
        options = tuple(GroupOption(int(channels * r), scale * (1 - r) ** power) for r in ratios)
        self.groups.append(PlanningGroup(f"group{len(self.groups)}", options))
        return len(self.groups) - 1

    def layer(self, kernel: int, inputs: tuple[int, ...], output: int, pixels: int, depthwise: bool = False) -> int:
        rng, number = self.rng, len(self.layers)
        speeds = (1.0, rng.uniform(0.9, 1.03), rng.choice((0.9, 1.5, 2.2, 3.5)) * rng.uniform(0.9, 1.1))
        loss, overhead = 10 ** rng.uniform(-7, -1), rng.uniform(0.001, 0.005)
        per_ms = rng.uniform(3e6, 8e6) if depthwise else rng.uniform(5e8, 2e9)
        losses = (0.0, loss / 30, loss)
        options = (LayerOption(p, overhead, 0, 0, x, d) for (p, d, _), x in zip(PRECISIONS, losses, strict=True))
        self.layers.append(PlanningLayer(f"layer{number}", "Conv", tuple(options)))
        out = [o.kept for o in self.groups[output].options]
        for group in inputs:
            into = [1] if depthwise else [o.kept for o in self.groups[group].options]
            # channels are computed eight at a time
            macs = [
                [pixels * kernel * 8 * math.ceil(b / 8) * (a if a < 8 else 8 * math.ceil(a / 8)) for b in out]
                for a in into
            ]
            latency = [[[m / per_ms / speed for m in row] for row in macs] for speed in speeds]
            weights = [[[kernel * a * b * width for b in out] for a in into] for _, _, width in PRECISIONS]
            if depthwise:
                self.shapes.append(
                    ShapeCost(number, (output,), *([rows[0] for rows in t] for t in (latency, weights, weights)))
                )
            else:
                self.shapes.append(ShapeCost(number, (group, output), latency, weights, weights))
        self.outputs.append((output, pixels))
        return number

    def problem(self) -> Problem:
        last = len(self.layers) - 1
        consumers = [sorted({c for p, c in self.edges if p == i and c <= last}) for i in range(last + 1)]
        tensors, boundaries, steps = [], [Boundary(-1, 0, 0.01)], [list[int]() for _ in self.layers]
        for i, (group, pixels) in enumerate(self.outputs):
            elements = tuple(pixels * o.kept for o in self.groups[group].options)
            part = TensorPart(group, tuple(4 * n for n in elements), elements)
            tensors.append(ActivationTensor(0, 0, tuple(consumers[i]), (part,)))
            crossing = BoundaryPart(group, tuple(n * 2e-7 for n in elements))
            boundaries += [Boundary(i, c, 0.0005, (crossing,)) for c in consumers[i]]
            for step in range(i, max((i, *consumers[i])) + 1):
                steps[step].append(i)
        shapes, groups = tuple(self.shapes), tuple(self.groups)
        return Problem(
            tuple(self.layers), tuple(boundaries), tuple(tensors), tuple(map(tuple, steps)), 0.1, groups, shapes
        )


def joint(layers: int, seed: int) -> Problem:
    """Three precisions a layer, five keep ratios a group; residual groups shared by two to seven layers."""
    net = _Net(seed)
    rng, pixels = net.rng, 56 * 56
    residual = net.group(32)
    previous = net.layer(9, (net.group(3, (1.0,)),), residual, pixels)
    stages: list[tuple[int, int]] = []  # last layer, residual group
    while True:
        for _ in range(rng.randint(1, 3)):
            if len(net.layers) + 3 > layers:
                return net.problem()
            wide = net.group(net.groups[residual].options[0].kept * rng.choice((2, 4)))
            expand = net.layer(1, (residual,), wide, pixels)
            depthwise = net.layer(9, (wide,), wide, pixels, depthwise=True)
            project = net.layer(1, (wide,), residual, pixels)
            net.edges += [(previous, expand), (expand, depthwise), (depthwise, project), (previous, project + 1)]
            previous = project
        stages.append((previous, residual))
        group, pixels = net.group(rng.choice((32, 64, 96, 160))), rng.choice((49, 196, 784, 3136))
        inputs, sources = [residual], [previous]
        if len(stages) > 4 and rng.random() < 0.4:
            source, other = rng.choice(stages[-20:-1])
            inputs.append(other)
            sources.append(source)
        start = net.layer(1 if len(inputs) > 1 else 9, tuple(inputs), group, pixels)
        net.edges += [(source, start) for source in sources]
        previous, residual = start, group


def restricted(problem: Problem, layers: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> Problem:
    """Only these options of each layer and of each group."""

    def cells(values: Any, at: Sequence[Sequence[int]]) -> Any:
        return tuple(cells(values[i], at[1:]) for i in at[0]) if at else values

    def part(values: tuple[Any, ...], group: int) -> tuple[Any, ...]:
        return tuple(values[i] for i in groups[group])

    shapes = []
    for s in problem.shape_costs:
        at = [layers[s.layer], *(groups[g] for g in s.groups)]
        tables = (cells(t, at) for t in (s.latency_ms, s.weight_bytes, s.memory_bytes))
        shapes.append(ShapeCost(s.layer, s.groups, *tables))
    return replace(
        problem,
        layers=tuple(replace(x, options=cells(x.options, [k])) for x, k in zip(problem.layers, layers, strict=True)),
        groups=tuple(replace(x, options=cells(x.options, [k])) for x, k in zip(problem.groups, groups, strict=True)),
        shape_costs=tuple(shapes),
        boundaries=tuple(
            replace(b, parts=tuple(BoundaryPart(p.group, part(p.cost_ms, p.group)) for p in b.parts))
            for b in problem.boundaries
        ),
        tensors=tuple(
            replace(
                t,
                parts=tuple(
                    TensorPart(p.group, part(p.bytes_full, p.group), part(p.bytes_small, p.group)) for p in t.parts
                ),
            )
            for t in problem.tensors
        ),
    )


def bits_only(problem: Problem) -> Problem:
    """Every group whole."""
    return restricted(problem, [range(len(x.options)) for x in problem.layers], [[0]] * len(problem.groups))


def channels_only(problem: Problem) -> Problem:
    """Every layer in float."""
    return restricted(problem, [[0]] * len(problem.layers), [range(len(x.options)) for x in problem.groups])


@dataclass(frozen=True)
class Comparison:
    """Seconds and proven gap of the lowest latency within all budgets; losses at one latency and the same budgets."""

    layers: int
    seed: int
    memory: float  # budget, as a share of the float model's
    seconds: float
    cpu_seconds: float
    gap: float
    plan: float | None  # latency, as a share of the float model's; None: no plan fits
    binding: tuple[str, ...]
    joint_loss: float | None = None
    greedy_loss: float | None = None
    bits_only_loss: float | None = None
    channels_only_loss: float | None = None


def compare(layers: int, seed: int, memory: float, gap: float, losses: bool = True) -> Comparison:
    """Lowest latency with 5 % of the all-int8 loss, a fifth of the float model's weights and ``memory`` of its memory;
    then, if ``losses``, the loss at three quarters of its latency with 30 % of its weights and memory.
    """
    problem = joint(layers, seed)
    whole = [0] * len(problem.groups)
    in_float = evaluate(problem, [0] * len(problem.layers), whole)
    in_int8 = evaluate(problem, [2] * len(problem.layers), whole)
    weights, peak = in_float.weight_bytes, in_float.memory_bytes
    limits = Limits(loss=0.05 * in_int8.loss, weight_bytes=weights // 5, memory_bytes=int(memory * peak))
    begun, started = time.process_time(), time.monotonic()
    try:
        fastest = solve(problem, limits, "latency", gap, time_limit_s=60)
    except InfeasibleError:
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - begun
        return Comparison(layers, seed, memory, seconds, cpu_seconds, 0.0, None, ())
    cpu_seconds = time.process_time() - begun
    timed = Comparison(
        layers,
        seed,
        memory,
        fastest.seconds,
        cpu_seconds,
        fastest.search_gap,
        fastest.totals.latency_ms / in_float.latency_ms,
        fastest.binding,
    )
    if not losses:
        return timed
    limits = Limits(0.75 * in_float.latency_ms, int(0.3 * weights), int(0.3 * peak))
    found: list[float | None] = []
    for one in (problem, bits_only(problem), channels_only(problem)):
        try:
            found.append(solve(one, limits, "loss", gap, time_limit_s=60).totals.loss)
        except InfeasibleError:
            found.append(None)
    naive = greedy(problem, limits)
    loss = None if naive is None else evaluate(problem, *naive).loss
    both, bits, channels = found
    return replace(timed, joint_loss=both, greedy_loss=loss, bits_only_loss=bits, channels_only_loss=channels)


@dataclass(frozen=True)
class Row:
    layers: int
    latency_objective_s: float
    latency_objective_gap: float
    loss_objective_s: float
    loss_objective_gap: float
    float_ms: float
    plan_ms: float
    binding: tuple[str, ...]
    greedy_loss_ratio: float | None
    greedy_s: float


def measure(layers: int, seed: int, gap: float) -> Row:
    problem = synthetic(layers, seed)
    in_float = evaluate(problem, [0] * layers)
    all_int8 = evaluate(problem, [2] * layers)
    limits = Limits(loss=all_int8.loss * 0.02, memory_bytes=int(0.6 * in_float.memory_bytes))
    fastest = solve(problem, limits, "latency", gap)
    target_ms = (in_float.latency_ms + fastest.totals.latency_ms) / 2
    faithful = solve(problem, Limits(latency_ms=target_ms, memory_bytes=limits.memory_bytes), "loss", gap)
    # the comparison with the greedy leaves memory out, which a greedy cannot keep
    unlimited = solve(problem, Limits(latency_ms=target_ms), "loss", gap)
    begun = time.perf_counter()
    naive = greedy(problem, Limits(latency_ms=target_ms))
    greedy_s = time.perf_counter() - begun
    return Row(
        layers=layers,
        latency_objective_s=fastest.seconds,
        latency_objective_gap=fastest.search_gap,
        loss_objective_s=faithful.seconds,
        loss_objective_gap=faithful.search_gap,
        float_ms=in_float.latency_ms,
        plan_ms=fastest.totals.latency_ms,
        binding=fastest.binding,
        greedy_loss_ratio=None if naive is None else evaluate(problem, *naive).loss / unlimited.totals.loss,
        greedy_s=greedy_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--gap", type=float, default=None)
    parser.add_argument("--joint", action="store_true", help="channels and bits")
    parser.add_argument(
        "--memory", type=float, default=0.3, help="with --joint: budget, as a share of the float model's"
    )
    parser.add_argument("--no-losses", action="store_true", help="with --joint: time the fastest plan only")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cases = list(itertools.product(arguments.layers, arguments.seed))
    if arguments.joint:
        gap, timed_only = arguments.gap or 1e-3, arguments.no_losses
        rows: list[Any] = [compare(n, seed, arguments.memory, gap, not timed_only) for n, seed in cases]
    else:
        rows = [measure(n, seed, arguments.gap or 1e-4) for n, seed in cases]
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif arguments.joint:
        print(
            "layers | seed | memory | min latency: s, cpu s, gap | of float "
            "| loss: joint, greedy, bits, channels | binding"
        )
        for c in rows:
            losses = (c.joint_loss, c.greedy_loss, c.bits_only_loss, c.channels_only_loss)
            said = ", ".join("not reached" if x is None else f"{x:.3g}" for x in losses)
            print(
                f"{c.layers:6d} | {c.seed:4d} | {c.memory:6.2f} | {c.seconds:6.2f} {c.cpu_seconds:6.2f} {c.gap:.1e} "
                f"| {'none' if c.plan is None else f'{c.plan:.2f}'} | {said} | {', '.join(c.binding)}"
            )
    else:
        print("layers | min latency: s, gap | min loss: s, gap | float ms -> plan ms | greedy: loss ratio, s | binding")
        for r in rows:
            ratio = "not reached" if r.greedy_loss_ratio is None else f"{r.greedy_loss_ratio:.2f}x"
            print(
                f"{r.layers:6d} | {r.latency_objective_s:6.2f} {r.latency_objective_gap:.1e} "
                f"| {r.loss_objective_s:6.2f} {r.loss_objective_gap:.1e} "
                f"| {r.float_ms:8.2f} -> {r.plan_ms:8.2f} | {ratio:>11} {r.greedy_s:.2f} | {', '.join(r.binding)}"
            )


if __name__ == "__main__":
    main()
