from __future__ import annotations

import numpy as np
import pytest

from benchmarks.sensitivity import (
    Case,
    by_edgekit,
    by_logits,
    by_omission,
    by_output,
    by_own_result,
    by_typical_sample,
    divergence,
    noises,
    quiet,
    random_plans,
)
from tests import quantized, zoo
from tests.quantized import CASES, case


def case_of(name: str) -> Case:
    source = case(name)
    return Case(source.graph, tuple(source.names), source.ranges, source.data)


@pytest.mark.parametrize("name", CASES)
def test_a_cached_prefix_changes_nothing(name: str) -> None:
    ours = case_of(name)
    assert by_edgekit(ours) == pytest.approx(by_output(ours), rel=1e-3)


def test_a_typical_sample_is_no_louder_than_the_mean() -> None:
    ours = case_of("inverted_residual")
    mean, typical = by_edgekit(ours), by_typical_sample(ours)
    assert all(0.2 * mean[name] < typical[name] < mean[name] for name in ours.names)


def test_what_a_layer_adds_to_all_others() -> None:
    ours = case_of("inverted_residual")
    alone, added = by_output(ours), by_omission(ours)
    assert list(added) == list(alone)
    assert min(added.values()) >= 0
    assert sum(alone.values()) / 4 < sum(added.values()) < 4 * sum(alone.values())


@pytest.mark.parametrize("name", CASES)
def test_every_layer_changes_its_own_result(name: str) -> None:
    ours = case_of(name)
    found = by_own_result(ours)
    assert list(found) == list(ours.names)
    assert all(0 < loss < 0.1 for loss in found.values())


def test_noise_at_logits_does_not_see_what_softmax_does_not() -> None:
    ours = case_of("squeeze_excite")
    assert set(noises(ours, [()])) == {"outputs"}
    net = zoo.Net(1)
    logits = net.op("Gemm", net.input("x", [1, 8]), net.random(5, 8), net.random(5), transB=1)
    source = quantized.case_of(net.model([net.op("Softmax", logits, axis=-1)]))
    last = Case(source.graph, tuple(source.names), source.ranges, source.data)
    found = noises(last, [(), last.names])
    assert {place: noise.shape for place, noise in found.items()} == dict.fromkeys(("outputs", "logits"), (2, 4))
    assert (found["logits"][1] > found["logits"][0]).all()
    assert by_logits(last) == pytest.approx(dict.fromkeys(last.names, found["logits"][1].mean()))


def test_quiet_layers_are_all_but_the_loudest_tenth() -> None:
    losses = {f"layer{n}": float((7 * n) % 20) for n in range(20)}
    assert len(quiet(losses)) == 18
    assert not {name for name, loss in losses.items() if loss > 17} & set(quiet(losses))


def test_divergence() -> None:
    logits = np.float32([[2.0, 0.5, -1.0]])
    p = np.exp(logits) / np.exp(logits).sum()
    other = np.float32([[1 / 3, 1 / 3, 1 / 3]])
    assert divergence({"y": logits + 5}, {"y": logits}) == pytest.approx(0, abs=1e-6)
    expected = float((p * np.log(p * 3)).sum())
    assert divergence({"y": other}, {"y": p}) == pytest.approx(expected, rel=1e-5)
    assert divergence({"y": np.zeros_like(logits)}, {"y": logits}) == pytest.approx(expected, rel=1e-5)


def test_plans_about_half_and_of_any_share() -> None:
    names = [f"layer{n}" for n in range(100)]
    half, free = random_plans(names, 20, half=True), random_plans(names, 20, half=False)
    assert all(30 <= len(plan) <= 70 for plan in half)
    assert min(map(len, free)) < 25
    assert max(map(len, free)) > 75
    assert half == random_plans(names, 20, half=True)
