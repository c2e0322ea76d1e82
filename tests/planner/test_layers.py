from __future__ import annotations

import itertools
import random
import subprocess
import sys
from dataclasses import replace
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import EdgekitError, InfeasibleError
from edgekit.planner import (
    LATENCY_WINDOW,
    LOSS_WINDOW,
    ActivationTensor,
    Boundary,
    LayerOption,
    Limits,
    Problem,
    Totals,
    pareto,
    solve,
)
from tests.planner.problems import CLOSE, QUANTITIES, bounded, chain, everything, keeps, option, problem_of, times

quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@quick
@given(bounded(grouped=False), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 1000))
def test_units_do_not_matter(case: tuple[Problem, Limits], time: float, noise: float, size: int) -> None:
    problem, limits = case

    def scaled(o: LayerOption) -> LayerOption:
        weights, memory = o.weight_bytes * size, o.memory_bytes * size
        return LayerOption(o.precision, o.latency_ms * time, weights, memory, o.loss * noise, o.domain)

    other = Problem(
        tuple(replace(layer, options=tuple(map(scaled, layer.options))) for layer in problem.layers),
        tuple(replace(b, cost_ms=b.cost_ms * time) for b in problem.boundaries),
        tuple(replace(t, bytes_full=t.bytes_full * size, bytes_small=t.bytes_small * size) for t in problem.tensors),
        problem.steps,
        problem.fixed_latency_ms * time,
    )
    factors = dict(zip(QUANTITIES, (time, size, size, noise), strict=True))
    scaled_limits = {
        q: None if getattr(limits, q) is None else getattr(limits, q) * factor for q, factor in factors.items()
    }
    try:
        one = solve(problem, limits, gap=0)
    except InfeasibleError:
        with pytest.raises(InfeasibleError):
            solve(other, Limits(**scaled_limits), gap=0)
        return
    two = solve(other, Limits(**scaled_limits), gap=0)
    low = one.totals.latency_ms * (1 - one.gap) * time
    assert low / CLOSE <= two.totals.latency_ms * (1 - two.gap) <= low * CLOSE


@pytest.mark.parametrize("seed", range(4))
def test_chain_equals_dynamic_programming(seed: int) -> None:
    problem = chain(50, seed)
    budget = 120
    costs = {b.consumer: b.cost_ms for b in problem.boundaries}
    best: dict[tuple[str, int], float] = {("float", 0): 0.0}  # (domain, weight bytes so far) -> least latency
    for i, layer in enumerate(problem.layers):
        reached: dict[tuple[str, int], float] = {}
        for (domain, used), so_far in best.items():
            for o in layer.options:
                key = (o.domain, used + o.weight_bytes)
                latency = so_far + o.latency_ms + (costs[i] if domain != o.domain else 0.0)
                if key[1] <= budget and latency < reached.get(key, float("inf")):
                    reached[key] = latency
        best = reached
    solution = solve(problem, Limits(weight_bytes=budget), gap=0)
    assert solution.totals.latency_ms * (1 - solution.gap) == pytest.approx(min(best.values()), rel=3e-6)
    assert solution.totals.weight_bytes <= budget
    assert "weight_bytes" in solution.binding


def test_one_layer_one_option() -> None:
    solution = solve(problem_of((option(2.0, 7, 0.5),)), Limits())
    assert solution.choice == (0,)
    assert solution.totals == Totals(2.0, 7, 7, 0, 0.5)
    assert (solution.gap, solution.binding) == (0.0, ())


def test_no_layers() -> None:
    solution = solve(Problem((), fixed_latency_ms=3.0), Limits(latency_ms=4.0))
    assert solution.choice == ()
    assert solution.totals.latency_ms == 3.0


def test_noise_level_latency_is_not_bought_with_accuracy() -> None:
    faster_but_lossy = (option(1.0), option(0.997, loss=1.0))
    layers = [(option(10.0), option(5.0, loss=1e-3)), faster_but_lossy]
    solution = solve(problem_of(*layers), Limits())
    assert solution.choice == (1, 0)
    assert 0 < solution.gap < LATENCY_WINDOW
    assert solution.search_gap == pytest.approx(0, abs=1e-9)


def test_a_boundary_keeps_a_lone_layer_float() -> None:
    layers = [(option(1.0), option(0.9, domain="int8", loss=1e-3))] * 3
    edges = (Boundary(-1, 0, 0.2), Boundary(0, 1, 0.2), Boundary(1, 2, 0.2))
    cheap = tuple(replace(b, cost_ms=0.05) for b in edges)
    assert solve(problem_of(*layers, boundaries=cheap), Limits()).choice == (1, 1, 1)
    assert solve(problem_of(layers[0], boundaries=edges[:1]), Limits()).choice == (0,)


def test_a_tensor_is_small_only_when_all_deciders_are_int8() -> None:
    layers = [(option(1.0, 0), option(2.0, 0, domain="int8"))] * 2
    tensor = ActivationTensor(400, 100, (0, 1))
    problem = problem_of(*layers, tensors=(tensor,), steps=((0,),))
    assert solve(problem, Limits(memory_bytes=400)).choice == (0, 0)
    assert solve(problem, Limits(memory_bytes=399)).choice == (1, 1)
    with pytest.raises(InfeasibleError) as caught:
        solve(problem, Limits(memory_bytes=99))
    assert caught.value.nearest == {"memory_bytes": 100.0}


def test_a_tensor_that_is_large_only_where_one_layer_is_int8_and_another_is_not() -> None:
    layers = [(option(1.0, 0), option(1.5, 0, domain="int8"))] * 2
    tensor = ActivationTensor(400, 0, (0,), int8_guards=(1,))
    problem = problem_of(*layers, tensors=(tensor,), steps=((0,),))
    peaks = [totals.peak_activation_bytes for totals in everything(problem)]
    assert peaks == [0, 400, 0, 0]  # float float, float int8, int8 float, int8 int8
    only_int8 = (option(9.0, 0, domain="int8"),)
    faster = problem_of(layers[0], only_int8, tensors=(tensor,), steps=((0,),))
    assert solve(faster, Limits(memory_bytes=399)).choice == (1, 0)
    assert solve(faster, Limits(memory_bytes=400)).choice == (0, 0)


def test_a_byte_over_is_over() -> None:
    """HiGHS accepts rows that are 1e-6 over: 5000 bytes of 5 GB. A flash slot does not."""
    rng = random.Random(1)
    layers = [
        tuple(option(9 - 2 * k + rng.random(), rng.randint(k, k + 1) * 10**8 + rng.randint(1, 10**8)) for k in range(4))
        for _ in range(5)
    ]
    problem = problem_of(*layers)
    efficient: list[Totals] = []  # plans that a limit one byte short just misses
    for totals in sorted(everything(problem), key=lambda t: t.weight_bytes):
        if not efficient or totals.latency_ms < efficient[-1].latency_ms:
            efficient.append(totals)
    assert len(efficient) > 10
    for smaller, larger in itertools.pairwise(efficient):
        for limit, best in ((larger.weight_bytes, larger), (larger.weight_bytes - 1, smaller)):
            solution = solve(problem, Limits(weight_bytes=limit), gap=0)
            assert solution.totals.weight_bytes <= limit
            assert solution.totals.latency_ms * (1 - solution.gap) == pytest.approx(best.latency_ms, rel=3e-6)


@st.composite
def memory_bound(draw: st.DrawFn) -> tuple[Problem, Limits]:
    """int8 is slower everywhere: only the memory of overlapping, unequal steps asks for it."""
    n = draw(st.integers(2, 4))
    index = st.integers(0, n - 1)
    size = st.integers(1, 20)
    tensors = draw(
        st.lists(
            st.builds(
                lambda a, b, d, g: ActivationTensor(a + b, a, tuple(d), int8_guards=tuple(g)),
                *(size, size, st.sets(index), st.sets(index, max_size=1)),
            ),
            min_size=3,
        )
    )
    step = st.sets(st.integers(0, len(tensors) - 1), min_size=1).map(tuple)
    layers = [
        (option(draw(times), 0, memory=draw(size)), option(draw(times), 0, domain="int8", memory=draw(size)))
        for _ in range(n)
    ]
    steps = draw(st.lists(step, min_size=2, max_size=5))
    problem = problem_of(*layers, tensors=tuple(tensors), steps=tuple(steps))
    peaks = sorted({t.memory_bytes for t in everything(problem)})
    return problem, Limits(memory_bytes=draw(st.sampled_from(peaks)) + draw(st.sampled_from([0, 1])))


@quick
@given(memory_bound())
def test_memory_holds_at_every_step_and_no_tighter(case: tuple[Problem, Limits]) -> None:
    problem, limits = case
    best = min(t.latency_ms for t in everything(problem) if keeps(t, limits))
    solution = solve(problem, limits, gap=0)
    assert keeps(solution.totals, limits)
    assert best / CLOSE <= solution.totals.latency_ms * (1 - solution.gap) * CLOSE
    assert solution.totals.latency_ms * (1 - solution.gap) <= best * CLOSE


def test_a_step_whose_tensors_all_live_elsewhere_still_counts() -> None:
    tensors = tuple(ActivationTensor(4 * size, size, (0,)) for size in (1, 50, 60))
    steps = ((0, 1), (0, 2), (1, 2), (1,))
    problem = problem_of((option(1.0, 0), option(2.0, 0, domain="int8")), tensors=tensors, steps=steps)
    assert solve(problem, Limits(memory_bytes=440)).choice == (0,)
    assert solve(problem, Limits(memory_bytes=439)).choice == (1,)
    with pytest.raises(InfeasibleError, match="the leanest plan takes 110 bytes"):
        solve(problem, Limits(memory_bytes=109))


def test_a_small_peak_beside_a_huge_tensor_is_found_at_once() -> None:
    layers = [(option(1.0, 0), option(1.0, 3, domain="int8", loss=1e-6))]
    tensors = (ActivationTensor(601_805_686, 73_030, (0,)),)
    with pytest.raises(InfeasibleError) as caught:
        solve(
            problem_of(*layers, tensors=tensors, steps=((0,),)), Limits(memory_bytes=80_000, loss=0.0), time_limit_s=5
        )
    assert caught.value.nearest == {"memory_bytes": 601_805_686.0, "loss": 1e-6}


def test_tiny_losses_beside_a_huge_one_are_told_apart() -> None:
    layers = [(option(1.0, loss=100.0), option(2.0, loss=(i + 1) * 1e-9), option(3.0, loss=1e-10)) for i in range(8)]
    solution = solve(problem_of(*layers), Limits(latency_ms=20.0), "loss", gap=0)
    assert solution.choice == (1, 1, 1, 1, 2, 2, 2, 2)


def test_binding_names_the_budget_that_holds_latency_back() -> None:
    coarse = [(option(4.0, 10), option(1.0, 10, loss=0.4)) for _ in range(3)]
    solution = solve(problem_of(*coarse), Limits(loss=1.0, weight_bytes=1000))
    assert solution.totals.loss == 0.8  # a fifth of the budget is left and no plan can use it
    assert solution.binding == ("loss",)
    assert solve(problem_of(*coarse), Limits(loss=2.0, weight_bytes=30)).binding == ("weight_bytes",)


def test_an_option_that_alone_breaks_the_budget_still_makes_it_binding() -> None:
    assert solve(problem_of((option(4.0), option(1.0, loss=5.0))), Limits(loss=1.0)).binding == ("loss",)


def test_infeasible_says_which_budget_and_by_how_much() -> None:
    problem = problem_of((option(4.0, 40), option(3.21456, 10, loss=0.5)), fixed_latency_ms=0.0)
    with pytest.raises(InfeasibleError) as caught:
        solve(problem, Limits(latency_ms=1.0, weight_bytes=50))
    assert str(caught.value) == "no plan fits: latency 1 ms; the fastest plan is predicted to take 3.215 ms"
    assert caught.value.nearest == {"latency_ms": 3.21456, "weight_bytes": 10.0}
    assert caught.value.hint == "raise latency to 3.215 ms"
    with pytest.raises(InfeasibleError, match=r"all budgets at once: latency 3\.5 ms, loss 0\.1") as caught:
        solve(problem, Limits(latency_ms=3.5, loss=0.1))
    assert caught.value.nearest == {"latency_ms": 4.0, "loss": 0.5}
    assert caught.value.hint == "raise latency to 4 ms or loss to 0.5"


def test_the_hinted_budget_works() -> None:
    problem = chain(12, 3)
    with pytest.raises(InfeasibleError) as caught:
        solve(problem, Limits(latency_ms=0.5, weight_bytes=40))
    latency = float(caught.value.hint.split("latency to ")[1].split(" ms")[0])
    assert solve(problem, Limits(latency_ms=latency, weight_bytes=40)).totals.latency_ms <= latency


def test_same_input_same_plan() -> None:
    problem = chain(30, 7)
    limits = Limits(weight_bytes=80, loss=0.2)
    assert solve(problem, limits) == solve(problem, limits)
    twins = problem_of(*[(option(1.0), option(1.0), option(1.0))] * 4)
    assert solve(twins, Limits()).choice == (0, 0, 0, 0)


def test_out_of_time_is_neither_a_plan_nor_a_proof() -> None:
    with pytest.raises(EdgekitError, match="time given") as caught:
        solve(chain(30, 0), Limits(weight_bytes=80), time_limit_s=0.0)
    assert not isinstance(caught.value, InfeasibleError)


def test_bad_numbers_name_the_layer() -> None:
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="layer1, option fp32: latency_ms"):
            solve(problem_of((option(),), (option(bad),)), Limits())
        with pytest.raises(ValueError, match="layer0, option fp32: loss"):
            solve(problem_of((option(loss=bad),)), Limits())
        with pytest.raises(ValueError, match="boundary 0 into layer layer0: cost_ms"):
            solve(problem_of((option(),), boundaries=(Boundary(-1, 0, bad),)), Limits())
        with pytest.raises(ValueError, match="limits: latency_ms"):
            solve(problem_of((option(),)), Limits(latency_ms=bad))
    with pytest.raises(ValueError, match="points"):
        pareto(problem_of((option(),)), Limits(), points=1)
    with pytest.raises(ValueError, match="layer0: no options"):
        solve(problem_of(()), Limits())
    with pytest.raises(ValueError, match="domain is 'int4'"):
        solve(problem_of((option(domain="int4"),)), Limits())
    with pytest.raises(ValueError, match="weight_bytes is -1"):
        solve(problem_of((option(weight=-1),)), Limits())
    with pytest.raises(ValueError, match=r"boundary 0: index 1 is outside -1\.\.0"):
        solve(problem_of((option(),), boundaries=(Boundary(1, 0, 1.0),)), Limits())
    with pytest.raises(ValueError, match=r"step 0: index 0 is outside"):
        solve(problem_of((option(),), steps=((0,),)), Limits())
    with pytest.raises(ValueError, match=r"tensor 0: bytes_small 2 is more than bytes_full 1"):
        solve(problem_of((option(),), tensors=(ActivationTensor(1, 2, (0,)),)), Limits())


def test_import_is_light() -> None:
    code = "import sys, edgekit.planner; sys.exit(bool({'scipy', 'numpy', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_two_hundred_layers_within_five_seconds(benchmark: ModuleType) -> None:
    row = benchmark.measure(200, seed=0, gap=1e-4)
    assert row.latency_objective_s < 5
    assert row.loss_objective_s < 5
    assert max(row.latency_objective_gap, row.loss_objective_gap) <= 1e-4
    assert row.greedy_loss_ratio >= 1 / (1 + LOSS_WINDOW + 1e-4)
