"""What masks and codebooks of the weights save and lose on real models, all layers but depthwise ones held at once.

    python -m benchmarks.codebooks [NAME ...] [--samples N] [--json FILE]

``stored`` is what the compressed int8 weights of these layers take, with their scales and biases, over one byte for
each weight. ``layer dB`` is signal to noise of a layer's own result on the calibration samples, mean over layers: with
each weight at its nearest value, and with codes chosen on the moments of what the layer reads. ``model dB`` is that of
the median evaluation sample at the model's outputs, all these layers held at once and everything else in float. No row
is faster than int8: this is size only.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import names_of, open_job, parser
from benchmarks.zoo import prepare
from edgekit.compress.codebooks import can_take_codebook, hold_to_codebook
from edgekit.compress.grams import Gram
from edgekit.compress.masks import make_masks, put_masked, solve_mask
from edgekit.compress.parameters import intercept_of, weight_array
from edgekit.compress.products import matrix_of, product_of
from edgekit.compress.ranges import run_float
from edgekit.errors import EdgekitError
from edgekit.files.replacing import require_writable, write_text
from edgekit.graph import Graph
from edgekit.job import Job
from edgekit.progress import OnConsole
from edgekit.recipes.samples import spread
from edgekit.sensitivity import relative_noise_power
from edgekit.types import Mask, Precision
from edgekit.workbench.stages import Workbench
from edgekit.workbench.weights import CODEBOOKS, PATTERNS, layer_bytes
from examples.packages import PackageError

MAX_DROP = 0.01
FORMATS = tuple(mask for mask in Mask if mask not in (Mask.NONE, Mask.TWO_OF_FOUR))


@dataclass(frozen=True)
class Row:
    """One model with all its layers in one format. Levels are None for int8 itself, whose size is all that is told."""

    model: str
    format: str
    layers: int
    stored_share: float
    nearest_db: float | None
    chosen_db: float | None
    model_db: float | None


def bench_model(name: str, zoo: Path, target: str, overlays: list[Path], samples: int, log: Console) -> list[Row]:
    """The rows of one model of the zoo."""
    job = open_job(prepare(name, zoo), target, overlays, OnConsole(log), MAX_DROP)
    bench = Workbench(job)
    graph, data, grams = job.graph, spread(job.data.evaluation, samples), bench.pruner.grams
    names = tuple(name for name in can_take_codebook(graph) if name in grams)
    references = list(run_float(graph, data))
    rows = [Row(name, "int8", len(names), _stored_share(graph, names), None, None, None)]
    for mask in FORMATS:
        held = bench.masker.masked(graph, dict.fromkeys(names, mask))
        noise = [relative_noise_power(*pair) for pair in zip(run_float(held, data), references, strict=True)]
        model_db = -10 * math.log10(statistics.median(noise))
        nearest_db, chosen_db = (_layer_db(graph, one, grams, names) for one in (_nearest(job, names, mask), held))
        rows.append(Row(name, mask.value, len(names), _stored_share(held, names), nearest_db, chosen_db, model_db))
        log.print(f"{name}, {mask.value}: {rows[-1].stored_share:.3f} stored, {model_db:.1f} dB", markup=False)
    return rows


def _stored_share(graph: Graph, names: tuple[str, ...]) -> float:
    layers = [layer for layer in graph.layers if layer.name in names]
    stored = sum(layer_bytes(graph, layer, Precision.INT8) for layer in layers)
    return stored / sum(layer.weight_elements for layer in layers)


def _nearest(job: Job, names: tuple[str, ...], mask: Mask) -> Graph:
    """The same with nothing made up for by other weights."""
    if mask.is_codebook:
        found = {name: hold_to_codebook(job.graph, name, CODEBOOKS[mask], None) for name in names}
    else:
        stay = make_masks(job.graph, dict.fromkeys(names, PATTERNS[mask]), "magnitude")
        found = {name: solve_mask(job.graph, name, stay[name], None) for name in names}
    return put_masked(job.graph, found)


def _layer_db(graph: Graph, held: Graph, grams: Mapping[str, Gram], names: tuple[str, ...]) -> float:
    """Mean signal to noise of the layers' own results, biases apart."""
    nodes = {node.name or "": node for node in graph.model.graph}
    found = []
    for name in names:
        product = product_of(nodes[name])
        assert product is not None
        before, after = (
            matrix_of(product, weight_array(one.model, product.weight)).astype(np.float64) for one in (graph, held)
        )
        moments = grams[name].second[:, :-1, :-1]
        if intercept_of(nodes[name], product) is not None:
            means = grams[name].second[:, :-1, -1]
            moments = moments - means[:, :, None] * means[:, None, :]
        signal, noise = (float((one @ moments * one).sum()) for one in (before, after - before))
        found.append(10 * math.log10(signal / noise))
    return statistics.fmean(found)


def table(rows: list[Row]) -> Table:
    """The rows for people."""
    made = Table(box=box.MARKDOWN)
    for column in ("model", "format", "layers", "stored", "layer dB, nearest", "layer dB, chosen", "model dB"):
        made.add_column(column, justify="left" if column in ("model", "format") else "right")
    for row in rows:
        levels = ("–" if db is None else f"{db:.1f}" for db in (row.nearest_db, row.chosen_db, row.model_db))
        made.add_row(row.model, row.format, str(row.layers), f"{row.stored_share:.3f}", *levels)
    return made


def main() -> int:
    """The program."""
    made = parser("python -m benchmarks.codebooks", __doc__ or "")
    made.add_argument("--samples", type=int, default=64, metavar="N", help="evaluation samples at most")
    arguments = made.parse_args()
    log, console = Console(stderr=True), Console(width=150)
    if arguments.json:
        require_writable(arguments.json)
    rows: list[Row] = []
    failed = False
    for name in names_of(arguments, made):
        try:
            rows += bench_model(name, arguments.zoo, arguments.target, arguments.overlay, arguments.samples, log)
        except (EdgekitError, PackageError, ImportError, OSError) as error:
            failed = True
            log.print(f"{name}: {error}", markup=False)
    console.print(table(rows))
    if arguments.json:
        write_text(arguments.json, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
