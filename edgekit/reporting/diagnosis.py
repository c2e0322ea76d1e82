"""A diagnosis on a terminal: the layers that int8 hurts, with their cures, and what is wrong with the samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.diagnosis import Diagnosis, LayerDiagnosis


def print_diagnosis(found: Diagnosis, console: Console) -> None:
    """Findings first: while the samples are wrong, so is what they say of the layers."""
    for finding in found.findings:
        console.print(Text.assemble(("samples: ", "bold"), finding.detail), highlight=False)
        console.print(Text(f"         {finding.advice}"), highlight=False)
    if not found.findings:
        console.print(f"samples: nothing odd about the {found.samples} to calibrate on", highlight=False)
    console.print(
        f"int8 on {found.target}: everything that can be {found.int8_db:.1f} dB; without the {len(found.layers)} "
        f"layers below {found.without_db:.1f} dB (signal over noise at the outputs, {found.judged_by} samples that "
        "calibration did not see)",
        highlight=False,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("share", "alone dB", "by weights"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("type", "layer", "cures"):
        table.add_column(heading, overflow="fold")
    for layer in found.layers:
        weights = "-" if layer.weights_share is None else f"{layer.weights_share:.0%}"
        cells = (f"{layer.share:.0%}", f"{layer.alone_db:.1f}", weights, layer.op_type, layer.layer, _cures(layer))
        table.add_row(*map(Text, cells))
    console.print(table, highlight=False)


def _cures(layer: LayerDiagnosis) -> str:
    found = [f"{trial.action} +{trial.gain_db:.1f} dB" for trial in layer.trials]
    return "; ".join([*found, "float"])
