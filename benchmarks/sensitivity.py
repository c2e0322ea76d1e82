"""Ways to tell what int8 costs each layer of a model: how long the table takes, and how well sums of it rank plans.

    python -m benchmarks.sensitivity [NAME ...] [--plans N] [--judging N] [--nncf-python PATH] [--json FILE]

Each way fills one table, a loss for each layer, from calibration samples. Random plans put each layer into int8 with a
chance of their own, and run on evaluation samples: their noise at the model's outputs is compared with the sum of their
layers' losses by Spearman's rank correlation, over plans of all sizes and over plans that quantize about half of the
layers (size alone ranks the former), and over plans that do so but leave the loudest tenth in float, as plans that keep
a metric do. Where a Softmax makes the output, noise is measured at its logits too. The row ``ceiling`` is how well the
noise on every second sample ranks the noise on the rest: no table can be held to more. Where layers read rows that
repeat (`benchmarks.flats`), the last rows tell how it is with biases corrected for them, in tables and plans alike;
edgekit does not do so. The ways:

- ``edgekit``: relative noise power at the outputs, one layer quantized at a time, where only what depends on the layer
  runs again; what edgekit plans with;
- ``whole model``: the same, and the whole model runs for each layer;
- ``typical sample``: the geometric mean over samples instead of the mean, which one odd sample can make;
- ``logits``: noise at what the final Softmax reads, without the mean of each row, which Softmax does not see;
- ``leave one out``: what one layer adds to the noise of all others in int8;
- ``KL``: Kullback-Leibler divergence of the outputs' last axis instead of their noise;
- ``own result``: relative noise power of the layer's own result, all layers in one pass;
- ``Fisher``: that noise weighted with the squared gradient of the outputs in random directions (as in HAWQ-V2,
  https://arxiv.org/abs/1911.03852, and Theis et al., https://arxiv.org/abs/1801.05787); needs the torch extra.

Times are of one thread. PATH is the Python of an environment with benchmarks/requirements.txt: the process of NNCF's
default quantization from the same samples is timed beside.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.flats import find_flats, flat_shifts
from benchmarks.jobs import names_of, open_job, parser
from benchmarks.peers import nncf_ptq
from benchmarks.peers.samples import write_calibration
from benchmarks.zoo import prepare
from edgekit.backends import able
from edgekit.compress.cures import shifted
from edgekit.compress.pieces import part_of
from edgekit.compress.qdq import apply_precisions
from edgekit.compress.ranges import observed
from edgekit.errors import EdgekitError
from edgekit.files.replacing import require_writable, write_text
from edgekit.graph import Graph, to_bytes
from edgekit.progress import OnConsole
from edgekit.recipes.samples import Dataset, spread
from edgekit.sensitivity import (
    SENSITIVITY_SAMPLES,
    losses_of,
    relative_noise_power,
    sample_losses,
    trial_session,
)
from edgekit.types import Precision
from edgekit.workbench.stages import Workbench
from examples.packages import PackageError

Outputs = Mapping[str, np.ndarray]
Measure = Callable[[Outputs, Outputs], float]
Estimate = Callable[["Case"], dict[str, float]]

COLUMNS = tuple(f"{kind}, {place}" for kind in ("any share", "half", "half, quiet") for place in ("outputs", "logits"))
"""Which plans are ranked, by their noise where."""

_DIRECTIONS = 4
# A quiet plan leaves one layer of so many in float, the loudest ones.
_LOUD = 10


@dataclass(frozen=True)
class Case:
    """One model, its int8 layers, what their biases gain, and the samples to estimate on."""

    graph: Graph
    names: tuple[str, ...]
    ranges: Mapping[str, Any]
    samples: Dataset
    shifts: Mapping[str, np.ndarray] = field(default_factory=dict)

    def quantized(self, names: Sequence[str]) -> Any:
        """The model with these layers in int8."""
        graph = shifted(self.graph, {name: self.shifts[name] for name in names if name in self.shifts})
        return apply_precisions(graph, dict.fromkeys(names, Precision.INT8), self.ranges)


@dataclass(frozen=True)
class Row:
    """One way on one model; ``none`` says why there is none."""

    model: str
    way: str
    samples: int
    seconds: float | None = None
    ranks: Mapping[str, float] = field(default_factory=dict)
    none: str = ""


def by_edgekit(case: Case) -> dict[str, float]:
    """What edgekit plans with."""
    return losses_of(case.graph, lambda name: case.quantized([name]), case.names, case.samples)


def by_output(case: Case, measure: Measure = relative_noise_power) -> dict[str, float]:
    """One layer quantized at a time, the whole model run."""
    samples, references = _references(case.graph, case.samples)
    return {name: _noise(to_bytes(case.quantized([name])), samples, references, measure) for name in case.names}


def by_typical_sample(case: Case) -> dict[str, float]:
    """As edgekit's, but the geometric mean over samples."""
    noise = sample_losses(case.graph, [case.quantized([name]) for name in case.names], case.samples)
    return dict(zip(case.names, np.exp(np.log(noise).mean(axis=1)), strict=True))


def by_logits(case: Case) -> dict[str, float]:
    """As `by_output`, at what the final Softmax reads."""
    if not _logits(case.graph):
        raise RuntimeError("no output is made by a Softmax")
    return dict(zip(case.names, noises(case, [(name,) for name in case.names])["logits"].mean(axis=1), strict=True))


def by_omission(case: Case) -> dict[str, float]:
    """The noise of all layers in int8 without that of all but one; never negative."""
    samples, references = _references(case.graph, case.samples)

    def noise(names: Sequence[str]) -> float:
        return _noise(to_bytes(case.quantized(names)), samples, references, relative_noise_power)

    together = noise(case.names)
    return {name: max(0.0, together - noise([one for one in case.names if one != name])) for name in case.names}


def by_divergence(case: Case) -> dict[str, float]:
    """As `by_output`, with another measure."""
    return by_output(case, divergence)


def by_own_result(case: Case) -> dict[str, float]:
    """Relative noise power of each layer's own result on float inputs."""
    totals = dict.fromkeys(case.names, 0.0)
    for _, errors in _own_errors(case):
        for name, (error, result) in errors.items():
            totals[name] += float((error**2).sum() / max((result**2).sum(), 1e-30))
    return {name: total / len(case.samples) for name, total in totals.items()}


def by_gradient(case: Case) -> dict[str, float]:
    """The squared error of each layer's own result, weighted with squared gradients of the outputs."""
    gradients = _gradients(case)
    totals = dict.fromkeys(case.names, 0.0)
    for sample, errors in _own_errors(case):
        for slopes in gradients(sample):
            for name, (error, _) in errors.items():
                totals[name] += float((slopes[name] ** 2 * error**2).sum()) / _DIRECTIONS
    return {name: total / len(case.samples) for name, total in totals.items()}


WAYS: tuple[tuple[str, int, Estimate], ...] = (
    ("edgekit", SENSITIVITY_SAMPLES, by_edgekit),
    ("whole model", SENSITIVITY_SAMPLES, by_output),
    ("edgekit", 4, by_edgekit),
    ("typical sample", SENSITIVITY_SAMPLES, by_typical_sample),
    ("logits", SENSITIVITY_SAMPLES, by_logits),
    ("leave one out", SENSITIVITY_SAMPLES, by_omission),
    ("KL", SENSITIVITY_SAMPLES, by_divergence),
    ("own result", SENSITIVITY_SAMPLES, by_own_result),
    ("Fisher", SENSITIVITY_SAMPLES, by_gradient),
)

CORRECTED = tuple(one for one in WAYS if one[0] in ("edgekit", "typical sample", "logits"))


def divergence(outputs: Outputs, reference: Outputs) -> float:
    """Mean Kullback-Leibler divergence of the last axis, over outputs; what is no distribution goes through softmax."""
    found = []
    for name, theirs in reference.items():
        log_p, log_q = _log_probabilities(theirs), _log_probabilities(outputs[name])
        found.append(float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()))
    return max(0.0, statistics.fmean(found))


def _log_probabilities(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    if x.min() >= 0 and np.allclose(x.sum(axis=-1), 1, atol=0.05):
        return np.asarray(np.log(np.maximum(x, 1e-9)))
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def noises(case: Case, plans: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Where noise is measured -> relative noise power [plans, samples]: at the outputs, and where they are made by a
    Softmax also at its logits, which it sees without the mean of each row.
    """
    places = {"outputs": [tensor.name for tensor in case.graph.outputs], "logits": _logits(case.graph)}
    samples = [case.samples.sample(index) for index in range(len(case.samples))]

    def values(model: ir.Model) -> list[dict[str, Outputs]]:
        run = _runner(observed(model, places["logits"]), [*places["outputs"], *places["logits"]])
        found: list[dict[str, Outputs]] = []
        for made in map(run, samples):
            logits = {name: made[name] - made[name].mean(axis=-1, keepdims=True) for name in places["logits"]}
            found.append({"outputs": {name: made[name] for name in places["outputs"]}, "logits": logits})
        return found

    references = values(case.graph.model)
    found: dict[str, list[list[float]]] = {place: [] for place in places if places[place]}
    for plan in plans:
        noisy = values(case.quantized(plan))
        for place, rows in found.items():
            rows.append([relative_noise_power(y[place], r[place]) for y, r in zip(noisy, references, strict=True)])
    return {place: np.array(rows) for place, rows in found.items()}


def _logits(graph: Graph) -> list[str]:
    makers = {value.name: node for node in graph.model.graph for value in node.outputs}
    last = [makers[tensor.name] for tensor in graph.outputs if tensor.name in makers]
    return [node.inputs[0].name or "" for node in last if node.op_type == "Softmax" and node.inputs[0] is not None]


def _references(graph: Graph, dataset: Dataset) -> tuple[list[Outputs], list[Outputs]]:
    samples: list[Outputs] = [dataset.sample(index) for index in range(len(dataset))]
    run = _runner(to_bytes(graph.model), [tensor.name for tensor in graph.outputs])
    return samples, [run(sample) for sample in samples]


def _noise(model: bytes, samples: Sequence[Outputs], references: Sequence[Outputs], measure: Measure) -> float:
    run = _runner(model, list(references[0]))
    return statistics.fmean(measure(run(x), y) for x, y in zip(samples, references, strict=True))


def _runner(model: bytes, names: Sequence[str]) -> Callable[[Outputs], dict[str, np.ndarray]]:
    session = trial_session(model)
    return lambda sample: dict(zip(names, session.run(list(names), dict(sample)), strict=True))


def _with_all(names: set[str], graph: Graph) -> Callable[[Outputs], dict[str, np.ndarray]]:
    """Runs the float model, and gives these tensors of it, which may be its inputs."""
    inner = sorted(names - {tensor.name for tensor in graph.inputs})
    run = _runner(observed(graph.model, inner), inner)
    return lambda sample: {**sample, **run(sample)}


def _own_errors(case: Case) -> Iterator[tuple[Outputs, dict[str, tuple[np.ndarray, np.ndarray]]]]:
    """Sample after sample: layer -> what int8 changes in its result, and the result."""
    nodes = {node.name: node for node in case.graph.model.graph}
    floats = {value.name or "" for node in nodes.values() for value in node.outputs}
    floats |= {tensor.name for tensor in case.graph.inputs}
    results = {name: nodes[name].outputs[0].name or "" for name in case.names}
    parts = {name: part_of(case.quantized([name]), floats - {results[name]}, [results[name]]) for name in case.names}
    sessions = {name: trial_session(part.model) for name, part in parts.items()}
    run = _with_all({read for part in parts.values() for read in part.reads} | set(results.values()), case.graph)
    for index in range(len(case.samples)):
        sample = case.samples.sample(index)
        values = run(sample)
        errors = {}
        for name, part in parts.items():
            result = values[results[name]]
            (found,) = sessions[name].run(part.results, {key: values[key] for key in part.reads})
            errors[name] = (found - result, result)
        yield sample, errors


def _gradients(case: Case) -> Callable[[Outputs], Iterator[dict[str, np.ndarray]]]:
    """For a sample: the outputs' slope along random directions in each layer's result, direction after direction."""
    torch, convert = import_module("torch"), import_module("onnx2torch").convert  # the torch extra
    model = onnx.load_from_string(to_bytes(case.graph.model))
    results = {node.name: node.output[0] for node in model.graph.node if node.name in case.names}
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    shapes |= {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.output}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name in results:
            kept = node.output[0]
            node.output[0] = f"{kept}/float"
            nodes.append(onnx.helper.make_node("Add", [f"{kept}/float", f"{kept}/noise"], [kept], name=f"{kept}/add"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for kept in results.values():
        model.graph.input.append(onnx.helper.make_tensor_value_info(f"{kept}/noise", 1, shapes[kept]))
    network = convert(model).eval()
    zeros = [torch.zeros(shapes[kept], requires_grad=True) for kept in results.values()]
    generator = torch.Generator().manual_seed(0)

    def slopes(sample: Outputs) -> Iterator[dict[str, np.ndarray]]:
        made = network(*(torch.from_numpy(sample[tensor.name]) for tensor in case.graph.inputs), *zeros)
        outputs = [y for y in (made if isinstance(made, list | tuple) else [made]) if y.requires_grad]
        for _ in range(_DIRECTIONS):
            ways = [torch.randn(y.shape, generator=generator) / (y.detach().norm() + 1e-12) for y in outputs]
            along = sum((v * y).sum() for v, y in zip(ways, outputs, strict=True))
            found = torch.autograd.grad(along, zeros, retain_graph=True)
            yield {name: slope.numpy() for name, slope in zip(results, found, strict=True)}

    return slopes


def random_plans(names: Sequence[str], count: int, half: bool) -> list[tuple[str, ...]]:
    """Layers in int8, plan by plan: each layer with a chance that is a half, or the plan's own."""
    rng = np.random.default_rng(1 if half else 0)
    chances = np.full(count, 0.5) if half else rng.uniform(0.05, 0.95, count)
    return [tuple(name for name in names if rng.random() < chance) for chance in chances]


def quiet(losses: Mapping[str, float]) -> list[str]:
    """All layers but the loudest tenth, in their order."""
    loud = sorted(losses, key=lambda name: -losses[name])[: max(1, len(losses) // _LOUD)]
    return [name for name in losses if name not in loud]


def _rank(predicted: Any, measured: Any) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(predicted, measured).statistic)


def bench_model(
    name: str,
    zoo: Path,
    target: str,
    overlays: list[Path],
    plans: int,
    judging: int,
    nncf: Path | None,
    log: Console,
) -> list[Row]:
    """The rows of one model."""
    entry = prepare(name, zoo)
    job = open_job(entry, target, overlays, OnConsole(log), 0.01)
    names = able(job.graph, job.device.backend, Precision.INT8)
    bench = Workbench(job)
    begun = time.perf_counter()
    samples = spread(job.data.calibration, SENSITIVITY_SAMPLES)
    shifts = flat_shifts(job.graph, find_flats(job.graph, names, bench.ranges, samples), bench.ranges)
    rows = [Row(name, "find what repeats", SENSITIVITY_SAMPLES, time.perf_counter() - begun)]
    case = Case(job.graph, names, bench.ranges, spread(job.data.evaluation, judging))
    rows += _ranked(name, case, job.data.calibration, WAYS, plans, log)
    if shifts:
        found = _ranked(name, replace(case, shifts=shifts), job.data.calibration, CORRECTED, plans, log)
        rows += [replace(row, way=f"{row.way}, biases corrected") for row in found]
    if nncf is not None:
        rows.append(_timed_nncf(name, entry.model, bench, nncf))
    return rows


def _ranked(
    name: str,
    judged: Case,
    calibration: Dataset,
    ways: Sequence[tuple[str, int, Estimate]],
    plans: int,
    log: Console,
) -> list[Row]:
    """The ceiling's row and one for each way, held against what random plans do on the samples of ``judged``."""
    rows, tables = [], {}
    for way, count, estimate in ways:
        begun = time.perf_counter()
        try:
            tables[way, count] = estimate(replace(judged, samples=spread(calibration, count)))
        except (ImportError, RuntimeError) as error:
            rows.append(Row(name, way, count, none=" ".join(str(error).split())[:200]))
            continue
        rows.append(Row(name, way, count, time.perf_counter() - begun))
        log.print(f"{name}, {way}, {count} samples: {rows[-1].seconds:.1f} s", markup=False)
    known = tables.get(("logits", SENSITIVITY_SAMPLES)) or tables["edgekit", SENSITIVITY_SAMPLES]
    drawn = {
        "any share": random_plans(judged.names, plans, half=False),
        "half": random_plans(judged.names, plans, half=True),
        "half, quiet": random_plans(quiet(known), plans, half=True),
    }
    ceiling: dict[str, float] = {}
    ranks: dict[tuple[str, int], dict[str, float]] = {one: {} for one in tables}
    for kind, some in drawn.items():
        for place, noise in noises(judged, some).items():
            column = f"{kind}, {place}"
            ceiling[column] = _rank(noise[:, ::2].mean(axis=1), noise[:, 1::2].mean(axis=1))
            for one, losses in tables.items():
                ranks[one][column] = _rank([sum(losses[layer] for layer in plan) for plan in some], noise.mean(axis=1))
        log.print(f"{name}: {len(some)} plans measured, {kind}", markup=False)
    rows = [replace(row, ranks=ranks.get((row.way, row.samples), {})) for row in rows]
    return [Row(name, "ceiling", len(judged.samples) // 2, None, ceiling), *rows]


def _timed_nncf(name: str, model: Path, bench: Workbench, python: Path) -> Row:
    count = len(bench.job.data.calibration)
    with tempfile.TemporaryDirectory() as folder:
        stored = write_calibration(bench.job, Path(folder))
        try:
            begun = time.perf_counter()
            nncf_ptq.quantize(model, stored, Path(folder) / "out.xml", python)
        except RuntimeError as error:
            return Row(name, "NNCF default PTQ", count, none=str(error)[:200])
        return Row(name, "NNCF default PTQ", count, time.perf_counter() - begun)


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    made = Table(box=box.MARKDOWN)
    for column in ("model", "way", "samples", "s", *COLUMNS):
        made.add_column(column, justify="left" if column in ("model", "way") else "right", overflow="fold")
    for row in rows:
        shown = ["none" if row.none else f"{row.ranks[one]:.2f}" if one in row.ranks else "-" for one in COLUMNS]
        made.add_row(row.model, row.way, str(row.samples), "-" if row.seconds is None else f"{row.seconds:.1f}", *shown)
    return made


def main() -> int:
    """The program."""
    made = parser("python -m benchmarks.sensitivity", __doc__ or "")
    made.add_argument("--plans", type=int, default=40, metavar="N", help="random plans of each kind")
    judging = 2 * SENSITIVITY_SAMPLES
    made.add_argument("--judging", type=int, default=judging, metavar="N", help="evaluation samples they run on")
    made.add_argument("--nncf-python", type=Path, metavar="PATH")
    arguments = made.parse_args()
    log, console = Console(stderr=True), Console(width=120)
    if arguments.json:
        require_writable(arguments.json)
    rows: list[Row] = []
    for name in names_of(arguments, made):
        try:
            rows += bench_model(
                name,
                arguments.zoo,
                arguments.target,
                arguments.overlay,
                arguments.plans,
                arguments.judging,
                arguments.nncf_python,
                log,
            )
        except (EdgekitError, PackageError, ImportError, OSError) as error:
            log.print(f"{name}: {error}", markup=False)
            rows.append(Row(name, "edgekit", 0, none=str(error)))
    console.print(table(rows))
    for row in rows:
        if row.none:
            console.print(f"{row.model}, {row.way}: none: {row.none}", markup=False, highlight=False)
    if arguments.json:
        write_text(arguments.json, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 1 if any(row.way == "edgekit" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
