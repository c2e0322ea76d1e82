"""The way of the data, from a job to a bundle: the only module that knows it all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekit import bundle, catalog, toolchains
from edgekit.backends import Artifact, proxy
from edgekit.blame import blame
from edgekit.cost.interval import ratio_reach
from edgekit.cost.measured import FLOAT_PRECISIONS
from edgekit.cost.table import CostTable, total_ms
from edgekit.devices.race import Raced
from edgekit.graph import Graph
from edgekit.guards import Contestant, choose, conformance, loses, losing_layers, require_conformance
from edgekit.job import Job
from edgekit.outcome import assemble
from edgekit.planning import Planned, make_plan, plan_again
from edgekit.profiles.forecast import forecast_latency
from edgekit.recipes.samples import preprocess_contract
from edgekit.reporting import html
from edgekit.results import DeployResult, Round, VectorsCheck
from edgekit.tables.formulate import memory_bytes
from edgekit.types import Conformance, Kind, Mask, Precision
from edgekit.workbench.scoring import Score, Scorer
from edgekit.workbench.stages import Workbench

RACE_S = 8.0
# How many plans are raced before the best so far is taken.
MOST_ROUNDS = 3
TEST_VECTORS = 3
# Kernels differ from CPU to CPU in the last bits; broken weights or preprocessing differ by far more.
VECTOR_TOLERANCE = 0.02


def deploy(job: Job, out: Path, allow_mismatch: bool = False) -> DeployResult:
    """Plan, compile, race, and write the bundle to ``out``.

    Raises the error of the first guard that refuses; nothing is written to ``out`` then.
    """
    bundle.require_replaceable(out)
    bench = Workbench(job)
    scorer = Scorer(bench)
    planned = make_plan(bench, scorer)
    contestants = _uniform(bench, scorer, planned)
    if planned.bits_only is not None:  # shows what pruning adds, and ships where it adds nothing
        contestants.append(_conforming(bench, scorer, "bits only", planned.bits_only, frozenset())[0])
    refined = len(planned.rounds)
    rounds: list[Round] = list(planned.rounds)
    forbidden: frozenset[tuple[str, Precision]] = frozenset()
    current: Planned | None = planned
    raced: dict[str, Raced] = {}
    while current is not None:
        number = len(rounds) - refined + 1
        name = f"plan {number}" if number > 1 else "plan"
        contestant, forbidden = _conforming(bench, scorer, name, current, forbidden)
        planned = contestant.planned or current
        if any(_same(c, contestant) for c in contestants if c.planned is not None and raced):
            break
        contestants.append(contestant)
        title = f"race {len(contestants)} candidates"
        if job.device.at_hand:
            raced = bench.race({c.name: c.artifact for c in contestants}, RACE_S, title, footprint=True)
        else:
            raced = _forecast(bench, planned, contestants)
        rounds.append(_round(len(rounds) + 1, planned, contestant, raced[contestant.name], forbidden))
        if not job.device.at_hand or number == MOST_ROUNDS or not loses(contestant, contestants, raced, job.budget):
            break
        losing = losing_layers(bench, contestant, raced[contestant.name]) - forbidden
        if not losing:
            break
        forbidden |= losing
        current = plan_again(bench, scorer, planned, forbidden)
    planned = next(c.planned for c in reversed(contestants) if c.planned is not None)
    chosen, reason = choose(contestants, raced, job.budget)
    executed = conformance(bench, chosen)
    if not allow_mismatch:
        require_conformance(executed)
    executed = _ask_the_proxy(job, executed, chosen)
    result = assemble(
        bench=bench,
        planned=chosen.planned or planned,
        contestants=contestants,
        raced=raced,
        chosen=chosen,
        reason=reason,
        conformance=executed,
        rounds=rounds,
        blamed=blame(bench, scorer, planned, chosen),
        out=out,
    )
    if job.device.place:
        with job.progress.stage(f"check the outputs on {job.device.place}"):
            result = replace(result, vectors=_check_there(job, chosen, result))
    with job.progress.stage("write the bundle"):
        _pack(job, chosen, result, out)
    return result


def _ask_the_proxy(job: Job, executed: Conformance, chosen: Contestant) -> Conformance:
    """Where no board said what it executes: what a stand-in for its compiler made of the model, if it is installed."""
    stand_in = proxy(job.target.backend)
    if stand_in is None or not executed.unknown or toolchains.problem(stand_in.TOOLCHAIN):
        return executed
    with job.progress.stage(f"compile with {stand_in.NAME}, as a proxy"):
        return replace(executed, unknown=f"{executed.unknown}; {stand_in.remark(chosen.artifact)}")


def _check_there(job: Job, chosen: Contestant, result: DeployResult) -> VectorsCheck:
    """What the board makes of the bundle's test vectors, before the bundle is at its place. Raises `GuardError`."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        draft = Path(folder) / "bundle"
        _pack(job, chosen, result, draft)
        return job.device.check_bundle(draft)


def _forecast(bench: Workbench, planned: Planned, contestants: Sequence[Contestant]) -> dict[str, Raced]:
    """What the race would show, by the cost tables that the plan was made from."""
    totals: dict[str, tuple[float, CostTable]] = {}
    unchanged_ms: dict[str, float] = {}
    for contestant in contestants:
        base = Precision.FP32 if contestant.name == "float" else planned.base
        table = planned.planning.table
        if base is not table.base:
            table = bench.costs(base, weight_only=False).table
        precisions = {layer.name: contestant.precisions.get(layer.name, base) for layer in bench.job.graph.layers}
        pruning, masks = planned.pruning, planned.planning.masks
        if masks is not None:
            table = masks.at(table, contestant.masks)
        if contestant.kept and pruning is not None:
            table = pruning.at(table, bench.job.graph.edges, pruning.kept(contestant.kept))
        graph = bench.graph_of(contestant.kept)
        totals[contestant.name] = (total_ms(table, graph.edges, precisions), table)
        alike = _alike(bench.job.graph, graph, precisions, contestant.masks)
        unchanged_ms[contestant.name] = sum(table.latency_ms[name][Precision.FP32] for name in alike)
    found = {}
    float_ms, float_table = totals["float"]
    for name, (latency_ms, table) in totals.items():
        figure = table.figure(latency_ms)
        ratio = latency_ms / float_ms
        widest = 1 + max(table.interval, float_table.interval)
        reach = ratio_reach(widest, min(1.0, unchanged_ms[name] / latency_ms) if latency_ms else 0.0)
        latency = forecast_latency(figure)
        found[name] = Raced(latency, ratio, ratio / reach, ratio * reach, kind=figure.kind, source=figure.source)
    return found


def _alike(whole: Graph, graph: Graph, precisions: Mapping[str, Precision], masks: Mapping[str, Mask]) -> list[str]:
    """The layers that compute what the unmodified model's do, in the same precision: predictions of both err alike."""
    macs = {layer.name: layer.macs for layer in whole.layers}
    return [
        layer.name
        for layer in graph.layers
        if precisions[layer.name] is Precision.FP32 and layer.macs == macs[layer.name] and layer.name not in masks
    ]


def _round(
    number: int, planned: Planned, contestant: Contestant, raced: Raced, forbidden: frozenset[tuple[str, Precision]]
) -> Round:
    beside = "raced" if raced.kind is Kind.MEASURED else "compared"
    first = f"{beside} beside the uniform models" if planned.rounds else "first plan"
    return Round(
        round=number,
        action=(f"{len(forbidden)} layers go" if len(forbidden) > 1 else "1 layer goes") + " back to float"
        if forbidden
        else first,
        predicted_ms=planned.plan.predicted.latency_ms.value,
        measured_ms=raced.latency_ms.p50 if raced.kind is Kind.MEASURED else None,
        metric=contestant.score.metric.value,
        predicted_loss=planned.plan.predicted.loss,
        measured_loss=contestant.score.noise_power,
    )


def _conforming(
    bench: Workbench, scorer: Scorer, name: str, planned: Planned, forbidden: frozenset[tuple[str, Precision]]
) -> tuple[Contestant, frozenset[tuple[str, Precision]]]:
    """The plan as a contestant. What a layer executes can depend on its neighbours' precisions (attention is fused or
    not), which no uniform model shows: an option that this plan does not get is withdrawn, and planned again, a bounded
    number of times. What then still does not conform is for the guard.
    """
    for _ in range(MOST_ROUNDS):
        contestant = _planned_contestant(bench, scorer, name, planned)
        refused = frozenset((m.layer, m.planned) for m in conformance(bench, contestant).mismatches)
        refused = frozenset(option for option in refused if option[1] not in FLOAT_PRECISIONS)
        again = plan_again(bench, scorer, planned, forbidden | refused) if refused else None
        if again is None:
            break
        layer, precision = min(refused)
        more = f" and {len(refused) - 1} more layers" if len(refused) > 1 else ""
        bench.job.progress.note(f"{precision.value} withdrawn for {layer}{more}: this plan executes it otherwise")
        forbidden |= refused
        planned = again
    return contestant, forbidden


def _same(one: Contestant, other: Contestant) -> bool:
    return (one.precisions, one.kept, one.masks) == (other.precisions, other.kept, other.masks)


def _planned_contestant(bench: Workbench, scorer: Scorer, name: str, planned: Planned) -> Contestant:
    plan = planned.plan
    artifact = bench.artifact_of(plan, planned.base)
    found = _contestant(bench, scorer, name, plan.precisions(), artifact, planned.float_score, plan.kept())
    return replace(found, planned=planned, masks=plan.masks())


def _uniform(bench: Workbench, scorer: Scorer, planned: Planned) -> list[Contestant]:
    """Float first, then everything in the base precision and everything in int8."""
    table = planned.planning.table
    uniform = {"float": dict.fromkeys(table.floats, Precision.FP32)}
    if planned.base is not Precision.FP32:
        uniform[planned.base.value] = dict(table.floats)
    int8 = {
        name: Precision.INT8 if Precision.INT8 in table.latency_ms[name] else kept
        for name, kept in table.floats.items()
    }
    if Precision.INT8 in int8.values():
        uniform["int8"] = int8
    found = []
    for name, precisions in uniform.items():
        base = Precision.FP32 if name == "float" else planned.base
        artifact = bench.artifact(precisions, base)
        found.append(_contestant(bench, scorer, name, precisions, artifact, planned.float_score))
    return found


def _contestant(
    bench: Workbench,
    scorer: Scorer,
    name: str,
    precisions: Mapping[str, Precision],
    artifact: Artifact,
    float_score: Score,
    kept: Mapping[str, int] | None = None,
) -> Contestant:
    score = scorer.score(artifact, name)
    bits = bench.job.device.backend.runtime_weight_bits
    memory = memory_bytes(bench.graph_of(kept), precisions, bits, artifact.base)
    return Contestant(name, precisions, artifact, score, scorer.drop(float_score, score), memory, kept=kept or {})


def _pack(job: Job, chosen: Contestant, result: DeployResult, out: Path) -> None:
    backend = job.device.backend
    artifact = chosen.artifact
    vectors = _vectors(job, chosen)
    with _board_files(job, artifact, vectors) as more:
        bundle.pack(
            out,
            result=result,
            artifact=bundle.Artifact(artifact.path.name, backend.hint(artifact.base), job.device.threads),
            artifact_files={path.name: path for path in artifact.files} | more,
            compressed=artifact.compressed,
            preprocess=preprocess_contract(job.data.recipe, job.graph.inputs, raw=job.data.raw),
            vectors=vectors,
            runner=catalog.runner_files(backend.RUNNER),
            report_html=html.render(result),
        )


@contextmanager
def _board_files(job: Job, artifact: Artifact, vectors: bundle.Vectors) -> Iterator[dict[str, Path]]:
    """What a board without Python must find ready-made, for as long as it takes to pack. Others need no folder, so that
    a kill leaves none.
    """
    if job.device.backend.RUNNER.endswith(".py"):
        yield {}
        return
    from edgekit.backends import trtexec

    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        yield trtexec.write_board_files(artifact, vectors.inputs, Path(folder))


def _vectors(job: Job, chosen: Contestant) -> bundle.Vectors:
    """The first evaluation samples with what the artifact makes of them."""
    names = [tensor.name for tensor in job.graph.outputs]
    run = job.device.backend.session(chosen.artifact, job.device.threads, names)
    samples = job.data.evaluation
    inputs = tuple(samples.sample(index) for index in range(min(TEST_VECTORS, len(samples))))
    outputs = tuple(run(sample) for sample in inputs)
    tolerance = {
        name: VECTOR_TOLERANCE * max(float(np.max(np.abs(one[name]), initial=0.0)) for one in outputs) or 1e-6
        for name in names
    }
    return bundle.Vectors(inputs, outputs, tolerance)
