from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from edgekit.errors import InfeasibleError
from edgekit.planner import (
    ActivationTensor,
    Boundary,
    BoundaryPart,
    GroupOption,
    LayerOption,
    Limits,
    PlanningGroup,
    PlanningLayer,
    Problem,
    ShapeCost,
    TensorPart,
    Totals,
    evaluate,
    solve,
)
from edgekit.planner.table import tabulate
from edgekit.types import Precision

FLOAT = LayerOption(Precision.FP32, 1.0, 10, 10, 0.0, "float")
INT8 = LayerOption(Precision.INT8, 1.0, 10, 10, 0.1, "int8")
ZERO = ((0, 0), (0, 0))


def two_layers() -> Problem:
    """``first`` makes the group's channels, ``second`` reads them; half of them cost half and lose 0.3."""
    layers = (PlanningLayer("first", "Conv", (FLOAT, INT8)), PlanningLayer("second", "Conv", (FLOAT, INT8)))
    group = PlanningGroup("first", (GroupOption(8, 0.0), GroupOption(4, 0.3)))
    costs = (((8.0, 4.0), (4.0, 2.0)), ((80, 40), (20, 10)), ((80, 40), (20, 10)))
    return Problem(
        layers,
        boundaries=(Boundary(0, 1, 0.5, (BoundaryPart(0, (2.0, 1.0)),)),),
        tensors=(ActivationTensor(4, 1, (1,), (TensorPart(0, (400, 200), (100, 50)),)),),
        steps=((0,),),
        groups=(group,),
        shape_costs=(ShapeCost(0, (0,), *costs), ShapeCost(1, (0,), *costs)),
    )


def test_totals_add_up_by_hand() -> None:
    assert evaluate(two_layers(), (0, 0), (0,)) == Totals(18.0, 180, 180 + 404, 404, 0.0)
    assert evaluate(two_layers(), (0, 1), (1,)) == Totals(1 + 1 + 4 + 2 + 0.5 + 1, 70, 70 + 51, 51, 0.1 + 0.3)
    assert evaluate(two_layers(), (1, 0), (1,)) == Totals(1 + 1 + 2 + 4 + 0.5 + 1, 70, 70 + 204, 204, 0.1 + 0.3)
    with pytest.raises(ValueError, match="shorter"):
        evaluate(two_layers(), (0, 0))


def test_each_budget_asks_for_what_it_needs() -> None:
    problem = two_layers()
    assert solve(problem, Limits(weight_bytes=179), "loss").choice == (0, 1)  # a tie with (1, 0), which is slower
    assert solve(problem, Limits(weight_bytes=60), "loss").kept == (0,)
    assert solve(problem, Limits(weight_bytes=59), "loss").kept == (1,)
    least = solve(problem, Limits(memory_bytes=40 + 51), "loss")
    assert (least.choice, least.kept, least.totals.memory_bytes) == ((1, 1), (1,), 91)
    with pytest.raises(InfeasibleError) as caught:
        solve(problem, Limits(memory_bytes=90))
    assert caught.value.nearest == {"memory_bytes": 91.0}


def test_an_option_is_dominated_only_when_it_is_so_whatever_the_others_keep() -> None:
    table = tabulate(two_layers(), Limits())
    assert table.option.tolist() == [0, 1, 0, 1, 0, 1]
    problem = two_layers()
    costlier = PlanningLayer("first", "Conv", (FLOAT, replace(FLOAT, precision=Precision.FP16)))
    problem = replace(problem, layers=(costlier, problem.layers[1]))
    # fp16 is better while the group is whole, and worse when it is halved
    crossing = ((8.0, 4.0), (7.0, 5.0)), ZERO, ZERO
    assert tabulate(replace(problem, shape_costs=(ShapeCost(0, (0,), *crossing),)), Limits()).starts[1] == 2
    better = ((8.0, 4.0), (7.0, 4.0)), ZERO, ZERO
    only = tabulate(replace(problem, shape_costs=(ShapeCost(0, (0,), *better),)), Limits())
    assert only.option[: only.starts[1]].tolist() == [1]


def test_a_residual_group_is_worth_pruning_only_for_all_its_layers_together() -> None:
    layers = tuple(PlanningLayer(f"layer{i}", "Conv", (FLOAT,)) for i in range(6))
    group = PlanningGroup("residual", (GroupOption(8, 0.0), GroupOption(4, 0.3)))
    shapes = tuple(ShapeCost(i, (0,), ((2.0, 1.0),), ((0, 0),), ((0, 0),)) for i in range(6))
    problem = Problem(layers, groups=(group,), shape_costs=shapes)
    assert solve(problem, Limits(latency_ms=17.9), "loss").kept == (1,)
    assert solve(problem, Limits(loss=0.29)).totals.latency_ms == 18.0
    assert solve(problem, Limits(loss=0.3)).totals.latency_ms == 12.0


def test_bad_numbers_name_the_group() -> None:
    problem = two_layers()
    shape = problem.shape_costs[0]

    def refused(match: str, **changes: object) -> None:
        with pytest.raises(ValueError, match=match):
            solve(replace(problem, **changes), Limits())  # type: ignore[arg-type]

    refused("group g: no options", groups=(PlanningGroup("g", ()),))
    refused("group g, option 4: loss is -1", groups=(PlanningGroup("g", (GroupOption(4, -1.0),)),))
    refused(r"shape cost 0: index 7 is outside 0\.\.1", shape_costs=(replace(shape, layer=7),))
    refused(r"shape cost 0: index 1 is outside 0\.\.0", shape_costs=(replace(shape, groups=(1,)),))
    refused("layer first: its groups are", shape_costs=(replace(shape, groups=(0, 0)),))
    refused("latency_ms must have the shape 2 x 2", shape_costs=(replace(shape, latency_ms=((1.0,), (1.0,))),))
    refused("latency_ms is nan", shape_costs=(replace(shape, latency_ms=((1.0, float("nan")), (1.0, 1.0))),))
    refused("weight_bytes is 0.5; bytes are whole", shape_costs=(replace(shape, weight_bytes=((1, 0.5), (1, 1))),))
    refused("cost_ms has 1 values for 2", boundaries=(Boundary(0, 1, 0.0, (BoundaryPart(0, (1.0,)),)),))
    part = TensorPart(0, (1, 1), (1, 2))
    refused("bytes_small 2 is more than bytes_full 1", tensors=(ActivationTensor(1, 1, (0,), (part,)),))


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "seconds"), [(200, 5), (1000, 30)])
def test_large_problems_are_proven_in_time(benchmark: ModuleType, layers: int, seconds: float) -> None:
    """In CPU seconds, which other programs' load inflates less."""
    row = benchmark.compare(layers, seed=0, memory=0.3, gap=1e-3, losses=False)
    assert row.gap <= 1e-3
    assert row.cpu_seconds < seconds


@pytest.mark.slow
def test_joint_plans_lose_least(benchmark: ModuleType) -> None:
    row = benchmark.compare(50, seed=0, memory=0.3, gap=1e-3)
    others = [x for x in (row.greedy_loss, row.bits_only_loss, row.channels_only_loss) if x is not None]
    assert len(others) >= 2
    assert row.joint_loss <= min(others) * 1.011  # the loss window and the gap
