"""Numbers as people read them. Sizes are decimal (1 MB = 1,000,000 bytes), as budgets and datasheets are."""

from __future__ import annotations

import math
from collections.abc import Callable

Wording = Callable[[float], str]

MINUS = "−"


def plain(text: str) -> str:
    """A name from a model or a file without what would steer a terminal or break the page: control characters, line
    ends and half surrogates become "\ufffd".
    """
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def ms(value: float) -> str:
    """Milliseconds with three significant digits, "9.31 ms"."""
    return f"{_three_digits(value)} ms"


def bare_ms(value: float) -> str:
    """Milliseconds without the unit, for columns whose heading has it."""
    return _three_digits(value)


def size(value: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point, "3.21 MB"."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{_three_digits(value / factor)} {unit}"
    return f"{value:.0f} B"


def count(value: float) -> str:
    """A count with its SI factor, "14.2 M"."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{_three_digits(value / factor)} {unit}"
    return f"{value:.0f}"


def level(value: float, share: bool, unit: bool = True) -> str:
    """A metric's value: as a percentage for shares, "92.7 %", else as a number."""
    if not math.isfinite(value):
        return "not finite"
    if share:
        return _signed(f"{100 * value:.1f}") + (" %" if unit else "")
    return _signed(f"{value:.4g}")


def change(value: float, share: bool, unit: bool = False) -> str:
    """A signed difference of metrics: in points (hundredths) for shares, "−0.3 points"."""
    if not math.isfinite(value):
        return "not finite"
    text = _signed(f"{100 * value:+.1f}" if share else f"{value:+.3g}")
    return f"{text} points" if share and unit else text


def drop(value: float, share: bool) -> str:
    """A loss of the metric, unsigned unless it is a gain, "0.3 points"."""
    if not math.isfinite(value):
        return "not finite"
    return _signed(f"{100 * value:.1f} points" if share else f"{value:.3g}")


def decibel(value: float) -> str:
    """A ratio in dB, "19.4 dB"; infinite means identical outputs."""
    if math.isnan(value):
        return "–"
    return "identical" if value == math.inf else "not finite" if value == -math.inf else _signed(f"{value:.1f} dB")


def noise_db(relative_power: float) -> str:
    """A relative noise power in dB, "−25.1 dB"."""
    if not math.isfinite(relative_power):
        return "not finite"
    return "none" if relative_power <= 0 else _signed(f"{10 * math.log10(relative_power):.1f} dB")


def percent(value: float) -> str:
    """A signed share, "−2.8 %"."""
    if not math.isfinite(value):
        return "not finite"
    return _signed(f"{100 * value:+.1f} %")


def _three_digits(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return _signed(f"{value:.{max(0, min(digits, 4))}f}")


def _signed(text: str) -> str:
    text = text.removeprefix("-") if float(text.split()[0]) == 0 else text
    return text.replace("-", MINUS)
