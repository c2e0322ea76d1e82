"""Two plans side by side on a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekit.reporting import wording
from edgekit.reporting.tables import add, safe, say, table

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.differences import Amount, LayerDifference, LayerOption, PlanDifference

_SHORT_DIGEST = 12
_BUDGETS: dict[str, tuple[str, wording.Wording]] = {
    "latency_ms": ("latency budget", wording.ms),
    "memory_bytes": ("memory budget", wording.size),
    "weight_bytes": ("size budget", wording.size),
    "max_drop": ("largest drop", lambda value: wording.drop(value, share=True)),
}
_TOTALS: dict[str, tuple[str, wording.Wording]] = {
    "latency_ms": ("latency", wording.ms),
    "weight_bytes": ("weights", wording.size),
    "peak_activation_bytes": ("peak activations", wording.size),
    "memory_bytes": ("memory", wording.size),
    "loss": ("output SNR", wording.snr_db),
}


def print_difference(found: PlanDifference, console: Console) -> None:
    """Totals first, then each layer and each channel group that the plans treat differently."""
    say(console, f"[bold]plans for {safe(found.model.name)}[/]")
    for name, side in (("A", found.a), ("B", found.b)):
        say(console, f"{name}  {safe(side.file)} on {safe(side.target)}, plan {side.plan_digest[:_SHORT_DIGEST]}")
    if found.same:
        say(console, "no difference")
        return
    if not (found.layers or found.groups):
        say(console, "the same decisions")
    rows = table(("", "A", "B", "change"), ("A", "B", "change"))
    if found.a.target != found.b.target:
        add(rows, "target", found.a.target, found.b.target, "")
    if found.a.compressed != found.b.compressed:
        stored = ("compressed (size only)" if side.compressed else "plain" for side in (found.a, found.b))
        add(rows, "weights stored", *stored, "")
    for amount in found.budget:
        text, said = _BUDGETS[amount.name]
        add(rows, text, _amount(amount.a, said, "none"), _amount(amount.b, said, "none"), "")
    for amount in found.totals:
        text, said = _TOTALS[amount.name]
        add(rows, text, _amount(amount.a, said, "–"), _amount(amount.b, said, "–"), _change(amount))
    console.print(rows)
    say(console, "[dim]totals are predicted[/]")
    if found.groups:
        say(console, "")
        rows = table(("channel group", "A", "B"), ("A", "B"))
        for group in found.groups:
            add(rows, group.name, f"{group.a} of {group.channels}", f"{group.b} of {group.channels}")
        console.print(rows)
    if found.layers:
        say(console, "")
        if moved := _moved(found.layers):
            say(console, f"precision changes: {moved}")
        rows = table(("layer", "operator", "A", "B"))
        for layer in found.layers:
            add(rows, layer.name, layer.op_type, _option(layer.a), _option(layer.b))
        console.print(rows)


def _amount(value: float | None, said: Callable[[float], str], nothing: str) -> str:
    return nothing if value is None else said(value)


def _change(amount: Amount) -> str:
    a, b = amount.a, amount.b
    if a is None or b is None or a == b:
        return ""
    if amount.name == "loss":
        return wording.decibel_change(10 * math.log10(a / b)) if a > 0 and b > 0 else ""
    return wording.percent(b / a - 1) if a else ""


def _moved(layers: Sequence[LayerDifference]) -> str:
    """ "12 fp32 → int8, 1 int8 → fp32": how many layers change precision, most first."""
    pairs = [(row.a.precision.value, row.b.precision.value) for row in layers if row.a and row.b]
    counts = Counter(pair for pair in pairs if pair[0] != pair[1]).most_common()
    return ", ".join(f"{number} {a} → {b}" for (a, b), number in counts)


def _option(option: LayerOption | None) -> str:
    return "not in this plan" if option is None else wording.decision(option.precision.value, option.keep, option.mask)
