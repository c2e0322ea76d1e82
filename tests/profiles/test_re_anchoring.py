"""A race teaches the profile of the device that it was held on, where the profile has costs for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgekit import catalog
from edgekit.cost import micro
from edgekit.cost.anchoring import re_anchor
from edgekit.cost.profile import predict_from_profile
from edgekit.entries import Anchor
from edgekit.job import Job, prepare
from edgekit.profiles.re_anchoring import Measured, anchors_of, anchors_of_plan, demand_of, learn, learn_from_bench
from edgekit.progress import Silent
from edgekit.results import Demand, ModelInfo
from edgekit.types import Candidate, Kind, Latency, MetricResult, Precision

DAY = date(2026, 1, 2)
PI = "raspberry-pi-4"


def candidate(name: str, precisions: dict[str, int], ms: float, kind: Kind = Kind.MEASURED) -> Candidate:
    metric = MetricResult("top-1", 0.9, 0.8, 1.0, 10)
    return Candidate(name, Latency(ms, ms, ms, 10), metric, 30.0, None, 100, kind, precisions)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A deployment to a Raspberry Pi 4 by TFLite, as far as learning from its race is concerned."""
    onnx.save(micro.build("block/basic24x48"), tmp_path / "net.onnx")
    made = prepare(tmp_path / "net.onnx", "host", threads=4, use_synthetic=True)
    return replace(made, profile=catalog.device_profile(PI), target=replace(made.target, backend="tflite", sparsity=()))


def test_only_whole_and_uniform_models_are_anchors(job: Job) -> None:
    graph, profile = job.graph, job.profile
    count = len(graph.layers)
    rows = [
        candidate("float", {"fp32": count}, 50.0),
        candidate("int8", {"int8": count}, 20.0),
        candidate("int8", {"fp32": 1, "int8": count - 1}, 20.0),  # in two precisions
        candidate("plan", {"int8": count}, 15.0),  # may have fewer channels
        candidate("float", {"fp32": count}, 50.0, Kind.PREDICTED),
        candidate("fp16", {"fp16": count}, 50.0),  # the profile has no costs for it
    ]
    demand = demand_of(graph)
    found = anchors_of(demand, graph.sha256, rows, Measured(profile, job.target, 4, DAY))
    assert [(row.precision, row.measured_ms) for row in found] == [(Precision.FP32, 50.0), (Precision.INT8, 20.0)]
    assert {row.model for row in found} == {graph.sha256}
    for row in found:
        plan = {layer.name: row.precision for layer in graph.layers}
        told = predict_from_profile(graph, plan, profile, "tflite", 4)
        assert row.predicted_ms == pytest.approx(told.value), "without its graph as with it"
    other = replace(job.target, backend="openvino")
    assert anchors_of(demand, graph.sha256, rows, Measured(profile, other, 4, DAY)) == ()


def test_it_is_stored_and_the_next_prediction_is_nearer(job: Job) -> None:
    graph, profile = job.graph, job.profile
    plan = {layer.name: Precision.FP32 for layer in graph.layers}
    before = predict_from_profile(graph, plan, profile, "tflite", 4).value
    measured = 1.5 * before
    rows = [candidate("float", {"fp32": len(plan)}, measured)]
    assert len(learn(job, rows)) == 1
    learnt = catalog.device_profile(PI)
    assert replace(learnt, anchors=()) == profile
    after = predict_from_profile(graph, plan, learnt, "tflite", 4).value
    assert before < after < measured
    assert learn(job, rows) == learnt.anchors, "the same race again is no new evidence"
    assert catalog.device_profile(PI) == learnt


def test_a_profile_without_such_costs_is_left_alone(job: Job) -> None:
    job = replace(job, profile=catalog.device_profile("host"))
    assert learn(job, [candidate("float", {"fp32": len(job.graph.layers)}, 1.0)]) == ()
    assert not catalog.own_profiles().exists()


def test_a_profile_that_cannot_be_written_is_no_failure(job: Job, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEKIT_DATA", str(tmp_path / "file"))
    assert learn(job, [candidate("float", {"fp32": len(job.graph.layers)}, 50.0)]) == ()


@dataclass(frozen=True)
class Shipped:
    """What a bundle tells of what it ships."""

    one: Candidate
    demand: Demand | None
    plan_demand: Demand | None = None
    chosen: str = "shipped"

    @property
    def model(self) -> ModelInfo:
        return ModelInfo("net.onnx", "0" * 64)

    def candidate(self, _name: str) -> Candidate:
        return self.one


def bench(
    job: Job, one: Candidate, demand: Demand | None, ms: float = 50.0, plan: Demand | None = None
) -> tuple[Anchor, ...]:
    result: Any = Shipped(one, demand, plan)
    return learn_from_bench(result, Latency(ms, ms, ms, 10), job.profile, job.target, 4, Silent())


def test_a_bundle_measured_again_teaches_as_a_race_does(job: Job) -> None:
    """Also where it was planned without the board; a plan in two precisions, or an old bundle, teaches nothing."""
    count, demand = len(job.graph.layers), demand_of(job.graph)
    (found,) = bench(job, candidate("int8", {"int8": count}, 1.0, Kind.PREDICTED), demand)
    assert (found.measured_ms, found.precision, found.model) == (50.0, Precision.INT8, "0" * 64)
    assert catalog.device_profile(PI).anchors == (found,)
    assert bench(job, candidate("plan", {"int8": 1, "fp32": count - 1}, 1.0), demand) == ()
    assert bench(job, candidate("int8", {"int8": count}, 1.0), None) == ()
    assert catalog.device_profile(PI).anchors == (found,)


def test_a_plan_teaches_the_costs_of_what_most_of_it_is_in(job: Job) -> None:
    """As if its graph were known; and it is a network of its own beside the model."""
    graph, profile = job.graph, job.profile
    names = [layer.name for layer in sorted(graph.layers, key=lambda layer: layer.macs)]
    plan = {name: Precision.FP32 if name == names[0] else Precision.INT8 for name in names}
    count = {"fp32": 1, "int8": len(names) - 1}
    demand = demand_of(graph, plan)
    (found,) = bench(job, candidate("plan", count, 1.0), demand_of(graph), plan=demand)
    assert (found.precision, found.processor, found.threads) == (Precision.INT8, "cpu", 4)
    assert found.model != graph.sha256
    assert found.predicted_ms == pytest.approx(predict_from_profile(graph, plan, profile, "tflite", 4).value)
    assert catalog.device_profile(PI).anchors == (found,)
    (again,) = anchors_of_plan(demand, 40.0, Measured(profile, job.target, 4, DAY))
    assert (again.model, again.predicted_ms) == (found.model, found.predicted_ms)


def test_a_jetson_teaches_the_costs_of_its_gpu(tmp_path: Path) -> None:
    onnx.save(micro.build("block/basic24x48"), tmp_path / "net.onnx")
    job = prepare(tmp_path / "net.onnx", "jetson-xavier-nx", use_synthetic=True)
    plan = {layer.name: Precision.FP16 for layer in job.graph.layers}
    predicted = predict_from_profile(job.graph, plan, job.profile, "tensorrt", processor="gpu")
    assert predicted.value is not None
    measured = Measured(job.profile, job.target, 1, DAY)
    (found,) = anchors_of_plan(demand_of(job.graph, plan), 2 * predicted.value, measured)
    assert (found.runtime, found.processor, found.precision, found.threads) == ("tensorrt", "gpu", Precision.FP16, 0)
    learnt = re_anchor(job.profile, [found])
    after = predict_from_profile(job.graph, plan, learnt, "tensorrt", processor="gpu")
    assert after.value is not None
    assert predicted.value < after.value < 2 * predicted.value
    on_dla = replace(measured, target=replace(job.target, accelerator="dla"))
    assert anchors_of_plan(demand_of(job.graph, plan), 5.0, on_dla) == (), "the GPU's costs say nothing of it"
