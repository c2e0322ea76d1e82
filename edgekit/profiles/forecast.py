"""What a board costs that nobody has at hand: by its device profile; and where nothing like it was measured, by the
arithmetic that its processor was built for, which ranks options and says no latency.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from edgekit import releases
from edgekit.cost.interval import ratio_reach
from edgekit.cost.measured import FLOAT_PRECISIONS, MeasuredCosts
from edgekit.cost.profile import cost_table
from edgekit.cost.table import CostTable
from edgekit.results import DeviceInfo, DroppedOption
from edgekit.types import Figure, Latency, Precision

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from edgekit.entries import DeviceProfile, Processor, Target
    from edgekit.graph import Graph

# Runtimes unpack these weights when they load a model, and compute in float.
_WEIGHT_ONLY = (Precision.W8, Precision.W4)
# But for these, which a runtime has slow kernels for: models in w4 took LiteRT 1.4 to 6 times as long as in fp32
# on x86, and nobody has measured them on a board.
_SLOW = {"tflite": frozenset({Precision.W4})}
# The kind of processor that a runtime uses, where it is not the CPU.
_RUNS_ON: dict[str, Literal["cpu", "gpu", "dla"]] = {"tensorrt": "gpu"}
# A float precision must be worth its loss.
_WORTHWHILE = 0.97


def device_info(target: Target, profile: DeviceProfile, threads: int) -> DeviceInfo:
    """What the profile says of the device."""
    part = processor_of(profile, target)
    name = profile.description if part is None else part.name
    if part is None and target.accelerator:
        name = f"{releases.accelerator(target.accelerator).description} of {profile.name}"
    return DeviceInfo(
        cpu=name,
        threads=threads,
        runtime=target.runtime or target.backend,
        governor="",
        machine=profile.name,
    )


def kind_of(target: Target) -> Literal["cpu", "gpu", "dla"]:
    """The kind of processor that the target's runtime runs on."""
    return target.accelerator or _RUNS_ON.get(target.backend, "cpu")


def processor_of(profile: DeviceProfile, target: Target) -> Processor | None:
    """The part of the device that the target's runtime runs on; None where the profile names none."""
    return profile.part(kind_of(target))


def forecast_floats(
    graph: Graph, target: Target, profile: DeviceProfile, threads: int
) -> tuple[dict[Precision, float], tuple[DroppedOption, ...]]:
    """Float precisions worth considering, fastest first, with their latency relative to fp32; and why others are not.

    Only precisions of which the same kind of evidence exists are compared.
    """
    totals: dict[Precision, float] = {}
    dropped: list[DroppedOption] = []
    whole = forecast_costs(graph, target, profile, threads, Precision.FP32, weight_only=False).table
    for precision in FLOAT_PRECISIONS:
        if precision is Precision.FP32 or precision not in target.precisions:
            continue
        table = forecast_costs(graph, target, profile, threads, precision, weight_only=False).table
        if table.base is not precision or bool(table.unknown) != bool(whole.unknown):
            reason = f"nothing says what it takes on {profile.name}"
            dropped.append(DroppedOption(precision.value, "model", reason))
            continue
        ratio = table.anchors_ms[precision] / whole.anchors_ms[Precision.FP32]
        if ratio > _WORTHWHILE:
            reach = ratio_reach(1 + max(table.interval, whole.interval), same=0.0)
            told = "" if table.unknown else f", {ratio / reach:.2f}x to {ratio * reach:.2f}x"
            reason = f"would take {ratio:.2f}x the time of fp32 on {profile.name} (predicted{told})"
            dropped.append(DroppedOption(precision.value, "model", reason))
        else:
            totals[precision] = ratio
    totals[Precision.FP32] = 1.0
    return dict(sorted(totals.items(), key=lambda row: row[1])), tuple(dropped)


def forecast_costs(
    graph: Graph,
    target: Target,
    profile: DeviceProfile,
    threads: int,
    base: Precision,
    weight_only: bool,
    single: Collection[str] = (),
) -> MeasuredCosts:
    """The cost table of a network with ``base`` as its float precision, and the options that the board lacks. The
    layers named in ``single`` are fp32 all the same.
    """
    table = _floats_of(graph, target, profile, threads, base)
    if base is not Precision.FP32 and single:
        table = _with_single(table, _floats_of(graph, target, profile, threads, Precision.FP32), single)
    latency = {name: dict(row) for name, row in table.latency_ms.items()}
    dropped: list[DroppedOption] = []
    for precision in target.precisions:
        if precision in FLOAT_PRECISIONS:
            continue
        if precision in _WEIGHT_ONLY and not weight_only:
            continue
        if precision in _WEIGHT_ONLY and precision not in _SLOW.get(target.backend, ()):
            for name, row in latency.items():
                row[precision] = row[table.floats[name]]
        elif not any(precision in row for row in latency.values()):
            reason = f"nothing says what it takes on {profile.name}"
            dropped.append(DroppedOption(precision.value, "model", reason))
    offered = {*target.precisions, base}
    able = _able(graph, target)
    latency = {
        name: {p: ms for p, ms in row.items() if p in offered and (p in FLOAT_PRECISIONS or name in able[p])}
        for name, row in latency.items()
    }
    anchors = {p: ms for p, ms in table.anchors_ms.items() if p in offered}
    return MeasuredCosts(
        CostTable(
            table.base,
            table.floats,
            latency,
            anchors,
            table.boundary_ms_per_element,
            table.interval,
            table.evidence,
            table.crossing_ms,
            table.unknown,
        ),
        tuple(dropped),
    )


def _floats_of(graph: Graph, target: Target, profile: DeviceProfile, threads: int, base: Precision) -> CostTable:
    wanted = dict.fromkeys((base, Precision.FP32))
    on = target.accelerator  # else the part that the runtime has costs for
    tables = [cost_table(graph, profile, target.backend, threads, on, floats=(one,)) for one in wanted]
    # Without one for fp32 as well, a latency would be compared with arithmetic.
    return tables[0] if tables[0] and all(tables) else _by_arithmetic(graph, target, profile, threads, base)


def _with_single(table: CostTable, whole: CostTable, single: Collection[str]) -> CostTable:
    """The table with fp32 as the only option of some layers: an int8 layer may write halves too."""
    latency = {name: dict(row) for name, row in table.latency_ms.items()}
    anchors, floats = dict(table.anchors_ms), dict(table.floats)
    for name in latency.keys() & set(single):
        slower_ms = whole.latency_ms[name][Precision.FP32]
        for precision in anchors:
            anchors[precision] += slower_ms - latency[name].get(precision, slower_ms)
        latency[name], floats[name] = {Precision.FP32: slower_ms}, Precision.FP32
    return replace(table, latency_ms=latency, anchors_ms=anchors, floats=floats)


def forecast_latency(figure: Figure) -> Latency:
    """A predicted latency where others are measured: its interval in place of the median's, and no percentiles."""
    value = math.nan if figure.value is None else figure.value
    return Latency(value, math.nan, math.nan, 0, figure.low, figure.high)


def _able(graph: Graph, target: Target) -> dict[Precision, frozenset[str]]:
    """The layers whose kinds the backend has in each quantized precision."""
    from edgekit.backends import able, backend

    adapter = backend(target.backend)
    return {
        precision: frozenset(able(graph, adapter, precision))
        for precision in target.precisions
        if precision not in FLOAT_PRECISIONS
    }


def _by_arithmetic(graph: Graph, target: Target, profile: DeviceProfile, threads: int, base: Precision) -> CostTable:
    """Options compared by MACs over the processor's peak, where nothing like the board was measured."""
    part = processor_of(profile, target)
    peaks = dict(part.peak_gmacs) if part is not None else {}
    if target.accelerator and not peaks:  # what runs there goes before what does not: no figure is made of it
        peaks = dict.fromkeys(releases.accelerator(target.accelerator).precisions, 2.0)
    peaks.setdefault(Precision.FP32, 1.0)
    base = base if base in peaks else Precision.FP32
    names = [layer.name for layer in graph.layers]
    share = min(threads, part.cores) / part.cores if part is not None and part.kind == "cpu" else 1.0
    offered: Sequence[Precision] = [p for p in (base, Precision.INT8, Precision.FP8, Precision.INT16X8) if p in peaks]
    latency = {
        layer.name: {p: max(layer.macs, 1) / (peaks[p] * share * 1e6) for p in offered} for layer in graph.layers
    }
    anchors = {p: sum(latency[name][p] for name in names) for p in offered}
    on = f" on the {target.accelerator}" if target.accelerator else ""
    reason = f"no float latencies of boards like {profile.name} with {target.backend}{on} are known: pass --host"
    return CostTable(base, dict.fromkeys(names, base), latency, anchors, 0.0, 1.0, reason, unknown=reason)
