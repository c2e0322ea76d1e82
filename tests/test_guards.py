from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit.backends import Artifact
from edgekit.cost.table import CostTable
from edgekit.devices.race import Raced
from edgekit.errors import GuardError, InfeasibleError
from edgekit.guards import Contestant, choose, conformance, loses, losing_layers, require_conformance
from edgekit.job import prepare
from edgekit.planner import Limits, solve
from edgekit.planning import Planned
from edgekit.tables.formulate import formulate
from edgekit.types import Budget, Conformance, Figure, Kind, Latency, MetricResult, Mismatch, Precision
from edgekit.workbench.scoring import Score, Scorer
from edgekit.workbench.stages import Workbench
from tests import zoo

FP32, INT8 = Precision.FP32, Precision.INT8


def contestant(
    name: str, drop: float | None = 0.0, sqnr_db: float = 30.0, weight_bytes: int = 100, memory_bytes: int = 1000
) -> Contestant:
    metric = MetricResult("top-1", 0.9, 0.8, 1.0, 10)
    score = Score(np.zeros(1), metric, sqnr_db, 10 ** (-sqnr_db / 10), None)
    artifact = Artifact(Path("model.xml"), (), FP32, weight_bytes)
    return Contestant(name, {}, artifact, score, Figure(Kind.MEASURED, drop), memory_bytes)


def raced(**ratios: float) -> dict[str, Raced]:
    return {
        name: Raced(Latency(10 * ratio, 11 * ratio, 12 * ratio, 100), ratio, ratio, ratio)
        for name, ratio in ratios.items()
    }


FLOAT = contestant("float", sqnr_db=144.0, weight_bytes=400)


class TestChoose:
    def test_the_fastest_ships(self) -> None:
        candidates = [FLOAT, contestant("int8"), contestant("plan", sqnr_db=35)]
        chosen, reason = choose(candidates, raced(float=1.0, int8=0.6, plan=0.5), Budget())
        assert (chosen.name, reason) == ("plan", "fastest of 3 candidates")

    def test_float_ships_where_everything_else_is_slower(self) -> None:
        candidates = [FLOAT, contestant("int8"), contestant("plan")]
        assert choose(candidates, raced(float=1.0, int8=1.3, plan=1.05), Budget())[0] is FLOAT

    def test_of_those_that_cannot_be_told_apart_the_most_faithful_ships(self) -> None:
        candidates = [FLOAT, contestant("int8", sqnr_db=20), contestant("plan", sqnr_db=40)]
        chosen, reason = choose(candidates, raced(float=1.0, int8=0.500, plan=0.504), Budget())
        assert chosen.name == "plan"
        assert reason == "fastest of 3 candidates; as fast as int8 and more faithful"
        assert choose(candidates, raced(float=1.0, int8=0.500, plan=0.506), Budget())[0].name == "int8"
        assert choose(candidates, raced(float=1.0, int8=1.0, plan=0.995), Budget())[0] is FLOAT

    def test_what_drops_the_metric_is_refused(self) -> None:
        candidates = [FLOAT, contestant("int8", drop=0.011), contestant("plan", drop=0.01)]
        times = raced(float=1.0, int8=0.4, plan=0.6)
        chosen, reason = choose(candidates, times, Budget(max_drop=0.01))
        assert (chosen.name, reason) == ("plan", "fastest that keeps the budget (int8 does not)")
        assert choose(candidates, times, Budget(max_drop=None))[0].name == "int8"
        chosen, reason = choose(candidates, times, Budget(max_drop=0.0))
        assert (chosen.name, reason) == ("float", "fastest that keeps the budget (int8, plan do not)")

    def test_a_drop_of_exactly_the_budget_keeps_it_whatever_it_rounds_to(self) -> None:
        candidates = [FLOAT, contestant("int8", drop=0.95 - 0.94)]  # 0.010000000000000009
        assert choose(candidates, raced(float=1.0, int8=0.5), Budget(max_drop=0.01))[0].name == "int8"

    def test_what_needs_more_memory_is_refused(self) -> None:
        candidates = [FLOAT, contestant("int8", memory_bytes=1001), contestant("plan", memory_bytes=1000)]
        times = raced(float=1.0, int8=0.4, plan=0.6)
        assert choose(candidates, times, Budget(memory_bytes=1000))[0].name == "plan"
        with pytest.raises(InfeasibleError, match="memory"):
            choose(candidates, times, Budget(memory_bytes=999))

    def test_a_plan_loses_to_a_faster_candidate_only_if_that_keeps_the_budget(self) -> None:
        plan, int8 = contestant("plan"), contestant("int8", drop=0.02)
        times = raced(float=1.0, int8=0.4, plan=0.5)
        assert not loses(plan, [FLOAT, int8, plan], times, Budget(max_drop=0.01))
        assert loses(plan, [FLOAT, int8, plan], times, Budget(max_drop=0.03))
        assert not loses(plan, [FLOAT, int8, plan], raced(float=1.0, int8=0.498, plan=0.5), Budget(max_drop=0.03))

    def test_a_gain_of_the_metric_is_no_drop(self) -> None:
        candidates = [FLOAT, contestant("int8", drop=-0.2)]
        assert choose(candidates, raced(float=1.0, int8=0.5), Budget(max_drop=0.0))[0].name == "int8"

    def test_a_drop_that_is_no_number_keeps_nothing(self) -> None:
        candidates = [FLOAT, contestant("int8", drop=float("nan"))]
        assert choose(candidates, raced(float=1.0, int8=0.5), Budget())[0] is FLOAT

    def test_what_is_too_big_is_refused(self) -> None:
        candidates = [FLOAT, contestant("int8", weight_bytes=100), contestant("plan", weight_bytes=101)]
        chosen, reason = choose(candidates, raced(float=0.4, int8=0.9, plan=0.5), Budget(weight_bytes=100))
        assert chosen.name == "int8"
        assert "float, plan do not" in reason

    def test_nothing_that_keeps_is_infeasible(self) -> None:
        candidates = [FLOAT, contestant("int8", drop=0.5, weight_bytes=120)]
        with pytest.raises(InfeasibleError, match="no candidate keeps the metric") as caught:
            choose(candidates, raced(float=1.0, int8=0.5), Budget(max_drop=0.01, weight_bytes=200))
        assert caught.value.nearest == {"weight_bytes": 120}

    def test_the_latency_budget_is_that_of_the_race(self) -> None:
        candidates = [FLOAT, contestant("plan")]
        times = raced(float=1.0, plan=0.5)
        assert choose(candidates, times, Budget(latency_ms=5.0))[0].name == "plan"
        with pytest.raises(
            InfeasibleError, match=r"takes 5 ms on this device; the latency budget is 4\.9 ms"
        ) as caught:
            choose(candidates, times, Budget(latency_ms=4.9))
        assert caught.value.nearest == {"latency_ms": 5.0}
        assert "5.25ms" in caught.value.hint

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            (Kind.PREDICTED, "predicted fastest of 3 candidates; predicted as fast as int8 and more faithful"),
            (Kind.NONE, "least arithmetic of 3 candidates (no latency is known); level with int8 and more faithful"),
        ],
    )
    def test_what_was_not_raced_is_not_called_fast(self, kind: Kind, expected: str) -> None:
        candidates = [FLOAT, contestant("int8", sqnr_db=20), contestant("plan", sqnr_db=40)]
        times = raced(float=1.0, int8=0.5, plan=0.5)
        times = {name: replace(row, kind=kind) for name, row in times.items()}
        assert choose(candidates, times, Budget())[1] == expected
        with pytest.raises(InfeasibleError, match="is predicted to take 5 ms") as caught:
            choose(candidates, times, Budget(latency_ms=1.0))
        assert "this device" not in str(caught.value)

    def test_a_level_candidate_within_the_latency_budget_is_not_passed_over(self) -> None:
        candidates = [contestant("int8", sqnr_db=20), contestant("plan", sqnr_db=40)]
        times = raced(int8=0.5, plan=0.503)
        assert choose(candidates, times, Budget(latency_ms=5.01))[0].name == "int8"


def test_conformance_that_holds_raises_nothing() -> None:
    require_conformance(Conformance(3, 3))


@pytest.mark.parametrize(("count", "tail"), [(1, ""), (5, ""), (7, " and 2 more")])
def test_mismatches_are_named(count: int, tail: str) -> None:
    mismatches = tuple(Mismatch(f"conv{i}", INT8, "f32") for i in range(count))
    with pytest.raises(GuardError) as caught:
        require_conformance(Conformance(9, 9 - count, mismatches))
    message = str(caught.value)
    assert message.startswith(f"{count} of 9 layers do not execute as planned: conv0 (planned int8, executes f32)")
    assert message.endswith(tail or f"conv{count - 1} (planned int8, executes f32)")
    assert "--allow-mismatch" in caught.value.hint


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    onnx.save(zoo.conv_net(), tmp_path / "model.onnx")
    return Workbench(prepare(tmp_path / "model.onnx", "host", use_synthetic=True, threads=1))


def test_what_was_measured_on_a_board_does_not_hold_for_another_of_its_kind(bench: Workbench) -> None:
    places = ("", "pi@10.0.0.1", "pi@10.0.0.2")
    benches = [Workbench(replace(bench.job, device=replace(bench.job.device, place=place))) for place in places]
    keys = [one.device_key for one in benches]
    assert len({one.device_info for one in benches}) == 1
    assert all(keys.count(key) == 1 for key in keys)


def real(bench: Workbench, precisions: dict[str, Precision], planned: Planned | None = None) -> Contestant:
    return replace(
        contestant("plan"), precisions=precisions, artifact=bench.artifact(precisions, FP32), planned=planned
    )


@pytest.mark.slow
def test_conformance_of_what_was_really_compiled(bench: Workbench) -> None:
    names = [layer.name for layer in bench.job.graph.layers]
    mixed = {name: INT8 if place % 2 else FP32 for place, name in enumerate(names)}
    honest = real(bench, mixed)
    assert conformance(bench, honest) == Conformance(len(names), len(names))
    planted = replace(honest, precisions=mixed | {names[0]: INT8, names[1]: FP32})
    found = conformance(bench, planted)
    assert (found.planned, found.matched) == (len(names), len(names) - 2)
    assert [(m.layer, m.planned) for m in found.mismatches] == [(names[0], INT8), (names[1], FP32)]
    assert found.mismatches[0].executed == "f32"
    assert found.mismatches[1].executed in ("i8", "u8")
    with pytest.raises(GuardError, match=names[0]):
        require_conformance(found)


@pytest.mark.slow
def test_layers_lose_that_take_longer_than_in_float(bench: Workbench) -> None:
    """Against a table that claims float to be free every int8 layer loses; where float takes an hour, none does."""
    graph = bench.job.graph
    plan = {layer.name: INT8 for layer in graph.layers} | {graph.layers[0].name: FP32}
    int8 = {(name, precision) for name, precision in plan.items() if precision is INT8}
    time = raced(plan=1.0)["plan"]
    scorer = Scorer(bench)
    score = scorer.score(bench.artifact({}, FP32), "float")
    for float_ms, losing in ((0.0, int8), (3.6e6, set())):
        latency = {name: {FP32: float_ms, INT8: 0.0} for name in plan}
        table = CostTable(FP32, dict.fromkeys(latency, FP32), latency, {FP32: 1.0, INT8: 1.0}, 0.0, 0.1, "planted")
        losses = {name: {FP32: 0.0, INT8: 0.0} for name in plan}
        planning = formulate(graph, table, losses, bench.job.device.backend.runtime_weight_bits)
        planned = Planned(planning, planning.plan(solve(planning.problem, Limits())), (), (), (), score)
        assert losing_layers(bench, real(bench, plan, planned), time) == losing
