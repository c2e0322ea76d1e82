"""The shorter commands on a terminal: inspect, targets, predict, plan, bench."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgekit import conditions
from edgekit.reporting import channels, wording
from edgekit.reporting.verdict import is_share
from edgekit.reporting.wording import plain
from edgekit.types import Conformance, Figure, Kind, Mask

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.api import BenchResult
    from edgekit.catalog import DeviceProfile, Target
    from edgekit.inspection import Inspection
    from edgekit.outcome import PlanResult
    from edgekit.prediction import PredictedCost, Predictions
    from edgekit.results import Round
    from edgekit.types import Latency

MOST_ROWS = 40


def table(columns: Sequence[str], numbers: Iterable[str] = ()) -> Table:
    """A table without a frame; the columns named in ``numbers`` are aligned to the right."""
    right = set(numbers)
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            Text(plain(column)),
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=column in right,
        )
    return made


def add(rows: Table, *cells: str, style: str = "") -> None:
    """Add a row of plain text: no markup and no emoji in it, whatever a layer is called."""
    rows.add_row(*(Text(plain(cell)) for cell in cells), style=style)


def say(console: Console, markup: str) -> None:
    """Print a line of markup; names in it go through `safe`."""
    console.print(markup, highlight=False, emoji=False)


def safe(text: str) -> str:
    """A name from a model or a file as markup that shows it as it is."""
    return escape(plain(text))


def count(value: float) -> str:
    """1_234_567 -> 1.23 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def figure(value: Figure, unit: str) -> str:
    """A figure with its interval and its kind, as it must always be printed."""
    if value.value is None:
        return f"none ({safe(value.source)})"
    if value.low is None or value.high is None:
        return f"{value.value:.3g} {unit} ({value.kind.value})"
    interval = "90 % interval " if value.kind is Kind.PREDICTED else ""
    return f"{value.value:.3g} {unit} ({value.kind.value}, {interval}{value.low:.3g}..{value.high:.3g})"


def print_inspection(found: Inspection, console: Console) -> None:
    """Totals first, then the layers."""
    say(console, f"[bold]{safe(found.model)}[/]  sha256 {found.sha256[:16]}")
    for kind, tensors in (("in ", found.inputs), ("out", found.outputs)):
        for tensor in tensors:
            shape = "x".join(map(str, tensor.shape))
            say(console, f"{kind}  {safe(tensor.name)}  {tensor.dtype} {safe(shape)}")
    say(
        console,
        f"{len(found.layers)} layers · {count(found.macs)} MACs · {count(found.weight_bytes)}B weights · "
        f"{count(found.peak_activation_bytes)}B peak activations (float32)",
    )
    optional = any(layer.options for layer in found.layers)
    columns = ["layer", "operator", "MACs", "weights", *(["may try"] if optional else [])]
    rows = table(columns, ("MACs", "weights"))
    for layer in found.layers:
        options = [" ".join(precision.value for precision in layer.options)] if optional else []
        add(rows, layer.name, layer.op_type, count(layer.macs), f"{count(layer.weight_bytes)}B", *options)
    console.print(rows)
    if found.groups:
        total = sum(group.channels for group in found.groups)
        say(console, f"\n{len(found.groups)} channel groups, {total} channels that can go:")
        rows = table(("group", "channels", "made by", "read by"), ("channels",))
        for group in found.groups:
            names = (channels.few(group.producers), channels.few(group.consumers))
            add(rows, group.name, str(group.channels), *names)
        console.print(rows)
    for row in channels.fixed_rows(found.fixed):
        say(console, f"cannot be pruned: {safe(channels.few(row.layers))}: {safe(row.reason)}")


def print_targets(targets: Iterable[Target], console: Console) -> None:
    """One line a board."""
    rows = table(("target", "backend", "is", "description"))
    for target in targets:
        add(rows, target.name, target.backend, "here" if target.transport == "local" else "a board", target.description)
    console.print(rows)


def print_target(target: Target, profile: DeviceProfile, lacking: Mapping[str, str], console: Console) -> None:
    """Everything that is known about a board, with its sources; ``lacking``: option -> why it has it not."""
    say(console, f"[bold]{safe(target.name)}[/]  {safe(target.description)}")
    rows = table(("", ""))
    add(rows, "backend", f"{target.backend} ({target.runtime})" if target.runtime else target.backend)
    add(rows, "reached by", target.transport)
    add(rows, "threads", str(target.threads))
    add(rows, "may try", ", ".join(precision.value for precision in target.precisions))
    if target.sparsity:
        add(rows, "sparsity", ", ".join(target.sparsity))
    if target.accelerator:
        add(rows, "runs on", f"{target.accelerator}; what that does not compute, on the GPU")
    for number, (option, why) in enumerate(lacking.items()):
        add(rows, "" if number else "not offered", f"{option}: {why}")
    add(rows, "device profile", f"{profile.name}: {profile.description}")
    add(rows, "channel step", str(profile.channel_step))
    add(rows, "prediction", f"90 % interval of ±{profile.prediction_error:.0%}")
    add(rows, "evidence", profile.evidence)
    for number, source in enumerate(profile.sources):
        add(rows, "" if number else "sources", source)
    console.print(rows)


def print_prediction(found: PredictedCost, console: Console) -> None:
    """Totals with their interval, then the dearest layers."""
    say(console, f"[bold]{safe(found.model)}[/] on {safe(found.target)}")
    say(console, f"latency  {figure(found.latency_ms, 'ms')}")
    say(
        console,
        f"weights  {count(found.weight_bytes)}B · peak activations {count(found.peak_activation_bytes)}B",
    )
    say(console, f"evidence {safe(found.profile.evidence)}")
    for note in found.notes:
        say(console, f"note     {safe(note)}")
    rows = table(("layer", "operator", "precision", "ms"), ("ms",))
    dearest = sorted(found.layers, key=lambda layer: -layer.latency_ms)[:MOST_ROWS]
    for layer in dearest:
        latency = f"{layer.latency_ms:.4f}" if math.isfinite(layer.latency_ms) else "none"
        add(rows, layer.name, layer.op_type, layer.precision.value, latency)
    console.print(rows)
    if len(found.layers) > len(dearest):
        say(console, f"and {len(found.layers) - len(dearest)} cheaper layers")


def print_predictions(found: Predictions, console: Console) -> None:
    """A row for each board, the fastest first; those without a number, and why, below."""
    rows = table(
        ("target", "ms", "90 % interval", "weights", "peak activations"), ("ms", "weights", "peak activations")
    )
    numbered = [(one.latency_ms.value, one) for one in found.boards if one.latency_ms.value is not None]
    for value, one in sorted(numbered, key=lambda row: row[0]):
        low, high = one.latency_ms.low, one.latency_ms.high
        reach = "" if low is None or high is None else f"{low:.3g}..{high:.3g}"
        bytes_ = (f"{count(one.weight_bytes)}B", f"{count(one.peak_activation_bytes)}B")
        add(rows, one.target, f"{value:.3g}", reach, *bytes_)
    say(console, f"[bold]{safe(found.model)}[/], latency predicted from what was measured on each board or its like")
    console.print(rows)
    why: dict[str, list[str]] = {}
    for one in found.boards:
        if one.latency_ms.value is None:
            why.setdefault(one.latency_ms.source, []).append(one.target)
    for name, reason in found.refused.items():
        why.setdefault(reason, []).append(name)
    for reason, names in why.items():
        say(console, f"none for {safe(', '.join(names))}: {safe(reason)}")


def print_plan(found: PlanResult, console: Console) -> None:
    """The plan's totals, what was decided for each layer, and why."""
    predicted = found.plan.predicted
    say(console, f"[bold]plan for {safe(found.model.name)}[/] on {safe(found.target)}")
    say(console, f"latency  {figure(predicted.latency_ms, 'ms')}")
    say(
        console,
        f"weights  {count(predicted.weight_bytes)}B · peak activations {count(predicted.peak_activation_bytes)}B",
    )
    say(
        console,
        f"metric   {safe(found.metric.name)}: float {found.metric.value:.4f}, the plan loses {found.drop:+.4f} "
        f"(measured on {found.metric.n} samples)",
    )
    binding = ", ".join(found.plan.binding) or "none"
    gap = "optimal" if not found.plan.gap else f"optimal within {100 * found.plan.gap:.2g} %"
    say(console, f"proof    {gap}; binding budgets: {binding}")
    kinds = Counter(choice.precision.value for choice in found.plan.layers)
    say(console, "layers   " + ", ".join(f"{number} {kind}" for kind, number in kinds.items()))
    if stored := channels.stored(found.plan):
        say(console, f"stored   {stored}")
    for option in found.options_dropped:
        if option.scope == "model":
            say(console, f"dropped  {safe(option.option)}: {safe(option.reason)}")
    _print_channels(found, console)
    share = is_share(found.metric)
    for number, text in enumerate(channels.prices(found.prices, share)):
        say(console, f"{'' if number else 'price':<9}{safe(text)}")
    if found.rounds:
        say(console, "")
        print_rounds(found.rounds, found.metric.name, share, console)
    say(console, "")
    _print_layers(found, console)
    for warning in found.warnings:
        say(console, f"[yellow]warning[/] {safe(warning)}")


def print_rounds(rounds: Sequence[Round], metric: str, share: bool, console: Console) -> None:
    """What each round of refinement did, and how far prediction and measurement then were apart."""
    losses = channels.has_losses(rounds)
    numbers = ("ms", *(("SNR dB",) if losses else ()), metric)
    rows = table(("round", "what was done", *numbers), ("round", *numbers))
    for row in rounds:
        times = _promised(row.predicted_ms, row.measured_ms, wording.bare_ms)
        noises = _promised(row.predicted_loss, row.measured_loss, lambda one: wording.snr_db(one).removesuffix(" dB"))
        level = "–" if row.metric is None else wording.level(row.metric, share)
        add(rows, str(row.round), row.action, times, *((noises,) if losses else ()), level)
    console.print(rows)
    say(console, "[dim]predicted → measured[/]")


def _promised(predicted: float | None, measured: float | None, said: Callable[[float], str]) -> str:
    return " → ".join("–" if value is None else said(value) for value in (predicted, measured))


def _print_channels(found: PlanResult, console: Console) -> None:
    """The channel groups that had a choice, why the others had none, and the layers that cannot be pruned."""
    groups = channels.group_rows(found.groups)
    if groups:
        say(console, f"pruning  {channels.summary(found.groups)}")
    offered = {group.name for group in found.groups if group.options or group.kept < group.channels}
    if chosen := [row for row in groups if row.name in offered]:
        say(console, "")
        numbers = ("channels", "makers", "readers", "saves ms", "loss dB")
        rows = table(("channel group", *numbers, "why"), numbers)
        for row in chosen:
            kept = f"{row.channels} → {row.kept}" if row.pruned else str(row.channels)
            noise = row.noise.removesuffix(" dB")
            add(rows, row.name, kept, str(row.makers), str(row.readers), row.saves, noise, row.reason)
        console.print(rows)
        say(console, "[dim]named after their first layer; makers and readers: layers that lose outputs and inputs[/]")
        say(console, "")
    for reason, number in Counter(group.reason for group in found.groups if group.name not in offered).most_common():
        say(console, f"whole    {number} group{'' if number == 1 else 's'}: {safe(reason or 'not offered')}")
    for fixed in channels.fixed_rows(found.fixed):
        number = len(fixed.layers)
        say(console, f"fixed    {number} layer{'' if number == 1 else 's'} cannot be pruned: {safe(fixed.reason)}")


def _print_layers(found: PlanResult, console: Console) -> None:
    """What was decided for each layer, and why; the share of its channels only where some are gone."""
    pruned = any(layer.keep < 1 for layer in found.layers)
    masked = any(layer.mask is not Mask.NONE for layer in found.layers)
    numbers = (*(("keep",) if pruned else ()), *(("weights",) if masked else ()), "ms", "loss dB")
    rows = table(("layer", "operator", "precision", *numbers, "why"), numbers)
    for layer in found.layers:
        loss = layer.loss[layer.precision]
        add(
            rows,
            layer.name,
            layer.op_type,
            layer.precision.value,
            *((wording.share(layer.keep) if layer.keep < 1 else "",) if pruned else ()),
            *((wording.weights(layer.mask),) if masked else ()),
            f"{layer.latency_ms[layer.precision]:.4f}" if layer.precision in layer.latency_ms else "none",
            f"{_decibel(loss):.0f}" if loss > 0 else "-",
            layer.reason,
        )
    console.print(rows)


def print_bench(found: BenchResult, console: Console) -> None:
    """The latency and what must be known to read it."""
    latency = found.latency_ms
    device = found.device["after"]
    say(
        console,
        f"{safe(found.bundle)}: p50 {latency.p50:.3g} ms{_interval(latency)}, p90 {latency.p90:.3g} ms, "
        f"p99 {latency.p99:.3g} ms "
        f"(measured, {latency.n} runs, {found.threads} thread{'s' if found.threads != 1 else ''})",
    )
    governor = device["governor"] or "governor not readable"
    warmth = "temperature not readable" if device["temperature_c"] is None else f"{device['temperature_c']:.0f} °C"
    say(
        console,
        f"{safe(device['cpu'])}, {safe(device['runtime'])}, {safe(governor)}, {warmth}, load {device['load_1min']:.1f}",
    )
    if found.conditions is not None:
        say(console, f"[dim]{safe(conditions.summary(found.conditions))}[/]")
        for warning in conditions.warnings(found.conditions):
            say(console, f"[yellow]! {safe(warning)}[/]")
    if found.conformance is not None:
        _say_conformance(found.conformance, console)


def _say_conformance(found: Conformance, console: Console) -> None:
    """Whether the engine that a board built computes in the planned types."""
    if found.unknown:
        say(console, f"runs as planned: none, {safe(found.unknown)}")
        return
    say(console, f"runs as planned: {found.matched} of {found.planned} layers")
    for one in found.mismatches[:5]:
        say(console, f"[yellow]! {safe(one.layer)}: planned {one.planned.value}, executes {safe(one.executed)}[/]")
    if len(found.mismatches) > 5:
        say(console, f"[yellow]! and {len(found.mismatches) - 5} more[/]")


def _interval(latency: Latency) -> str:
    if latency.p50_low is None or latency.p50_high is None:
        return ""
    return f" (95 % confidence {latency.p50_low:.3g}..{latency.p50_high:.3g})"


def _decibel(loss: float) -> float:
    import math

    return 10 * math.log10(loss)
