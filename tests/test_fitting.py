"""Plans whose files hold more than the layers that they count, under a size budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.backends import Artifact
from edgekit.errors import InfeasibleError
from edgekit.planner import solve
from edgekit.planning import _fitting, _tighter
from edgekit.tables.formulate import Planning, formulate, limits_of
from edgekit.types import Budget, Plan, Precision
from tests.quantized import case
from tests.tables.test_formulate import BITS, FP32, INT8, planted

PLANNING = planted(case("conv_net").graph)
FLOAT_BYTES = sum(4 * (layer.weight_elements + layer.bias_elements) for layer in PLANNING.graph.layers)
BUDGET = Budget(weight_bytes=FLOAT_BYTES // 2)


def fitted(file_bytes: Callable[[int], int], budget: Budget = BUDGET, planning: Planning = PLANNING) -> Plan:
    """The plan under a budget, where a file takes so many bytes for those that the plan counts."""

    def artifact_of(plan: Plan, base: Precision) -> Artifact:
        return Artifact(Path("model.xml"), (), base, file_bytes(plan.predicted.weight_bytes))

    bench: Any = SimpleNamespace(job=SimpleNamespace(budget=budget), artifact_of=artifact_of)
    return planning.plan(_fitting(bench, planning, limits_of(budget), lambda solution: 0.0)[0].solution)


@pytest.mark.parametrize("other_bytes", [0, 1, 300, FLOAT_BYTES // 8])
def test_what_a_file_holds_besides_is_taken_off_the_budget(other_bytes: int) -> None:
    plan = fitted(lambda counted: counted + other_bytes)
    assert BUDGET.weight_bytes is not None
    assert plan.predicted.weight_bytes + other_bytes <= BUDGET.weight_bytes


def test_a_file_may_hold_far_more_than_its_layers() -> None:
    """A table of embeddings larger than all layers: the budget for the whole file says little of theirs."""
    latency_ms = {
        name: {FP32: row[FP32], INT8: row[FP32] * (0.5 if place % 2 else 1.5)}
        for place, (name, row) in enumerate(PLANNING.table.latency_ms.items())
    }
    table = replace(PLANNING.table, latency_ms=latency_ms)
    planning = formulate(PLANNING.graph, table, {name: {FP32: 0.0, INT8: 1e-4} for name in latency_ms}, BITS)
    fastest = planning.plan(solve(planning.problem, limits_of(Budget()))).predicted.weight_bytes
    budget = Budget(weight_bytes=100 * FLOAT_BYTES + fastest - 1)
    plan = fitted(lambda counted: counted + 100 * FLOAT_BYTES, budget, planning)
    assert plan.predicted.weight_bytes < fastest


def test_a_plan_whose_file_never_fits_is_no_plan() -> None:
    assert BUDGET.weight_bytes is not None
    too_large = BUDGET.weight_bytes + 1
    with pytest.raises(InfeasibleError, match="file fits the size budget"):
        fitted(lambda counted: too_large)


@pytest.mark.parametrize("over_bytes", [-1, 0, 1, 100])
def test_holes_that_packing_leaves_are_taken_off_the_memory_budget(over_bytes: int) -> None:
    plan = PLANNING.plan(solve(PLANNING.problem, limits_of(Budget())))
    budget = Budget(memory_bytes=plan.predicted.memory_bytes - over_bytes)
    bench: Any = SimpleNamespace(job=SimpleNamespace(budget=budget))
    tighter = _tighter(bench, plan, Precision.FP32, limits_of(budget))
    assert budget.memory_bytes is not None
    assert (tighter and tighter.memory_bytes) == (budget.memory_bytes - over_bytes if over_bytes > 0 else None)
