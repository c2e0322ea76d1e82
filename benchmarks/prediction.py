"""Does a sum of layer costs predict a mixed plan? Random int8/float plans: predicted latency against measured.

    python -m benchmarks.prediction NAME ... [--channels] [--plans 10] [--seed 0] [--json FILE]

With --channels every plan also keeps, in about half of the channel groups, fewer channels: one of the counts that fill
steps of the device. The plans differ in their share of int8 layers and in the pattern: random layers, the first layers,
or blocks. All race interleaved with the two uniform models and those that alternate, which the table was made from
(the anchors). Each plan is predicted three ways: by the cost table as it was measured earlier; by the same table at the
pace of the anchors in this race; and between the uniform models of this race by the share of multiply-accumulates in
int8 (times what is left of them). The table comes from the cache where an earlier run left it there.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import names_of, open_job, parser
from benchmarks.zoo import prepare
from edgekit.cost.crossings import alternating
from edgekit.cost.shapes import ShapeTable
from edgekit.cost.table import CostTable, at_pace, mac_baseline_ms, pace, predict_ms, total_ms
from edgekit.errors import EdgekitError
from edgekit.graph import Graph
from edgekit.job import Job
from edgekit.progress import OnConsole
from edgekit.results import DeviceInfo
from edgekit.tables.channels import PruningTables, fit_tables, keep_counts
from edgekit.types import Figure, Precision
from edgekit.workbench.stages import Workbench
from examples.packages import PackageError

PATTERNS = ("random", "prefix", "blocks")
LEAST_SHARE, MOST_SHARE = 0.15, 0.9
LONGEST_BLOCK = 6
PRUNED_GROUPS = 0.5


@dataclass(frozen=True)
class Row:
    """One plan. ``spread`` is half the distance from the 10th to the 90th percentile of its rounds, relative."""

    plan: str
    int8_layers: int
    removed_channels: int
    measured_ms: float
    spread: float
    table_ms: float
    anchored_ms: float
    anchored_low_ms: float
    anchored_high_ms: float
    mac_ms: float


@dataclass(frozen=True)
class Result:
    """One model. The anchors are those of this race."""

    model: str
    target: str
    device: DeviceInfo
    base: Precision
    layers: int
    float_ms: float
    int8_ms: float
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Errors:
    """Relative errors over the plans; ``inside`` is the share of plans within the 90 % interval."""

    mean: float
    worst: float
    inside: float | None


def random_plan(int8: Sequence[str], pattern: str, share: float, rng: random.Random) -> frozenset[str]:
    """The layers of one plan that take int8, about ``share`` of those that can, in execution order."""
    count = max(1, round(share * len(int8)))
    if pattern == "random":
        return frozenset(rng.sample(list(int8), count))
    if pattern == "prefix":
        return frozenset(int8[:count])
    chosen: set[str] = set()
    place = 0
    while place < len(int8):
        length = rng.randint(2, LONGEST_BLOCK)
        if rng.random() < share:
            chosen.update(int8[place : place + length])
        place += length
    return frozenset(chosen)


def random_kept(tables: PruningTables, rng: random.Random) -> dict[str, int]:
    """One of the counts below all for about half of the groups."""
    found = {}
    for index in tables.offered:
        if rng.random() < PRUNED_GROUPS:
            found[tables.channels.groups[index].name] = rng.choice(tables.counts(index)[1:])
    return found


def pruning_tables(bench: Workbench, table: CostTable) -> tuple[CostTable, PruningTables]:
    """Shapes of every count that fills steps, whatever it loses: only latencies are asked for here."""
    channels, sizes = bench.pruner.channels, bench.pruner.sizes
    step = bench.job.profile.channel_step
    counts = {group.name: (group.channels, *keep_counts(group, step)) for group in channels.groups}
    tables = PruningTables(
        channels, sizes, ShapeTable({}), {n: dict.fromkeys(row, 0.0) for n, row in counts.items()}, {}
    )
    profiles = bench.shape_profiles(table, {index: tables.counts(index) for index in tables.offered})
    return fit_tables(tables, table, bench.job.graph.edges, profiles)


def measure(job: Job, plans: int, seed: int, seconds: float, channels: bool) -> Result:
    """Race ``plans`` random plans and predict each."""
    bench = Workbench(job)
    base = next(iter(bench.float_precisions()[0]))
    table = bench.costs(base, weight_only=False).table
    names = [layer.name for layer in job.graph.layers]
    able = [name for name in names if Precision.INT8 in table.latency_ms[name]]
    if not able:
        raise EdgekitError(f"{job.model_path.name}: no layer of it executes in int8 here")
    rng = random.Random(seed)
    chosen = {"float": frozenset[str](), "int8": frozenset(able)}
    chosen |= {title: frozenset(layers) for title, layers in alternating(able).items()}
    anchors = tuple(chosen)
    for number in range(plans):
        pattern = PATTERNS[number % len(PATTERNS)]
        share = rng.uniform(LEAST_SHARE, MOST_SHARE)
        chosen[f"{pattern} {number}"] = random_plan(able, pattern, share, rng)
    tables: PruningTables | None = None
    if channels:
        table, tables = pruning_tables(bench, table)
    kept: dict[str, dict[str, int]] = {
        title: random_kept(tables, rng) if tables is not None and title not in anchors else {} for title in chosen
    }
    precisions = {
        title: {name: Precision.INT8 if name in layers else base for name in names} for title, layers in chosen.items()
    }
    artifacts = {}
    with job.progress.stage("convert the plans", len(precisions)) as advance:
        for title, plan in precisions.items():
            artifacts[title] = bench.timing_artifact(plan, base, kept[title])
            advance()
    with job.progress.stage(f"race {len(artifacts)} models"):
        raced = job.device.race(artifacts, seconds)
    float_ms = raced["float"].latency_ms.p50
    int8_ms = float_ms * raced["int8"].ratio
    seen = [(total_ms(table, job.graph.edges, precisions[title]), float_ms * raced[title].ratio) for title in anchors]
    now = at_pace(table, pace(seen))
    uniform = replace(table, anchors_ms={base: float_ms, Precision.INT8: int8_ms})
    whole_macs = sum(layer.macs for layer in job.graph.layers)
    rows = []
    for title in list(precisions)[len(anchors) :]:
        plan, row = precisions[title], raced[title]
        smaller = bench.pruner.cut(kept[title]) if kept[title] else job.graph
        predicted = _predicted(tables, now, job, kept[title], smaller, plan)
        earlier = _predicted(tables, table, job, kept[title], smaller, plan)
        left = sum(layer.macs for layer in smaller.layers) / whole_macs
        rows.append(
            Row(
                plan=title,
                int8_layers=len(chosen[title]),
                removed_channels=_removed(bench, kept[title]),
                measured_ms=float_ms * row.ratio,
                spread=(row.ratio_high - row.ratio_low) / 2 / row.ratio,
                table_ms=earlier.value or 0.0,
                anchored_ms=predicted.value or 0.0,
                anchored_low_ms=predicted.low or 0.0,
                anchored_high_ms=predicted.high or 0.0,
                mac_ms=mac_baseline_ms(uniform, smaller.layers, plan) * left,
            )
        )
    target = job.target.name
    return Result(job.model_path.name, target, bench.device_info, base, len(names), float_ms, int8_ms, tuple(rows))


def _predicted(
    tables: PruningTables | None,
    table: CostTable,
    job: Job,
    kept: dict[str, int],
    smaller: Graph,
    plan: dict[str, Precision],
) -> Figure:
    if tables is not None:
        table = tables.at(table, job.graph.edges, tables.kept(kept))
    return predict_ms(table, smaller.edges, plan)


def _removed(bench: Workbench, kept: dict[str, int]) -> int:
    return sum(group.channels - kept[group.name] for group in bench.pruner.channels.groups if group.name in kept)


def errors(result: Result) -> dict[str, Errors]:
    """By predictor. The interval of the table as measured earlier has the relative width of the other's."""
    rows = result.rows

    def of(predicted: Sequence[float], intervals: Sequence[tuple[float, float]] | None) -> Errors:
        sizes = [abs(p / row.measured_ms - 1) for p, row in zip(predicted, rows, strict=True)]
        inside = None
        if intervals is not None:
            hits = [low <= row.measured_ms <= high for (low, high), row in zip(intervals, rows, strict=True)]
            inside = sum(hits) / len(hits)
        return Errors(statistics.mean(sizes), max(sizes), inside)

    now = [(row.anchored_low_ms, row.anchored_high_ms) for row in rows]
    earlier = [
        (low * row.table_ms / row.anchored_ms, high * row.table_ms / row.anchored_ms)
        for (low, high), row in zip(now, rows, strict=True)
    ]
    return {
        "table as measured earlier": of([row.table_ms for row in rows], earlier),
        "at the pace of this race": of([row.anchored_ms for row in rows], now),
        "MACs between the anchors": of([row.mac_ms for row in rows], None),
    }


def plans_table(result: Result) -> Table:
    title = (
        f"{result.model} on {result.target}: {result.base.value} {result.float_ms:.3g} ms, "
        f"int8 {result.int8_ms:.3g} ms, {result.device.cpu}, {result.device.threads} thread"
    )
    made = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for column in ("plan", "int8 layers", "channels removed", "measured ms", "spread", "table", "at this pace", "MACs"):
        made.add_column(column, justify="left" if column == "plan" else "right")
    for row in result.rows:
        made.add_row(
            row.plan,
            f"{row.int8_layers}/{result.layers}",
            str(row.removed_channels),
            f"{row.measured_ms:.3f}",
            f"±{row.spread:.1%}",
            *(f"{predicted / row.measured_ms - 1:+.1%}" for predicted in (row.table_ms, row.anchored_ms, row.mac_ms)),
        )
    return made


def summary_table(results: Sequence[Result]) -> Table:
    made = Table(title="Error of the prediction", title_justify="left", box=box.MARKDOWN)
    for column in ("model", "target", "base", "plans", "predictor", "mean", "worst", "inside 90 % interval"):
        made.add_column(column, justify="right" if column in ("plans", "mean", "worst") else "left")
    for result in results:
        for predictor, found in errors(result).items():
            inside = "-" if found.inside is None else f"{found.inside:.0%}"
            row = (result.model, result.target, result.base.value, str(len(result.rows)), predictor)
            made.add_row(*row, f"{found.mean:.1%}", f"{found.worst:.1%}", inside)
    return made


def main() -> int:
    made = parser("python -m benchmarks.prediction", __doc__ or "")
    made.add_argument("--plans", type=int, default=10)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--channels", action="store_true", help="remove channels as well")
    made.add_argument("--seconds", type=float, default=20.0, help="time of each race")
    arguments = made.parse_args()
    if arguments.plans < 1:
        made.error("--plans must be at least 1")
    log, console = Console(stderr=True), Console(width=150)
    results, failures = [], {}
    for name in names_of(arguments, made):
        try:
            job = open_job(prepare(name, arguments.zoo), arguments.target, arguments.overlay, OnConsole(log), 0.01)
            results.append(
                replace(
                    measure(job, arguments.plans, arguments.seed, arguments.seconds, arguments.channels), model=name
                )
            )
        except (EdgekitError, PackageError, ImportError, OSError) as error:
            failures[name] = str(error)
            console.print(f"{name}: none: {error}", markup=False)
            continue
        console.print(plans_table(results[-1]))
    if results:
        console.print(summary_table(results))
    if arguments.json:
        rows = [
            {**asdict(result), "errors": {key: asdict(value) for key, value in errors(result).items()}}
            for result in results
        ]
        Path(arguments.json).write_text(json.dumps({"results": rows, "failures": failures}, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
