"""What a comparison found: one row a candidate, and the verdict on each model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgekit.types import Figure, Kind

MOST_LOST = 0.01
"""A candidate keeps the metric when it loses no more of it than this: one point."""
FLOAT = "float"


@dataclass(frozen=True)
class Row:
    """One candidate. Each figure says of which kind it is. ``floats`` is the precision of what is not quantized.

    ``latency_ms`` is the median with its 95 % interval, ``speedup`` that over the unmodified float model in single
    precision (median of interleaved rounds, 95 %), ``drop`` what the metric lost (paired, 95 %), positive being worse;
    ``wall_s`` and ``peak_memory_bytes`` are what the tool took to make it (see `benchmarks.peers.metered`).
    """

    model: str
    candidate: str
    floats: str
    latency_ms: Figure
    speedup: Figure
    metric_name: str
    metric: Figure
    drop: Figure
    sqnr_db: Figure
    agreement: Figure
    weight_bytes: Figure
    wall_s: Figure
    peak_memory_bytes: Figure
    note: str = ""

    @property
    def title(self) -> str:
        """The candidate as it is printed."""
        return self.candidate if self.floats == "fp32" else f"{self.candidate}, {self.floats}"

    @property
    def keeps(self) -> bool:
        """Whether it keeps the metric."""
        return self.drop.value is not None and self.drop.value <= MOST_LOST + 1e-12


@dataclass(frozen=True)
class Missing:
    """A candidate, or a whole model, that there is none of. ``asked`` is False where that is no failure."""

    model: str
    candidate: str
    none: str
    asked: bool = True


@dataclass(frozen=True)
class Verdict:
    """edgekit beside the fastest other candidate that keeps the metric, float included. ``ratio`` is edgekit's speed
    over its (95 %, from the intervals of both); ``word`` is "ahead" or "behind" where that interval leaves out 1,
    "level" where it holds it, and "none" with the ``reason`` where there is nothing to compare.
    """

    model: str
    word: str
    best: str
    best_speedup: Figure
    edgekit_speedup: Figure
    ratio: Figure
    reason: str = ""


def none(reason: str) -> Figure:
    """No figure, and why."""
    return Figure(Kind.NONE, source=reason)


def verdict(model: str, rows: Iterable[Row], edgekit: str) -> Verdict:
    """The verdict on one model; ``edgekit`` is that candidate's name, and before a comma that of its variants, which
    are no peers.
    """
    own = [row for row in rows if row.model == model]
    ours = next((row for row in own if row.candidate == edgekit), None)
    others = [row for row in own if row.candidate.split(",")[0] != edgekit]
    keeping = [row for row in others if row.keeps]
    best = max(keeping, key=lambda row: _value(row.speedup), default=None)
    if ours is None or best is None or not ours.keeps:
        if ours is None:
            reason = "edgekit has no result"
        elif best is None:
            reason = "nothing else keeps the metric"
        else:
            reason = f"edgekit's metric drops by {_value(ours.drop):.3f}"
        nothing = none(reason)
        return Verdict(
            model,
            "none",
            best.title if best else "",
            best.speedup if best else nothing,
            ours.speedup if ours else nothing,
            nothing,
            reason,
        )
    found = ratio(ours.speedup, best.speedup)
    low, high = found.low or _value(found), found.high or _value(found)
    word = "ahead" if low > 1 else "behind" if high < 1 else "level"
    return Verdict(model, word, best.title, best.speedup, ours.speedup, found)


def ratio(ours: Figure, theirs: Figure) -> Figure:
    """The quotient of two speed-ups. The intervals are taken as those of independent logarithms: that both are over the
    same float model in the same rounds, which cancels, makes this one too wide rather than too narrow.
    """
    value = _value(ours) / _value(theirs)
    width = math.hypot(_log_width(ours), _log_width(theirs))
    return Figure(Kind.MEASURED, value, value * math.exp(-width), value * math.exp(width), "95 %, interleaved rounds")


def geometric_mean(found: Sequence[Verdict]) -> Figure:
    """The geometric mean of the ratios of all models that have one, with its 95 % interval over those rounds; says how
    many of the models these are.
    """
    ratios = [row.ratio for row in found if row.ratio.value is not None]
    if not ratios:
        return none("no model has a ratio")
    mean = sum(math.log(_value(one)) for one in ratios) / len(ratios)
    width = math.hypot(*(_log_width(one) for one in ratios)) / len(ratios)
    source = f"{len(ratios)} of {len(found)} models"
    return Figure(Kind.MEASURED, math.exp(mean), math.exp(mean - width), math.exp(mean + width), source)


def _log_width(figure: Figure) -> float:
    """Half the interval of a figure's logarithm."""
    if not figure.low or not figure.high:
        return 0.0
    return math.log(figure.high / figure.low) / 2


def _value(figure: Figure) -> float:
    if figure.value is None:
        raise ValueError(f"no figure: {figure.source}")
    return figure.value
