from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.backends import openvino
from edgekit.cost.shapes import ShapeTable
from edgekit.cost.table import CostTable
from edgekit.graph.channels import find_channels
from edgekit.graph.sizes import sizes_of
from edgekit.planner import Limits, Solution, evaluate, solve
from edgekit.tables.channels import PruningTables
from edgekit.tables.formulate import Planning, formulate
from edgekit.tables.refinement import LOUDEST, NoiseBudget, Realised, corrected, round_of, same_noise, seen_factor
from edgekit.types import Plan, Precision
from tests.quantized import case

FP32, INT8 = Precision.FP32, Precision.INT8


@pytest.fixture(scope="module")
def planning() -> Planning:
    graph = case("conv_net").graph
    channels = find_channels(graph)
    latency = {layer.name: {FP32: 1.0, INT8: 0.5} for layer in graph.layers}
    losses = {layer.name: {FP32: 0.0, INT8: 1e-3} for layer in graph.layers}
    table = CostTable(FP32, dict.fromkeys(latency, FP32), latency, {FP32: 5.0, INT8: 2.5}, 0.0, 0.1, "planted")
    lost = {group.name: {group.channels: 0.0, group.channels // 2: 1e-2} for group in channels.groups}
    pruning = PruningTables(channels, sizes_of(graph, channels), ShapeTable({}), lost, {})
    return formulate(graph, table, losses, openvino.runtime_weight_bits, pruning=pruning)


def everything_pruned(planning: Planning) -> Plan:
    choice = (0,) * len(planning.problem.layers)
    kept = (1,) * len(planning.problem.groups)
    totals = evaluate(planning.problem, choice, kept)
    return planning.plan(Solution(choice, totals, 0.0, 0.0, (), 0.0, kept))


def realised(planning: Planning, plan: Plan, slower: float, noisier: float) -> Realised:
    """What the plan promises, times a factor."""
    pruning = planning.pruning
    assert pruning is not None
    kept = pruning.kept(plan.kept())
    times = {c.name: pruning.latency_ms(planning.table, c.name, c.precision).at(kept) * slower for c in plan.layers}
    return Realised(sum(times.values()), times, plan.predicted.loss * noisier, 0.9, keeps=True)


def test_a_promise_that_holds_changes_nothing(planning: Planning) -> None:
    plan = everything_pruned(planning)
    found = realised(planning, plan, 1.0, 1.0)
    assert same_noise(plan, found)
    assert corrected(planning, plan, found).factor == pytest.approx(dict.fromkeys(planning.pruning.losses, 1.0))  # type: ignore[union-attr]


@pytest.mark.parametrize(("slower", "noisier"), [(1.4, 1.0), (2.0, 2.0), (1.0, 3.0)])
def test_what_was_seen_is_what_is_promised_next(planning: Planning, slower: float, noisier: float) -> None:
    plan = everything_pruned(planning)
    found = realised(planning, plan, slower, noisier)
    assert same_noise(plan, found) == (noisier == 1.0)
    pruning = corrected(planning, plan, found)
    # One profile is fitted beside what a whole model takes: several say what one alone cannot.
    for _ in range(3):
        pruning = corrected(replace(planning, pruning=pruning), plan, found)
        pruning = replace(pruning, factor=corrected(planning, plan, found).factor)
    again = formulate(planning.graph, planning.table, planning.losses, openvino.runtime_weight_bits, pruning=pruning)
    kept = (1,) * len(again.problem.groups)
    totals = evaluate(again.problem, (0,) * len(again.problem.layers), kept)
    assert totals.loss == pytest.approx(found.loss)
    assert abs(totals.latency_ms / found.latency_ms - 1) < abs(1 / slower - 1) / 2 + 0.01


def test_a_noisier_plan_than_promised_is_planned_away(planning: Planning) -> None:
    plan = everything_pruned(planning)
    limits = Limits(loss=plan.predicted.loss)
    found = realised(planning, plan, 1.0, 5.0)
    pruning = corrected(planning, plan, found)
    again = formulate(planning.graph, planning.table, planning.losses, openvino.runtime_weight_bits, pruning=pruning)
    before, after = solve(planning.problem, limits), solve(again.problem, limits)
    assert after.totals.latency_ms > before.totals.latency_ms


def test_groups_that_the_plan_leaves_whole_keep_their_losses(planning: Planning) -> None:
    plan = everything_pruned(planning)
    first = plan.groups[0]
    only = replace(plan, groups=(first, *(replace(g, kept=g.channels) for g in plan.groups[1:])))
    factor = corrected(planning, only, realised(planning, plan, 1.0, 4.0)).factor
    assert factor[first.name] > 1
    assert all(factor[group.name] == 1 for group in plan.groups[1:])


def test_a_round_tells_promise_and_outcome(planning: Planning) -> None:
    plan = everything_pruned(planning)
    found = realised(planning, plan, 1.1, 2.0)
    row = round_of(3, plan, found)
    removed = sum(group.channels - group.kept for group in plan.groups)
    assert (row.round, row.action) == (3, f"{removed} channels of {len(plan.groups)} groups removed: keeps the metric")
    assert (row.predicted_ms, row.measured_ms) == (plan.predicted.latency_ms.value, found.latency_ms)
    assert (row.predicted_loss, row.measured_loss) == (plan.predicted.loss, found.loss)


def outcome(loss: float, keeps: bool) -> Realised:
    return Realised(1.0 if keeps else None, {}, loss, 0.9, keeps)


def test_a_noise_budget_widens_while_the_metric_holds_and_closes_in_when_it_does_not() -> None:
    budget = NoiseBudget(1e-3).after(outcome(1e-3, keeps=True), as_promised=True)
    assert (budget.level, budget.low) == (2e-3, 1e-3)
    budget = budget.after(outcome(2e-3, keeps=False), as_promised=True)
    assert (budget.low, budget.high) == (1e-3, 2e-3)
    assert 1e-3 < budget.level < 2e-3
    for _ in range(3):
        budget = budget.after(outcome(budget.level, keeps=True), as_promised=True)
    assert budget.settled


def test_noise_that_was_not_promised_leaves_the_budget_to_corrected_tables() -> None:
    start = NoiseBudget(1e-3, low=1e-4)
    again = start.after(outcome(5e-3, keeps=False), as_promised=False)
    assert (again.level, again.low, again.high) == (1e-3, 1e-4, 5e-3)
    quieter = start.after(outcome(2e-4, keeps=True), as_promised=False)
    assert (quieter.level, quieter.low) == (1e-3, 2e-4)


def test_a_budget_without_room_for_pruning_grows() -> None:
    budget = NoiseBudget(1e-6, low=1e-9)
    levels = []
    while not budget.settled:
        levels.append(budget.level)
        budget = budget.wider()
    assert levels == sorted(levels)
    assert len(levels) < 12
    assert max(levels) == LOUDEST


@settings(max_examples=200, deadline=None)
@given(
    start=st.floats(-9, 0).map(lambda power: 10**power),
    threshold=st.floats(-9, 0).map(lambda power: 10**power),
    errors=st.lists(st.floats(0.3, 3), min_size=40, max_size=40),
)
def test_whatever_comes_out_the_budget_settles_and_is_never_too_loud(
    start: float, threshold: float, errors: list[float]
) -> None:
    budget = NoiseBudget(min(start, LOUDEST))
    for error in errors:
        if budget.settled:
            break
        assert 0 < budget.level <= LOUDEST
        noise = budget.level * error
        promised = 1 / 1.5 < error < 1.5
        budget = budget.after(outcome(noise, keeps=noise <= threshold), as_promised=promised)
    assert budget.low <= LOUDEST * 3


def test_losses_are_scaled_only_where_something_was_promised() -> None:
    assert seen_factor(1e-3, 5e-4) == pytest.approx(0.5)
    assert seen_factor(0.0, 1e-9) == 1.0
    assert seen_factor(1e-3, 10.0) <= 10


def test_a_louder_budget_is_the_next_that_could_be_told_apart() -> None:
    budget = NoiseBudget(0.016).louder()
    assert (budget.level, budget.low) == (pytest.approx(0.016 * 1.25), 0.016)
    assert not budget.settled
    assert NoiseBudget(0.016, high=0.018).louder().settled
