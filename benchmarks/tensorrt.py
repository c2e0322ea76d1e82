"""Jetson boards that nobody has at hand: what is planned for them, and what can be shown of it without one.

    python -m benchmarks.tensorrt [NAME ...] [--board NAME ...] [--json FILE]

For each model and board the float model and the plan that keeps the metric within 1 % (precisions alone, no pruning):
the latency that the board's profile predicts with its 90 % interval, or why there is none; the metric of the plan's
numerics in onnxruntime and their signal to noise against float; and what TensorRT for RTX, compiling for compute
capability 8.6 (for Thor 12.0) without any GPU, made of it: whether it took the model, and of how many layers the kernel
is of the planned type. That is a proxy for TensorRT on the board, and no latency of anything.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import names_of, open_job, parser
from benchmarks.zoo import ZooEntry, prepare
from edgekit import toolchains
from edgekit.backends.proxy import TOOLCHAIN, ProxyReport, compile_proxy
from edgekit.backends.tensorrt import read_build
from edgekit.cost.table import total_ms
from edgekit.errors import EdgekitError
from edgekit.planning import make_plan
from edgekit.progress import OnConsole
from edgekit.types import Figure, Kind, MetricResult, Precision
from edgekit.workbench.scoring import Scorer
from edgekit.workbench.stages import Workbench
from examples.packages import PackageError

BOARDS = ("jetson-nano", "jetson-xavier-nx", "jetson-orin-nano")
MAX_DROP = 0.01


@dataclass(frozen=True)
class Row:
    """A candidate for one board. ``form`` is how its file says the types."""

    model: str
    board: str
    candidate: str
    precisions: dict[str, int]
    latency_ms: Figure
    metric: MetricResult
    drop: Figure
    sqnr_db: float
    weight_bytes: int
    form: str
    releases: tuple[str, ...]
    single: int
    proxy: ProxyReport


def bench_model(name: str, entry: ZooEntry, board: str, log: Console) -> tuple[list[Row], list[str]]:
    """The rows of one model on one board, and the options of the whole model that were dropped."""
    progress = OnConsole(log)
    job = replace(open_job(entry, board, [], progress, MAX_DROP), prune=False)
    bench = Workbench(job)
    scorer = Scorer(bench)
    planned = make_plan(bench, scorer)
    table = planned.planning.table
    whole = bench.costs(Precision.FP32, weight_only=False).table
    every = {layer.name: Precision.FP32 for layer in job.graph.layers}
    candidates = {
        "float": (every, bench.artifact({}, Precision.FP32), whole),
        "plan": (planned.plan.precisions(), bench.artifact_of(planned.plan, planned.base), table),
    }
    reference = scorer.score(candidates["float"][1], "float")
    rows = []
    for title, (precisions, artifact, costs) in candidates.items():
        score, build = scorer.score(artifact, title), read_build(artifact)
        with progress.stage(f"{title} in TensorRT for RTX"):
            proxy = compile_proxy(artifact)
        rows.append(
            Row(
                model=name,
                board=board,
                candidate=title,
                precisions={p.value: list(precisions.values()).count(p) for p in Precision if p in precisions.values()},
                latency_ms=costs.figure(total_ms(costs, job.graph.edges, precisions)),
                metric=score.metric,
                drop=scorer.drop(reference, score),
                sqnr_db=score.sqnr_db,
                weight_bytes=artifact.weight_bytes,
                form=f"{build['typing']}, opset {build['opset']}",
                releases=tuple(row["name"] for row in build["releases"]),
                single=len(build["single"]),
                proxy=proxy,
            )
        )
    return rows, [f"{one.option}: {one.reason}" for one in planned.dropped if one.scope == "model"]


def table_of(rows: list[Row]) -> Table:
    """The rows as a table."""
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("model", "board", "candidate", "layers", "predicted ms", "metric", "drop", "SNR dB", "MB", "form"):
        table.add_column(title, justify="left" if title in ("model", "board", "candidate", "form") else "right")
    table.add_column("RTX proxy: layers as planned", justify="right")
    for row in rows:
        figure = row.latency_ms
        table.add_row(
            row.model,
            row.board,
            row.candidate,
            " ".join(f"{count} {word}" for word, count in row.precisions.items()),
            "none" if figure.kind is Kind.NONE else f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]",
            f"{row.metric.name} {row.metric.value:.3f}",
            "-" if row.drop.value is None else f"{row.drop.value:.3f}",
            f"{row.sqnr_db:.1f}" if row.candidate != "float" else "",
            f"{row.weight_bytes / 1e6:.2f}",
            row.form,
            f"{row.proxy.conformance.matched} of {row.proxy.conformance.planned}" if row.proxy.accepted else "refused",
        )
    return table


def main() -> int:
    made = parser("python -m benchmarks.tensorrt", __doc__ or "")
    made.add_argument("--board", action="append", metavar="NAME", help=f"default: {', '.join(BOARDS)}")
    arguments = made.parse_args()
    log, console = Console(stderr=True), Console(width=210)
    toolchains.ensure(TOOLCHAIN, OnConsole(log))
    rows: list[Row] = []
    notes: list[str] = []
    for name in names_of(arguments, made):
        for board in arguments.board or BOARDS:
            try:
                found, dropped = bench_model(name, prepare(name, arguments.zoo), board, log)
            except (EdgekitError, PackageError, ImportError, OSError, RuntimeError) as error:
                notes.append(f"{name}, {board}: none: {error}")
                continue
            rows += found
            notes += [f"{name}, {board}: {line}" for line in dropped]
            notes += [f"{name}, {board}: {row.latency_ms.source}" for row in found[:1] if row.latency_ms.value is None]
            for row in found:
                notes += [f"{name}, {board}, {row.candidate}: refused: {row.proxy.reason}"] * (not row.proxy.accepted)
                for one in row.proxy.conformance.mismatches:
                    notes.append(f"{name}, {board}, {row.candidate}: {one.layer}: {one.planned} became {one.executed}")
            if arguments.json:
                text = json.dumps([asdict(row) for row in rows], indent=1, default=dict)
                Path(arguments.json).write_text(text + "\n")
    console.print(table_of(rows))
    for line in dict.fromkeys(notes):
        console.print(line, markup=False, highlight=False)
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
