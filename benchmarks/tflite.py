"""TFLite of real models: edgekit's mixed plan beside ai-edge-quantizer's plain static int8, here and on an ARM board.

    python -m benchmarks.tflite [NAME ...] [--samples 12] [--json FILE]

Both start from the same float .tflite and calibrate on the same samples. The plan keeps the metric within 1 %. All
three files are judged in LiteRT on the evaluation samples, race interleaved on this machine, one thread, and run once
more, on a few of these samples, on the virtual board (`make virtual-board`; without it those columns are empty). Its
times mean nothing; its outputs are those of an ARM core's kernels. ``conforms`` counts the layers that the written file
computes in the precision that the plan says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import names_of, open_job, parser
from benchmarks.peers import aeq_static
from benchmarks.peers.samples import write_calibration
from benchmarks.zoo import ZooEntry, prepare
from edgekit import toolchains
from edgekit.backends import Artifact, tflite
from edgekit.compress.ranges import run_float
from edgekit.cost.measured import executed_precisions
from edgekit.errors import EdgekitError
from edgekit.planning import make_plan
from edgekit.progress import OnConsole
from edgekit.recipes.intervals import result
from edgekit.recipes.samples import Dataset, spread
from edgekit.types import Figure, Kind, MetricResult, Plan, Precision
from edgekit.workbench.scoring import Scorer
from edgekit.workbench.stages import Workbench
from examples.packages import PackageError
from tests.virtual_board import sysroot
from tests.virtual_board.packages import Unavailable
from tests.virtual_board.sysroot import Sysroot

MAX_DROP = 0.01
RACE_S = 12.0
CORE = "cortex-a76"
BOARD_S, TRIES = 300.0, 3
PEER = "ai-edge-quantizer int8"
_PROGRAM = Path(__file__).with_name("board_outputs.py")


@dataclass(frozen=True)
class OnBoard:
    """The metric on a few samples, on the board and here, and how far the outputs differ: the noise of the difference
    over the power of the outputs here.
    """

    core: str
    board: MetricResult
    here: MetricResult
    difference: float


@dataclass(frozen=True)
class Row:
    """One file of a model. ``speedup`` is over the float file in the same race."""

    model: str
    candidate: str
    precisions: dict[str, int]
    removed_channels: int
    conforming: str
    metric: MetricResult
    drop: Figure
    speedup: Figure
    weight_bytes: int
    on_board: OnBoard | None


@dataclass(frozen=True)
class Missing:
    """A file, or a whole model, that there is none of."""

    model: str
    candidate: str
    none: str


def bench_model(
    name: str, entry: ZooEntry, overlays: list[Path], log: Console, board: Sysroot | None, count: int
) -> list[Row | Missing]:
    """Plan, quantize with the peer, race and score."""
    progress = OnConsole(log)
    bench = Workbench(open_job(entry, "host-tflite", overlays, progress, MAX_DROP))
    scorer = Scorer(bench)
    planned = make_plan(bench, scorer)
    artifacts = {"float": bench.artifact({}, Precision.FP32), "plan": bench.artifact_of(planned.plan, planned.base)}
    found: list[Row | Missing] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        try:
            with progress.stage(PEER):
                artifacts[PEER] = peer(bench, artifacts["float"], Path(folder))
        except (RuntimeError, EdgekitError) as error:
            found.append(Missing(name, PEER, str(error)))
        with progress.stage(f"race {len(artifacts)} files"):
            raced = bench.job.device.race(artifacts, RACE_S)
        reference = scorer.score(artifacts["float"], "float")
        for title, artifact in artifacts.items():
            score, ratio = scorer.score(artifact, title), raced[title]
            on_board = None
            if board is not None:
                try:
                    with progress.stage(f"{title} on the virtual board"):
                        on_board = run_on_board(bench, artifact, board, count, Path(folder))
                except (RuntimeError, EdgekitError) as error:  # as where a metric needs more samples
                    log.print(f"{name}, {title}: {error}", markup=False)
            found.append(
                Row(
                    model=name,
                    candidate=title,
                    precisions=counted(bench, planned.plan if title == "plan" else None) if title != PEER else {},
                    removed_channels=removed(planned.plan) if title == "plan" else 0,
                    conforming=conforming(bench, artifact, planned.plan) if title == "plan" else "",
                    metric=score.metric,
                    drop=scorer.drop(reference, score),
                    speedup=Figure(
                        Kind.MEASURED, 1 / ratio.ratio, 1 / ratio.ratio_high, 1 / ratio.ratio_low, "p10..p90 of rounds"
                    ),
                    weight_bytes=artifact.weight_bytes,
                    on_board=on_board,
                )
            )
    return found


def peer(bench: Workbench, plain: Artifact, folder: Path) -> Artifact:
    """What ai-edge-quantizer makes of the float file with the samples that edgekit calibrated on."""
    job = bench.job
    aeq_static.quantize(
        plain.path, write_calibration(job, folder), folder / "model.tflite", toolchains.ensure("tflite")
    )
    made = others_artifact(folder)
    tflite.session(made, 1, [one.name for one in job.graph.outputs])(job.data.calibration.sample(0))  # or says why not
    return made


def others_artifact(folder: Path) -> Artifact:
    """The ``model.tflite`` in ``folder``, which another tool made."""
    table = {"operators": [], "weight_bytes": weight_bytes((folder / "model.tflite").read_bytes())}
    (folder / "operators.json").write_text(json.dumps(table), encoding="utf-8")
    return tflite.artifact(folder, Precision.FP32)


def weight_bytes(content: bytes) -> int:
    """What a file holds of constants."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    return sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)


def conforming(bench: Workbench, artifact: Artifact, plan: Plan) -> str:
    """Layers that the file computes as planned, of all."""
    executed = executed_precisions(tflite.executed_nodes(tflite.compiled_rows(artifact), bench.job.graph))
    right = [name for name, p in plan.precisions().items() if tflite.executes_as(p, executed.get(name, ""))]
    return f"{len(right)}/{len(plan.layers)}"


def counted(bench: Workbench, plan: Plan | None) -> dict[str, int]:
    """Layers by precision."""
    words = [Precision.FP32] * len(bench.job.graph.layers) if plan is None else list(plan.precisions().values())
    return {word.value: words.count(word) for word in dict.fromkeys(words)}


def removed(plan: Plan) -> int:
    return sum(group.channels - group.kept for group in plan.groups)


def run_on_board(bench: Workbench, artifact: Artifact, board: Sysroot, count: int, folder: Path) -> OnBoard:
    """The metric there and here on the same few samples."""
    job = bench.job
    names = [one.name for one in job.graph.outputs]
    data = spread(job.data.evaluation, count)
    samples = [data.sample(index) for index in range(len(data))]
    arrays: dict[str, Any] = {one.name: np.stack([s[one.name] for s in samples]) for one in job.graph.inputs}
    np.savez(folder / "few.npz", **arrays)
    program: list[str | Path] = ["python3", _PROGRAM, artifact.path, folder / "few.npz", folder / "outputs.npz"]
    for left in reversed(range(TRIES)):
        try:
            done = subprocess.run(
                sysroot.emulated(board, CORE, program), capture_output=True, text=True, check=False, timeout=BOARD_S
            )
            break
        except subprocess.TimeoutExpired:  # emulated threads can wait for each other for ever
            if not left:
                raise RuntimeError(f"the virtual board does not come to an end with {artifact.path.name}") from None
    if done.returncode:
        raise RuntimeError(f"the virtual board refuses {artifact.path.name}: {done.stderr.strip()[-300:]}")
    with np.load(folder / "outputs.npz", allow_pickle=False) as stored:
        there = [{name: stored[name][index] for name in names} for index in range(len(samples))]
    run = tflite.session(artifact, 1, names)
    here = [{name: array.copy() for name, array in run(sample).items()} for sample in samples]
    noise = signal = 0.0
    for mine, other in zip(here, there, strict=True):
        for name in names:
            noise += float(np.sum(np.square(mine[name].astype(np.float64) - other[name])))
            signal += float(np.sum(np.square(mine[name].astype(np.float64))))
    return OnBoard(CORE, judged(bench, data, there), judged(bench, data, here), noise / (signal or 1.0))


def judged(bench: Workbench, data: Dataset, outputs: list[dict[str, np.ndarray]]) -> MetricResult:
    """The metric of these outputs."""
    metric, labels = bench.job.data.metric, data.labels
    references = list(run_float(bench.job.graph, data, 1))
    rows = [
        metric.row(one, None if labels is None else labels[index], references[index])
        for index, one in enumerate(outputs)
    ]
    return result(metric, np.asarray(rows, float))


def table(rows: list[Row | Missing], count: int) -> Table:
    made = Table(box=box.MARKDOWN)
    columns = ("model", "file", "layers", "cut", "conforms", "metric [95 %]", "drop", "speed-up", "MB")
    board = (f"board, {count} samples", "here, the same", "difference")
    for column in (*columns, *board):
        made.add_column(column, justify="left" if column in columns[:3] else "right", overflow="fold")
    for row in rows:
        if isinstance(row, Missing):
            made.add_row(row.model, row.candidate, "none", *[""] * (len(columns) + len(board) - 3))
            continue
        there = row.on_board
        made.add_row(
            row.model,
            row.candidate,
            ", ".join(f"{number} {word}" for word, number in row.precisions.items()),
            str(row.removed_channels or "-"),
            row.conforming,
            f"{row.metric.name} {row.metric.value:.3f} [{row.metric.low:.3f}, {row.metric.high:.3f}]",
            f"{row.drop.value:+.3f}",
            f"x{row.speedup.value:.2f}",
            f"{row.weight_bytes / 1e6:.2f}",
            *(("", "", "") if there is None else (_short(there.board), _short(there.here), f"{there.difference:.0e}")),
        )
    return made


def _short(metric: MetricResult) -> str:
    return f"{metric.value:.3f}"


def main() -> int:
    made = parser("python -m benchmarks.tflite", __doc__ or "")
    made.add_argument("--samples", type=int, default=12, help="evaluation samples that run on the virtual board")
    arguments = made.parse_args()
    log, console = Console(stderr=True), Console(width=190)
    board: Sysroot | None = None
    try:
        board = sysroot.built()
    except Unavailable as reason:
        log.print(f"the virtual board's columns stay empty: {reason}", markup=False)
    rows: list[Row | Missing] = []
    for name in names_of(arguments, made):
        try:
            entry = prepare(name, arguments.zoo)
            rows += bench_model(name, entry, arguments.overlay, log, board, arguments.samples)
        except (EdgekitError, PackageError, ImportError, OSError, RuntimeError) as error:
            log.print(f"{name}: {error}", markup=False)
            rows.append(Missing(name, "edgekit", str(error)))
        if arguments.json:  # after each model: it takes long
            arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1, default=_plain) + "\n")
    console.print(table(rows, arguments.samples))
    missing = [row for row in rows if isinstance(row, Missing)]
    for one in missing:
        console.print(f"{one.model}, {one.candidate}: none: {one.none}", markup=False, highlight=False)
    return 1 if missing else 0


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else float(value)


if __name__ == "__main__":
    sys.exit(main())
