"""One model, one target, its data and its budget: what every command that plans or measures works on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgekit import catalog, releases, toolchains
from edgekit.backends import Backend, backend
from edgekit.devices import local
from edgekit.devices.lab import find_boards, open_lab
from edgekit.devices.race import Device
from edgekit.devices.ssh import SshTransport
from edgekit.errors import InputError
from edgekit.graph import Graph, load, to_bytes
from edgekit.progress import Progress, Silent
from edgekit.recipes.metrics import default_metric, metric
from edgekit.recipes.samples import Dataset, open_dataset, split, spread, synthetic
from edgekit.types import Budget

if TYPE_CHECKING:
    from edgekit.catalog import DeviceProfile, Recipe, Target
    from edgekit.recipes.metrics import Metric

_SYNTHETIC_SAMPLES = 16


@dataclass(frozen=True)
class Data:
    """Samples to calibrate on, others to judge by, and how they are judged. ``name`` is the file's or folder's name."""

    name: str
    recipe: Recipe
    calibration: Dataset
    evaluation: Dataset
    metric: Metric
    metric_key: str  # changes when the metric does, a user's own included
    synthetic: bool
    raw: bool  # model inputs already: nothing to preprocess

    @property
    def digest(self) -> str:
        """SHA-256 over both parts."""
        return hashlib.sha256(f"{self.calibration.digest} {self.evaluation.digest}".encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """Everything that a plan depends on."""

    model_path: Path
    graph: Graph
    target: Target
    profile: DeviceProfile
    device: Device
    data: Data
    budget: Budget
    progress: Progress = field(default_factory=Silent)
    prune: bool = True

    @property
    def graph_key(self) -> str:
        """Digest of the normalised model: the same for the same model and shapes."""
        return hashlib.sha256(to_bytes(self.graph.model)).hexdigest()


def open_device(
    target: Target,
    threads: int | None,
    host: str | None = None,
    lab: str | Path | None = None,
    progress: Progress | None = None,
    profile: DeviceProfile | None = None,
) -> Device:
    """The device of a target: the first board of ``host``, or of the lab where it has boards of this target, else this
    machine; or one that is not at hand, for a target that is reached over ssh. Nothing is connected yet. ``profile`` is
    the target's: models of some backends depend on it.
    """
    adapter = _adapter(target, profile)
    threads = threads or target.threads
    runner = catalog.data_root() / "targets" / "runners" / adapter.RUNNER
    run = local.run_job
    remote = target.transport == "ssh"
    known = open_lab(lab) if remote or host is not None or lab is not None else {}  # else nothing of it is asked for
    boards = find_boards(host, target.name if remote else "", known)
    if boards:
        run = SshTransport(boards[0], (target.runtime or target.backend, "numpy"), progress or Silent()).run_job
        if runner.suffix == ".sh":  # which leaves it to the host to make sense of what the runtime reports
            from edgekit.backends import trtexec_document

            run = trtexec_document.reading(run)
    elif target.transport != "local":
        return Device(adapter, None, threads)
    place = boards[0].host if boards else ""
    return Device(adapter, lambda job, timeout_s: run(runner, job, timeout_s), threads, place)


def _adapter(target: Target, profile: DeviceProfile | None) -> Backend:
    if not target.releases:
        return backend(target.backend)
    from edgekit.backends.tensorrt import TensorRT

    part = None if profile is None else profile.part("gpu")
    gpu = None if part is None else releases.gpu(part.architecture)
    named = releases.releases_of(target)
    compute = "" if gpu is None else gpu.compute
    strange = [one.name for one in named if compute and compute not in one.compute]
    if strange:
        raise InputError(
            f"target {target.name}: releases: {strange[0]} does not run on {target.device_profile}",
            f"it runs on GPUs of compute capability {', '.join(releases.releases()[strange[0]].compute)}",
        )
    return cast(Backend, TensorRT(named, compute, "2:4" in target.sparsity, target.accelerator))


def open_data(
    graph: Graph,
    recipe: Recipe,
    data: str | Path | None,
    evaluation: str | Path | None,
    metric_name: str | None,
    use_synthetic: bool,
) -> Data:
    """Calibration and evaluation samples: ``evaluation`` where it is given, or what calibration leaves of ``data``."""
    metadata = dict(graph.model.metadata_props)
    if data is None:
        if evaluation is not None:
            raise InputError("--eval without --data: there is nothing to calibrate on", "pass --data as well")
        if not use_synthetic:
            raise InputError(
                "no samples to calibrate and judge by",
                "pass --data samples.npz (keys are the model's inputs: "
                + ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in graph.inputs)
                + ") or a folder with --recipe; --synthetic plans on random inputs, for latency work only",
            )
        calibration: Dataset = synthetic(graph.inputs, _SYNTHETIC_SAMPLES, seed=0)
        judged: Dataset = synthetic(graph.inputs, _SYNTHETIC_SAMPLES, seed=1)
        name, raw = "synthetic", True
    else:
        samples = open_dataset(data, recipe, graph.inputs, metadata)
        if evaluation is None:
            calibration, judged = split(samples, recipe.samples)
        else:
            calibration = spread(samples, recipe.samples)
            judged = open_dataset(evaluation, recipe, graph.inputs, metadata)
        name, raw = Path(data).name, Path(data).is_file()
    chosen = metric_name or ("" if raw else recipe.metric) or default_metric(judged.labels)
    scorer = metric(chosen, metadata)  # checks a user's file before it is read here
    source = Path(chosen.rpartition(":")[0] or chosen)
    own = source.read_bytes() if source.suffix == ".py" else b""
    key = hashlib.sha256(chosen.encode() + own).hexdigest()
    return Data(name, recipe, calibration, judged, scorer, key, data is None, raw)


def prepare(
    model: str | Path,
    target: str,
    *,
    data: str | Path | None = None,
    evaluation: str | Path | None = None,
    recipe: str = "npz",
    metric_name: str | None = None,
    budget: Budget | None = None,
    threads: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    use_synthetic: bool = False,
    overlays: Sequence[str | Path] = (),
    progress: Progress | None = None,
    prune: bool = True,
    host: str | None = None,
    lab: str | Path | None = None,
    converts: bool = True,
) -> Job:
    """Check and load everything that the user named, cheapest first, so that a typo does not cost a minute.

    Random inputs say nothing about what channels are worth: with them nothing is pruned. What never ``converts`` the
    model for a board that is not at hand needs no toolchain.
    """
    progress = progress or Silent()
    chosen = releases.offered(catalog.target(target, overlays))
    profile = catalog.device_profile(chosen.device_profile, overlays)
    steps = catalog.recipe(recipe, overlays)
    device = open_device(chosen, threads, host, lab, progress, profile)
    if data is not None and not Path(data).exists():
        raise InputError(f"data {data}: no such file or folder", "pass an .npz, or a folder that the recipe can read")
    path = Path(model)
    with progress.stage(f"load {path.name}"):
        graph = load(path, shapes)
    if device.backend.TOOLCHAIN and (converts or device.at_hand):
        toolchains.ensure(device.backend.TOOLCHAIN, progress)
    if not graph.layers:
        raise InputError(f"{path}: the model has no layer with weights or a matrix product: nothing to plan")
    samples = open_data(graph, steps, data, evaluation, metric_name, use_synthetic)
    return Job(
        path, graph, chosen, profile, device, samples, budget or Budget(), progress, prune and not samples.synthetic
    )


def on_target(job: Job, target: str, overlays: Sequence[str | Path] = ()) -> Job:
    """The same work for another target, whose board is not asked even where it is at hand."""
    chosen = releases.offered(catalog.target(target, overlays))
    profile = catalog.device_profile(chosen.device_profile, overlays)
    return replace(job, target=chosen, profile=profile, device=Device(_adapter(chosen, profile), None, chosen.threads))
