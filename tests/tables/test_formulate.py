from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.backends import openvino
from edgekit.compress.prune import prune
from edgekit.cost.shapes import ShapeTable
from edgekit.cost.table import CostTable, predict_ms
from edgekit.graph import Graph, live_activation_bytes, peak_activation_bytes
from edgekit.graph.channels import find_channels
from edgekit.graph.sizes import sizes_of
from edgekit.planner import Limits, Solution, evaluate, solve
from edgekit.tables.channels import PruningTables
from edgekit.tables.formulate import Planning, formulate, limits_of, loaded_weight_bits, memory_bytes, weight_bytes
from edgekit.types import Budget, Kind, Precision
from tests.quantized import CASES, case

FP32, BF16, INT8, W8 = Precision.FP32, Precision.BF16, Precision.INT8, Precision.W8
BITS = openvino.runtime_weight_bits


def planted(graph: Graph, base: Precision = FP32, boundary: float = 1e-5) -> Planning:
    """Costs and losses that differ from layer to layer; w8 only where there are weights."""
    latency, losses = {}, {}
    for place, layer in enumerate(graph.layers, 1):
        latency[layer.name] = {base: 1.0 + place / 7, INT8: 0.5 + place / 11}
        losses[layer.name] = {base: 0.0, INT8: 1e-4 * place, W8: 3e-5 * place}
        if layer.weights:
            latency[layer.name][W8] = 0.9 + place / 9
    anchors = {p: sum(row[p] for row in latency.values()) for p in (base, INT8)}
    table = CostTable(base, dict.fromkeys(latency, base), latency, anchors, boundary, 0.1, "planted")
    return formulate(graph, table, losses, BITS)


def test_of_every_zoo_model() -> None:
    for name in CASES:
        graph = case(name).graph
        assert [layer.name for layer in planted(graph).problem.layers] == [layer.name for layer in graph.layers]


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_what_the_planner_sums_is_what_the_parts_say(name: str, data: st.DataObject) -> None:
    graph = case(name).graph
    base = data.draw(st.sampled_from([FP32, BF16]))
    planning = planted(graph, base)
    choice = tuple(data.draw(st.integers(0, len(layer.options) - 1)) for layer in planning.problem.layers)
    chosen = {
        layer.name: layer.options[index].precision for layer, index in zip(planning.problem.layers, choice, strict=True)
    }
    totals = evaluate(planning.problem, choice)
    assert totals.latency_ms == pytest.approx(predict_ms(planning.table, graph.edges, chosen).value)
    stored = sum(
        layer.weight_elements * (1 if chosen[layer.name] in (INT8, W8) else 4) + 4 * layer.bias_elements
        for layer in graph.layers
    )
    assert totals.weight_bytes == stored
    resident = sum(
        layer.weight_elements * loaded_weight_bits(layer, chosen[layer.name], BITS) // 8 + 4 * layer.bias_elements
        for layer in graph.layers
    )
    assert totals.memory_bytes == resident + totals.peak_activation_bytes
    assert totals.loss == pytest.approx(sum(planning.losses[layer][p] for layer, p in chosen.items()))
    assert totals.peak_activation_bytes == live_activation_bytes(graph, chosen, base)
    plan = planning.plan(Solution(choice, totals, 0.0, 0.0, (), 0.0))
    assert plan.predicted.peak_activation_bytes == peak_activation_bytes(graph, chosen, base)
    assert plan.predicted.memory_bytes == memory_bytes(graph, chosen, BITS, base)


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_what_the_planner_sums_is_what_the_pruned_graph_says(name: str, data: st.DataObject) -> None:
    whole = planted(case(name).graph)
    graph = whole.graph
    channels = find_channels(graph)
    shares = {
        layer.name: {FP32: (0.1, 0.6, 0.2, 0.1), INT8: (0.3, 0.3, 0.3, 0.1), W8: (0.0, 1.0, 0.0, 0.0)}
        for layer in graph.layers
    }
    # Some groups have a choice, the others stay whole.
    losses = {
        group.name: {count: 0.01 * (group.channels - count) for count in range(group.channels, 0, -2)}
        for group in channels.groups
        if data.draw(st.booleans(), label=group.name)
    }
    pruning = PruningTables(channels, sizes_of(graph, channels), ShapeTable(shares), losses, {})
    planning = formulate(graph, whole.table, whole.losses, BITS, pruning=pruning)
    choice = tuple(data.draw(st.integers(0, len(layer.options) - 1)) for layer in planning.problem.layers)
    kept = tuple(data.draw(st.integers(0, len(group.options) - 1)) for group in planning.problem.groups)
    totals = evaluate(planning.problem, choice, kept)
    plan = planning.plan(Solution(choice, totals, 0.0, 0.0, (), 0.0, kept))
    units = {name: np.arange(count) for name, count in plan.kept().items()}
    smaller, chosen = prune(graph, channels, units), plan.precisions()

    stored = sum(weight_bytes(x.weight_elements, x.bias_elements, chosen[x.name]) for x in smaller.layers)
    assert totals.weight_bytes == stored
    assert totals.peak_activation_bytes == live_activation_bytes(smaller, chosen)
    assert plan.predicted.memory_bytes == memory_bytes(smaller, chosen, BITS)
    assert plan.predicted.peak_activation_bytes == peak_activation_bytes(smaller, chosen)
    narrowed = pruning.at(whole.table, graph.edges, pruning.kept(plan.kept()))
    assert totals.latency_ms == pytest.approx(predict_ms(narrowed, smaller.edges, chosen).value)
    lost = sum(losses[group.name][group.kept] for group in plan.groups)
    assert totals.loss == pytest.approx(sum(whole.losses[n][p] for n, p in chosen.items()) + lost)
    for layer in smaller.layers:
        before = next(one for one in graph.layers if one.name == layer.name)
        (choice_of,) = (one for one in plan.layers if one.name == layer.name)
        assert 0 < choice_of.keep <= 1
        if layer.op_type == "Conv":
            assert choice_of.keep == pytest.approx(layer.output_elements / before.output_elements)


def test_weight_bytes() -> None:
    assert [weight_bytes(100, 10, p) for p in (FP32, BF16, Precision.FP16, INT8, W8)] == [440, 440, 240, 140, 140]
    assert weight_bytes(0, 0, FP32) == 0


def test_a_matrix_that_must_be_transposed_is_held_twice_in_bf16() -> None:
    conv, gemm = case("conv_net").graph.layers[0], replace(case("conv_net").graph.layers[0], op_type="Gemm")
    assert loaded_weight_bits(conv, BF16, BITS) == BITS[BF16]
    assert loaded_weight_bits(replace(gemm, weight_axis=0), BF16, BITS) == BITS[BF16]
    assert loaded_weight_bits(replace(gemm, weight_axis=1), BF16, BITS) == 2 * BITS[BF16]
    for precision in (FP32, INT8, W8):
        assert loaded_weight_bits(replace(gemm, weight_axis=1), precision, BITS) == BITS[precision]


def test_weight_only_saves_storage_and_no_memory() -> None:
    (first, *_) = planted(case("conv_net").graph).problem.layers
    options = {option.precision: option for option in first.options}
    assert options[W8].weight_bytes == options[INT8].weight_bytes < options[FP32].weight_bytes
    assert options[W8].memory_bytes == options[FP32].memory_bytes > options[INT8].memory_bytes


def test_domains_decide_where_a_conversion_is_paid() -> None:
    for layer in planted(case("transformer").graph).problem.layers:
        assert {o.precision: o.domain for o in layer.options}[INT8] == "int8"
        assert {o.domain for o in layer.options if o.precision is not INT8} == {"float"}


def test_forbidden_options_are_gone_and_nothing_else_changes() -> None:
    whole = planted(case("conv_net").graph)
    graph, names = whole.graph, [layer.name for layer in whole.graph.layers]
    forbidden = frozenset({(names[1], INT8), (names[2], W8)})
    left = formulate(graph, whole.table, whole.losses, BITS, forbidden)
    for before, after in zip(whole.problem.layers, left.problem.layers, strict=True):
        assert after.options == tuple(o for o in before.options if (before.name, o.precision) not in forbidden)
    assert (left.problem.boundaries, left.problem.tensors) == (whole.problem.boundaries, whole.problem.tensors)


@pytest.mark.parametrize("name", ["conv_net", "transformer", "lstm"])
def test_a_solution_read_as_a_plan_is_the_same_plan(name: str) -> None:
    planning = planted(case(name).graph)
    limit = 0.6 * sum(layer.weight_elements * 4 for layer in planning.graph.layers)
    solution = solve(planning.problem, Limits(weight_bytes=int(limit)))
    plan = planning.plan(solution)
    assert [(c.name, c.op_type) for c in plan.layers] == [(x.name, x.op_type) for x in planning.graph.layers]
    latency = plan.predicted.latency_ms
    assert latency.kind is Kind.PREDICTED
    assert latency.source == "planted"
    predicted = predict_ms(planning.table, planning.graph.edges, plan.precisions())
    assert (latency.value, latency.low, latency.high) == pytest.approx((predicted.value, predicted.low, predicted.high))
    assert plan.predicted.weight_bytes == solution.totals.weight_bytes <= limit
    assert plan.predicted.peak_activation_bytes == peak_activation_bytes(planning.graph, plan.precisions())
    assert plan.gap == solution.search_gap
    assert set(plan.binding) <= {"latency", "size", "memory", "max_drop"}
    assert len(plan.binding) == len(solution.binding)


def test_limits_are_the_budgets() -> None:
    assert limits_of(Budget(3.0, 4, 5, 0.1)) == Limits(latency_ms=3.0, weight_bytes=5, memory_bytes=4, loss=None)
    assert limits_of(Budget(), 0.5) == Limits(loss=0.5)
