"""The Python API: the commands of the command line as functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import bundle as bundles
from edgekit import catalog
from edgekit.errors import VerifyError
from edgekit.types import Budget, Latency, Precision

if TYPE_CHECKING:
    from edgekit.differences import PlanDifference
    from edgekit.graph import Graph
    from edgekit.inspection import Inspection
    from edgekit.outcome import PlanResult
    from edgekit.prediction import PredictedCost
    from edgekit.progress import Progress
    from edgekit.results import DeployResult

# What loads models is imported by the functions that do: a report is read, and a typing error told, without it.
Shapes = Mapping[str, tuple[int, ...]]
_VECTORS_TIMEOUT_S = 300.0


def load(model: str | Path, shapes: Shapes | None = None) -> Graph:
    """Load and normalise an ONNX model; see `edgekit.graph.load`."""
    from edgekit import graph

    return graph.load(model, shapes)


def inspect(
    model: str | Path,
    target: str | None = None,
    *,
    shapes: Shapes | None = None,
    overlays: Sequence[str | Path] = (),
) -> Inspection:
    """Layers, multiply-accumulates, weights and peak activations of a model; with a target, each layer's options."""
    from edgekit import graph, inspection

    chosen = None if target is None else catalog.target(target, overlays)
    return inspection.inspect_graph(Path(model), graph.load(model, shapes), chosen)


def targets(overlays: Sequence[str | Path] = ()) -> dict[str, catalog.Target]:
    """Every target by name, overlays included."""
    return catalog.targets(overlays)


def deploy(
    model: str | Path,
    target: str,
    *,
    data: str | Path | None = None,
    evaluation: str | Path | None = None,
    recipe: str = "npz",
    metric: str | None = None,
    budget: Budget | None = None,
    threads: int | None = None,
    shapes: Shapes | None = None,
    synthetic: bool = False,
    out: str | Path = "bundle",
    allow_mismatch: bool = False,
    prune: bool = True,
    overlays: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> DeployResult:
    """Plan, compile and race ``model`` on ``target`` and write the bundle to ``out``. ``prune=False`` leaves every
    channel where it is.

    Raises the subclasses of `EdgekitError` that the exit codes of the command stand for; ``out`` is then as it was.
    """
    bundles.require_replaceable(Path(out))
    from edgekit import deployment
    from edgekit.job import prepare

    job = prepare(
        model,
        target,
        data=data,
        evaluation=evaluation,
        recipe=recipe,
        metric_name=metric,
        budget=budget,
        threads=threads,
        shapes=shapes,
        use_synthetic=synthetic,
        overlays=overlays,
        progress=progress,
        prune=prune,
    )
    return deployment.deploy(job, Path(out), allow_mismatch)


def plan(
    model: str | Path,
    target: str,
    *,
    data: str | Path | None = None,
    evaluation: str | Path | None = None,
    recipe: str = "npz",
    metric: str | None = None,
    budget: Budget | None = None,
    threads: int | None = None,
    shapes: Shapes | None = None,
    synthetic: bool = False,
    prune: bool = True,
    overlays: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> PlanResult:
    """Everything of `deploy` up to the plan: measured costs and losses, the plan, and the front it was chosen from."""
    from edgekit.job import prepare
    from edgekit.outcome import plan_result
    from edgekit.planning import make_plan
    from edgekit.scoring import Scorer
    from edgekit.stages import Workbench

    job = prepare(
        model,
        target,
        data=data,
        evaluation=evaluation,
        recipe=recipe,
        metric_name=metric,
        budget=budget,
        threads=threads,
        shapes=shapes,
        use_synthetic=synthetic,
        overlays=overlays,
        progress=progress,
        prune=prune,
    )
    bench = Workbench(job)
    return plan_result(bench, make_plan(bench, Scorer(bench)))


def diff_plans(a: str | Path, b: str | Path) -> PlanDifference:
    """What two plans of one model decide differently; each is a plan file, or the folder of a bundle.

    Raises `InputError` where one is no plan, or they belong to different models.
    """
    from edgekit import differences

    return differences.compare(differences.read(Path(a)), differences.read(Path(b)))


def predict(
    model: str | Path,
    target: str,
    *,
    precision: Precision | str = Precision.FP32,
    plan: str | Path | None = None,
    threads: int | None = None,
    shapes: Shapes | None = None,
    overlays: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> PredictedCost:
    """Latency, weight bytes and peak activations of a uniform precision or of a plan file. Needs no samples."""
    from edgekit import prediction
    from edgekit.job import prepare
    from edgekit.stages import Workbench

    wanted = Precision(precision) if plan is None else prediction.read_plan(Path(plan))
    job = prepare(
        model, target, threads=threads, shapes=shapes, use_synthetic=True, overlays=overlays, progress=progress
    )
    return prediction.predict_cost(Workbench(job), wanted)


@dataclass(frozen=True)
class BenchResult:
    """A bundle measured again. ``device`` holds what must be known to read the latency."""

    bundle: str
    latency_ms: Latency
    threads: int
    device: dict[str, Any]
    schema: str = "edgekit/bench/1"


def bench(bundle: str | Path, seconds: float = 3.0, overlays: Sequence[str | Path] = ()) -> BenchResult:
    """Verify a bundle, then measure its artifact on this machine for ``seconds``."""
    path = Path(bundle)
    bundles.verify(path)
    document = _run_bundle(path, seconds, overlays)
    row = document["results"][0]
    facts = {"before": document["before"], "after": document["after"]}
    return BenchResult(str(bundle), Latency(**row["latency_ms"]), document["threads"], facts)


def verify(bundle: str | Path, overlays: Sequence[str | Path] = ()) -> bundles.VerifyReport:
    """Recompute every digest of a bundle and run its test vectors. Raises `VerifyError`, naming the file."""
    return bundles.verify(Path(bundle), lambda path: _run_bundle(path, 0.0, overlays))


def report(bundle: str | Path) -> DeployResult:
    """What a bundle was made of and measured with. Its report for people is ``report.html`` beside it."""
    return bundles.read(Path(bundle))


def _run_bundle(path: Path, seconds: float, overlays: Sequence[str | Path]) -> dict[str, Any]:
    """Run the bundle with our own copy of the runner: a bundle's programs are not trusted. Raises `VerifyError` where
    its test vectors do not come out as expected.
    """
    target = catalog.target(bundles.read(path).target, overlays)
    from edgekit.job import open_device

    device = open_device(target, None)
    document = device.run_job(
        {"action": "bundle", "folder": str(path.absolute()), "seconds": seconds}, _VECTORS_TIMEOUT_S + 10 * seconds
    )
    if not document["ok"]:
        if "error" in document:
            raise VerifyError(document["error"])
        raise VerifyError(
            f"{bundles.VECTORS}: the artifact's outputs differ from those expected, by "
            f"{document['vectors']['worst_error_share']:.3g} times the tolerance",
            "this device computes otherwise than the one that the bundle was made on: deploy again on this one",
        )
    return document


__all__ = ["bench", "deploy", "diff_plans", "inspect", "load", "plan", "predict", "report", "targets", "verify"]
