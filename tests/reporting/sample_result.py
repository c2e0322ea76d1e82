"""A deployment as it looks for a text recogniser: 47 layers, float / int8 / bf16 / plan, one round of repair."""

import hashlib
import math
import random
from dataclasses import replace

from edgekit import results as r
from edgekit.conditions import Conditions
from edgekit.types import (
    Budget,
    Candidate,
    Conformance,
    Figure,
    GroupChoice,
    Kind,
    Latency,
    LayerChoice,
    MetricResult,
    Plan,
    Predicted,
)
from edgekit.types import Precision as P

CPU = "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
KEPT_FLOAT = (0, 3, 29, 33, 34, 36, 38, 41, 46)


def layer_rows(seed: int = 0) -> tuple[r.LayerDetail, ...]:
    rng = random.Random(seed)
    rows = []
    for index in range(47):
        depthwise = index < 28 and index % 2 == 1
        attention = 30 <= index < 44
        op_type = "MatMul" if attention and index % 3 else "Conv"
        block = "svtr/mixing" if attention else "backbone/blocks"
        name = f"/{block}.{index // 2}/{'depthwise' if depthwise else 'pointwise'}_conv/{op_type}_{index}"
        macs = int(rng.uniform(0.4, 1.2) * (1.1e6 if depthwise else 1.4e7))
        float_ms = macs / 2.1e7 * rng.uniform(0.8, 1.6)
        int8_ms = float_ms * (rng.uniform(0.9, 1.2) if index in (34, 36) else rng.uniform(0.3, 0.55))
        damage = float(f"{10 ** rng.uniform(-4.5, -2.5) * (200 if index in KEPT_FLOAT else 1):.6g}")
        keeps_float = index in KEPT_FLOAT
        if index in (34, 36):
            reason = "int8 not faster"
        elif keeps_float:
            reason = "int8 costs accuracy"
        else:
            reason = ""
        rows.append(
            r.LayerDetail(
                name=name,
                op_type=op_type,
                precision=P.FP32 if keeps_float else P.INT8,
                keep=1.0,
                macs=macs,
                weight_bytes=int(rng.uniform(2e4, 4e5)) * (4 if keeps_float else 1),
                latency_ms={P.FP32: round(float_ms, 4), P.INT8: round(int8_ms, 4)},
                loss={P.FP32: 0.0, P.INT8: damage},
                reason=reason,
            )
        )
    return tuple(rows)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def metric(value: float, low: float, high: float) -> MetricResult:
    return MetricResult(name="ctc-exact", value=value, low=low, high=high, n=300)


def sample_result(layers: tuple[r.LayerDetail, ...] | None = None) -> r.DeployResult:
    rows = layer_rows() if layers is None else layers
    plan = Plan(
        layers=tuple(LayerChoice(row.name, row.op_type, row.precision, row.keep) for row in rows),
        predicted=Predicted(
            latency_ms=Figure(Kind.PREDICTED, 9.05, 8.30, 9.80, "in-network table, 90 % of mixed plans within 8 %"),
            weight_bytes=3_214_336,
            peak_activation_bytes=2_211_840,
            memory_bytes=5_426_176,
            loss=0.0131,
        ),
        gap=4.2e-5,
        binding=("max_drop",),
    )

    def measured(value: float, low: float, high: float) -> Figure:
        return Figure(Kind.MEASURED, value, low, high, CPU)

    candidates = (
        Candidate(
            "float", Latency(17.92, 18.41, 19.73, 412), metric(0.930, 0.896, 0.954), math.inf, 1.0, 10_820_608,
            Kind.MEASURED, {"fp32": 47},
        ),
        Candidate(
            "int8", Latency(8.31, 8.55, 9.60, 873), metric(0.690, 0.636, 0.740), 9.8, 0.71, 2_804_736,
            Kind.MEASURED, {"int8": 47}, "metric drop above 1 point",
            measured(0.24, 0.193, 0.288), measured(2.16, 2.08, 2.23),
        ),
        Candidate(
            "bf16", Latency(30.12, 30.90, 33.02, 240), metric(0.930, 0.896, 0.954), 38.4, 0.997, 10_820_608,
            Kind.MEASURED, {"bf16": 47}, "slower than float",
            measured(0.0, -0.01, 0.01), measured(0.595, 0.58, 0.61),
        ),
        Candidate(
            "plan", Latency(9.31, 9.62, 10.88, 801), metric(0.927, 0.892, 0.951), 19.4, 0.963, 3_214_336,
            Kind.MEASURED, {"int8": 38, "fp32": 9}, "",
            measured(0.003, -0.007, 0.013), measured(1.924, 1.87, 1.98),
        ),
    )  # fmt: skip
    front = tuple(
        r.ParetoPoint(
            latency_ms=round(17.9 - 0.21 * count, 3),
            loss=1e-4 * 1.12**count,
            weight_bytes=10_800_000 - 165_000 * count,
            int8_layers=count,
            metric={38: 0.927, 40: 0.917, 47: 0.690}.get(count),
            kind=Kind.MEASURED if count in (38, 40, 47) else Kind.PREDICTED,
        )
        for count in (0, 6, 12, 18, 24, 30, 34, 36, 38, 40, 42, 44, 47)
    )
    return r.DeployResult(
        target="host",
        device=r.DeviceInfo(CPU, 1, "openvino 2026.4.1", "", "x86_64"),
        created="2026-11-22T03:40:00+00:00",
        model=r.ModelInfo("ch_PP-OCRv4_rec_infer.onnx", digest("model")),
        data=r.DataInfo("lines", digest("data"), 64, 300),
        recipe=r.RecipeInfo("text-line", digest("recipe"), "percentile", "ctc-exact"),
        budget=Budget(latency_ms=10.0, memory_bytes=64_000_000, weight_bytes=5_000_000, max_drop=0.01),
        plan=plan,
        layers=rows,
        options_dropped=(
            r.DroppedOption("int8", rows[-1].name, "the runtime executes it in f32 all the same"),
            r.DroppedOption("int8", rows[0].name, "the runtime executes it in f32 all the same"),
            r.DroppedOption("bf16", "model", "takes 1.69x the time of fp32 on this device"),
            r.DroppedOption(
                "w8", "model", "takes 1.10x the time of fp32 on this device, and no size budget asks for it"
            ),
        ),
        candidates=candidates,
        chosen="plan",
        chosen_reason="the fastest that loses at most 1 point",
        conformance=Conformance(planned=47, matched=47),
        pareto=front,
        blame=(
            r.Blame(
                rows[-1].name, P.INT8, 0.31, 0.043, "kept in fp32; observer min-max would gain 12 dB over percentile"
            ),
            r.Blame(rows[0].name, P.INT8, 0.22, 0.012, "kept in fp32"),
            r.Blame(rows[len(rows) // 2].name, P.INT8, 0.11, None, "kept in int8: its loss fits the budget"),
        ),
        rounds=(
            r.Round(1, "planned within the budget", 8.85, 8.99, 0.917),
            r.Round(2, "metric guard: 2 layers back to float", 9.05, 9.31, 0.927),
        ),
        prediction=r.Prediction(9.05, 9.31, -0.0279, 10.12, 0.087),
        bundle="out/ocr",
        versions={"edgekit": "0.1.0", "openvino": "2026.4.1", "onnx": "1.23.0", "numpy": "2.4.6"},
        warnings=("the frequency governor could not be read: latencies may drift",),
    )


def with_conditions(sample: r.DeployResult) -> r.DeployResult:
    """The same deployment on a board that tells all there is to know of itself, with a fan that gave up."""

    def known(candidate: Candidate) -> Candidate:
        p50, p90, p99 = (getattr(candidate.latency_ms, name) for name in ("p50", "p90", "p99"))
        return replace(
            candidate,
            latency_ms=replace(
                candidate.latency_ms, p50_low=p50 - 0.04, p50_high=p50 + 0.05, p90_low=p90 - 0.1, p90_high=p90 + 0.2,
                p99_low=p99 - 0.3, p99_high=p99 + 0.9,
            ),
            speedup_ci=Figure(Kind.MEASURED, 17.92 / p50, 17.8 / p50, 18.0 / p50, "interleaved rounds"),
            energy_mj=Figure(Kind.MEASURED, 4.1 * p50, 4.0 * p50, 4.2 * p50, "INA3221 VDD_IN, idle subtracted"),
            peak_memory_bytes=Figure(Kind.MEASURED, 9e7 + candidate.weight_bytes, source="a process of its own"),
        )  # fmt: skip

    conditions = Conditions(
        cores=(4, 5), governor="schedutil", power_mode="nvpmodel 2", clock_mhz=1190.4, lowest_clock_mhz=806.4,
        max_clock_mhz=1984.0, temperature_before_c=61.5, temperature_after_c=97.0, rounds=210, discarded=63,
        disturbed=0.81, least_disturbed=True, throttled=0.3, other_load=0.42, seconds=16.1, unstable=("int8",),
        energy_source="INA3221 VDD_IN", idle_w=2.04, missing={"memory": "killed by signal 9"},
    )  # fmt: skip
    return replace(sample, candidates=tuple(map(known, sample.candidates)), conditions=conditions)


def group_rows(layers: tuple[r.LayerDetail, ...]) -> tuple[r.GroupDetail, ...]:
    """One group for each thing that can happen to it: pruned, pruned, offered and kept whole, not offered."""
    names = [row.name for row in layers]
    return (
        r.GroupDetail(
            names[0], 32, 24, (names[0], names[1]), (names[2],),
            (r.GroupOptionDetail(24, 2.1e-4, 0.21), r.GroupOptionDetail(16, 3.4e-3, 0.36)),
        ),
        r.GroupDetail(
            names[2], 128, 96, (names[2], names[3]), (names[4], names[6], names[8]),
            (r.GroupOptionDetail(112, 1.5e-4, 0.18), r.GroupOptionDetail(96, 6.3e-4, 0.40)),
        ),
        r.GroupDetail(
            names[6], 64, 64, (names[6],), (names[8],),
            (r.GroupOptionDetail(48, 0.021, 0.09),), "pruning costs accuracy",
        ),
        r.GroupDetail(names[10], 48, 48, (names[10],), (names[12],), (), "no ratio saves time on this device"),
    )  # fmt: skip


def pruned_result() -> r.DeployResult:
    """The same deployment where channels were planned too: groups, layers that cannot be pruned, prices, losses."""
    groups = group_rows(layer_rows())
    keep = {name: group.kept / group.channels for group in groups for name in group.producers}
    sample = sample_result(tuple(replace(row, keep=keep.get(row.name, 1.0)) for row in layer_rows()))
    choices = tuple(GroupChoice(group.name, group.channels, group.kept) for group in groups if group.options)
    removed = {38: 40, 40: 24, 42: 16}
    return replace(
        sample,
        plan=replace(sample.plan, groups=choices),
        pareto=tuple(replace(point, pruned_channels=removed.get(point.int8_layers, 0)) for point in sample.pareto),
        rounds=(
            r.Round(1, "planned within the budget", 8.85, 8.99, 0.917, 0.0102, 0.0171),
            r.Round(2, "tables corrected by what 3 plans measured", 9.05, 9.31, 0.927, 0.0131, 0.0138),
        ),
        groups=groups,
        fixed=(
            r.FixedDetail(sample.layers[-1].name, "they are the model output 'y'"),
            r.FixedDetail(sample.layers[30].name, "Softmax 'attention' mixes them"),
            r.FixedDetail(sample.layers[32].name, "Softmax 'attention' mixes them"),
        ),
        prices=(
            r.Price("latency", 1.0, "loss", 0.0131, 0.0105),
            r.Price("size", 1e6, "latency_ms", 9.05, 8.74),
            r.Price("memory", 1e6, "latency_ms", 9.05, 9.05),
        ),
    )
