"""Memory budgets are kept and met by what plans take, not by what the planner counts."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgekit import Budget, plan
from edgekit.errors import InfeasibleError
from tests import zoo


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, session_cache: Path) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(session_cache))


def memory_of(model: Path, most: int | None) -> int:
    budget = Budget(memory_bytes=most, max_drop=0.5)
    found = plan(model, "intel-n100", synthetic=True, prune=False, budget=budget)
    return found.plan.predicted.memory_bytes


def fits(model: Path, most: int) -> bool:
    try:
        return memory_of(model, most) <= most
    except InfeasibleError:
        return False


def saved(name: str, folder: Path) -> Path:
    onnx.save(getattr(zoo, name)(), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeeze_excite", "conv_transpose", "inverted_residual"])
def test_what_a_plan_takes_is_a_budget_that_can_be_met(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    taken = memory_of(model, None)
    for _ in range(4):
        assert fits(model, taken)
        if not fits(model, taken - 1):
            break
        taken = memory_of(model, taken - 1)


@pytest.mark.slow
def test_the_least_that_is_named_can_be_met(tmp_path: Path) -> None:
    """Where the planner's rules count more than the leanest plan takes."""
    model = saved("squeeze_excite", tmp_path)
    with pytest.raises(InfeasibleError, match="no plan fits: memory 1 bytes; the leanest plan takes") as caught:
        memory_of(model, 1)
    assert fits(model, int(caught.value.nearest["memory_bytes"]))
