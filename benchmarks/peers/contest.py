"""One model: every tool makes its file, then all of them race in one run and are judged on the same samples."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.rows import FLOAT, Missing, Row, none
from benchmarks.peers.tools import EDGEKIT, TOOLS, NotHereError, Setting, Tool, make
from edgekit import bundle
from edgekit.backends import Artifact
from edgekit.conditions import Conditions
from edgekit.devices.race import Raced
from edgekit.errors import EdgekitError
from edgekit.types import Figure, Kind, Precision
from edgekit.workbench.scoring import Score, Scorer
from edgekit.workbench.stages import Workbench


@dataclass(frozen=True)
class Entrant:
    """One candidate of the race, and what its tool took."""

    candidate: str
    artifact: Artifact
    wall_s: Figure
    peak_memory_bytes: Figure
    note: str = ""

    @property
    def title(self) -> str:
        """Unlike any other's."""
        return f"{self.candidate}, {self.artifact.base.value}"


def hold(
    setting: Setting, tools: Sequence[str], seconds: float, limit_s: float
) -> tuple[list[Row | Missing], Conditions | None]:
    """The candidates of one model and under what they were raced. ``tools`` are keys of the target's `TOOLS`,
    ``seconds`` is the time of the race, ``limit_s`` that of each tool.

    Raises EdgekitError where the model itself, or the race, fails.
    """
    bench, name = setting.bench, setting.entry.name
    device = bench.job.device
    entrants, floats = _floats(bench)
    shutil.rmtree(setting.samples, ignore_errors=True)  # an earlier run's may be others
    try:
        made, missing = _made(setting, tools, floats[0], limit_s)
    finally:
        shutil.rmtree(setting.samples, ignore_errors=True)
    entrants += made
    with bench.job.progress.stage(f"race {len(entrants)} candidates"):
        raced = device.race({one.title: one.artifact for one in entrants}, seconds)
    scorer = Scorer(bench)
    reference = scorer.score(entrants[0].artifact, entrants[0].title)
    rows = [
        _row(name, one, raced[one.title], scorer, reference, scorer.score(one.artifact, one.title)) for one in entrants
    ]
    return [*rows, *missing], raced[entrants[0].title].conditions


def _made(
    setting: Setting, tools: Sequence[str], fastest: Precision, limit_s: float
) -> tuple[list[Entrant], list[Missing]]:
    """What the tools made, and why others made nothing."""
    bench, name = setting.bench, setting.entry.name
    entrants: list[Entrant] = []
    missing: list[Missing] = []
    for key in tools:
        try:
            offered = TOOLS[bench.job.target.backend][key](setting)
        except NotHereError as reason:
            missing.append(Missing(name, key, str(reason), reason.asked))
            continue
        for tool in offered:
            try:
                with bench.job.progress.stage(f"{tool.title} on {name}"):
                    entrants += _entrants(setting, tool, fastest, limit_s)
            except (NotHereError, EdgekitError, OSError, RuntimeError, ValueError) as reason:
                missing.append(Missing(name, tool.title, " ".join(str(reason).split())))
    return entrants, missing


def _floats(bench: Workbench) -> tuple[list[Entrant], tuple[Precision, ...]]:
    """The unmodified model in single precision, in whatever the runtime takes when nobody says, and in every float
    precision that is fast here; and those last, fastest first.
    """
    fast = tuple(bench.float_precisions()[0])
    plain = bench.artifact({}, Precision.FP32)
    unasked = default_precision(plain) if bench.job.target.backend == "openvino" else Precision.FP32
    nothing = none("the unmodified model")
    found = []
    for precision in dict.fromkeys((Precision.FP32, unasked, *fast)):
        note = "the runtime's default" if precision is unasked and precision is not Precision.FP32 else ""
        found.append(Entrant(FLOAT, bench.artifact({}, precision), nothing, nothing, note))
    return found, fast


def default_precision(artifact: Artifact) -> Precision:
    """The float precision that OpenVINO's CPU plugin takes when nobody asks for one."""
    import openvino

    compiled = openvino.Core().compile_model(str(artifact.path), "CPU")
    word = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    return {"bf16": Precision.BF16, "f16": Precision.FP16}.get(word, Precision.FP32)


def _entrants(setting: Setting, tool: Tool, fastest: Precision, limit_s: float) -> list[Entrant]:
    """What a tool made, once in single precision and once more in the fastest float precision where that is another."""
    bench = setting.bench
    folder = setting.folder / "".join(c if c.isalnum() else "-" for c in tool.title)
    took = make(tool, folder, limit_s)
    wall = Figure(Kind.MEASURED, took.wall_s, source="from its start to its end")
    peak = Figure(Kind.MEASURED, float(took.peak_memory_bytes), source="resident, of its largest process")
    found = []
    sample = bench.job.data.evaluation.sample(0)
    for precision in dict.fromkeys((Precision.FP32, fastest)) if tool.floats else (Precision.FP32,):
        artifact = tool.read(folder, precision)
        outputs = [tensor.name for tensor in bench.job.graph.outputs]
        bench.job.device.backend.session(artifact, bench.job.device.threads, outputs)(sample)  # or it says why not
        note = _shipped_note(folder / "bundle") if tool.title.startswith(EDGEKIT) else ""
        found.append(Entrant(tool.title, artifact, wall, peak, note))
    return found


def _shipped_note(folder: Path) -> str:
    result = bundle.read(folder)
    plan = list(result.plan.precisions().values())
    counts: Mapping[str, int] = {p.value: plan.count(p) for p in dict.fromkeys(plan)}
    cut = sum(group.channels - group.kept for group in result.plan.groups)
    parts = [f"{count} {word}" for word, count in counts.items()] + ([f"{cut} channels cut"] if cut else [])
    return f"ships {result.chosen}: {', '.join(parts)}"


def _row(model: str, one: Entrant, timed: Raced, scorer: Scorer, reference: Score, score: Score) -> Row:
    device = scorer.bench.device_info.cpu
    latency, metric = timed.latency_ms, score.metric
    samples = f"{metric.n} samples"
    if timed.ratio_ci_low is None or timed.ratio_ci_high is None:
        low, high, what = timed.ratio_low, timed.ratio_high, "p10..p90 of interleaved rounds"
    else:
        low, high, what = timed.ratio_ci_low, timed.ratio_ci_high, "median of interleaved rounds, 95 %"
    agreement = none("its outputs are no classes")
    if score.agreement is not None:
        agreement = Figure(Kind.MEASURED, score.agreement, source=samples)
    return Row(
        model=model,
        candidate=one.candidate,
        floats=one.artifact.base.value,
        latency_ms=Figure(Kind.MEASURED, latency.p50, latency.p50_low, latency.p50_high, f"{device}, n={latency.n}"),
        speedup=Figure(Kind.MEASURED, 1 / timed.ratio, 1 / high, 1 / low, what),
        metric_name=metric.name,
        metric=Figure(Kind.MEASURED, metric.value, metric.low, metric.high, f"95 %, {samples}"),
        drop=scorer.drop(reference, score),
        sqnr_db=Figure(Kind.MEASURED, score.sqnr_db, source=samples),
        agreement=agreement,
        weight_bytes=Figure(Kind.COUNTED, float(one.artifact.weight_bytes), source="weights in the file"),
        wall_s=one.wall_s,
        peak_memory_bytes=one.peak_memory_bytes,
        note=one.note,
    )
