"""The comparison as a picture: for each model the speed-ups of its candidates; hollow marks lose the metric."""

from __future__ import annotations

import io
from collections.abc import Sequence

from benchmarks.peers.rows import Row
from benchmarks.peers.tools import EDGEKIT
from edgekit.reporting.canvas import FILE, canvas

FORMS = (".png", ".svg")
_COLOURS = (
    "#0b6bcb",
    "#66738a",
    "#2a9d8f",
    "#8ab17d",
    "#e9a23b",
    "#c2321f",
    "#7b4fa3",
    "#b8860b",
    "#4a4a4a",
    "#d16ba5",
)
TICKS = (0.0625, 0.125, 0.25, 0.5, 0.71, 1, 1.41, 2, 2.83, 4, 5.66, 8, 16)
_MARKS = "oDsv^<>Pp*X"


def drawn(rows: Sequence[Row]) -> list[Row]:
    """One row a tool and model: the fastest that keeps the metric, or the fastest where none does."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        other = best.get((row.model, row.candidate))
        if other is None or (row.keeps, row.speedup.value or 0.0) > (other.keeps, other.speedup.value or 0.0):
            best[row.model, row.candidate] = row
    return list(best.values())


def draw(rows: Sequence[Row], form: str) -> bytes:
    """The picture as the content of a .png or .svg file. Raises ValueError without rows."""
    if not rows:
        raise ValueError("there is nothing to draw")
    rows = drawn(rows)
    models = list(dict.fromkeys(row.model for row in rows))
    titles = sorted(dict.fromkeys(row.candidate for row in rows), key=lambda title: title != EDGEKIT)
    height_inches = len(models) * (0.09 * len(titles) + 0.15) + 0.1 * len(titles) + 1.1
    with canvas(FILE, height_inches, 7.2) as (figure, axes):
        for number, title in enumerate(titles):
            colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
            shift = 0.6 * (number / max(1, len(titles) - 1) - 0.5)  # so that equal speed-ups do not hide one another
            for row in rows:
                speedup = row.speedup
                if row.candidate != title or speedup.value is None:
                    continue
                y = models.index(row.model) + shift
                if speedup.low is not None and speedup.high is not None:
                    axes.plot([speedup.low, speedup.high], [y, y], color=colour, linewidth=1, alpha=0.6)
                face = colour if row.keeps else "none"
                axes.plot([speedup.value], [y], mark, color=colour, markerfacecolor=face, markersize=6)
            axes.plot([], [], mark, color=colour, label=title, markersize=6)
        axes.axvline(1.0, color=FILE.faint, linewidth=1, zorder=0)
        axes.set_yticks(range(len(models)), models)
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xscale("log", base=2)
        values = [row.speedup.value for row in rows if row.speedup.value is not None]
        low, high = min(values) / 1.3, max(values) * 1.3
        ticks = [tick for tick in TICKS if low < tick < high]
        axes.set_xticks(ticks, [f"x{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("speed-up over the float model in fp32; hollow: the metric drops by more than a point")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        content = io.BytesIO()
        metadata = {"Date": None} if form == ".svg" else {}
        figure.savefig(content, format=form.removeprefix("."), dpi=150, metadata=metadata)
        return content.getvalue()
