"""Planner: time, proven gap, and what a greedy leaves on the table, on synthetic cost tables.

A chain with residual connections and long skips (about 20 live tensors at each execution step), three options a layer
(fp32, w8, int8), loss drawn over six orders of magnitude. Task: lowest latency under a loss budget and a memory
budget; then lowest loss at that latency, against the greedy that most tools use (from float, repeatedly move the layer
with the best latency gain per loss).

    python benchmarks/planner.py [--layers 50 200 1000] [--seed 0] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass

from edgekit.planner import ActivationTensor, Boundary, LayerOption, Limits, PlanningLayer, Problem, evaluate, solve
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


def greedy(problem: Problem, latency_ms: float) -> tuple[int, ...] | None:
    """From all-float, the single change with the most latency gained per loss added, until the latency is reached."""
    neighbours: dict[int, list[tuple[int, float]]] = {i: [] for i in range(len(problem.layers))}
    for b in problem.boundaries:
        neighbours[b.consumer].append((b.producer, b.cost_ms))
        if b.producer >= 0:
            neighbours[b.producer].append((b.consumer, b.cost_ms))
    choice = [0] * len(problem.layers)

    def local_ms(layer: int, option: LayerOption) -> float:
        def domain(other: int) -> str:
            return "float" if other < 0 else problem.layers[other].options[choice[other]].domain

        return option.latency_ms + sum(c for other, c in neighbours[layer] if domain(other) != option.domain)

    now = evaluate(problem, choice).latency_ms
    while now > latency_ms:
        best: tuple[float, float, int, int] | None = None
        for i, layer in enumerate(problem.layers):
            old = layer.options[choice[i]]
            old_ms = local_ms(i, old)
            for k, option in enumerate(layer.options):
                gain, added = old_ms - local_ms(i, option), option.loss - old.loss
                if gain > 0 and added > 0 and (best is None or gain / added > best[0]):
                    best = (gain / added, gain, i, k)
        if best is None:
            return None
        choice[best[2]] = best[3]
        now -= best[1]
    return tuple(choice)


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
    naive = greedy(problem, target_ms)
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
        greedy_loss_ratio=None if naive is None else evaluate(problem, naive).loss / unlimited.totals.loss,
        greedy_s=greedy_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gap", type=float, default=1e-4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [measure(layers, arguments.seed, arguments.gap) for layers in arguments.layers]
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
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
