from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgekit.cost.fit import Row
from edgekit.cost.interval import Score, coverage, factor, held_out, ratio_reach
from tests.cost.test_fit import HERE, THERE, network, rows


def scores(sizes: np.ndarray, per_group: int) -> list[Score]:
    row = Row(HERE, "", network(np.random.default_rng(0)), 1.0)
    return [Score(row, f"group {i // per_group}", float(z) * 0.2, 0.2) for i, z in enumerate(sizes)]


def test_normal_errors_need_the_normal_factor() -> None:
    normal = np.random.default_rng(1).normal(size=4000)
    for held in ("family", "device"):
        assert factor(scores(normal, 10), held=held) == pytest.approx(1.645, abs=0.08)
        assert factor(scores(2 * normal, 10), held=held) == pytest.approx(3.29, abs=0.2)


def test_few_groups_are_drawn_to_what_all_runtimes_need_and_never_below_what_was_seen() -> None:
    """Families err with heavier tails than devices do."""
    assert 1.6 < factor([], held="device") < 2.0
    assert 2.3 < factor([], held="family") < 3.0
    for few in (np.zeros(20), np.full(20, 1.0)):
        assert factor(scores(few, 10), held="device") < factor(scores(few, 10), held="family")
    assert factor(scores(np.full(60, 5.0), 2)) == pytest.approx(5.0)


def test_groups_weigh_the_same_whatever_their_size() -> None:
    """One family of a thousand good rows does not outvote nine families that err."""
    good = [replace(s, group="large") for s in scores(np.full(1000, 0.1), 1000)]
    bad = [replace(s, group=f"small {i}") for i, s in enumerate(scores(np.full(9, 3.0), 1))]
    assert factor(good + bad) == pytest.approx(3.0)


def test_the_intervals_cover_a_group_that_they_have_not_seen() -> None:
    """Groups with an error of their own, as families have: nominal 90 %."""
    rng = np.random.default_rng(2)
    shift = np.repeat(rng.normal(size=40), 12)
    held = coverage(scores(shift + 0.5 * rng.normal(size=480), 12))
    assert 0.85 <= held <= 0.96


def test_no_row_has_a_say_in_its_own_prediction() -> None:
    honest = rows((HERE, THERE), each=12)
    lied = [replace(r, latency_ms=r.latency_ms * 10) if r.family == "family 2" else r for r in honest]
    before = [s for s in held_out(honest, lambda r: r.family) if s.group == "family 2"]
    after = [s for s in held_out(lied, lambda r: r.family) if s.group == "family 2"]
    assert len(before) == 4
    for one, other in zip(before, after, strict=True):
        assert other.log_error - one.log_error == pytest.approx(np.log(10))
        assert other.deviation == pytest.approx(one.deviation)


def test_a_held_out_device_is_predicted_from_the_others() -> None:
    found = held_out(rows((HERE, THERE), each=12), lambda r: r.cell.device)
    assert {s.group for s in found} == {"board", "other board"}
    assert len(found) == 24
    assert np.median([s.relative_error for s in found]) < 0.5


def test_a_ratio_is_surer_the_more_of_it_is_alike() -> None:
    assert ratio_reach(2.0, 1.0) == 1.0
    reaches = [ratio_reach(2.0, same) for same in (0.9, 0.5, 0.0)]
    assert reaches == sorted(reaches)
    assert reaches[0] > 1.0
    assert reaches[-1] == pytest.approx(2.0), "with half of the variance in common, as sure as one latency"
