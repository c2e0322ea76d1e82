"""The Python API: the commands of the command line as functions."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import bundle as bundles
from edgekit import catalog
from edgekit.conditions import Conditions, read_conditions
from edgekit.errors import EdgekitError, InputError, VerifyError
from edgekit.types import Budget, Conformance, Latency, Precision

if TYPE_CHECKING:
    from edgekit.diagnosis import Diagnosis
    from edgekit.differences import PlanDifference
    from edgekit.graph import Graph
    from edgekit.inspection import Inspection
    from edgekit.outcome import PlanResult
    from edgekit.prediction import PredictedCost, Predictions
    from edgekit.profiles.differences import ProfileDifference
    from edgekit.profiles.measuring import MeasuredProfile
    from edgekit.progress import Progress
    from edgekit.results import DeployResult

# What loads models is imported by the functions that do: a report is read, and a typing error told, without it.
Shapes = Mapping[str, tuple[int, ...]]
_VECTORS_TIMEOUT_S = 600.0
_RACE_RUNS = 80


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


def diagnose(
    model: str | Path,
    target: str,
    *,
    data: str | Path | None = None,
    evaluation: str | Path | None = None,
    recipe: str = "npz",
    shapes: Shapes | None = None,
    overlays: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Diagnosis:
    """Which layers int8 hurts, what would cure each, and whether the samples are to blame; see `edgekit.diagnosis`."""
    from edgekit import diagnosis
    from edgekit.job import prepare

    return diagnosis.diagnose(
        prepare(
            model,
            target,
            data=data,
            evaluation=evaluation,
            recipe=recipe,
            shapes=shapes,
            overlays=overlays,
            progress=progress,
        )
    )


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
    host: str | None = None,
    lab: str | Path | None = None,
) -> DeployResult:
    """Plan, compile and race ``model`` on ``target`` and write the bundle to ``out``. ``prune=False`` leaves every
    channel where it is.

    ``host`` says where the board is, as ``user@address[:port]`` or by its name in the lab file ``lab`` (default: the
    one of ``EDGEKIT_LAB``); of several, separated by commas, the first one measures.

    Raises the subclasses of `EdgekitError` that the exit codes of the command stand for; ``out`` is then as it was.
    """
    bundles.require_replaceable(Path(out))
    from edgekit import deployment
    from edgekit.job import prepare
    from edgekit.profiles import re_anchoring

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
        host=host,
        lab=lab,
    )
    result = deployment.deploy(job, Path(out), allow_mismatch)
    re_anchoring.learn(job, result.candidates, overlays)
    return result


def profile(
    target: str,
    *,
    threads: int | None = None,
    out: str | Path | None = None,
    overlays: Sequence[str | Path] = (),
    progress: Progress | None = None,
    host: str | None = None,
    lab: str | Path | None = None,
) -> MeasuredProfile:
    """Measure the device profile of a target's board in some minutes, and write it to ``out``; by default among the
    user's own profiles, where every later command finds it in place of the shipped one.
    """
    from edgekit.job import open_device
    from edgekit.profiles import measuring as profiling
    from edgekit.profiles import own as own_profile

    chosen = catalog.target(target, overlays)
    known = catalog.device_profile(chosen.device_profile, overlays)
    place = own_profile.place_for(known.name, None if out is None else Path(out))
    device = open_device(chosen, threads, host, lab, progress)
    found = profiling.measure_profile(chosen, known, device, progress=progress)
    return replace(found, file=str(own_profile.save(found.profile, place)))


def diff_profiles(a: str | Path, b: str | Path, overlays: Sequence[str | Path] = ()) -> ProfileDifference:
    """What two files with device profiles say differently. Raises `InputError` where one is none."""
    from edgekit.profiles import differences as profile_differences

    return profile_differences.between_files(Path(a), Path(b), overlays)


def profile_changes(target: str, overlays: Sequence[str | Path] = ()) -> ProfileDifference:
    """What the user's own device profile of a target says otherwise than the shipped one. Raises `InputError` where
    there is no own one.
    """
    from edgekit.profiles import differences as profile_differences

    return profile_differences.since_shipped(target, overlays)


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
    host: str | None = None,
    lab: str | Path | None = None,
) -> PlanResult:
    """Everything of `deploy` up to the plan: measured costs and losses, the plan, and the front it was chosen from."""
    from edgekit.job import prepare
    from edgekit.outcome import plan_result
    from edgekit.planning import make_plan
    from edgekit.workbench.scoring import Scorer
    from edgekit.workbench.stages import Workbench

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
        host=host,
        lab=lab,
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
    host: str | None = None,
    lab: str | Path | None = None,
) -> PredictedCost:
    """Latency, weight bytes and peak activations of a uniform precision or of a plan file. Needs no samples."""
    from edgekit import prediction
    from edgekit.job import prepare
    from edgekit.workbench.stages import Workbench

    wanted = Precision(precision) if plan is None else prediction.read_plan(Path(plan))
    job = prepare(
        model,
        target,
        threads=threads,
        shapes=shapes,
        use_synthetic=True,
        overlays=overlays,
        progress=progress,
        host=host,
        lab=lab,
        converts=False,
    )
    return prediction.predict_cost(Workbench(job), wanted)


def predict_boards(
    model: str | Path,
    targets: Sequence[str] = (),
    *,
    precision: Precision | str = Precision.FP32,
    plan: str | Path | None = None,
    shapes: Shapes | None = None,
    overlays: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Predictions:
    """`predict` for several targets, by default all that are boards; the model is loaded once. A target that does not
    take the precision or plan is among ``refused``; `InputError` where that is so of all.
    """
    from edgekit import prediction
    from edgekit.job import on_target, prepare
    from edgekit.workbench.stages import Workbench

    wanted = Precision(precision) if plan is None else prediction.read_plan(Path(plan))
    known = catalog.targets(overlays)
    names = tuple(dict.fromkeys(targets)) or tuple(name for name, one in known.items() if one.transport != "local")
    here = [name for name in names if catalog.target(name, overlays).transport == "local"]
    if here:
        raise InputError(
            f"{here[0]} is this machine, where layers are measured", f"ask for it alone: --target {here[0]}"
        )
    job = prepare(
        model, names[0], shapes=shapes, use_synthetic=True, overlays=overlays, progress=progress, converts=False
    )
    peak = prediction.remembered_peak()
    found, refused = [], dict[str, str]()
    for name in names:
        try:
            found.append(prediction.predict_cost(Workbench(on_target(job, name, overlays)), wanted, peak))
        except InputError as error:
            refused[name] = str(error)
    if not found:
        raise InputError(f"no prediction: {next(iter(refused.values()))}", "choose another precision or other targets")
    return prediction.Predictions(Path(model).name, tuple(found), refused)


@dataclass(frozen=True)
class BenchResult:
    """A bundle measured again. ``device`` holds what must be known to read the latency, ``conditions`` what happened
    while it was measured. Where the board's compiler decides, ``conformance`` compares what it made with the plan,
    and ``executed`` are the compiled layers with their times.
    """

    bundle: str
    latency_ms: Latency
    threads: int
    device: dict[str, Any]
    conditions: Conditions | None = None
    conformance: Conformance | None = None
    executed: list[dict[str, Any]] = field(default_factory=list)
    schema: str = "edgekit/bench/1"


def bench(
    bundle: str | Path,
    seconds: float = 3.0,
    overlays: Sequence[str | Path] = (),
    host: str | None = None,
    lab: str | Path | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Verify a bundle, then measure its artifact for ``seconds``: on this machine, or on the board ``host``. As after a
    deployment, the user's own device profile of the bundle's target learns from it.
    """
    path = Path(bundle)
    bundles.verify(path)
    document = _run_bundle(path, seconds, overlays, host, lab, progress)
    latency, threads = Latency(**document["results"][0]["latency_ms"]), document["threads"]
    from edgekit.profiles import re_anchoring
    from edgekit.progress import Silent

    result = bundles.read(path)
    target = catalog.target(result.target, overlays)
    known = catalog.device_profile(target.device_profile, overlays)
    told = progress or Silent()
    re_anchoring.learn_from_bench(result, latency, known, target, threads, told, overlays)
    facts = {"before": document["before"], "after": document["after"]}
    held = read_conditions(document["conditions"])
    found = document.get("conformance")
    return BenchResult(str(bundle), latency, threads, facts, held, found, document.get("executed", []))


@dataclass(frozen=True)
class HostBench:
    """A bundle on one of several boards: ``result``, or the error that there was instead, as the command tells it."""

    host: str
    result: BenchResult | None
    error: str = ""
    hint: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class HostsBench:
    """A bundle on several boards, in the order in which they were named."""

    bundle: str
    hosts: tuple[HostBench, ...]
    schema: str = "edgekit/bench-hosts/1"

    @property
    def failed(self) -> tuple[HostBench, ...]:
        """The boards without a result."""
        return tuple(row for row in self.hosts if row.result is None)


def bench_hosts(
    bundle: str | Path,
    hosts: str,
    seconds: float = 3.0,
    overlays: Sequence[str | Path] = (),
    lab: str | Path | None = None,
    progress: Progress | None = None,
) -> HostsBench:
    """Verify a bundle and measure it on every board of ``hosts`` (names or addresses, separated by commas) at once. A
    board that fails does not lose the others' results. Raises for what is wrong with the bundle or the names.
    """
    from edgekit.devices.lab import find_boards, open_lab

    bundles.verify(Path(bundle))
    boards = find_boards(hosts, "", open_lab(lab))
    found: dict[str, HostBench] = {}
    broken: list[Exception] = []

    def measure(name: str) -> None:
        try:
            found[name] = HostBench(name, bench(bundle, seconds, overlays, name, lab, progress))
        except EdgekitError as error:
            found[name] = HostBench(name, None, str(error), error.hint, error.exit_code)
        except Exception as error:
            broken.append(error)

    # Threads that do not outlive an interrupt: the boards end their work when the connections close.
    threads = [threading.Thread(target=measure, args=(board.name,), daemon=True) for board in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return HostsBench(str(bundle), tuple(found[board.name] for board in boards))


def verify(bundle: str | Path, overlays: Sequence[str | Path] = ()) -> bundles.VerifyReport:
    """Recompute every digest of a bundle and run its test vectors on this machine, which is where they were made,
    whatever board the bundle is for. Raises `VerifyError`, naming the file.
    """
    return bundles.verify(Path(bundle), lambda path: _run_bundle(path, 0.0, overlays, here=True))


def report(bundle: str | Path) -> DeployResult:
    """What a bundle was made of and measured with. Its report for people is ``report.html`` beside it."""
    return bundles.read(Path(bundle))


def _run_bundle(
    path: Path,
    seconds: float,
    overlays: Sequence[str | Path],
    host: str | None = None,
    lab: str | Path | None = None,
    progress: Progress | None = None,
    here: bool = False,
) -> dict[str, Any]:
    """Run the bundle with our own copy of the runner: a bundle's programs are not trusted. With ``here`` on this
    machine, whatever its target is. Raises `VerifyError` where its test vectors do not come out as expected.
    """
    target = catalog.target(bundles.read(path).target, overlays)
    if here:
        target = replace(target, transport="local")
    from edgekit.job import open_device

    device = open_device(target, None, host, lab, progress)
    job = {"action": "bundle", "folder": str(path.absolute())}
    if here and not device.backend.RUNNER.endswith(".py"):  # it runs on its boards alone
        from edgekit.backends.trtexec_document import vectors_here

        device = replace(device, job_runner=lambda *_: vectors_here(device.backend, path, device.threads))
    began = time.monotonic()
    document = device.run_job({**job, "seconds": 0.0}, _VECTORS_TIMEOUT_S)
    if document["ok"] and seconds:
        # A race takes some forty inferences at least: what the vectors took says how long to wait for it.
        vectors_s = time.monotonic() - began
        limit_s = _VECTORS_TIMEOUT_S + 10 * seconds + _RACE_RUNS * vectors_s / max(1, document["vectors"]["count"])
        document = device.run_job({**job, "seconds": seconds}, limit_s)
    if not document["ok"]:
        if "error" in document:
            raise VerifyError(document["error"])
        raise VerifyError(
            f"{bundles.VECTORS}: the artifact's outputs differ from those expected, by "
            f"{document['vectors']['worst_error_share']:.3g} times the tolerance",
            "this device computes otherwise than the one that the bundle was made on: deploy again on this one",
        )
    return document


__all__ = [
    "bench",
    "bench_hosts",
    "deploy",
    "diagnose",
    "diff_plans",
    "diff_profiles",
    "inspect",
    "load",
    "plan",
    "predict",
    "predict_boards",
    "profile",
    "profile_changes",
    "report",
    "targets",
    "verify",
]
