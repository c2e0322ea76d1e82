"""Which channels of a group can go first. A ranking is made once; what stays at any ratio is a suffix of it, so the
kept units of a smaller ratio are always among those of a larger one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekit.compress.gradients import gate_curvatures
from edgekit.compress.parameters import weight_array
from edgekit.compress.products import Product, column_units, matrix_of, output_units, product_of

if TYPE_CHECKING:
    from edgekit.compress.grams import Gram
    from edgekit.compress.ranges import Samples
    from edgekit.graph import Graph
    from edgekit.graph.channels import Channels

Method = Literal["activation", "fisher", "l1", "l2", "random"]
METHODS: tuple[Method, ...] = ("activation", "fisher", "l1", "l2", "random")

# A group goes in at most so many steps; within a step the costs of its candidates are kept exact all the same.
_STEPS = 64
_TINY = 1e-300


def ranking(
    method: Method,
    graph: Graph,
    channels: Channels,
    grams: Mapping[str, Gram] | None = None,
    seed: int = 0,
    dataset: Samples | None = None,
) -> dict[str, np.ndarray]:
    """Group name -> its units in the order of removal, the first to go first. Deterministic.

    ``activation``: greedily the unit whose removal costs the consumers' outputs least after least squares on all that
    is left has made up for it: tr(W_u ([G^-1]_uu)^-1 W_u^T), relative to the output's power and summed over consumers
    (Optimal Brain Surgeon for structures: ZipLM, https://arxiv.org/abs/2302.04089). The inverse is updated after each
    removal, so of channels that say the same only the superfluous ones go. Needs ``grams``; a group none of whose
    consumers has a Gram matrix (queries and keys feed only a product of activations) is ranked by ``l2``.

    ``fisher``: what the model's outputs lose to second order, from gradients (`gate_curvatures`). Needs ``dataset`` and
    the torch extra. Taylor's criterion is the same square with a loss in the place of the outputs, which takes labels.

    ``l1``, ``l2``: the norm of the weights that make the unit, those of the layers that make it added up relative to
    each layer's own (Li et al. 2017, https://arxiv.org/abs/1608.08710). ``random``: the baseline, drawn from ``seed``.

    Raises:
        ValueError: an unknown method, ``activation`` without ``grams`` or ``fisher`` without ``dataset``.
        MissingToolError, InputError: see `gate_curvatures`.
    """
    if method not in METHODS:
        raise ValueError(f"there is no importance {method!r}: {', '.join(METHODS)}")
    if method == "activation" and grams is None:
        raise ValueError("importance 'activation' needs the Gram matrices of the layers")
    if method == "fisher" and dataset is None:
        raise ValueError("importance 'fisher' needs samples")
    curvatures = gate_curvatures(graph, channels, dataset, seed) if method == "fisher" and dataset is not None else {}
    order = {}
    for place, group in enumerate(channels.groups):
        if method == "random":
            order[group.name] = np.random.default_rng([seed, place]).permutation(group.channels)
            continue
        readers = _readers(graph, channels, place, grams or {}) if method == "activation" else []
        if readers:
            order[group.name] = _greedy(readers, group.channels)
        elif group.name in curvatures:
            order[group.name] = np.argsort(curvatures[group.name], kind="stable")
        else:
            norms = weight_norms(graph, channels, place, 1 if method == "l1" else 2)
            order[group.name] = np.argsort(norms, kind="stable")
    return order


def kept_units(order: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Group -> the units that stay, ascending, for each group in ``counts``."""
    return {name: np.sort(order[name][len(order[name]) - count :]) for name, count in counts.items()}


def weight_norms(graph: Graph, channels: Channels, place: int, power: int) -> np.ndarray:
    """The norm [channels] (1: sum of magnitudes, 2: Euclidean) of the weights that make each unit of a group.

    Each layer counts relative to its mean, so that no layer outweighs the others by its scale alone.
    """
    group, first = channels.groups[place], channels.firsts[place]
    total = np.zeros(group.channels)
    for product in _products(graph, group.producers):
        matrix = matrix_of(product, weight_array(graph.model, product.weight)).reshape(-1, product.view.columns)
        units = output_units(channels, product)
        inside = (units >= first) & (units < first + group.channels)
        own = np.zeros(group.channels)
        np.add.at(own, units[inside] - first, (np.abs(matrix[inside]) ** power).sum(axis=1))
        own = own if power == 1 else np.sqrt(own)
        total += own / (own.mean() or 1.0)
    return total


@dataclass(eq=False)
class _Reader:
    """What a group's removal costs the readers of one Gram matrix: its damped ``inverse`` [n, n], their ``weights``
    [outputs, n] relative to the root of each one's output power, and the ``columns`` [units, b] of each unit.
    """

    inverse: np.ndarray
    weights: np.ndarray
    columns: np.ndarray

    def costs(self, units: np.ndarray) -> np.ndarray:
        """The cost of removing each of ``units`` next."""
        columns = self.columns[units]
        if columns.shape[1] == 1:
            single = columns[:, 0]
            power = np.einsum("ou,ou->u", self.weights[:, single], self.weights[:, single])
            return np.asarray(power / np.maximum(self.inverse[single, single], _TINY))
        own = self.inverse[columns[:, :, None], columns[:, None, :]]
        # Rounding may leave a channel that says nothing new with no variance at all.
        own = own + np.eye(columns.shape[1]) * (1e-12 * np.trace(own, axis1=1, axis2=2)[:, None, None] + _TINY)
        weights = self.weights.T[columns]
        return np.asarray(np.trace(np.linalg.solve(own, weights @ weights.transpose(0, 2, 1)), axis1=1, axis2=2))

    def remove(self, units: np.ndarray) -> None:
        """Take ``units`` out and let the rest make up for them."""
        gone = self.columns[units].ravel()
        own = self.inverse[np.ix_(gone, gone)]
        own[np.diag_indices_from(own)] *= 1 + 1e-12
        share = np.linalg.solve(own, self.inverse[gone])
        self.weights -= self.weights[:, gone] @ share
        self.inverse -= self.inverse[:, gone] @ share

    def only(self, units: np.ndarray) -> _Reader:
        """The same problem with ``units`` alone, numbered from 0: costs and removals among them stay exact."""
        columns = self.columns[units].ravel()
        return _Reader(
            self.inverse[np.ix_(columns, columns)],
            self.weights[:, columns],
            np.arange(columns.size).reshape(units.size, -1),
        )


def _greedy(readers: list[_Reader], count: int) -> np.ndarray:
    """All units in the order of removal. Several go at a time: the exact greedy choice among the cheapest twice as
    many, then the large matrices are updated at once.
    """
    batch = -(-count // _STEPS)
    order: list[int] = []
    left = np.arange(count)
    while left.size:
        costs = np.sum([reader.costs(left) for reader in readers], axis=0)
        candidates = left[np.argsort(costs, kind="stable")[: 2 * batch]]
        small = [reader.only(candidates) for reader in readers] if batch > 1 else []
        rest = np.arange(candidates.size)
        taken = [0] if batch == 1 else []
        while small and len(taken) < min(batch, candidates.size):
            cheapest = rest[np.argmin(np.sum([reader.costs(rest) for reader in small], axis=0))]
            for reader in small:
                reader.remove(np.array([cheapest]))
            taken.append(int(cheapest))
            rest = rest[rest != cheapest]
        gone = candidates[taken]
        for reader in readers:
            reader.remove(gone)
        order.extend(gone.tolist())
        left = left[~np.isin(left, gone)]
    return np.array(order)


def _readers(graph: Graph, channels: Channels, place: int, grams: Mapping[str, Gram]) -> list[_Reader]:
    """One for each Gram matrix, and each block of it, that the group's units are columns of."""
    group, first = channels.groups[place], channels.firsts[place]
    found: dict[tuple[int, int], tuple[np.ndarray, np.ndarray, list[np.ndarray]]] = {}
    for product in _products(graph, [name for name in group.consumers if name in grams]):
        gram = grams[product.layer]
        matrix = matrix_of(product, weight_array(graph.model, product.weight))
        units = column_units(channels, product.view)
        for block in range(product.view.blocks):
            second = gram.second[block]
            mean = second[:-1, -1]
            covariance = second[:-1, :-1] - np.outer(mean, mean)
            power = float(np.einsum("oi,ij,oj->", matrix[block], covariance, matrix[block], optimize=True))
            scaled = matrix[block] / np.sqrt(power if power > 0 else 1.0)
            entry = found.setdefault((id(gram), block), (gram.inverse[block], units[block] - first, []))
            entry[2].append(scaled)
    return [_reader(inverse, units, np.vstack(weights), group.channels) for inverse, units, weights in found.values()]


def _reader(inverse: np.ndarray, units: np.ndarray, weights: np.ndarray, count: int) -> _Reader:
    """Units with fewer columns than others get columns without weight and without relation to any other."""
    inside = np.flatnonzero((units >= 0) & (units < count))
    order = inside[np.argsort(units[inside], kind="stable")]
    counts = np.bincount(units[order], minlength=count)
    width, size = max(1, int(counts.max())), weights.shape[1]
    columns = np.full((count, width), -1)
    columns[np.arange(width) < counts[:, None]] = order
    missing = columns < 0
    columns[missing] = size + 1 + np.arange(missing.sum())  # behind the constant column
    whole = np.eye(size + 1 + int(missing.sum()))
    whole[: size + 1, : size + 1] = inverse
    return _Reader(whole, np.pad(weights, ((0, 0), (0, whole.shape[0] - size))), columns)


def _products(graph: Graph, layers: Iterable[str]) -> list[Product]:
    wanted = frozenset(layers)
    found = (product_of(node) for node in graph.model.graph if node.name in wanted)
    return [product for product in found if product is not None]
