"""Instructions of one inference on the cores of Raspberry Pi boards: does int8, or a plan, really remove work there?

    python -m benchmarks.counted [NAME ...] [--target raspberry-pi-5] [--json FILE]

The float model, all layers in int8, and the plan for the target, converted as a deployment does, run in LiteRT on an
emulated machine whose clock counts instructions (see tests/virtual_board/system.py; `make virtual-board` comes first).
One thread. XNNPACK picks its kernels by the core: only the Cortex-A76 has the dot product. A count is no latency: it
knows no caches, and an instruction may take longer than another. Minutes a model.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import names_of, open_job, parser
from benchmarks.zoo import ZooEntry, prepare
from edgekit.backends import Artifact
from edgekit.errors import EdgekitError
from edgekit.planning import make_plan
from edgekit.progress import OnConsole
from edgekit.types import Figure, Kind, Precision
from edgekit.workbench.scoring import Scorer
from edgekit.workbench.stages import Workbench
from examples.packages import PackageError
from tests.virtual_board import system
from tests.virtual_board.cpus import CORES
from tests.virtual_board.packages import Unavailable

MAX_DROP = 0.01


@dataclass(frozen=True)
class Row:
    """One variant of a model on one core. ``ratio`` is its count over the float model's on that core."""

    model: str
    variant: str
    core: str
    instructions: Figure
    ratio: float
    int8_layers: int
    removed_channels: int


def count_model(name: str, entry: ZooEntry, target: str, overlays: list[Path], log: Console) -> list[Row]:
    """Float, int8 and the plan for ``target`` on every core."""
    progress = OnConsole(log)
    bench = Workbench(open_job(entry, target, overlays, progress, MAX_DROP))
    planned = make_plan(bench, Scorer(bench))
    table, plan = planned.planning.table, planned.plan
    int8 = {
        layer: Precision.INT8 if Precision.INT8 in table.latency_ms[layer] else base
        for layer, base in table.floats.items()
    }
    artifacts: dict[str, Artifact] = {
        "float": bench.artifact(dict.fromkeys(table.floats, Precision.FP32), Precision.FP32),
        "int8": bench.artifact(int8, planned.base),
        "plan": bench.artifact_of(plan, planned.base),
    }
    mixes = {"float": {}, "int8": int8, "plan": plan.precisions()}
    removed = {"plan": sum(group.channels - group.kept for group in plan.groups)}
    machine = system.build()
    rows = []
    for core in CORES:
        with progress.stage(f"count instructions of {name} on {core}"):
            found = system.count(machine, core, {title: artifact.path for title, artifact in artifacts.items()})
        counts = {title: float(found[title]["instructions"]) for title in artifacts}
        rows += [
            Row(
                model=name,
                variant=title,
                core=core,
                instructions=Figure(Kind.COUNTED, value, source=f"QEMU -cpu {core} -icount shift=0, one thread"),
                ratio=value / counts["float"],
                int8_layers=sum(precision is Precision.INT8 for precision in mixes[title].values()),
                removed_channels=removed.get(title, 0),
            )
            for title, value in counts.items()
        ]
    return rows


def print_rows(rows: list[Row], console: Console) -> None:
    """A line a model and variant, the cores side by side."""
    table = Table("model", "variant", "int8 layers", "channels removed", *CORES, box=box.SIMPLE_HEAD)
    for model, variant in dict.fromkeys((row.model, row.variant) for row in rows):
        mine = [row for row in rows if (row.model, row.variant) == (model, variant)]
        cells = [f"{(row.instructions.value or 0.0) / 1e6:.2f} M  ×{row.ratio:.3f}" for row in mine]
        table.add_row(model, variant, str(mine[0].int8_layers), str(mine[0].removed_channels), *cells)
    console.print(table)
    console.print("instructions of one inference, counted; × of the float model on the same core")


def main() -> int:
    """The exit status."""
    made = parser("python -m benchmarks.counted", __doc__ or "")
    made.set_defaults(target="raspberry-pi-5")
    asked = made.parse_args()
    log = Console(stderr=True)
    rows: list[Row] = []
    try:
        for name in names_of(asked, made):
            rows += count_model(name, prepare(name, asked.zoo), asked.target, asked.overlay, log)
    except (EdgekitError, PackageError, Unavailable) as error:
        log.print(f"{error}", markup=False)
        return 1
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print_rows(rows, Console(width=150))
    return 0


if __name__ == "__main__":
    sys.exit(main())
