from __future__ import annotations

import numpy as np
import pytest

from benchmarks.sensitivity import Case, by_edgekit, by_omission, by_output, by_own_result, divergence, random_plans
from tests.quantized import CASES, case


def case_of(name: str) -> Case:
    source = case(name)
    return Case(source.graph, tuple(source.names), source.ranges, source.data)


@pytest.mark.parametrize("name", CASES)
def test_a_cached_prefix_changes_nothing(name: str) -> None:
    ours = case_of(name)
    assert by_edgekit(ours) == pytest.approx(by_output(ours), rel=1e-3)


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
