"""What the report's pictures have in common: one style, colours that the page decides, labels that cover nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox


@dataclass(frozen=True)
class Palette:
    """The colours of a picture, each for one purpose."""

    ink: str
    faint: str
    chosen: str
    other: str
    limit: str
    paper: str


# Drawn in these colours, then replaced by the page's own variables, so that one picture serves light and dark.
PAGE = Palette("#010101", "#020202", "#030303", "#040404", "#050505", "#060606")
VARIABLES = {
    "ink": "--ink", "faint": "--line", "chosen": "--accent", "other": "--muted", "limit": "--bad", "paper": "--paper",
}  # fmt: skip
# A file of its own has no page around it: the page's colours in daylight.
FILE = Palette("#1b2430", "#d5dbe3", "#0b6bcb", "#66738a", "#c2321f", "#ffffff")

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgekit",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.parse_math": False,  # a "$" in a name is a "$"
}
WIDTH_INCHES = 3.7


@contextmanager
def canvas(palette: Palette, height_inches: float, width_inches: float = WIDTH_INCHES) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the report's style alone: not the user's matplotlibrc, no pyplot, no display."""
    from matplotlib import style
    from matplotlib.figure import Figure

    coloured = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), palette.ink)
    with style.context(["default", {**STYLE, **coloured, "axes.edgecolor": palette.faint}]):
        # At 72 dots per inch, as SVG has, a pixel is a point: what is measured while drawing holds in the file.
        figure = Figure(figsize=(width_inches, height_inches), dpi=72, layout="constrained")
        yield figure, figure.add_subplot()


def limit(axes: Axes, palette: Palette, x: float | None) -> None:
    """A dashed line where the budget ends, if that is within or near the picture."""
    low, high = axes.get_xlim()
    if x is not None and low <= x <= high:
        axes.axvline(x, color=palette.limit, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0.5)


def label(
    figure: Figure,
    axes: Axes,
    palette: Palette,
    points: Sequence[tuple[float, float]],
    labels: Sequence[tuple[float, float, str, bool]],
) -> None:
    """Write each label (x, y, text, bold) where it covers no point and no label before it. One that fits nowhere near
    its point is left out: the table below the picture has it.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles where things are
    frame = axes.get_window_extent()
    em = 9.0
    taken = [
        Bbox.from_bounds(x - em / 2, y - em / 2, em, em) for x, y in axes.transData.transform(list(points)).tolist()
    ]
    for x, y, text, bold in labels:
        note = axes.annotate(
            text,
            (x, y),
            (0, 0),
            textcoords="offset points",
            fontsize=8.5,
            fontweight="bold" if bold else "normal",
            bbox={"facecolor": palette.paper, "edgecolor": "none", "pad": 0.5},
        )
        note.set_in_layout(False)
        extent = note.get_window_extent()
        width, height = 1.12 * extent.width, extent.height  # the page's font may be wider than the one measured here
        at_x, at_y = axes.transData.transform((x, y)).tolist()
        places = [(dx, dy) for dy in (-1.3 * em, 0.5 * em, -2.4 * em, 1.6 * em) for dx in (em * 0.9, -em * 0.9 - width)]
        boxes = [Bbox.from_bounds(at_x + dx, at_y + dy, width, height) for dx, dy in places]
        free = next((n for n, box in enumerate(boxes) if _is_free(box, frame, taken)), None)
        if free is None:
            note.remove()
            continue
        note.set_position(places[free])
        taken.append(boxes[free])


def _is_free(box: Bbox, frame: Bbox, taken: Sequence[Bbox]) -> bool:
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 + 12 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return inside and not any(box.overlaps(other) for other in taken)


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """A figure drawn in `PAGE` as an <svg> element: no prolog or metadata, ids unique on the page, colours as CSS
    variables.
    """
    target = io.StringIO()
    figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", text)
    view_box = re.search(r'viewBox="([^"]*)"', text)
    opening = f'<svg role="img" aria-label="{label}" viewBox="{view_box[1] if view_box else ""}">'
    text = re.sub(r"<svg[^>]*>", opening, text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'font-family: [^;"]*;? ?', "", text)
    for field, variable in VARIABLES.items():
        text = text.replace(getattr(PAGE, field), f"var({variable})")
    return text.strip()
