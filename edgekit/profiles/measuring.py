"""Measures a board's device profile: small networks raced on it, and a fit over their latencies."""

from __future__ import annotations

import datetime
import math
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from edgekit import toolchains
from edgekit.backends import Artifact, ExecutedNode
from edgekit.compress.observers import Range
from edgekit.compress.qdq import apply_precisions, quantization_points
from edgekit.cost import micro
from edgekit.cost.board import Fit, Timed, channel_step, fit_costs, with_facts
from edgekit.cost.kernels import executed_together
from edgekit.cost.measured import FLOAT_PRECISIONS, executed_precisions, rank_float_precisions
from edgekit.cost.table import crossing_elements, fit_boundary
from edgekit.cost.work import work_of
from edgekit.entries import DeviceProfile
from edgekit.errors import DeviceError, InputError
from edgekit.files import cache
from edgekit.graph import Graph, load, to_bytes
from edgekit.progress import Progress, Silent
from edgekit.results import DeviceInfo, DroppedOption
from edgekit.types import Precision

if TYPE_CHECKING:
    from edgekit.catalog import Target
    from edgekit.devices.race import Device

_AT_ONCE = 4  # networks in one race: they share the board's memory
_RACE_S = 0.2  # for each contestant
_PROFILE_S = 0.06  # for each contestant and compilation
_COMPILES = 2
_PROBE_S = 120.0
_RANGE = Range(-4.0, 4.0)  # the grid does not change how long a kernel takes
_INT8 = Precision.INT8
_Contestant = tuple[str, Precision]


@dataclass(frozen=True)
class NetworkLatency:
    """One small network: measured, and what the fit says when it was left out. ``latency_ms`` is the median."""

    network: str
    precision: Precision
    macs: int
    latency_ms: float
    held_out_ms: float


@dataclass(frozen=True)
class MeasuredProfile:
    """A board's profile, what it was made from, and the file that it was written to ('' where it was not).
    ``channel_steps`` has None where latency grows too smoothly to tell; ``boundary_ms_per_element`` is None where there
    was nothing to alternate. ``left_out`` are networks that the runtime's converter does not read, with its reasons.
    """

    profile: DeviceProfile
    target: str
    device: DeviceInfo
    networks: tuple[NetworkLatency, ...]
    dropped: tuple[DroppedOption, ...]
    channel_steps: Mapping[Precision, int | None]
    boundary_ms_per_element: float | None
    seconds: float
    file: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    schema: str = "edgekit/profile/1"


def measure_profile(
    target: Target,
    profile: DeviceProfile,
    device: Device,
    networks: Iterable[str] = tuple(micro.NETWORKS),
    progress: Progress | None = None,
) -> MeasuredProfile:
    """Profile the board of ``device``: the costs of the target's runtime at its threads, the channel step, and whatever
    facts ``profile`` lacks. Costs of other runtimes and thread counts stay; anchors of these costs go, since they
    corrected others. Raises `InputError` where no board was named, or it is an emulated one.
    """
    progress = progress or Silent()
    began = time.monotonic()
    with progress.stage(f"probe {target.name}"):
        info, _ = device.probe()
        if device.emulated:
            raise InputError(f"{info.cpu} is emulated: its times mean nothing", "profile a real board")
        facts = device.run_job({"action": "probe"}, _PROBE_S)["device"]
    if device.backend.TOOLCHAIN:
        toolchains.ensure(device.backend.TOOLCHAIN, progress)
    lab = _Bench(device, info.runtime)
    with progress.stage("race float precisions"):
        rated = lab.network(micro.rating_network())
        floats = tuple(precision for precision in target.precisions if precision in FLOAT_PRECISIONS)
        ratios, dropped = rank_float_precisions(device, lambda plan, base: lab.artifact(rated, plan, base), floats)
    precisions = [*ratios, *([_INT8] if _INT8 in target.precisions else [])]
    left_out: dict[str, str] = {}
    timed = _measured(lab, list(networks), precisions, left_out, progress)
    with progress.stage("find the channel step"):
        steps = _channel_steps(lab, precisions)
    boundary = None
    if _INT8 in precisions:
        with progress.stage("find what changing precision costs"):
            boundary = _boundary(lab, precisions[0])
    with progress.stage("fit the costs"):
        cores = max(int(facts["cores"] or 1), device.threads)
        based = with_facts(profile, timed, info.cpu, cores, device.threads)
        source = f"on {info.cpu}, {info.runtime}, {device.threads} threads, {_today()}"
        fitted = fit_costs(based, target.backend, device.threads, timed, source)
        made = _complete(based, profile, fitted, steps, boundary, source)
    return MeasuredProfile(
        profile=made,
        target=target.name,
        device=info,
        networks=_beside(timed, fitted),
        dropped=dropped,
        channel_steps=steps,
        boundary_ms_per_element=boundary,
        seconds=time.monotonic() - began,
        left_out=left_out,
    )


@dataclass(frozen=True)
class _Bench:
    """Small networks become artifacts on the way that deployments take; what was converted before is not again."""

    device: Device
    runtime: str

    def network(self, model: onnx.ModelProto) -> Graph:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            onnx.save(model, path)
            return load(path)

    def artifact(self, graph: Graph, plan: Mapping[str, Precision], base: Precision) -> Artifact:
        backend = self.device.backend
        results = backend.quantizes_results
        quantized = _INT8 in plan.values()
        ranges = dict.fromkeys(quantization_points(graph, results), _RANGE) if quantized else {}
        content = to_bytes(apply_precisions(graph, plan, ranges, results))
        stored = {"toolchain": toolchains.toolchain(backend.TOOLCHAIN).version} if backend.TOOLCHAIN else {}
        key = cache.key(small=True, runtime=self.runtime, model=content, **stored)

        def convert(path: Path) -> None:
            backend.convert(content, path, base)

        folder = cache.folder("artifacts", key, convert)
        return backend.artifact(folder, base)

    def race(self, contestants: Mapping[str, Artifact]) -> dict[str, float]:
        """Median latencies in milliseconds. Ratios within the interleaved rounds are steadier than medians over all."""
        raced = self.device.race(contestants, _RACE_S * len(contestants))
        first_ms = next(iter(raced.values())).latency_ms.p50
        return {name: first_ms * row.ratio for name, row in raced.items()}

    def int8(self, graph: Graph) -> dict[str, Precision]:
        """The plan in which every layer is int8 that may be."""
        types = self.device.backend.quantized_op_types[_INT8]
        return {layer.name: _INT8 for layer in graph.layers if layer.op_type in types}

    def profile(
        self, contestants: Mapping[_Contestant, Artifact], graphs: Mapping[str, Graph]
    ) -> dict[_Contestant, tuple[ExecutedNode, ...]]:
        """What the runtime executes, with its times. Contestants that do not compile are left out."""
        names = {f"{name} {precision.value}": (name, precision) for name, precision in contestants}
        try:
            found = self.device.profile({k: contestants[c] for k, c in names.items()}, _PROFILE_S, compiles=_COMPILES)
        except (DeviceError, InputError):  # one of them does not compile: which?
            if len(contestants) == 1:
                return {}
            rows: dict[_Contestant, tuple[ExecutedNode, ...]] = {}
            for contestant, artifact in contestants.items():
                rows |= self.profile({contestant: artifact}, graphs)
            return rows
        return {names[k]: self.device.backend.executed_nodes(rows, graphs[names[k][0]]) for k, rows in found.items()}


def _uniform(graph: Graph, precision: Precision) -> dict[str, Precision]:
    return {layer.name: precision for layer in graph.layers}


def _measured(
    lab: _Bench, names: Sequence[str], precisions: Sequence[Precision], left_out: dict[str, str], progress: Progress
) -> list[Timed]:
    """Every network in every precision that it executes in, some networks to a race. Those that cannot be converted
    are put into ``left_out``, with the reason; it is an error where most are.
    """
    base = precisions[0]
    timed: list[Timed] = []
    with progress.stage("measure networks", len(names)) as advance:
        for first in range(0, len(names), _AT_ONCE):
            graphs = {name: lab.network(micro.build(name)) for name in names[first : first + _AT_ONCE]}
            contestants: dict[_Contestant, Artifact] = {}
            for name, graph in graphs.items():
                try:
                    contestants |= _contestants(lab, name, graph, precisions)
                except InputError as error:
                    left_out[name] = str(error)
                    if 2 * len(left_out) > len(names):
                        raise
            executed = lab.profile(contestants, graphs) if contestants else {}
            floats = {
                (name, precision): _floats(lab, graphs[name], nodes) if precision is _INT8 else frozenset()
                for (name, precision), nodes in executed.items()
            }
            mixed = _mixed(lab, graphs, floats, base)
            again = lab.profile(mixed, graphs) if mixed else {}
            contestants |= {key: mixed[key] for key in again}
            executed |= again
            racing = {
                key: one
                for key, one in contestants.items()
                if key in floats and len(floats[key]) < _layers(graphs, key)
            }
            raced = lab.race({f"{name} {p.value}": one for (name, p), one in racing.items()}) if racing else {}
            for name, precision in racing:
                graph, work = graphs[name], work_of(graphs[name])
                apart = floats[name, precision]
                plan = {layer: base if layer in apart else p for layer, p in _uniform(graph, precision).items()}
                together = tuple(executed_together(work, executed[name, precision]))
                latency_ms = raced[f"{name} {precision.value}"]
                crossed = crossing_elements(graph.edges, plan)
                timed.append(Timed(name, precision, work, crossed, latency_ms, together, apart))
            for _ in graphs:
                advance()
    return timed


def _contestants(lab: _Bench, name: str, graph: Graph, precisions: Sequence[Precision]) -> dict[_Contestant, Artifact]:
    found: dict[_Contestant, Artifact] = {}
    for precision in precisions:
        plan = lab.int8(graph) if precision is _INT8 else {}
        if plan or precision is not _INT8:
            found[name, precision] = lab.artifact(graph, plan, precisions[0] if precision is _INT8 else precision)
    return found


def _layers(graphs: Mapping[str, Graph], contestant: _Contestant) -> int:
    return len(graphs[contestant[0]].layers)


def _floats(lab: _Bench, graph: Graph, nodes: tuple[ExecutedNode, ...]) -> frozenset[str]:
    """The layers that stay float in a model whose others are int8."""
    executed = executed_precisions(nodes)
    backend = lab.device.backend
    return frozenset(
        layer.name for layer in graph.layers if not backend.executes_as(_INT8, executed.get(layer.name, ""))
    )


def _mixed(
    lab: _Bench, graphs: Mapping[str, Graph], floats: Mapping[_Contestant, Collection[str]], base: Precision
) -> dict[_Contestant, Artifact]:
    """The int8 networks as deployments write them: a layer that computes in float all the same has no pairs."""
    found: dict[_Contestant, Artifact] = {}
    for (name, precision), apart in floats.items():
        plan = _without(lab.int8(graphs[name]), apart) if apart else {}
        if plan:
            with suppress(InputError):  # one that cannot be converted so stays as it was
                found[name, precision] = lab.artifact(graphs[name], plan, base)
    return found


def _without(plan: Mapping[str, Precision], layers: Collection[str]) -> dict[str, Precision]:
    return {name: precision for name, precision in plan.items() if name not in layers}


def _channel_steps(lab: _Bench, precisions: Sequence[Precision]) -> dict[Precision, int | None]:
    """By precision, from the fastest float one and int8."""
    graphs = {count: lab.network(micro.step_network(count)) for count in micro.STEP_CHANNELS}
    found: dict[Precision, int | None] = {}
    for precision in dict.fromkeys([precisions[0], *precisions[-1:]]):
        plan = _INT8 if precision is _INT8 else precisions[0]
        artifacts = {
            str(count): lab.artifact(graph, _uniform(graph, plan), precisions[0]) for count, graph in graphs.items()
        }
        found[precision] = channel_step({int(count): ms for count, ms in lab.race(artifacts).items()})
    return found


def _boundary(lab: _Bench, base: Precision) -> float:
    """Milliseconds for each element that passes between int8 and float, from two plans that alternate."""
    graph = lab.network(micro.boundary_network())
    names = [layer.name for layer in graph.layers]
    plans = {"float": _uniform(graph, base), "int8": _uniform(graph, _INT8)}
    for turn in (0, 1):
        mine = {name: _INT8 if place % 2 == turn else base for place, name in enumerate(names)}
        plans[f"alternating {turn}"] = mine
    ms = lab.race({name: lab.artifact(graph, plan, base) for name, plan in plans.items()})
    # Each layer is once float and once int8 in the alternating plans together, and so it is in the uniform ones.
    signs = {"alternating 0": 1, "alternating 1": 1, "float": -1, "int8": -1}
    crossed = sum(sign * crossing_elements(graph.edges, plans[name]) for name, sign in signs.items())
    return fit_boundary([(crossed, sum(sign * ms[name] for name, sign in signs.items()))])


def _complete(
    based: DeviceProfile,
    before: DeviceProfile,
    fitted: Fit,
    steps: Mapping[Precision, int | None],
    boundary: float | None,
    source: str,
) -> DeviceProfile:
    """The profile with the new costs in place of the old ones of that runtime and thread count."""
    one = fitted.costs[0]
    same = (one.runtime, one.processor, one.threads)
    kept = tuple(cost for cost in before.costs if (cost.runtime, cost.processor, cost.threads) != same)
    anchors = tuple(row for row in before.anchors if (row.runtime, row.processor, row.threads) != same)
    clear = {precision: step for precision, step in steps.items() if step is not None}
    mark = f"measured with {one.runtime}"
    found = [f"{p.value}: {'no clear step' if s is None else s}" for p, s in steps.items()]
    said = [f"channel_step: {mark} {source}: {', '.join(found)}"]
    if before.part("cpu") is None or before.memory is None:
        said.append(f"peaks and bandwidth: {mark} {source}: the best that a small network reached")
    if boundary is not None:
        said.append(f"change between int8 and float: {mark} {source}: {boundary * 1e5:.3g} ms for 1e5 elements")
    old = [line for line in before.sources if not line.split(": ", 1)[-1].startswith(mark)]
    return replace(
        based,
        evidence=f"{mark} {source}: {len(fitted.scores)} latencies of small networks, by edgekit profile",
        sources=(*old, *said),
        channel_step=max(clear.values()) if clear else before.channel_step,
        costs=(*kept, *fitted.costs),
        anchors=anchors,
    )


def _beside(timed: Sequence[Timed], fitted: Fit) -> tuple[NetworkLatency, ...]:
    predicted = {
        (score.row.family, score.row.cell.precision): score.row.latency_ms / math.exp(score.log_error)
        for score in fitted.scores
    }
    return tuple(
        NetworkLatency(one.network, one.precision, one.macs, one.latency_ms, predicted[one.network, one.precision])
        for one in timed
        if not one.floats
    )


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
