"""Numbers as people read them. Sizes are decimal (1 MB = 1,000,000 bytes), as budgets and datasheets are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgekit.types import Mask

if TYPE_CHECKING:
    from edgekit.results import Price

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


def decibel_change(value: float) -> str:
    """A signed difference of two ratios in dB, "+1.2 dB"."""
    if not math.isfinite(value):
        return "not finite"
    return _signed(f"{value:+.1f} dB")


def decision(precision: str, keep: float, mask: Mask) -> str:
    """What was decided for a layer, "int8" or "int8, 75 % of channels, 50 % zeros" or "int8, 16 values"."""
    kept = "" if keep >= 1 else f", {share(keep)} of channels"
    return precision + kept + (f", {weights(mask)}" if mask is not Mask.NONE else "")


def weights(mask: Mask) -> str:
    """What a layer's weights are held to, "50 % zeros" or "16 values"; "" where to nothing."""
    if mask is Mask.NONE or mask.is_codebook:
        return "" if mask is Mask.NONE else mask.value
    return "2:4 zeros" if mask is Mask.TWO_OF_FOUR else f"{mask.value.removesuffix('%')} % zeros"


def share(value: float) -> str:
    """A part of a whole, "75 %"."""
    return f"{100 * value:.3g} %"


def percent(value: float) -> str:
    """A signed share, "−2.8 %"."""
    if not math.isfinite(value):
        return "not finite"
    return _signed(f"{100 * value:+.1f} %")


def snr_db(relative_power: float) -> str:
    """A relative noise power as the output's signal-to-noise ratio, "21.3 dB"."""
    if math.isnan(relative_power) or relative_power < 0:
        return "–"
    return decibel(math.inf if relative_power == 0 else -10 * math.log10(relative_power))


def price(found: Price, share: bool) -> str:
    """What a looser budget buys, "1 MB more weights would buy 0.31 ms (8.74 ms instead of 9.05 ms)"; "" where a figure
    is not known. ``share`` says whether the metric reads as a percentage.
    """
    if not all(map(math.isfinite, (found.step, found.now, found.then))):
        return ""
    step, of = _step(found, share)
    said = {"latency_ms": ms, "loss": snr_db, "weight_bytes": size, "memory_bytes": size}.get(found.buys, _number)
    now, then = said(found.now), said(found.then)
    if now == then or found.then > found.now:
        return f"{step} more{of} would buy nothing"
    if found.buys == "loss":
        return f"{step} more{of} would raise the output SNR from {now} to {then}"
    what = {"weight_bytes": " of weights", "memory_bytes": " of memory"}.get(found.buys, "")
    return f"{step} more{of} would buy {said(found.now - found.then)}{what} ({then} instead of {now})"


def _step(found: Price, share: bool) -> tuple[str, str]:
    """("1 MB", " of weights"): a budget's step and what it is a step of."""
    match found.budget:
        case "latency" | "latency_ms":
            return f"{found.step:.3g} ms", ""
        case "size" | "weight_bytes":
            return _round_size(found.step), " of weights"
        case "memory" | "memory_bytes":
            return _round_size(found.step), " of memory"
        case "max_drop":
            points = f"{100 * found.step:.3g} point{'' if found.step == 0.01 else 's'}"
            return points if share else _number(found.step), " of drop"
        case "noise":
            return f"{found.step:.3g} dB", " of noise"
    return _number(found.step), f" of {found.budget}"


def _round_size(value: float) -> str:
    """ "1 MB": a step is a round number."""
    number, _, unit = size(value).partition(" ")
    return f"{float(number):g} {unit}"


def _number(value: float) -> str:
    return _signed(f"{value:.3g}")


def _three_digits(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return _signed(f"{value:.{max(0, min(digits, 4))}f}")


def _signed(text: str) -> str:
    text = text.removeprefix("-") if float(text.split()[0]) == 0 else text
    return text.replace("-", MINUS)
