"""What each cure of quantization gives on real models: uniform int8 with one cure at a time and with those that edgekit
keeps, and 4-bit weights rounded to the nearest code, by calibration, and where torch is installed by block-wise
reconstruction, on the evaluation samples.

    python -m benchmarks.rounding [NAME ...] [--samples N] [--json FILE]

Everything runs in the runtime of the target. In 4 bits are the weights of all layers but depthwise convolutions, in
codes from -7 to 7 with one scale an output channel; activations stay float.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import names_of, open_job, parser
from benchmarks.zoo import prepare
from edgekit.backends import able
from edgekit.compress.cures import NO_CURES, Cures
from edgekit.compress.grams import mixes_channels
from edgekit.compress.products import product_of
from edgekit.compress.ranges import run_float
from edgekit.compress.torch_extra import has_torch
from edgekit.graph import to_bytes
from edgekit.job import Job
from edgekit.progress import OnConsole
from edgekit.recipes.intervals import drop, result
from edgekit.recipes.samples import spread
from edgekit.sensitivity import relative_noise_power
from edgekit.types import Figure, MetricResult, Precision
from edgekit.workbench.stages import Workbench

MAX_DROP = 0.01


@dataclass(frozen=True)
class Row:
    """One model with one cure: signal to noise against float of the median sample (one odd sample can have most of the
    power of all), and of the mean relative noise, which the planner's losses are; the metric and its drop with their
    95 % intervals; and the CPU seconds that finding this cure took beyond the rows before it.
    """

    model: str
    precision: str
    cure: str
    sqnr_db: float
    mean_db: float
    metric: MetricResult
    drop: Figure
    seconds: float


def bench_model(name: str, zoo: Path, target: str, overlays: list[Path], samples: int, log: Console) -> list[Row]:
    """The rows of one model of the zoo."""
    job = open_job(prepare(name, zoo), target, overlays, OnConsole(log), MAX_DROP)
    job = replace(job, data=replace(job.data, evaluation=spread(job.data.evaluation, samples)))
    bench = Workbench(job)
    references = list(run_float(job.graph, job.data.evaluation))
    exact = _metric_rows(job, references, references)
    rows: list[Row] = []
    before = time.process_time()
    for precision, cure, names, cures in _variants(bench):
        seconds = time.process_time() - before
        content = to_bytes(bench.curer.remedies.written(cures, dict.fromkeys(names, precision)))
        with tempfile.TemporaryDirectory() as folder:
            artifact = job.device.backend.convert(content, Path(folder), Precision.FP32)
            run = job.device.backend.session(
                artifact, job.device.threads, [tensor.name for tensor in job.graph.outputs]
            )
            outputs = [run(job.data.evaluation.sample(index)) for index in range(len(references))]
        noise = [relative_noise_power(ours, theirs) for ours, theirs in zip(outputs, references, strict=True)]
        found = _metric_rows(job, outputs, references)
        sqnr_db = -10 * math.log10(statistics.median(noise))
        mean_db = -10 * math.log10(statistics.fmean(noise))
        metric = job.data.metric
        rows.append(
            Row(
                name,
                precision.value,
                cure,
                sqnr_db,
                mean_db,
                result(metric, found),
                drop(metric, exact, found),
                seconds,
            )
        )
        log.print(f"{name}, {precision.value}, {cure}: {sqnr_db:.1f} dB, mean {mean_db:.1f} dB", markup=False)
        before = time.process_time()
    return rows


def _metric_rows(
    job: Job, outputs: Sequence[Mapping[str, np.ndarray]], references: Sequence[Mapping[str, np.ndarray]]
) -> np.ndarray:
    labels = job.data.evaluation.labels or [None] * len(outputs)
    rows = [job.data.metric.row(*one) for one in zip(outputs, labels, references, strict=True)]
    return np.asarray(rows, float)


def _variants(bench: Workbench) -> Iterator[tuple[Precision, str, tuple[str, ...], Cures]]:
    job, remedies = bench.job, bench.curer.remedies
    names = able(job.graph, job.device.backend, Precision.INT8)
    int8 = Precision.INT8
    yield int8, "nearest", names, NO_CURES
    if remedies.sites:
        yield int8, "equalised", names, remedies.equalised(NO_CURES, names)
    for observer in ("min-max", "percentile", "mse"):
        if observer != job.data.recipe.observer:
            yield int8, f"observer {observer}", names, remedies.observed(NO_CURES, names, observer)
    yield int8, "rounded", names, remedies.rounded(NO_CURES, names)
    yield int8, "bias", names, remedies.corrected(NO_CURES, names, names)
    yield int8, "kept", names, bench.curer.cures
    products = {node.name: product_of(node) for node in job.graph.model.graph}
    mixing = tuple(name for name in names if (p := products[name]) is not None and mixes_channels(p.view))
    yield Precision.W4, "nearest", mixing, NO_CURES
    rounded = remedies.rounded(NO_CURES, mixing, Precision.W4)
    yield Precision.W4, "rounded", mixing, rounded
    if has_torch():
        yield Precision.W4, "learnt", mixing, remedies.learnt(rounded, Precision.W4)


def table(rows: list[Row]) -> Table:
    """The rows for people."""
    made = Table(box=box.MARKDOWN)
    for column in ("model", "precision", "cure", "SQNR dB", "mean dB", "metric [95 %]", "drop [95 %]", "CPU s"):
        made.add_column(column, justify="left" if column in ("model", "precision", "cure") else "right")
    for row in rows:
        made.add_row(
            row.model,
            row.precision,
            row.cure,
            f"{row.sqnr_db:.1f}",
            f"{row.mean_db:.1f}",
            f"{row.metric.name} {row.metric.value:.3f} [{row.metric.low:.3f}, {row.metric.high:.3f}]",
            f"{row.drop.value:+.3f} [{row.drop.low:+.3f}, {row.drop.high:+.3f}]",
            f"{row.seconds:.0f}",
        )
    return made


def main() -> int:
    """The program."""
    made = parser("python -m benchmarks.rounding", __doc__ or "")
    made.add_argument("--samples", type=int, default=1000, metavar="N", help="evaluation samples at most")
    arguments = made.parse_args()
    log, console = Console(stderr=True), Console(width=150)
    rows: list[Row] = []
    for name in names_of(arguments, made):
        rows += bench_model(name, arguments.zoo, arguments.target, arguments.overlay, arguments.samples, log)
    console.print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1, default=float) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
