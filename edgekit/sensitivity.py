"""How much each option of each layer hurts: the layer alone is put into the precision, the output is compared.

The loss is the relative noise power at the model's outputs, mean over samples: ``|y_q - y|^2 / |y|^2``, so that
``-10 log10(loss)`` is the signal-to-quantization-noise ratio in dB. Noise of different layers is nearly independent,
so the losses of a plan's layers add up (the assumption behind the additive sensitivities of HAWQ-V2,
https://arxiv.org/abs/1911.03852); what really comes out is measured on the finished plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edgekit.compress.pieces import bytes_of, tail_of
from edgekit.compress.qdq import apply_precisions, quantization_points
from edgekit.compress.ranges import observed
from edgekit.recipes.fidelity import powers
from edgekit.types import Precision

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.compress.observers import Range
    from edgekit.graph import Graph
    from edgekit.recipes.samples import Dataset

Variant = TypeVar("Variant", bound=Hashable)

# No output agrees with float better than float32 rounding lets it.
LOSS_FLOOR = 1e-14
LOSS_CEILING = 1e3

METHOD = 2
"""Raised when losses come out otherwise than before: a part of the keys that they are kept under."""

SENSITIVITY_SAMPLES = 16
"""Samples that losses are measured on: their spread over options is far wider than that over samples."""

# Tensors of all samples that are held for the next layer to start from.
_HELD_BYTES = 1 << 29


def relative_noise_power(outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> float:
    """Noise to signal power of one sample, mean over the float outputs. A silent output is compared with a unit signal;
    broken values (NaN) count as a thousandfold signal.
    """
    sums = powers(outputs, reference)
    ratios = [min(LOSS_CEILING, noise / (signal or 1.0)) for signal, noise in zip(sums[::2], sums[1::2], strict=True)]
    return max(LOSS_FLOOR, math.fsum(ratios) / len(ratios))


def layer_losses(
    graph: Graph,
    precision: Precision,
    names: Sequence[str],
    ranges: Mapping[str, Range],
    dataset: Dataset,
    workers: int = 1,
    on_layer: Callable[[str, float], None] | None = None,
    results: bool = False,
) -> dict[str, float]:
    """Layer name -> loss of executing that layer alone in ``precision``, over all samples of ``dataset``.

    Simulated in onnxruntime with the Q/DQ pairs executed in float, so that the numerics are those of the plan and not
    of one kernel. ``on_layer`` is called after each layer, in order. ``results``: see `apply_precisions`.
    """
    return losses_of(
        graph,
        lambda name: apply_precisions(graph, {name: precision}, ranges, results),
        names,
        dataset,
        workers,
        on_layer,
    )


def losses_of(
    graph: Graph,
    model_of: Callable[[Variant], ir.Model],
    variants: Sequence[Variant],
    dataset: Dataset,
    workers: int = 1,
    on_variant: Callable[[Variant, float], None] | None = None,
) -> dict[Variant, float]:
    """Variant -> relative noise power of its model's outputs against those of ``graph``, mean over all samples.

    The models are changed copies of the graph; what they have in common with it runs once for all. ``workers`` variants
    are tried at a time, each on one thread, so their number does not change the losses. ``on_variant`` is called after
    each one, in order.
    """
    judge = _Judge(graph, dataset)

    def loss(variant: Variant) -> float:
        noise = judge.noise(model_of(variant))
        return math.fsum(noise) / len(noise)

    losses = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for variant, found in zip(variants, pool.map(loss, variants), strict=True):
                losses[variant] = found
                if on_variant is not None:
                    on_variant(variant, found)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return losses


def sample_losses(graph: Graph, models: Sequence[ir.Model], dataset: Dataset, workers: int = 1) -> np.ndarray:
    """Relative noise power [models, samples] of the models' outputs against those of ``graph``. Two models are better
    compared sample by sample than by their means, which one odd sample can make.
    """
    judge = _Judge(graph, dataset)
    with ThreadPoolExecutor(workers) as pool:
        return np.array(list(pool.map(judge.noise, models)))


class _Judge:
    """Compares changed copies of a graph with it, on the same samples. It holds what the layers read, so that only what
    a copy changes runs again.
    """

    def __init__(self, graph: Graph, dataset: Dataset) -> None:
        self._graph = graph
        self._outputs = [tensor.name for tensor in graph.outputs]
        self._held = _held(graph, len(dataset))
        session = trial_session(observed(graph.model, self._held))
        names = list(dict.fromkeys((*self._outputs, *self._held)))
        self._values = []
        for index in range(len(dataset)):
            sample = dataset.sample(index)
            self._values.append({**sample, **dict(zip(names, session.run(names, sample), strict=True))})

    def noise(self, model: ir.Model) -> list[float]:
        """Relative noise power of the model's outputs, sample by sample."""
        tail = tail_of(self._graph, model, self._held)
        if tail is None:
            return [LOSS_FLOOR] * len(self._values)
        session = trial_session(tail.model)
        noise = []
        for values in self._values:
            reference = {name: values[name] for name in self._outputs}
            found = session.run(tail.results, {name: values[name] for name in tail.reads})
            noise.append(relative_noise_power({**reference, **dict(zip(tail.results, found, strict=True))}, reference))
        return noise


def _held(graph: Graph, samples: int) -> tuple[str, ...]:
    """The tensors that layers read, from the last one backwards as long as they fit into memory for all samples: the
    early ones are the largest, and spare the least.
    """
    wanted = set(quantization_points(graph))
    found: list[str] = []
    room = _HELD_BYTES
    for node in reversed(list(graph.model.graph)):
        value = node.outputs[0]
        # Of several outputs one alone would not do: the node runs for the others.
        if value.name in wanted and len(node.outputs) == 1:
            room -= samples * bytes_of(value)
            if room < 0:
                break
            found.append(value.name)
    return tuple(found)


def trial_session(model: bytes) -> Any:
    """An onnxruntime session of one thread that executes Q/DQ pairs in float."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Keep the pairs as they stand: fused integer kernels differ from one CPU to the next.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
