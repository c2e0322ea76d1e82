"""The cures of a job's layers, each tried on demand: what it makes of the layers is here, whether it helps is the
`Curer`'s to find out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgekit.compress.bias import correct_biases
from edgekit.compress.blockwise import learn_codes
from edgekit.compress.cures import Cures, scaled, shifted, tensors_of
from edgekit.compress.equalise import channel_magnitudes, factors_of, find_sites, scaled_grams, sites_of
from edgekit.compress.grams import collect_grams
from edgekit.compress.products import column_units, product_of
from edgekit.compress.qdq import apply_precisions
from edgekit.compress.reconstruct import removed_units
from edgekit.compress.rounding import Bits, Rounded, round_layer
from edgekit.errors import InputError
from edgekit.files import cache
from edgekit.graph import Graph, to_bytes
from edgekit.graph.blocks import blocks_of
from edgekit.recipes.samples import spread
from edgekit.types import Precision
from edgekit.workbench.channels import Pruner, one_blas_thread

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.compress.equalise import Site
    from edgekit.compress.grams import Gram
    from edgekit.compress.observers import Range
    from edgekit.job import Job

# Raised when the meaning of a cached entry changes.
_VERSION = 2
_RANGED = (Precision.INT8, Precision.INT16X8)
_BITS: Mapping[Precision, Bits] = {Precision.INT8: 8, Precision.INT16X8: 8, Precision.W8: 8, Precision.W4: 4}
# Samples that means and largest magnitudes are taken over.
_SAMPLES = 32


class ObservedBy(Protocol):
    """The ranges that an observer chooses, those of the job's graph or of another one."""

    def __call__(self, observer: str, graph: Graph | None = None) -> Mapping[str, Range]:
        """Tensor -> range."""
        ...


@dataclass(frozen=True)
class Remedies:
    """What can be done to the layers of one job's graph. Each method that returns `Cures` adds one kind to those that
    it is given, for the layers that are named.
    """

    pruner: Pruner
    observed_by: ObservedBy

    @property
    def _job(self) -> Job:
        return self.pruner.job

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Where channels can be scaled."""
        return find_sites(self._job.graph, self.pruner.channels)

    @cached_property
    def grams(self) -> dict[str, Gram]:
        """The second moments of what each layer reads, depthwise convolutions included."""
        job, grams = self._job, self.pruner.grams
        rest = [layer.name for layer in job.graph.layers if layer.name not in grams]
        with job.progress.stage("observe moments of depthwise layers"), one_blas_thread():
            return grams | collect_grams(job.graph, rest, spread(self.pruner.samples, _SAMPLES), None, depthwise=True)

    def graph_of(self, cures: Cures) -> Graph:
        """The job's graph with its channels scaled."""
        if not cures.factors:
            return self._job.graph
        sites = frozenset(cures.factors)
        if sites not in self._scaled:
            self._scaled[sites] = scaled(self._job.graph, cures, self.sites)
        return self._scaled[sites]

    @cached_property
    def _scaled(self) -> dict[frozenset[str], Graph]:
        """Scaled graphs, by the sites whose channels are: a site has the same factors in all of them."""
        return {}

    def ranges(self, cures: Cures) -> dict[str, Range]:
        """The range of each tensor of `graph_of`."""
        recipe = self._job.data.recipe
        graph = self.graph_of(cures) if cures.factors else None
        for observer in {recipe.observer, *cures.observers.values()}:
            at = observer, frozenset(cures.factors)
            if at not in self._seen:
                self._seen[at] = self.observed_by(observer, graph)
        by_observer = {
            observer: seen for (observer, sites), seen in list(self._seen.items()) if sites == set(cures.factors)
        }
        return cures.ranges(by_observer, recipe.observer)

    @cached_property
    def _seen(self) -> dict[tuple[str, frozenset[str]], Mapping[str, Range]]:
        """What was observed, by observer and the sites whose channels are scaled."""
        return {}

    def written(self, cures: Cures, precisions: Mapping[str, Precision]) -> ir.Model:
        """The graph with these cures in these precisions."""
        graph = shifted(self.graph_of(cures), cures.biases(precisions))
        results = self._job.device.backend.quantizes_results
        return apply_precisions(graph, precisions, self.ranges(cures), results, cures.codes(precisions))

    @cached_property
    def _tensors(self) -> dict[str, tuple[str, ...]]:
        job = self._job
        return tensors_of(job.graph, job.device.backend.quantizes_results)

    def tensors(self, names: Iterable[str]) -> list[str]:
        """The tensors whose ranges quantizing these layers needs."""
        return sorted({tensor for name in names for tensor in self._tensors[name]})

    def applied(self, cures: Cures, name: str, precision: Precision) -> tuple[str, ...]:
        """What these cures do to a layer in this precision: "equalised", "observer mse", "rounded", "bias"."""
        if precision not in _BITS:
            return ()
        found = []
        if cures.factors and any(site.name in cures.factors for site in sites_of(self.sites, [name])):
            found.append("equalised")
        if precision in _RANGED:
            own = (cures.observers[tensor] for tensor in self.tensors([name]) if tensor in cures.observers)
            found += sorted({f"observer {observer}" for observer in own})
        found += ["rounded"] if (name, precision) in cures.rounded else []
        found += ["bias"] if precision is Precision.INT8 and name in cures.shifts else []
        return tuple(found)

    def equalised(self, cures: Cures, names: Iterable[str]) -> Cures:
        """Scaled channels wherever one of these layers reads them; before codes are chosen."""
        sites = list(sites_of(self.sites, names))
        new = factors_of(self._job.graph, sites, self._magnitudes) if sites else {}
        return replace(cures, factors={**cures.factors, **new}) if new.keys() - cures.factors.keys() else cures

    @cached_property
    def _magnitudes(self) -> dict[str, np.ndarray]:
        samples = spread(self.pruner.samples, _SAMPLES)
        layers = {name for site in self.sites for name in site.columns}
        return channel_magnitudes(self._job.graph, sorted(layers), samples)

    def observed(self, cures: Cures, names: Iterable[str], observer: str) -> Cures:
        """Other ranges for all that quantizing these layers quantizes."""
        return replace(cures, observers={**cures.observers, **dict.fromkeys(self.tensors(names), observer)})

    def rounded(self, cures: Cures, names: Sequence[str], precision: Precision = Precision.INT8) -> Cures:
        """Chosen codes for the weights of these layers."""
        chosen = self._chosen(cures, names, _BITS[precision])
        found = {(name, precision): rounded for name, rounded in chosen.items()}
        return replace(cures, rounded={**cures.rounded, **found}) if found else cures

    def _chosen(self, cures: Cures, names: Sequence[str], bits: Bits) -> dict[str, Rounded]:
        graph = self.graph_of(cures)
        grams = scaled_grams(self.grams, self.sites, cures.factors) if cures.factors else self.grams
        done = self._codes.setdefault((frozenset(cures.factors), bits), {})
        layers = [layer for layer in graph.layers if layer.name in set(names) & grams.keys() - done.keys()]
        if layers:
            with self._job.progress.stage(f"choose codes of {bits} bits", len(layers)) as advance, one_blas_thread():
                for layer in layers:
                    done[layer.name] = round_layer(graph, layer, grams[layer.name], bits)
                    advance()
        return {name: rounded for name in names if (rounded := done.get(name)) is not None}

    @cached_property
    def _codes(self) -> dict[tuple[frozenset[str], Bits], dict[str, Rounded | None]]:
        """Chosen codes (None: there are none), by the sites whose channels are scaled, and bits."""
        return {}

    def learnt(self, cures: Cures, precision: Precision) -> Cures:
        """Codes learnt block by block in the place of those chosen for this precision, where torch knows the model."""
        job, graph = self._job, self.graph_of(cures)
        begun = {name: rounded for (name, p), rounded in cures.rounded.items() if p is precision}
        blocks = len(blocks_of(graph.model, begun))
        with job.progress.stage("learn codes block by block", blocks) as advance, one_blas_thread():
            try:
                found = learn_codes(graph, begun, self.pruner.samples, _BITS[precision], advance)
            except InputError as error:
                job.progress.note(str(error))
                return cures
        return replace(cures, rounded={**cures.rounded, **{(name, precision): one for name, one in found.items()}})

    def for_pruned(self, cures: Cures, graph: Graph, kept: Mapping[str, int], masked: Collection[str]) -> Cures:
        """What of the cures is good for a pruned graph: ranges are chosen by the same observers, and codes are chosen
        anew by the moments of the columns that stay, but for ``masked`` layers, whose zeros would not stay.
        """
        job, wanted = self._job, sorted({name for name, p in cures.rounded if p is Precision.INT8} - set(masked))
        removed = removed_units(self.pruner.channels, self.pruner.units(kept))
        key = self.pruner.key(codes=_VERSION, of=hashlib.sha256(to_bytes(graph.model)).hexdigest(), layers=wanted)
        stored = cache.read_arrays("codes", key)
        if stored is None:
            stored = {}
            whole = {node.name: product_of(node) for node in job.graph.model.graph}
            layers = {layer.name: layer for layer in graph.layers}
            with job.progress.stage("choose codes", len(wanted)) as advance, one_blas_thread():
                for name in wanted:
                    product = whole[name]
                    assert product is not None, name
                    gram = self.grams[name].of(~removed[column_units(self.pruner.channels, product.view)])
                    rounded = round_layer(graph, layers[name], gram) if gram is not None else None
                    if rounded is not None:
                        stored |= rounded.to_arrays(name)
                    advance()
            cache.write_arrays("codes", key, stored)
        found = {
            (name, Precision.INT8): one for name in wanted if (one := Rounded.from_arrays(name, stored)) is not None
        }
        return Cures(observers=cures.observers, rounded=found)

    def corrected(self, cures: Cures, names: Iterable[str], plan: tuple[str, ...]) -> Cures:
        """Biases corrected for what comes of ``plan`` being in int8, those of ``names``."""
        bare = replace(cures, rounded={k: replace(r, shift=None) for k, r in cures.rounded.items()}, shifts={})
        quantized = self.written(bare, dict.fromkeys(plan, Precision.INT8))
        samples = spread(self.pruner.samples, _SAMPLES)
        with self._job.progress.stage("correct biases"), one_blas_thread():
            shifts = correct_biases(self.graph_of(cures), quantized, samples)
        found = {name: shifts[name] for name in names if name in shifts}
        return replace(cures, shifts={**cures.shifts, **found}) if found else cures
