"""What one exact plan of bits and channels is worth: beside bits alone, channels alone and a greedy, on real models.

    python -m benchmarks.joint [NAME ...] [--latency 0.55 0.45] [--json FILE]

All four get the same tables (measured on this device) and the same latency budget, a share of the float model's latency
in its fastest float precision, and look for the lowest noise at the output. What they find is realised: channels
removed, layers re-solved, quantized, compiled, raced in one interleaved run, and run on the evaluation samples. Noise
is relative to the signal, in decibel (higher is better). "none" is said where no plan of that kind meets the budget.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import names_of, open_job, parser
from benchmarks.planner import bits_only, channels_only
from benchmarks.zoo import prepare
from edgekit.errors import EdgekitError, InfeasibleError
from edgekit.job import Job
from edgekit.planner import Limits, Problem, Solution, evaluate, greedy, solve
from edgekit.planning import make_plan
from edgekit.progress import OnConsole
from edgekit.tables.formulate import formulate
from edgekit.types import Plan, Precision
from edgekit.workbench.scoring import Scorer
from edgekit.workbench.stages import Workbench
from examples.packages import PackageError

RACE_S = 20.0


@dataclass(frozen=True)
class Row:
    """One kind of plan at one budget; the measured figures are those of the same race and the same samples."""

    model: str
    budget_ms: float
    plan: str
    int8_layers: int
    removed_channels: int
    gap: float | None
    predicted_ms: float
    measured_ms: float
    predicted_db: float
    measured_db: float
    metric: float


@dataclass(frozen=True)
class Missing:
    """A kind of plan that does not reach the budget."""

    model: str
    budget_ms: float
    plan: str


def exactly(restrict: Callable[[Problem], Problem]) -> Callable[[Problem, Limits], Solution | None]:
    """The plan with the lowest loss among those that ``restrict`` leaves."""

    def find(problem: Problem, limits: Limits) -> Solution | None:
        try:
            return solve(restrict(problem), limits, "loss")
        except InfeasibleError:
            return None

    return find


def greedily(problem: Problem, limits: Limits) -> Solution | None:
    """What a greedy finds."""
    found = greedy(problem, limits)
    return None if found is None else Solution(found[0], evaluate(problem, *found), 1.0, 1.0, (), 0.0, found[1])


KINDS: dict[str, Callable[[Problem, Limits], Solution | None]] = {
    "bits and channels": exactly(lambda problem: problem),
    "greedy": greedily,
    "bits alone": exactly(bits_only),
    "channels alone": exactly(channels_only),
}


def compare(job: Job, name: str, shares: Sequence[float]) -> list[Row | Missing]:
    """Find, realise and measure the plans of one model. Raises `EdgekitError` where nothing of it can be pruned."""
    bench = Workbench(job)
    scorer = Scorer(bench)
    planned = make_plan(bench, scorer)
    if planned.pruning is None:
        raise EdgekitError("no channel group of it has an option on this device")
    table = planned.planning.table
    bits = job.device.backend.runtime_weight_bits
    planning = formulate(job.graph, table, planned.planning.losses, bits, pruning=planned.pruning)
    whole_ms = table.anchors_ms[table.base]
    plans: dict[tuple[float, str], tuple[Solution, Plan]] = {}
    for share in shares:
        for kind, find in KINDS.items():
            solution = find(planning.problem, Limits(latency_ms=share * whole_ms))
            if solution is not None:
                plans[share, kind] = (solution, planning.plan(solution))
    artifacts = {
        f"{share} {kind}": bench.artifact(plan.precisions(), table.base, plan.kept())
        for (share, kind), (_, plan) in plans.items()
    }
    whole = bench.artifact(table.floats, table.base)
    raced = bench.race({"whole": whole, **artifacts}, RACE_S, f"race {len(artifacts)} plans")
    rows: list[Row | Missing] = []
    for share in shares:
        for kind in KINDS:
            if (share, kind) not in plans:
                rows.append(Missing(name, share * whole_ms, kind))
                continue
            solution, plan = plans[share, kind]
            title = f"{share} {kind}"
            score = scorer.score(artifacts[title], title)
            rows.append(
                Row(
                    model=name,
                    budget_ms=share * whole_ms,
                    plan=kind,
                    int8_layers=sum(p is Precision.INT8 for p in plan.precisions().values()),
                    removed_channels=sum(group.channels - group.kept for group in plan.groups),
                    gap=None if kind == "greedy" else solution.search_gap,
                    predicted_ms=solution.totals.latency_ms,
                    measured_ms=whole_ms * raced[title].ratio,
                    predicted_db=-10 * math.log10(solution.totals.loss),
                    measured_db=score.sqnr_db,
                    metric=score.metric.value,
                )
            )
    return rows


def table_of(rows: Sequence[Row | Missing]) -> Table:
    made = Table(title="Lowest noise at a latency budget", title_justify="left", box=box.MARKDOWN)
    columns = ("model", "budget ms", "plan", "int8", "channels removed", "ms", "measured", "dB", "measured", "metric")
    for column in columns:
        made.add_column(column, justify="left" if column in ("model", "plan") else "right")
    for row in rows:
        if isinstance(row, Missing):
            made.add_row(row.model, f"{row.budget_ms:.3f}", row.plan, *["none"] * 7)
            continue
        made.add_row(
            row.model,
            f"{row.budget_ms:.3f}",
            row.plan,
            str(row.int8_layers),
            str(row.removed_channels),
            f"{row.predicted_ms:.3f}",
            f"{row.measured_ms:.3f}",
            f"{row.predicted_db:.1f}",
            f"{row.measured_db:.1f}",
            f"{row.metric:.3f}",
        )
    return made


def main() -> int:
    made = parser("python -m benchmarks.joint", __doc__ or "")
    made.add_argument(
        "--latency", type=float, nargs="+", default=[0.55, 0.45], metavar="SHARE", help="budgets, of the float latency"
    )
    arguments = made.parse_args()
    log, console = Console(stderr=True), Console(width=150)
    rows: list[Row | Missing] = []
    failures = {}
    for name in names_of(arguments, made):
        try:
            job = open_job(prepare(name, arguments.zoo), arguments.target, arguments.overlay, OnConsole(log), 0.01)
            rows += compare(job, name, arguments.latency)
        except (EdgekitError, PackageError, ImportError, OSError) as error:
            failures[name] = str(error)
            console.print(f"{name}: none: {error}", markup=False)
    if rows:
        console.print(table_of(rows))
    if arguments.json:
        document = {"rows": [asdict(row) for row in rows], "failures": failures}
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failures and not rows else 0


if __name__ == "__main__":
    sys.exit(main())
