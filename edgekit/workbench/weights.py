"""A job's layers with zeros among their weights or few values for them: re-solved, measured by what they lose and
store, and kept in the cache under the digest of what they depend on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress.codebooks import Book, can_take_codebook, hold_to_codebook
from edgekit.compress.grams import collect_grams
from edgekit.compress.masks import (
    Masked,
    Pattern,
    Score,
    apply_mask,
    can_be_masked,
    compressed_bytes,
    make_masks,
    put_masked,
    solve_mask,
)
from edgekit.compress.parameters import weight_array
from edgekit.compress.qdq import apply_precisions
from edgekit.compress.weights import quantize_weights
from edgekit.files import cache
from edgekit.graph import Graph, to_bytes
from edgekit.recipes.samples import spread
from edgekit.sensitivity import METHOD, SENSITIVITY_SAMPLES, losses_of
from edgekit.types import Layer, Mask, Precision
from edgekit.workbench.channels import Pruner, one_blas_thread

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.compress.grams import Gram
    from edgekit.compress.observers import Range

PATTERNS: Mapping[Mask, Pattern] = {Mask.HALF: 0.5, Mask.THREE_QUARTERS: 0.75, Mask.TWO_OF_FOUR: "2:4"}
CODEBOOKS: Mapping[Mask, Book] = {
    Mask.SIXTEEN_VALUES: "16 values",
    Mask.FIFTEEN_STEPS: "15 steps",
    Mask.FOUR_VALUES: "4 values",
    Mask.POWERS_OF_TWO: "powers of two",
    Mask.TERNARY: "ternary",
    Mask.BINARY: "binary",
}
# Codes of these precisions take few values; floats with few values and a scale for each channel hardly repeat.
_WITH_CODES = (Precision.INT8, Precision.W8)
_SCORE: Score = "obs"
# Raised when the meaning of a cached entry changes.
_VERSION = 2

# A layer, its precision and its mask.
Variant = tuple[str, Precision, Mask]


@dataclass(frozen=True)
class Masker:
    """Holds layers of one job's graph, or of a pruned one, to masks and codebooks, on the samples and moments of its
    `Pruner`.
    """

    pruner: Pruner

    def _key(self, **parts: object) -> str:
        return self.pruner.key(masks=_VERSION, score=_SCORE, **parts)

    def masked(self, graph: Graph, masks: Mapping[str, Mask]) -> Graph:
        """The graph with these layers held to their masks, each re-solved alone on what it reads in ``graph``."""
        return put_masked(graph, self._solved(graph, masks)) if masks else graph

    def _solved(self, graph: Graph, masks: Mapping[str, Mask]) -> dict[str, Masked]:
        job = self.pruner.job
        whole = graph is job.graph
        graph_key = self.pruner.graph_key if whole else hashlib.sha256(to_bytes(graph.model)).hexdigest()
        keys = {name: self._key(of=graph_key, layer=name, mask=mask.value) for name, mask in masks.items()}
        known = {name: _read(stored) for name in masks if (stored := cache.read_arrays("masks", keys[name]))}
        missing = [name for name in masks if name not in known]
        if missing:
            samples = self.pruner.samples
            with one_blas_thread():
                grams = self.pruner.grams if whole else collect_grams(graph, missing, samples)
                with job.progress.stage("re-solve masked layers", len(missing)) as advance:
                    for name in missing:
                        known[name] = _solve(graph, name, masks[name], grams.get(name))
                        cache.write_arrays("masks", keys[name], _stored(known[name]))
                        advance()
        return {name: known[name] for name in masks}

    def losses(self, variants: Sequence[Variant], ranges: Mapping[str, Range]) -> dict[Variant, float]:
        """The noise power at the model's output when one layer alone takes the precision and the mask; each is kept as
        soon as it is known. ``ranges`` are those of the activations that int8 reads.
        """
        job = self.pruner.job
        graph, recipe = job.graph, job.data.recipe
        samples = spread(self.pruner.judging, SENSITIVITY_SAMPLES)
        seen: dict[str, Any] = {"observer": recipe.observer, "percentile": recipe.percentile, "samples": samples.digest}
        seen["method"] = METHOD
        results = job.device.backend.quantizes_results
        seen |= {"results": True} if results else {}
        keys = {v: self._key(layer=v[0], precision=v[1].value, mask=v[2].value, **seen) for v in variants}
        known = {v: float(found) for v in variants if (found := cache.read_json("losses", keys[v])) is not None}
        missing = [variant for variant in variants if variant not in known]
        if missing:
            asked = dict.fromkeys(mask for _, _, mask in missing)
            solved = {mask: self._solved(graph, {n: mask for n, _, m in missing if m is mask}) for mask in asked}

            def model_of(variant: Variant) -> ir.Model:
                name, precision, mask = variant
                made = put_masked(graph, {name: solved[mask][name]})
                return apply_precisions(made, {name: precision}, ranges, results)

            with job.progress.stage("sensitivity of masks", len(missing)) as advance:

                def keep(variant: Variant, loss: float) -> None:
                    cache.write_json("losses", keys[variant], loss)
                    advance()

                known |= losses_of(graph, model_of, missing, samples, os.cpu_count() or 1, keep)
        return {variant: known[variant] for variant in variants}

    def stored_bytes(
        self, masks: Mapping[str, Mask], precisions: Sequence[Precision]
    ) -> dict[str, dict[Precision, int]]:
        """What these layers' parameters take compressed, under these masks, in each precision."""
        graph = self.pruner.job.graph
        masked = self.masked(graph, {name: mask for name, mask in masks.items() if mask is not Mask.NONE})
        return {
            layer.name: {precision: layer_bytes(masked, layer, precision) for precision in precisions}
            for layer in masked.layers
            if layer.name in masks
        }


def able_to(graph: Graph, mask: Mask) -> tuple[str, ...]:
    """The layers that can be held to a mask."""
    return can_take_codebook(graph) if mask.is_codebook else can_be_masked(graph)


def can_pay(mask: Mask, precision: Precision) -> bool:
    """Whether a mask can save anything in this precision."""
    return not mask.is_codebook or precision in _WITH_CODES


def layer_bytes(graph: Graph, layer: Layer, precision: Precision) -> int:
    """What a layer's parameters take compressed: quantized weights with a scale and a zero point for each output
    channel, all else in float32.
    """
    node = next(node for node in graph.model.graph if node.name == layer.name)
    arrays: list[np.ndarray] = []
    for value in node.inputs:
        if value is None or not value.is_initializer():
            continue
        array = weight_array(graph.model, value.name or "")
        if value.name not in layer.weights or precision not in (Precision.INT8, Precision.W8):
            arrays.append(array)
        else:
            axis = layer.weight_axis
            codes, scale = quantize_weights(array if axis >= 0 else array.reshape(1, -1), max(axis, 0))
            arrays += [codes, scale, np.zeros(scale.shape, np.int8)]
    return compressed_bytes(arrays)


def masked_bytes(graph: Graph, precisions: Mapping[str, Precision], masks: Mapping[str, Mask]) -> int:
    """What a plan's weights take compressed, as far as it can be told without samples: the smallest weights go, others
    take their nearest value, and none is re-solved.
    """
    patterns = {name: PATTERNS[mask] for name, mask in masks.items() if not mask.is_codebook}
    made = apply_mask(graph, make_masks(graph, patterns, "magnitude"))
    known = can_take_codebook(made)
    books = {name: CODEBOOKS[mask] for name, mask in masks.items() if mask.is_codebook and name in known}
    made = put_masked(made, {name: hold_to_codebook(made, name, book, None) for name, book in books.items()})
    return sum(layer_bytes(made, layer, precisions[layer.name]) for layer in made.layers)


def _solve(graph: Graph, name: str, mask: Mask, gram: Gram | None) -> Masked:
    if mask.is_codebook:
        return hold_to_codebook(graph, name, CODEBOOKS[mask], gram)
    stay = make_masks(graph, {name: PATTERNS[mask]}, _SCORE, {} if gram is None else {name: gram})[name]
    return solve_mask(graph, name, stay, gram)


def _stored(masked: Masked) -> dict[str, np.ndarray]:
    return {"weight": masked.weight} | ({} if masked.shift is None else {"shift": masked.shift})


def _read(stored: Mapping[str, np.ndarray]) -> Masked:
    return Masked(stored["weight"], stored.get("shift"))
