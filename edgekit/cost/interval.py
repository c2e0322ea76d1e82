"""Intervals that hold: how far off the fit is on model families and on devices that it did not see.

The fit says how sure it is of a prediction (the standard deviation of the logarithm). Whether that is true is asked of
rows that were held out, a whole family or a whole device at a time, since networks of one family err alike. The errors
in units of their standard deviation are the scores; the interval takes as many standard deviations as hold 90 % of
them (split conformal with scores normalised by the model: Lei et al., Distribution-Free Predictive Inference for
Regression, 2018, section 5.2; each group weighs the same: Dunn et al., Distribution-Free Prediction Sets for Two-Layer
Hierarchical Models, 2022).

Groups are few: the OpenVINO rows on CPUs are of five families. What few cannot tell is taken from all runtimes
together, as sizes that are expected beside those seen. Errors on a family that was not seen have heavy tails (over the
published rows, 90 % within 2.4 standard deviations and 95 % within 3.2: Student's t with 3 degrees of freedom has 2.35
and 3.18); on a device, with families that others were measured on, they are as normal ones (1.6 and 2.0).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from edgekit.cost.fit import Priors, Row, fit, predict

LEVEL = 0.90
Held = Literal["family", "device"]
_FREEDOM: dict[Held, float] = {"family": 3.0, "device": np.inf}
_EXPECTED = 40  # sizes that stand for the expected ones
_EXPECTED_GROUPS = 6.0  # how many groups of rows they are worth beside those seen
# Of the finite-sample correction (1: exact for exchangeable groups of one row; groups of many are milder).
_CAUTION = 0.2
# The errors of two predictions of one network in two precisions on one device go together: over 295 pairs of published
# rows the correlation is 0.80 where the family was held out, and 0.56 where the device was. Less is more cautious.
RATIO_CORRELATION = 0.5


@dataclass(frozen=True)
class Score:
    """One held-out row: the logarithm of measured over predicted, and the standard deviation that the fit gave it."""

    row: Row
    group: str
    log_error: float
    deviation: float

    @property
    def relative_error(self) -> float:
        """|predicted - measured| / measured."""
        return float(abs(np.exp(-self.log_error) - 1))

    @property
    def size(self) -> float:
        """The error in standard deviations."""
        return abs(self.log_error) / self.deviation


def held_out(rows: Sequence[Row], group_of: Callable[[Row], str], priors: Priors | None = None) -> list[Score]:
    """Each row predicted by a fit of the rows of all other groups."""
    scores: list[Score] = []
    for group in sorted({group_of(row) for row in rows}):
        out = [row for row in rows if group_of(row) == group]
        fitted = fit([row for row in rows if group_of(row) != group], [row.cell for row in out], priors)
        for row in out:
            value, deviation = predict(fitted[row.cell], row.features)
            scores.append(Score(row, group, float(np.log(row.latency_ms / value)), deviation))
    return scores


def factor(scores: Iterable[Score], level: float = LEVEL, held: Held = "family") -> float:
    """Standard deviations to each side that hold ``level`` of a new group's rows, as far as these scores tell. The
    level is raised for the groups being few, and few groups are drawn to what all runtimes' errors need, by what was
    ``held`` out.
    """
    found = [(score.size, score.group) for score in scores]
    counts = Counter(group for _, group in found)
    expected = [(size, _EXPECTED_GROUPS / _EXPECTED) for size in _expected(held)]
    weighted = sorted([(size, 1 / counts[group]) for size, group in found] + expected)
    share = np.cumsum([weight for _, weight in weighted])
    wanted = min(1.0, level * (1 + _CAUTION / (len(counts) + _EXPECTED_GROUPS))) * share[-1]
    place = min(int(np.searchsorted(share, wanted)), len(weighted) - 1)
    return weighted[place][0]


@cache
def _expected(held: Held) -> tuple[float, ...]:
    from scipy import stats

    places = 0.5 + (np.arange(_EXPECTED) + 0.5) / (2 * _EXPECTED)
    return tuple(float(size) for size in stats.t(_FREEDOM[held]).ppf(places))


def coverage(scores: Sequence[Score], level: float = LEVEL, held: Held = "family") -> float:
    """The share of rows inside an interval whose factor comes from the other groups: what a user will see."""
    groups = {score.group for score in scores}
    inside = 0
    for group in groups:
        limit = factor([score for score in scores if score.group != group], level, held)
        inside += sum(score.size <= limit for score in scores if score.group == group)
    return inside / len(scores)


def ratio_reach(reach: float, same: float) -> float:
    """How far the interval of the ratio of two predicted latencies of one network on one device reaches, as a factor
    up and down: ``reach`` is that of each latency, ``same`` the share of the first that is spent alike in the second,
    where the two err alike. What is left errs with the correlation `RATIO_CORRELATION`.
    """
    return float(reach ** ((1 - same) * (2 - 2 * RATIO_CORRELATION) ** 0.5))
