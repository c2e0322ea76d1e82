"""Real models end to end: what edgekit ships, beside NNCF's post-training quantization of the same models.

    python -m benchmarks.models [NAME ...] --out DIR [--nncf-python PATH] [--json FILE]

Both calibrate on the same samples. The candidates race interleaved, in one run, on one thread, and are judged on the
same evaluation samples. NNCF's models run with the f32 hint, and with the 16-bit one too where edgekit found that to
be faster. PATH is the Python of an environment with benchmarks/requirements.txt.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

import edgekit
from benchmarks.jobs import names_of, open_job, parser
from benchmarks.peers import nncf_ptq
from benchmarks.peers.samples import write_calibration
from benchmarks.zoo import ZooEntry, prepare
from edgekit.backends import Artifact
from edgekit.errors import EdgekitError
from edgekit.job import Job
from edgekit.planning import make_plan
from edgekit.progress import OnConsole
from edgekit.results import DeployResult, DeviceInfo
from edgekit.scoring import Scorer
from edgekit.stages import Workbench
from edgekit.types import Figure, Kind, Latency, MetricResult, Precision
from examples.packages import PackageError

MAX_DROP = 0.01
NOT_ASKED = "no --nncf-python was passed"


@dataclass(frozen=True)
class Row:
    """One candidate, all of it measured."""

    model: str
    candidate: str
    ships: bool
    int8_layers: int | None  # not known of NNCF's models
    removed_channels: int
    latency_ms: Latency
    speedup: Figure
    metric: MetricResult
    drop: Figure
    sqnr_db: float
    agreement: float | None
    weight_bytes: int


@dataclass(frozen=True)
class Missing:
    """A candidate, or a whole model, that there is none of."""

    model: str
    candidate: str
    none: str


def bench_model(
    name: str, entry: ZooEntry, out: Path, target: str, overlays: list[Path], nncf: Path | None, log: Console, s: float
) -> tuple[DeviceInfo, list[Row | Missing]]:
    """Deploy, quantize with NNCF, race and score. ``s`` is the time of the race in seconds."""
    progress = OnConsole(log)
    result = edgekit.deploy(
        entry.model,
        target,
        data=entry.data,
        evaluation=entry.eval,
        recipe=entry.recipe or "npz",
        metric=entry.metric,
        budget=edgekit.Budget(max_drop=MAX_DROP),
        shapes=entry.shapes,
        out=out / name / "bundle",
        overlays=overlays,
        progress=progress,
    )
    job = open_job(entry, target, overlays, progress, MAX_DROP)
    bench = Workbench(job)
    scorer = Scorer(bench)
    plans, base = _plans(bench, scorer, result)
    artifacts = {
        title: bench.artifact(plan, Precision.FP32 if title == "float" else base, kept)
        for title, (plan, kept) in plans.items()
    }
    failures = {}
    for transformer in nncf_ptq.TRANSFORMER.get(name, (False,)):
        title = "NNCF transformer" if transformer else "NNCF default"
        if nncf is None:
            failures[title] = NOT_ASKED
            continue
        try:
            with progress.stage(title):
                peer = _nncf(job, entry, out / name, nncf, transformer)
        except (RuntimeError, OSError) as error:
            failures[title] = " ".join(str(error).split())[-300:]
            continue
        for precision in dict.fromkeys((Precision.FP32, base)):
            artifact = Artifact(peer, (peer, peer.with_suffix(".bin")), precision, _size(peer.with_suffix(".bin")))
            artifacts[f"{title}, {precision.value}"] = artifact
    with progress.stage(f"race {len(artifacts)} candidates"):
        raced = job.device.race(artifacts, s)
    reference = scorer.score(artifacts["float"], "float")
    found: list[Row | Missing] = []
    for title, artifact in artifacts.items():
        score, timed = scorer.score(artifact, title), raced[title]
        plan, kept = plans.get(title, (None, {}))
        value, low, high = (1 / ratio for ratio in (timed.ratio, timed.ratio_high, timed.ratio_low))
        found.append(
            Row(
                model=name,
                candidate=title,
                ships=plan is not None and _ships(title, plan, kept, result),
                int8_layers=None if plan is None else sum(p is Precision.INT8 for p in plan.values()),
                removed_channels=_removed(bench, kept),
                latency_ms=timed.latency_ms,
                speedup=Figure(Kind.MEASURED, value, low, high, "interleaved rounds, p10..p90"),
                metric=score.metric,
                drop=scorer.drop(reference, score),
                sqnr_db=score.sqnr_db,
                agreement=score.agreement,
                weight_bytes=artifact.weight_bytes,
            )
        )
    return bench.device_info, found + [Missing(name, title, reason) for title, reason in failures.items()]


def _removed(bench: Workbench, kept: Mapping[str, int]) -> int:
    if not kept:
        return 0
    return sum(group.channels - kept.get(group.name, group.channels) for group in bench.pruner.channels.groups)


def _plans(
    bench: Workbench, scorer: Scorer, result: DeployResult
) -> tuple[dict[str, tuple[Mapping[str, Precision], Mapping[str, int]]], Precision]:
    """The uniform plans, edgekit's first plan and the best of bits alone, and what shipped where that is none of them,
    each with the channels that it keeps where some go; and the float precision of all but the first. All of it is in
    the cache since the deployment.
    """
    planned = make_plan(bench, scorer)
    base, times = planned.base, planned.planning.table.latency_ms
    names = [layer.name for layer in bench.job.graph.layers]
    plans: dict[str, tuple[Mapping[str, Precision], Mapping[str, int]]] = {
        "float": (dict.fromkeys(names, Precision.FP32), {})
    }
    if base is not Precision.FP32:
        plans[base.value] = (dict.fromkeys(names, base), {})
    plans["int8"] = ({name: Precision.INT8 if Precision.INT8 in times[name] else base for name in names}, {})
    found = [("plan", planned.plan), (result.chosen, result.plan)]
    if planned.bits_only is not None:
        found.insert(0, ("bits only", planned.bits_only.plan))
    for title, plan in found:
        if (plan.precisions(), plan.kept()) not in plans.values():
            plans[title] = (plan.precisions(), plan.kept())
    return plans, base


def _ships(title: str, plan: Mapping[str, Precision], kept: Mapping[str, int], result: DeployResult) -> bool:
    same = plan == result.plan.precisions() and kept == result.plan.kept()
    return same and (title == "float") == (result.chosen == "float")


def _nncf(job: Job, entry: ZooEntry, folder: Path, python: Path, transformer: bool) -> Path:
    """NNCF's model, from the samples that edgekit calibrated on."""
    samples = write_calibration(job, folder)
    path = folder / f"nncf-{'transformer' if transformer else 'default'}.xml"
    return nncf_ptq.quantize(entry.model, samples, path, python, transformer)


def _size(path: Path) -> int:
    return path.stat().st_size


def table(rows: Sequence[Row | Missing], target: str, device: DeviceInfo | None) -> Table:
    title = f"Target {target}"
    if device is not None:
        threads = f"{device.threads} thread{'s' if device.threads != 1 else ''}"
        title += f": {device.cpu}, {threads}, {device.runtime}; measured, interleaved"
    made = Table(title=title, title_justify="left", box=box.MARKDOWN)
    columns = (
        *(
            "model",
            "candidate",
            "p50 ms",
            "speed-up",
            "metric [95 %]",
            "drop [95 %]",
            "SQNR dB",
            "agree",
            "MB",
            "int8",
            "cut",
        ),
    )
    for column in columns:
        made.add_column(column, justify="left" if column in columns[:2] else "right", overflow="fold")
    for row in rows:
        if isinstance(row, Missing):
            made.add_row(row.model, row.candidate, "none", *[""] * (len(columns) - 3))
            continue
        made.add_row(
            row.model,
            f"{row.candidate} (ships)" if row.ships else row.candidate,
            f"{row.latency_ms.p50:.3g}",
            f"x{row.speedup.value:.2f}",
            f"{row.metric.name} {row.metric.value:.3f} [{row.metric.low:.3f}, {row.metric.high:.3f}]",
            f"{row.drop.value:+.3f} [{row.drop.low:+.3f}, {row.drop.high:+.3f}]",
            f"{row.sqnr_db:.1f}",
            "-" if row.agreement is None else f"{row.agreement:.3f}",
            f"{row.weight_bytes / 1e6:.2f}",
            "-" if row.int8_layers is None else str(row.int8_layers),
            str(row.removed_channels) if row.removed_channels else "-",
        )
    return made


def main() -> int:
    made = parser("python -m benchmarks.models", __doc__ or "")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets a bundle and NNCF's models by name")
    made.add_argument("--nncf-python", type=Path, metavar="PATH")
    made.add_argument("--seconds", type=float, default=12.0, help="time of each race")
    arguments = made.parse_args()
    log, console = Console(stderr=True), Console(width=170)
    rows: list[Row | Missing] = []
    device: DeviceInfo | None = None
    for name in names_of(arguments, made):
        try:
            entry = prepare(name, arguments.zoo)
            device, found = bench_model(
                name,
                entry,
                arguments.out,
                arguments.target,
                arguments.overlay,
                arguments.nncf_python,
                log,
                arguments.seconds,
            )
            rows += found
        except (EdgekitError, PackageError, ImportError, OSError) as error:
            log.print(f"{name}: {error}", markup=False)
            rows.append(Missing(name, "edgekit", str(error)))
    console.print(table(rows, arguments.target, device))
    missing = [row for row in rows if isinstance(row, Missing)]
    for row in missing:
        console.print(f"{row.model}, {row.candidate}: none: {row.none}", markup=False, highlight=False)
    if arguments.json:
        document = {
            "target": arguments.target,
            "device": None if device is None else asdict(device),
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(document, indent=1, default=float) + "\n")
    return 1 if any(row.none != NOT_ASKED for row in missing) else 0


if __name__ == "__main__":
    sys.exit(main())
