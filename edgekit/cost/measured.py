"""Measures the cost table of a network on a device that is at hand (the method is told in `edgekit.cost.table`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.backends import Artifact, ExecutedNode, able
from edgekit.cost.crossings import alternating, fit_crossings
from edgekit.cost.table import CostTable, anchored, crossing_elements, fit_boundary, layer_times_ms
from edgekit.errors import DeviceError, InputError
from edgekit.results import DroppedOption
from edgekit.types import Precision

if TYPE_CHECKING:
    from edgekit.backends import Backend
    from edgekit.devices.race import Device
    from edgekit.graph import Graph

# Plans of this graph as artifacts: layer -> precision, and the float precision of the rest.
Build = Callable[[Mapping[str, Precision], Precision], Artifact]

FLOAT_PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16)
# A float precision must win by more than the noise of a race to be worth its loss.
_WORTHWHILE = 0.97
_PROFILE_S = 0.3
_RACE_S = 5.0
# Precisions that runtimes have for accuracy or for size, and few fast kernels for.
_RARELY_FAST = (Precision.INT16X8, Precision.W4)
_WEIGHT_ONLY = (Precision.W8, Precision.W4)


@dataclass(frozen=True)
class MeasuredCosts:
    """The table, whose entries are the options that each layer really has here, and why others were dropped."""

    table: CostTable
    dropped: tuple[DroppedOption, ...]


def rank_float_precisions(
    device: Device, build: Build, offered: tuple[Precision, ...]
) -> tuple[dict[Precision, float], tuple[DroppedOption, ...]]:
    """Float precisions worth considering, fastest first, with their latency relative to fp32; fp32 is always among
    them. What a runtime lists is not what is fast: each is raced.
    """
    candidates = [precision for precision in FLOAT_PRECISIONS if precision in offered or precision is Precision.FP32]
    if len(candidates) == 1:
        return {Precision.FP32: 1.0}, ()
    raced = device.race({precision.value: build({}, precision) for precision in candidates}, _RACE_S)
    ratios = {precision: raced[precision.value].ratio for precision in candidates}
    dropped = tuple(
        DroppedOption(precision.value, "model", f"takes {ratio:.2f}x the time of fp32 on this device")
        for precision, ratio in ratios.items()
        if precision is not Precision.FP32 and ratio > _WORTHWHILE
    )
    lost = {option.option for option in dropped}
    kept = sorted((p for p in candidates if p.value not in lost), key=lambda p: ratios[p])
    return {precision: ratios[precision] for precision in kept}, dropped


def measure_costs(
    graph: Graph,
    device: Device,
    build: Build,
    base: Precision,
    *,
    offered: tuple[Precision, ...],
    weight_only: bool,
    interval: float,
) -> MeasuredCosts:
    """Profile and race the uniform models and some that alternate, and fit the table. ``weight_only`` offers w8, w4 and
    int16x8 even where they gain no time, for the sake of their size; w4 is not tried without.
    """
    names = [layer.name for layer in graph.layers]
    nodes = device.backend.executed_nodes(device.profile({"float": build({}, base)}, _PROFILE_S)["float"], graph)
    floats = _executing_floats(device.backend, executed_precisions(nodes), names, base)
    int8: list[str] = []
    int8_nodes: tuple[ExecutedNode, ...] = ()
    dropped: list[DroppedOption] = []
    if Precision.INT8 in offered:
        int8, int8_nodes, dropped = _executing_int8(graph, device, build, base)
    weighted: tuple[str, ...] = ()
    if Precision.W8 in offered:
        weighted = able(graph, device.backend, Precision.W8)
        for layer in graph.layers:
            if layer.weights and layer.name not in weighted:
                reason = f"the runtime cannot mix {layer.op_type} layers of {Precision.W8.value} with others"
                dropped.append(DroppedOption(Precision.W8.value, layer.name, reason))

    plans: dict[str, dict[str, Precision]] = {"float": floats}
    if int8:
        plans["int8"] = plans["float"] | dict.fromkeys(int8, Precision.INT8)
        plans |= {
            name: plans["float"] | dict.fromkeys(some, Precision.INT8) for name, some in alternating(int8).items()
        }
    if weighted:
        plans["w8"] = plans["float"] | dict.fromkeys(weighted, Precision.W8)
    raced = device.race({name: build(plan, base) for name, plan in plans.items()}, _RACE_S)
    # Ratios within the interleaved rounds are steadier than medians over the whole race.
    float_ms = raced["float"].latency_ms.p50
    measured_ms = {name: float_ms * row.ratio for name, row in raced.items()}

    latency = {
        name: {floats[name]: time_ms}
        for name, time_ms in anchored(layer_times_ms(nodes, graph.layers), measured_ms["float"]).items()
    }
    anchors = {base: measured_ms["float"]}
    if int8:
        times = anchored(layer_times_ms(int8_nodes, graph.layers), measured_ms["int8"])
        for name in int8:
            latency[name][Precision.INT8] = times[name]
        anchors[Precision.INT8] = measured_ms["int8"]
    if weighted:
        ratio = measured_ms["w8"] / measured_ms["float"]
        # In nine rounds of ten, not by luck: offering w8 doubles the sensitivity work.
        if weight_only or raced["w8"].ratio_high < _WORTHWHILE:
            for name in weighted:
                latency[name][Precision.W8] = latency[name][floats[name]] * ratio
            anchors[Precision.W8] = measured_ms["w8"]
        else:
            reason = f"takes {ratio:.2f}x the time of {base.value} on this device, and no size budget asks for it"
            dropped.append(DroppedOption(Precision.W8.value, "model", reason))
    for precision in (p for p in _RARELY_FAST if p in offered and (weight_only or p not in _WEIGHT_ONLY)):
        rows, reason = _profiled_alone(graph, device, build, base, precision)
        ratio = sum(rows.values()) / (sum(layer_times_ms(nodes, graph.layers).values()) or 1.0)
        if rows and not weight_only and ratio > _WORTHWHILE:
            reason = f"takes {ratio:.3g}x the time of {base.value} on this device, and no budget of bytes asks for it"
        if reason:
            dropped.append(DroppedOption(precision.value, "model", reason))
            continue
        # Not raced: a model that is many times slower would take the others' rounds.
        anchors[precision] = ratio * measured_ms["float"]
        times = anchored(rows, anchors[precision])
        for name in able(graph, device.backend, precision):
            latency[name][precision] = times[name]
    switching = {name: plans[name] for name in alternating(int8)}
    boundary = fit_boundary(
        (crossing_elements(graph.edges, plan), measured_ms[name] - sum(latency[n][p] for n, p in plan.items()))
        for name, plan in switching.items()
    )
    crossing_ms: Mapping[str, Mapping[str, float]] = {}
    if switching:
        profiles = device.profile({name: build(plan, base) for name, plan in switching.items()}, _PROFILE_S)
        mixed = [
            (
                plan,
                layer_times_ms(device.backend.executed_nodes(profiles[name], graph), graph.layers),
                measured_ms[name],
            )
            for name, plan in switching.items()
        ]
        found = fit_crossings(
            graph.edges,
            {name: row[floats[name]] for name, row in latency.items()},
            {name: latency[name][Precision.INT8] for name in int8},
            [(plan, anchored(times, total_ms)) for plan, times, total_ms in mixed],
        )
        crossing_ms = found.cost_ms
        for name in int8:
            latency[name][Precision.INT8] = max(0.0, latency[name][Precision.INT8] + found.shift_ms[name])
    evidence = "profiles of uniform and alternating models on this device, scaled to their raced latencies"
    table = CostTable(base, floats, latency, anchors, boundary, interval, evidence, crossing_ms)
    return MeasuredCosts(table, tuple(dropped))


def _profiled_alone(
    graph: Graph, device: Device, build: Build, base: Precision, precision: Precision
) -> tuple[dict[str, float], str]:
    """Milliseconds by layer of the model in which all layers that can are of that precision; or why there is none."""
    plan = dict.fromkeys(able(graph, device.backend, precision), precision)
    if not plan:
        return {}, "the runtime has no such kernels for the layers of this model"
    try:
        rows = device.profile({precision.value: build(plan, base)}, _PROFILE_S)[precision.value]
    except (InputError, DeviceError) as error:
        return {}, f"the runtime refuses the model: {error}"
    nodes = device.backend.executed_nodes(rows, graph)
    executed = executed_precisions(nodes)
    odd = next((name for name in plan if not device.backend.executes_as(precision, executed.get(name, ""))), "")
    if odd:
        return {}, f"the runtime executes {odd} in {executed.get(odd) or 'another form'} all the same"
    return layer_times_ms(nodes, graph.layers), ""


def _executing_floats(
    backend: Backend, executed: Mapping[str, str], names: list[str], base: Precision
) -> dict[str, Precision]:
    """The float precision that each layer executes in when the model's is ``base``."""
    found = dict.fromkeys(names, base)
    for name, word in executed.items():
        found[name] = next((p for p in FLOAT_PRECISIONS if backend.executes_as(p, word)), base)
    return found


def _executing_int8(
    graph: Graph, device: Device, build: Build, base: Precision
) -> tuple[list[str], tuple[ExecutedNode, ...], list[DroppedOption]]:
    """The layers that execute in int8 when exactly they are planned so, the profile of that model, and why the others
    do not. A kind of layer that keeps the model from compiling is left out.
    """
    backend = device.backend
    kinds = {layer.name: layer.op_type for layer in graph.layers}
    refused = {
        name: f"the runtime's int8 {kind} does not compute what its quantized weights and inputs say"
        for name, kind in kinds.items()
        if kind not in backend.quantized_op_types[Precision.INT8]
    }

    def profiled(names: list[str]) -> tuple[ExecutedNode, ...]:
        rows = device.profile({"int8": build(dict.fromkeys(names, Precision.INT8), base)}, _PROFILE_S)["int8"]
        return backend.executed_nodes(rows, graph)

    nodes: tuple[ExecutedNode, ...] = ()
    while left := [name for name in kinds if name not in refused]:
        try:
            nodes = profiled(left)
        except (InputError, DeviceError) as error:
            guilty = _guilty_kinds(left, kinds, profiled)
            refused |= {name: f"the runtime refuses the model: {error}" for name in left if kinds[name] in guilty}
            continue
        executed = executed_precisions(nodes)
        floating = {
            name: f"the runtime executes it in {executed.get(name) or 'another form'} all the same"
            for name in left
            if not backend.executes_as(Precision.INT8, executed.get(name, ""))
        }
        if not floating:
            break
        refused |= floating
    return left, nodes, [DroppedOption(Precision.INT8.value, name, refused[name]) for name in kinds if name in refused]


def _guilty_kinds(
    names: list[str], kinds: Mapping[str, str], profiled: Callable[[list[str]], tuple[ExecutedNode, ...]]
) -> frozenset[str]:
    """The kind of layer without which the rest can be profiled; all kinds where there is no such one."""
    present = sorted({kinds[name] for name in names})
    for kind in present:
        rest = [name for name in names if kinds[name] != kind]
        try:
            if rest and profiled(rest):
                return frozenset({kind})
        except (InputError, DeviceError):
            continue
    return frozenset(present)


def executed_precisions(nodes: tuple[ExecutedNode, ...]) -> dict[str, str]:
    """Layer -> the runtime's word for the precision that it was executed in."""
    return {layer: node.precision for node in nodes if node.computes for layer in node.layers}
