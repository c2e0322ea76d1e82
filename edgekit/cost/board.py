"""From the latencies of the small networks (`edgekit.cost.micro`) on one board to the costs of its device profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from edgekit.cost.fit import Cell, Coefficients, Priors, Row, fit
from edgekit.cost.interval import Score, factor
from edgekit.cost.kernels import Kernel, Surface, kernel_of, merged, split
from edgekit.cost.profile import units
from edgekit.cost.work import FEATURES, Units, Work, element_bytes, features, macs_by_kind
from edgekit.entries import Costs, DeviceProfile, Memory, Processor
from edgekit.types import Precision

_STEPS = (1, 2, 4, 8, 16, 32, 64)
# A step must explain this much more than smooth growth does: share of the squared errors that it may leave.
_CLEAR = 0.5
_LEAST_SPREAD = 0.03  # what races of one network differ by
# One board's own rows are many and little disturbed: they may move every coefficient of it far.
_PRIORS = Priors(kind=1.0, precision=0.4, cell_feature=0.4, noise=0.05)


@dataclass(frozen=True)
class Timed:
    """A network that was measured. ``crossed_elements`` pass between int8 and float, the model's input too.
    ``together``: places of kernels that were executed as one, with their milliseconds. ``floats``: layers that stay
    float in an int8 network.
    """

    network: str
    precision: Precision
    work: tuple[Work, ...]
    crossed_elements: int
    latency_ms: float
    together: tuple[tuple[tuple[int, ...], float], ...] = ()
    floats: frozenset[str] = frozenset()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole."""
        return sum(one.macs for one in self.work)

    @property
    def elements(self) -> int:
        """Activation elements that its kernels read and write."""
        return sum(one.input_elements + one.output_elements for one in self.work)


@dataclass(frozen=True)
class Fit:
    """The costs by precision, and what held-out networks showed: one score for each measured one."""

    costs: tuple[Costs, ...]
    scores: tuple[Score, ...]


def with_facts(profile: DeviceProfile, timed: Sequence[Timed], cpu: str, cores: int, threads: int) -> DeviceProfile:
    """The profile with the processor and the memory that costs are relative to. Facts that it has are kept; where it
    lacks some, the best that a small network reached stands for the theoretical best.
    """
    best = {
        precision: max(one.macs / one.latency_ms for one in timed if one.precision is precision) / 1e6 * cores / threads
        for precision in dict.fromkeys(one.precision for one in timed)
    }
    known = profile.part("cpu")
    if known is None:
        part = Processor(cpu, "cpu", profile.name, {p: _rounded(gmacs) for p, gmacs in best.items()}, cores)
    else:
        more = {p: _rounded(gmacs) for p, gmacs in best.items() if p not in known.peak_gmacs}
        part = replace(known, peak_gmacs={**known.peak_gmacs, **more})
    others = tuple(one for one in profile.processors if one.kind != "cpu")
    memory = profile.memory or Memory(_rounded(bandwidth_gbs(timed)), ())
    return replace(profile, memory=memory, processors=(part, *others))


def bandwidth_gbs(timed: Sequence[Timed]) -> float:
    """The most bytes a second, in 1e9, of weights and activations that any small network moved."""
    return max(
        (one.elements + sum(kernel.weight_elements for kernel in one.work)) * element_bytes(one.precision)
        / one.latency_ms / 1e6
        for one in timed
    )  # fmt: skip


def fit_costs(profile: DeviceProfile, runtime: str, threads: int, timed: Sequence[Timed], source: str) -> Fit:
    """The costs of the board's CPU with that runtime and thread count. ``profile`` has its facts (`with_facts`);
    ``source`` says what was measured and when, and goes before the errors in each row's evidence.
    """
    part = profile.part("cpu")
    assert part is not None  # with_facts gave one
    rows = []
    uniform = [one for one in timed if not one.floats]  # a network in two precisions tells of neither's sum
    for one in uniform:
        cell = Cell(profile.name, part.architecture, "cpu", one.precision, threads)
        given = units(profile, part, one.precision, threads)
        rows.append(Row(cell, one.network, total_features(one, given), one.latency_ms))
    cells = list(dict.fromkeys(row.cell for row in rows))
    costs, scores = [], []
    with threadpool_limits(1, user_api="blas"):  # many small systems: threads would wait for each other
        fitted = fit(rows, cells, _PRIORS)
        for cell in cells:
            given = units(profile, part, cell.precision, threads)
            mine = [(row, one) for row, one in zip(rows, uniform, strict=True) if row.cell == cell]
            mixed = [one for one in timed if one.floats and one.precision is cell.precision]
            kernels, judged = _learn(mine, mixed, fitted[cell], given)
            errors = [score.relative_error for score in judged]
            said = f"median error {np.median(errors):.0%}, 90 % within {np.quantile(errors, 0.9):.0%}"
            evidence = f"{len(mine)} networks {source}; each left out in turn: {said}"
            networks = [one for _, one in mine]
            spread = _spread(judged)
            scores += [replace(score, deviation=float(np.hypot(score.deviation, spread))) for score in judged]
            interval = factor(scores[-len(judged) :])
            costs.append(_costs(cell, runtime, fitted[cell], networks, evidence, interval, spread, kernels))
    return Fit(tuple(costs), tuple(scores))


def _learn(
    mine: Sequence[tuple[Row, Timed]], mixed: Sequence[Timed], found: Coefficients, given: Units
) -> tuple[tuple[Kernel, ...], list[Score]]:
    """The kernels of the networks of one precision, and how far off each network is by the kernels of the others."""
    beta = np.exp(found.log_mean)
    kernels: list[Kernel] = []
    expected_ms: list[float] = []
    places: list[range] = []
    for one in (*(one for _, one in mine), *mixed):
        expected = features(one.work, given) @ beta
        times = split(one.together, expected)
        times *= max(one.latency_ms - beta[0], one.latency_ms / 2) / times.sum()
        named = [k for k, kernel in enumerate(one.work) if kernel.layer not in one.floats]
        places.append(range(len(kernels), len(kernels) + len(named)))
        kernels += [kernel_of(one.work[k], float(times[k]), float(expected[k])) for k in named]
        expected_ms += [float(expected[k]) for k in named]
    learnt = Surface(kernels)
    scores = []
    for (row, _), taken in zip(mine, places, strict=False):
        logs, covariance = learnt.left_out(taken)
        parts = np.array(expected_ms[taken.start : taken.stop]) * np.exp(logs)
        value = beta[0] + float(parts.sum())
        deviation = float(np.sqrt(parts @ covariance @ parts)) / value
        scores.append(Score(row, row.family, float(np.log(row.latency_ms / value)), deviation))
    return merged(kernels), scores


def _spread(scores: Sequence[Score]) -> float:
    """What networks differ by that their kernels do not say: standard deviation of the logarithm."""
    typical = 1.4826 * float(np.median([abs(score.log_error) for score in scores]))
    kernels = float(np.median([score.deviation for score in scores]))
    return float(np.sqrt(max(typical**2 - kernels**2, _LEAST_SPREAD**2)))


def total_features(one: Timed, given: Units) -> np.ndarray:
    """Its features as `edgekit.cost.profile` counts those of a network that it predicts."""
    total: np.ndarray = features(one.work, given).sum(axis=0)
    total[0] = 1.0
    if one.precision is Precision.INT8:
        total[FEATURES.index("activation_bytes")] += one.crossed_elements * 5 / given.bytes_per_ms
    return total


def channel_step(latency_ms: Mapping[int, float]) -> int | None:
    """The multiple that a board rounds channels up to, from the latencies of networks that differ in their channels
    alone; None where they grow too smoothly to tell. Each step is judged by how well a power of the rounded counts
    explains the latencies.
    """
    counts = np.array(sorted(latency_ms), float)
    measured = np.log([latency_ms[int(count)] for count in counts])
    left = {}
    for step in _STEPS:
        rounded = np.log(np.ceil(counts / step) * step)
        if len(set(rounded)) > 1:
            slope, offset = np.polyfit(rounded, measured, 1)
            left[step] = float(((measured - offset - slope * rounded) ** 2).sum())
    best = min(left, key=left.__getitem__)
    return best if left[best] <= _CLEAR * left[1] else None


def _costs(
    cell: Cell,
    runtime: str,
    found: Coefficients,
    timed: Sequence[Timed],
    evidence: str,
    interval: float,
    spread: float,
    kernels: Sequence[Kernel],
) -> Costs:
    # A network is a chain of such kernels: one as large as all of them together is not outside what was measured.
    macs = [one.macs for one in timed if one.macs]
    elements = [one.elements for one in timed]
    return Costs(
        runtime=runtime,
        processor="cpu",
        precision=cell.precision,
        rows=len(timed),
        evidence=evidence,
        factors={name: float(f"{np.exp(mean):.4g}") for name, mean in zip(FEATURES, found.log_mean, strict=True)},
        covariance=tuple(" ".join(f"{v:.4f}" for v in row[: i + 1]) for i, row in enumerate(found.covariance)),
        spread=round(spread, 4),
        interval=round(interval, 3),
        kinds=tuple(sorted({kind for one in timed for kind in macs_by_kind(one.work)})),
        macs=(float(min(macs)), float(sum(macs))),
        elements=(float(min(elements)), float(sum(elements))),
        threads=cell.threads,
        kernels=tuple(map(str, kernels)),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
