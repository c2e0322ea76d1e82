"""What a model would cost on a target, for a uniform precision or a plan, without deploying it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.catalog import Target
from edgekit.cost.measured import FLOAT_PRECISIONS
from edgekit.cost.profile import predict_from_profile
from edgekit.cost.shapes import ShapeTable
from edgekit.cost.table import CostTable, predict_ms
from edgekit.errors import InputError
from edgekit.graph import Graph
from edgekit.graph.channels import Channels
from edgekit.graph.liveness import peak_activation_bytes
from edgekit.tables.channels import PruningTables, fit_tables
from edgekit.tables.formulate import weight_bytes
from edgekit.tables.weights import MaskTables
from edgekit.types import Figure, Mask, Precision
from edgekit.workbench.stages import Workbench
from edgekit.workbench.weights import masked_bytes


@dataclass(frozen=True)
class LayerCost:
    """What one layer takes; ``None`` where the target cannot execute it in that precision."""

    name: str
    op_type: str
    precision: Precision
    latency_ms: float


@dataclass(frozen=True)
class Evidence:
    """Where a prediction's numbers come from."""

    name: str
    evidence: str


@dataclass(frozen=True)
class PredictedCost:
    """Totals with their interval, and the layers that they are made of (boundary costs come on top of the layers)."""

    model: str
    target: str
    latency_ms: Figure
    weight_bytes: int
    peak_activation_bytes: int
    layers: tuple[LayerCost, ...]
    profile: Evidence
    notes: tuple[str, ...] = ()
    schema: str = "edgekit/predict/1"


@dataclass(frozen=True)
class Predictions:
    """One model on several boards, and by target why there is no prediction for the others."""

    model: str
    boards: tuple[PredictedCost, ...]
    refused: Mapping[str, str]
    schema: str = "edgekit/predictions/1"


@dataclass(frozen=True)
class PlanFile:
    """The decisions of a plan: layer -> precision, and channel group -> its channels and how many of them it keeps,
    where it loses some; layer -> mask, where it has one; and whether the weights are stored compressed.
    """

    precisions: Mapping[str, Precision]
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)
    compressed: bool = False


# Peak activations of a graph whose layers have these precisions, the rest in another.
Peak = Callable[[Graph, Mapping[str, Precision], Precision], int]


def remembered_peak() -> Peak:
    """`peak_activation_bytes` that computes once what boards have in common."""
    known: dict[tuple[int, Precision, tuple[tuple[str, Precision], ...]], tuple[Graph, int]] = {}

    def peak(graph: Graph, precisions: Mapping[str, Precision], base: Precision) -> int:
        key = id(graph), base, tuple(precisions.items())
        if key not in known:
            known[key] = graph, peak_activation_bytes(graph, precisions, base)  # held, so that its id stays its own
        return known[key][1]

    return peak


def predict_cost(bench: Workbench, wanted: PlanFile | Precision, peak: Peak = peak_activation_bytes) -> PredictedCost:
    """Predict a plan or a uniform precision. Where a layer cannot take the uniform precision it keeps the float one,
    and a note says so.
    """
    job = bench.job
    graph, kept = job.graph, dict[str, int]()
    names = [layer.name for layer in job.graph.layers]
    notes: list[str] = []
    if isinstance(wanted, Precision):
        _require_offered([wanted], job.target)
        base = wanted if wanted in FLOAT_PRECISIONS else Precision.FP32
        table = bench.costs(base, weight_only=True).table
        lacking = [name for name in names if wanted not in table.latency_ms[name]]
        if lacking:
            stay = " or ".join(sorted({table.floats[name].value for name in lacking}))
            notes.append(f"{len(lacking)} layers do not execute in {wanted.value} here and take {stay}")
        precisions = {name: table.floats[name] if name in lacking else wanted for name in names}
    else:
        _check_plan(wanted.precisions, names)
        _require_offered(wanted.precisions.values(), job.target)
        # The base is a choice for the whole model; layers without a 16-bit kernel stand as fp32 beside it.
        halves = [p for p in FLOAT_PRECISIONS if p is not Precision.FP32 and p in wanted.precisions.values()]
        base = halves[0] if halves else Precision.FP32
        table = bench.costs(base, weight_only=True).table
        precisions = {name: _offered(name, wanted.precisions[name], table) for name in names}
        if wanted.groups:
            _check_groups(wanted.groups, bench.pruner.channels)
            kept = {name: left for name, (_, left) in wanted.groups.items()}
            graph = bench.pruner.cut(kept)
            table = _narrowed(bench, table, kept)
        table = MaskTables({}, sparse_speedup=job.profile.sparse_speedup).at(table, wanted.masks)
    stored = sum(weight_bytes(one.weight_elements, one.bias_elements, precisions[one.name]) for one in graph.layers)
    if isinstance(wanted, PlanFile) and wanted.compressed:
        stored = masked_bytes(graph, precisions, wanted.masks)
        notes.append(
            "weights counted compressed, the smallest masked and the others at their nearest value where a codebook is "
            "planned: what a plan stores differs by its samples"
        )
    latency = _latency(bench, table, graph, precisions)
    return PredictedCost(
        model=job.model_path.name,
        target=job.target.name,
        latency_ms=latency,
        weight_bytes=stored,
        peak_activation_bytes=peak(graph, precisions, base),
        layers=tuple(
            LayerCost(
                layer.name,
                layer.op_type,
                precisions[layer.name],
                math.nan if table.unknown else table.latency_ms[layer.name][precisions[layer.name]],
            )
            for layer in job.graph.layers
        ),
        profile=Evidence(job.profile.name, f"{latency.source}; {bench.device_info.cpu}, {bench.device_info.runtime}"),
        notes=tuple(notes),
    )


def _latency(bench: Workbench, table: CostTable, graph: Graph, precisions: Mapping[str, Precision]) -> Figure:
    """A sum of what was measured; of a board that is not at hand, what its profile says of this graph."""
    job = bench.job
    if job.device.at_hand:
        return predict_ms(table, graph.edges, precisions)
    target = job.target
    return predict_from_profile(
        graph, precisions, job.profile, target.backend, job.device.threads, processor=target.accelerator
    )


def _narrowed(bench: Workbench, table: CostTable, kept: Mapping[str, int]) -> CostTable:
    """The cost table at the kept channels: shapes between the whole model's and the plan's are profiled for it."""
    channels, sizes = bench.pruner.channels, bench.pruner.sizes
    losses = {
        group.name: {group.channels: 0.0, kept[group.name]: 0.0} for group in channels.groups if group.name in kept
    }
    tables = PruningTables(channels, sizes, ShapeTable({}), losses, {})
    profiles = bench.shape_profiles(table, {index: tables.counts(index) for index in tables.offered})
    table, tables = fit_tables(tables, table, bench.job.graph.edges, profiles)
    return tables.at(table, bench.job.graph.edges, tables.kept(kept))


def read_plan(path: Path) -> PlanFile:
    """The decisions of a plan file, as ``edgekit plan --out`` and bundles hold it. Raises `InputError`."""
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"plan {path}: {error.strerror}", "pass the plan.json of a bundle or of edgekit plan"
        ) from None
    except (ValueError, RecursionError):
        raise InputError(
            f"plan {path}: not a JSON document", "pass the plan.json of a bundle or of edgekit plan"
        ) from None
    try:
        plan = document["plan"]
        rows = [(str(row["name"]), int(row["channels"]), int(row["kept"])) for row in plan.get("groups", ())]
        masks = {str(row["name"]): Mask(row.get("mask", Mask.NONE)) for row in plan["layers"]}
        return PlanFile(
            {str(row["name"]): Precision(row["precision"]) for row in plan["layers"]},
            {name: (channels, kept) for name, channels, kept in rows if kept < channels},
            {name: mask for name, mask in masks.items() if mask is not Mask.NONE},
            plan.get("compressed", False) is True,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"plan {path}: not an edgekit plan ({error})", "pass the plan.json of a bundle or of edgekit plan"
        ) from None


def _check_plan(plan: Mapping[str, Precision], names: list[str]) -> None:
    unknown = sorted(set(plan) - set(names))
    missing = [name for name in names if name not in plan]
    if unknown or missing:
        odd = f"it names {unknown[0]!r}, which the model lacks" if unknown else f"it lacks layer {missing[0]!r}"
        raise InputError(f"the plan belongs to another model: {odd}", "pass the model and --shape it was made from")


def _check_groups(groups: Mapping[str, tuple[int, int]], channels: Channels) -> None:
    known = {group.name: group.channels for group in channels.groups}
    for name, (whole, kept) in groups.items():
        if known.get(name) != whole or kept < 1:
            odd = f"it keeps {kept} of {whole} channels of {name!r}, which has {known.get(name, 'none here')}"
            raise InputError(f"the plan belongs to another model: {odd}", "pass the model that it was made from")


def _require_offered(wanted: Iterable[Precision], target: Target) -> None:
    for precision in wanted:
        if precision not in target.precisions:
            offered = ", ".join(p.value for p in target.precisions)
            raise InputError(f"target {target.name!r} does not offer {precision.value}", f"it offers {offered}")


def _offered(name: str, precision: Precision, table: CostTable) -> Precision:
    if precision not in table.latency_ms[name]:
        offered = ", ".join(p.value for p in table.latency_ms[name])
        raise InputError(
            f"layer {name!r} cannot execute in {precision.value} on this target", f"here it can take {offered}"
        )
    return precision
