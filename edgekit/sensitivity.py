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

from edgekit.compress.qdq import apply_precisions
from edgekit.graph import to_bytes
from edgekit.recipes.fidelity import powers
from edgekit.types import Precision

if TYPE_CHECKING:
    from edgekit.compress.observers import Range
    from edgekit.graph import Graph
    from edgekit.recipes.samples import Dataset

Variant = TypeVar("Variant", bound=Hashable)

# No output agrees with float better than float32 rounding lets it.
LOSS_FLOOR = 1e-14
LOSS_CEILING = 1e3

SENSITIVITY_SAMPLES = 16
"""Samples that losses are measured on: their spread over options is far wider than that over samples."""


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
        lambda name: to_bytes(apply_precisions(graph, {name: precision}, ranges, results)),
        names,
        dataset,
        workers,
        on_layer,
    )


def losses_of(
    graph: Graph,
    model_of: Callable[[Variant], bytes],
    variants: Sequence[Variant],
    dataset: Dataset,
    workers: int = 1,
    on_variant: Callable[[Variant, float], None] | None = None,
) -> dict[Variant, float]:
    """Variant -> relative noise power of its model's outputs against those of ``graph``, mean over all samples.

    ``workers`` variants are tried at a time, each on one thread, so their number does not change the losses.
    ``on_variant`` is called after each one, in order.
    """
    reference = _session(to_bytes(graph.model))
    samples = [dataset.sample(index) for index in range(len(dataset))]
    expected = [_outputs(reference, sample) for sample in samples]

    def loss(variant: Variant) -> float:
        session = _session(model_of(variant))
        noise = (relative_noise_power(_outputs(session, x), y) for x, y in zip(samples, expected, strict=True))
        return math.fsum(noise) / len(samples)

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


def sample_losses(graph: Graph, models: Sequence[bytes], dataset: Dataset, workers: int = 1) -> np.ndarray:
    """Relative noise power [models, samples] of the models' outputs against those of ``graph``. Two models are better
    compared sample by sample than by their means, which one odd sample can make.
    """
    reference = _session(to_bytes(graph.model))
    samples = [dataset.sample(index) for index in range(len(dataset))]
    expected = [_outputs(reference, sample) for sample in samples]

    def losses(model: bytes) -> list[float]:
        session = _session(model)
        return [relative_noise_power(_outputs(session, x), y) for x, y in zip(samples, expected, strict=True)]

    with ThreadPoolExecutor(workers) as pool:
        return np.array(list(pool.map(losses, models)))


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Keep the pairs as they stand: fused integer kernels differ from one CPU to the next.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _outputs(session: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
