"""Peak memory of activations: what edgekit predicts, beside what OpenVINO's memory planner allocates.

    python -m benchmarks.memory [NAME ...] [--json FILE]

Each model as it is, with half of the channels of every group removed, with all layers that have weights in int8, and
with random mixes of int8 and float; values of weights and ranges do not matter to the memory planner, so nothing is
calibrated. `benchmarks.arena` says how the block is read. What the caller holds, inputs and outputs, is known exactly
and shown apart.

OpenVINO packs these tensors, which may leave holes; the prediction packs them the same way (`edgekit.graph.packing`).
*Live* is the most that is in use at once: what the block could be if tensors could move.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.arena import arena_bytes
from benchmarks.zoo import NAMES, prepare
from edgekit.backends import openvino
from edgekit.compress.observers import Range
from edgekit.compress.prune import prune
from edgekit.compress.qdq import apply_precisions, quantization_points
from edgekit.errors import EdgekitError
from edgekit.graph import Graph, live_activation_bytes, load, peak_activation_bytes, to_bytes
from edgekit.graph.channels import find_channels
from edgekit.types import Precision
from examples.packages import PackageError

SHARES = (0.9, 0.7, 0.5, 0.3)  # of the layers in int8, in mixes


@dataclass(frozen=True)
class Row:
    """``outside_bytes`` are the caller's inputs and outputs, the others what lies between them at the peak.
    ``live_bytes`` are the most that are in use at once by the rules that the planner counts with.
    """

    model: str
    variant: str
    predicted_bytes: int
    measured_bytes: int
    outside_bytes: int
    live_bytes: int

    @property
    def error(self) -> float:
        """Of all activation memory, relative to what is measured."""
        return (self.predicted_bytes - self.measured_bytes) / (self.measured_bytes + self.outside_bytes)

    @property
    def inside_error(self) -> float:
        """Of the memory between inputs and outputs alone."""
        return self.predicted_bytes / self.measured_bytes - 1 if self.measured_bytes else 0.0


def rows_of(name: str, graph: Graph, mixes: int = 0) -> list[Row]:
    """The variants of one model; ``mixes`` of each share in int8."""
    channels = find_channels(graph)
    half = {group.name: np.arange(math.ceil(group.channels / 2)) for group in channels.groups}
    float_only: dict[str, Precision] = {}
    int8 = {
        layer.name: Precision.INT8
        for layer in graph.layers
        if layer.weights and layer.op_type in openvino.quantized_op_types[Precision.INT8]
    }
    found = [_row(name, "float", graph, float_only)]
    if half:
        found.append(_row(name, "half the channels", prune(graph, channels, half), float_only))
    found.append(_row(name, "int8", graph, int8))
    for share in SHARES:
        for number in range(1, mixes + 1):
            chance = random.Random(number)
            mix = {layer: precision for layer, precision in int8.items() if chance.random() < share}
            found.append(_row(name, f"int8 for {share:.0%}, {number}", graph, mix))
    return found


def _row(name: str, variant: str, graph: Graph, precisions: Mapping[str, Precision]) -> Row:
    ranges = {point: Range(-4.0, 4.0) for point in quantization_points(graph)}
    content = to_bytes(apply_precisions(graph, precisions, ranges))
    outside = sum(math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in (*graph.inputs, *graph.outputs))
    predicted = peak_activation_bytes(graph, precisions) - outside
    with tempfile.TemporaryDirectory() as folder:
        artifact = openvino.convert(content, Path(folder), Precision.FP32)
        measured = arena_bytes(artifact.path, openvino.hint(artifact.base))
    return Row(name, variant, predicted, measured, outside, live_activation_bytes(graph, precisions) - outside)


def table(rows: Sequence[Row]) -> Table:
    made = Table(title="Activation memory at the peak, bytes", title_justify="left", box=box.MARKDOWN)
    columns = ("model", "variant", "predicted", "OpenVINO", "error", "live", "inputs and outputs", "error of all")
    for column in columns:
        made.add_column(column, justify="left" if column in columns[:2] else "right")
    for row in rows:
        made.add_row(
            row.model,
            row.variant,
            f"{row.predicted_bytes:,}",
            f"{row.measured_bytes:,}",
            f"{row.inside_error:+.1%}",
            f"{row.live_bytes:,}",
            f"{row.outside_bytes:,}",
            f"{row.error:+.1%}",
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}, or an .onnx file")
    parser.add_argument("--zoo", type=Path, default=Path("build/zoo"), help="where models and data are or are made")
    parser.add_argument("--mixes", type=int, default=3, metavar="N", help="of each share in int8; 3 by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.names or NAMES:
        try:
            if name.endswith(".onnx"):
                graph = load(name)
            else:
                entry = prepare(name, arguments.zoo)
                graph = load(entry.model, entry.shapes)
            rows += rows_of(Path(name).stem, graph, arguments.mixes)
        except (EdgekitError, PackageError, ImportError, OSError, ValueError) as error:
            Console(stderr=True).print(f"{name}: {error}", markup=False)
            return 2
    Console(width=150).print(table(rows))
    if arguments.json:
        found = [{**asdict(row), "error": row.error, "inside_error": row.inside_error} for row in rows]
        arguments.json.write_text(json.dumps({"rows": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
