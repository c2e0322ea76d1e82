"""Fits the coefficients of device profiles on published latencies of whole networks.

A latency is a sum over the kernels of a network (`edgekit.cost.work`): starts, MACs and bytes, each times a positive
coefficient, the cost of one unit relative to the device's theoretical peak. A board with five measurements cannot tell
twelve coefficients; boards of one runtime can together. So the logarithm of each coefficient is a sum of effects, of
the runtime, of the precision, of the architecture, of the board and of the one configuration, each drawn to zero by a
normal prior: rows decide where there are some, what the others have in common decides where there are none.

Fitted as the mode of the posterior by Gauss-Newton in the logarithm of the latency, with Student-t weights against bad
rows; its curvature gives the covariance of the coefficients (Laplace; Gelman et al., Bayesian Data Analysis, ch. 4, 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgekit.cost.work import FEATURES, MAC_KINDS
from edgekit.types import Precision

Array = NDArray[np.float64]
Effect = tuple[str, ...]

_ROUNDS = 40
_CLOSE = 2e-3  # of a logarithm: a fifth of a percent


@dataclass(frozen=True)
class Cell:
    """One configuration that has coefficients of its own. ``threads`` is 0 where the processor has none to set."""

    device: str
    architecture: str
    processor: str
    precision: Precision
    threads: int


@dataclass(frozen=True)
class Row:
    """One published latency: the features of its network on its device (`edgekit.cost.work.features`, summed)."""

    cell: Cell
    family: str
    features: Array
    latency_ms: float


@dataclass(frozen=True)
class Priors:
    """Standard deviations of the logarithms of the effects, and what the coefficients are before any row is seen.

    ``start_ms`` are the costs of a call, a layer and another operator by kind of processor; MACs and bytes are expected
    at ``slowdown`` times the time that the peak promises.
    """

    runtime: float = 0.5
    kind: float = 0.5
    precision: float = 0.2
    architecture: float = 0.3
    device: float = 0.4
    cell: float = 0.25
    cell_feature: float = 0.2
    family: float = 0.2
    noise: float = 0.08
    threads: float = 0.15
    freedom: float = 4.0  # of the Student-t weights: 4 still trusts the bulk
    slowdown: float = 2.0
    slower_a_doubling: float = 0.15  # logarithm of what doubling the threads costs each MAC
    start_ms: Mapping[str, tuple[float, float, float]] = field(
        default_factory=lambda: {
            "cpu": (0.05, 0.005, 0.005),
            "gpu": (0.2, 0.015, 0.01),
            "npu": (0.5, 0.005, 0.005),
            "dla": (0.5, 0.01, 0.01),
        }
    )


@dataclass(frozen=True)
class Coefficients:
    """Logarithms of the coefficients of one cell in the order of `FEATURES`, with their covariance; ``family`` and
    ``noise`` are the standard deviations that come on top for a network that no row measured.
    """

    log_mean: Array
    covariance: Array
    family: float
    noise: float


@dataclass(frozen=True)
class Fitted:
    """What the rows of one runtime said about every cell."""

    cells: Mapping[Cell, Coefficients]

    def __getitem__(self, cell: Cell) -> Coefficients:
        return self.cells[cell]


def predict(coefficients: Coefficients, features: Array) -> tuple[float, float]:
    """(latency in milliseconds, standard deviation of its logarithm) for the features of a whole network."""
    parts = features * np.exp(coefficients.log_mean)
    total = float(parts.sum())
    shares = parts / total
    spread = float(shares @ coefficients.covariance @ shares)
    return total, float(np.sqrt(spread + coefficients.family**2 + coefficients.noise**2))


def fit(rows: Sequence[Row], cells: Sequence[Cell], priors: Priors | None = None) -> Fitted:
    """Fit the rows of one runtime. ``cells`` are those to have coefficients for, with rows or without."""
    priors = priors or Priors()
    measured_cells = list(dict.fromkeys(row.cell for row in rows))
    effects = _Effects(measured_cells, sorted({row.family for row in rows}), priors)
    place = {cell: i for i, cell in enumerate(measured_cells)}
    of_row = np.array([place[row.cell] for row in rows], int)
    features = np.array([row.features for row in rows], float).reshape(-1, len(FEATURES))
    of_cell = effects.design[of_row]
    measured = np.log([row.latency_ms for row in rows])
    of_family = np.array([effects.families[row.family] for row in rows], int)

    theta = effects.mean.copy()
    weight = np.ones(len(rows))
    noise = priors.noise
    precision = 1 / effects.sd**2
    hessian = np.diag(precision)
    for _ in range(_ROUNDS if len(rows) else 0):
        beta = effects.design @ theta
        parts = features * np.exp(beta[of_row])
        total = parts.sum(axis=1)
        jacobian = np.matmul((parts / total[:, None])[:, None, :], of_cell)[:, 0, :]
        jacobian[np.arange(len(rows)), of_family] += 1
        residual = measured - np.log(total) - theta[of_family]
        noise = _noise(residual, priors)
        weight = (priors.freedom + 1) / (priors.freedom + (residual / noise) ** 2)
        scaled = jacobian * (weight / noise**2)[:, None]
        hessian = scaled.T @ jacobian + np.diag(precision)
        gradient = scaled.T @ residual - precision * (theta - effects.mean)
        step = np.linalg.solve(hessian, gradient)
        theta = theta + step * min(1.0, 1.0 / max(float(np.abs(step).max()), 1e-12))
        size = float(np.abs(step).max())
        if size < _CLOSE:
            break
    covariance = np.linalg.inv(hessian)
    found = {}
    for cell in cells:
        z, more_mean, more_covariance = effects.of(cell)
        found[cell] = Coefficients(z @ theta + more_mean, z @ covariance @ z.T + more_covariance, priors.family, noise)
    return Fitted(found)


def _noise(residual: Array, priors: Priors) -> float:
    """Scale of the residuals from their median size, drawn to the prior as by ten rows of it."""
    robust = 1.4826 * float(np.median(np.abs(residual)))
    count = len(residual)
    return float(np.sqrt((10 * priors.noise**2 + count * robust**2) / (10 + count)))


class _Effects:
    """Numbers the effects that the measured cells and families are made of: ``design`` [cells, features, effects]."""

    def __init__(self, cells: Sequence[Cell], families: Sequence[str], priors: Priors) -> None:
        self.priors = priors
        sums = [[_of(cell, k) for k in range(len(FEATURES))] for cell in cells]
        names = list(dict.fromkeys(name for row in sums for one in row for name in one))
        self.index = {name: i for i, name in enumerate(names)}
        self.size = len(names) + len(families)
        self.design = np.zeros((len(cells), len(FEATURES), self.size))
        for c, cell in enumerate(cells):
            self.design[c] = self.of(cell)[0]
        prior = [_prior(name, priors) for name in names] + [(0.0, priors.family)] * len(families)
        self.mean = np.array([mean for mean, _ in prior])
        self.sd = np.array([sd for _, sd in prior])
        self.families = {family: len(names) + i for i, family in enumerate(families)}

    def of(self, cell: Cell) -> tuple[Array, Array, Array]:
        """Its rows of the design, and mean and covariance of what no row says anything about: the prior's."""
        design = np.zeros((len(FEATURES), self.size))
        mean = np.zeros(len(FEATURES))
        unseen: dict[Effect, Array] = {}
        for k in range(len(FEATURES)):
            for name, times in _of(cell, k).items():
                if name in self.index:
                    design[k, self.index[name]] = times
                else:
                    unseen.setdefault(name, np.zeros(len(FEATURES)))[k] = times
        covariance = np.zeros((len(FEATURES), len(FEATURES)))
        for name, times_each in unseen.items():
            middle, sd = _prior(name, self.priors)
            mean += middle * times_each
            covariance += sd**2 * np.outer(times_each, times_each)
        return design, mean, covariance


def _group(feature: int) -> str:
    name = FEATURES[feature]
    return "macs" if name in MAC_KINDS else "bytes" if name.endswith("bytes") else "starts"


def _of(cell: Cell, feature: int) -> dict[Effect, float]:
    """The effects that one coefficient is the sum of, with their factors."""
    name, group = FEATURES[feature], _group(feature)
    one = (cell.device, cell.processor, cell.precision.value, str(cell.threads))
    return {
        ("runtime", cell.processor, name if group == "starts" else group): 1.0,
        ("kind", cell.processor, name): 1.0,
        ("precision", cell.processor, cell.precision.value, name): 1.0,
        ("architecture", cell.architecture, group): 1.0,
        ("device", cell.device, cell.processor, group): 1.0,
        ("cell", *one, group): 1.0,
        ("cell_feature", *one, name): 1.0,
        ("threads", cell.processor, group): float(np.log2(max(1, cell.threads))),
    }


def _prior(effect: Effect, priors: Priors) -> tuple[float, float]:
    kind = effect[0]
    sd = float(getattr(priors, kind))
    if kind == "threads":
        return (priors.slower_a_doubling if effect[2] == "macs" else 0.0), sd
    if kind != "runtime":
        return 0.0, sd
    starts = dict(zip(FEATURES, priors.start_ms[effect[1]], strict=False))
    return float(np.log(starts.get(effect[2], priors.slowdown))), sd
