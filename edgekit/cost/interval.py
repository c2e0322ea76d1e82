"""Intervals that hold: how far off the fit is on model families and on devices that it did not see.

The fit says how sure it is of a prediction (the standard deviation of the logarithm). Whether that is true is asked of
rows that were held out, a whole family or a whole device at a time, since networks of one family err alike. The errors
in units of their standard deviation are the scores; the interval takes as many standard deviations as hold 90 % of
them (split conformal with scores normalised by the model: Lei et al., Distribution-Free Predictive Inference for
Regression, 2018, section 5.2; each group weighs the same: Dunn et al., Distribution-Free Prediction Sets for Two-Layer
Hierarchical Models, 2022).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from edgekit.cost.fit import Priors, Row, fit, predict

LEVEL = 0.90
# Sizes that normal errors would have, and how many groups of rows this expectation is worth beside those seen.
_NORMAL = tuple(NormalDist().inv_cdf(0.5 + (i + 0.5) / 80) for i in range(40))
_EXPECTED_GROUPS = 4.0
# Of the finite-sample correction (1: exact for exchangeable groups of one row; groups of many are milder).
_CAUTION = 0.3


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


def factor(scores: Iterable[Score], level: float = LEVEL) -> float:
    """Standard deviations to each side that hold ``level`` of a new group's rows, as far as these scores tell. The
    level is raised for the groups being few, and few groups are drawn to what a normal distribution would need.
    """
    found = [(score.size, score.group) for score in scores]
    counts = Counter(group for _, group in found)
    expected = [(size, _EXPECTED_GROUPS / len(_NORMAL)) for size in _NORMAL]
    weighted = sorted([(size, 1 / counts[group]) for size, group in found] + expected)
    share = np.cumsum([weight for _, weight in weighted])
    wanted = min(1.0, level * (1 + _CAUTION / (len(counts) + _EXPECTED_GROUPS))) * share[-1]
    place = min(int(np.searchsorted(share, wanted)), len(weighted) - 1)
    return weighted[place][0]


def coverage(scores: Sequence[Score], level: float = LEVEL) -> float:
    """The share of rows inside an interval whose factor comes from the other groups: what a user will see."""
    groups = {score.group for score in scores}
    inside = 0
    for group in groups:
        limit = factor([score for score in scores if score.group != group], level)
        inside += sum(score.size <= limit for score in scores if score.group == group)
    return inside / len(scores)
