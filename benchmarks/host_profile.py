"""How far off is a measured device profile on real models, none of which it was made from?

    edgekit profile --target host
    python -m benchmarks.host_profile NAME ... [--zoo DIR] [--target host] [--json FILE]

Each model is raced in float, in the fastest 16-bit float where that wins, and in int8; beside each latency stands what
the profile alone predicts, with its 90 % interval. Layers that do not execute in int8 stay float in both.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import names_of, open_job, parser
from benchmarks.zoo import prepare
from edgekit.cost.profile import predict_from_profile
from edgekit.errors import EdgekitError
from edgekit.job import Job
from edgekit.progress import OnConsole
from edgekit.types import Figure, Precision
from edgekit.workbench.stages import Workbench
from examples.packages import PackageError

RACE_S = 6.0


@dataclass(frozen=True)
class Row:
    """One model in one precision: measured and predicted, milliseconds."""

    model: str
    precision: str
    measured_ms: float
    predicted: Figure

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured."""
        return None if self.predicted.value is None else self.predicted.value / self.measured_ms - 1

    @property
    def inside(self) -> bool:
        low, high = self.predicted.low, self.predicted.high
        return low is not None and high is not None and low <= self.measured_ms <= high


def check(name: str, job: Job) -> list[Row]:
    """One model against the profile of its target."""
    bench = Workbench(job)
    base = next(iter(bench.float_precisions()[0]))
    table = bench.costs(base, weight_only=False).table
    plans: dict[str, tuple[Mapping[str, Precision], Precision]] = {
        "fp32": (dict.fromkeys(table.floats, Precision.FP32), Precision.FP32)
    }
    if base is not Precision.FP32:
        plans[base.value] = (table.floats, base)
    if Precision.INT8 in table.anchors_ms:
        executing = {
            layer: Precision.INT8 if Precision.INT8 in times else table.floats[layer]
            for layer, times in table.latency_ms.items()
        }
        plans["int8"] = (executing, base)
    raced = bench.race({word: bench.timing_artifact(*plan, {}) for word, plan in plans.items()}, RACE_S, f"race {name}")
    first_ms = raced["fp32"].latency_ms.p50
    return [
        Row(
            name,
            word,
            first_ms * raced[word].ratio,
            predict_from_profile(job.graph, plan, job.profile, job.target.backend, job.device.threads),
        )
        for word, (plan, _) in plans.items()
    ]


def print_rows(rows: list[Row], console: Console) -> None:
    shown = Table("model", "precision", "measured ms", "predicted ms", "90 % interval", "error", "", box=box.MARKDOWN)
    for row in rows:
        figure = row.predicted
        known = figure.value is not None and figure.low is not None and figure.high is not None
        shown.add_row(
            row.model,
            row.precision,
            f"{row.measured_ms:.3g}",
            f"{figure.value:.3g}" if known else "none",
            f"{figure.low:.3g}..{figure.high:.3g}" if known else figure.source[:60],
            f"{row.error:+.0%}" if row.error is not None else "",
            "" if not known else "inside" if row.inside else "outside",
        )
    console.print(shown)
    errors = sorted(abs(row.error) for row in rows if row.error is not None)
    if len(errors) > 1:
        console.print(
            f"{date.today().isoformat()}: {len(errors)} predictions; median error {statistics.median(errors):.0%}, "
            f"90 % within {statistics.quantiles(errors, n=10, method='inclusive')[-1]:.0%}, within 10 %: "
            f"{sum(error <= 0.1 for error in errors) / len(errors):.0%}, inside the interval: "
            f"{sum(row.inside for row in rows) / len(errors):.0%}"
        )


def main() -> int:
    made = parser("benchmarks.host_profile", __doc__)
    arguments = made.parse_args()
    console = Console(width=140)
    progress = OnConsole(Console(stderr=True))
    rows: list[Row] = []
    for name in names_of(arguments, made):
        try:
            entry = prepare(name, arguments.zoo)
            rows += check(name, open_job(entry, arguments.target, arguments.overlay, progress, 0.01))
        except (EdgekitError, PackageError) as error:
            console.print(f"{name}: {error}")
    print_rows(rows, console)
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
