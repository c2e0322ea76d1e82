"""Runs the float model over samples: what every tensor holds, and what the model answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgekit.compress.observers import Histogram
from edgekit.errors import InputError
from edgekit.graph import to_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.graph import Graph

# Outputs that one run may hold at once; more tensors take several passes over the samples.
_PASS_BYTES = 1 << 30


class Samples(Protocol):
    """What `collect_ranges` and `run_float` read: model inputs by name, one sample at a time."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def sample(self, i: int, /) -> dict[str, np.ndarray]:
        """Model input name -> array of exactly the model's shape and dtype."""
        ...


def collect_ranges(
    graph: Graph,
    tensors: Sequence[str],
    dataset: Samples,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Histogram]:
    """Tensor name -> histogram of its values over all samples; any observer chooses its range from that one pass.

    Sample after sample in onnxruntime: memory does not grow with their number. ``tensors`` may name model inputs.
    ``on_progress`` is called with the runs done and the runs in all. Reproducible.

    Raises:
        InputError: there are no samples, a sample does not fit the model's inputs, or a tensor is NaN or infinite.
        ValueError: the model has no such float tensor.
    """
    if len(dataset) == 0:
        raise InputError("there are no samples to observe ranges on", "pass calibration data with --data")
    histograms = {name: Histogram(name) for name in dict.fromkeys(tensors)}
    for done, runs, index, values in observe(graph, list(histograms), dataset):
        _update(histograms, values, index)
        if on_progress is not None:
            on_progress(done, runs)
    return histograms


def observe(
    graph: Graph, tensors: Sequence[str], dataset: Samples
) -> Iterator[tuple[int, int, int, dict[str, np.ndarray]]]:
    """Runs of the float model, each as (runs done, runs in all, index of the sample, tensor name -> its values).

    Tensors whose values do not fit into memory together come in several passes over the samples; ``tensors`` may name
    model inputs, which come in the first pass.

    Raises:
        InputError: a sample does not fit the model's inputs.
        ValueError: the model has no such float tensor.
    """
    inputs = {tensor.name for tensor in graph.inputs}
    passes = _passes(graph, [name for name in tensors if name not in inputs])
    runs = len(passes) * len(dataset)
    for number, names in enumerate(passes):
        session = session_of(observed(graph.model, names))
        for index in range(len(dataset)):
            feed = feed_of(graph, dataset, index)
            values = dict(zip(names, session.run(names, feed), strict=True)) if names else {}
            if number == 0:
                values |= {name: feed[name] for name in tensors if name in inputs}
            yield number * len(dataset) + index + 1, runs, index, values


def run_float(graph: Graph, dataset: Samples, threads: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """The float model's outputs by name for each sample in turn: the reference, one sample in memory.

    Raises:
        InputError: a sample does not fit the model's inputs.
    """
    session = session_of(to_bytes(graph.model), threads)
    names = [tensor.name for tensor in graph.outputs]
    for index in range(len(dataset)):
        yield dict(zip(names, session.run(names, feed_of(graph, dataset, index)), strict=True))


def _update(histograms: dict[str, Histogram], values: dict[str, np.ndarray], index: int) -> None:
    for name, array in values.items():
        try:
            histograms[name].update(array)
        except ValueError as error:
            raise InputError(
                f"sample {index}: {error}", "check this sample and its preprocessing, or run the float model on it"
            ) from None


def feed_of(graph: Graph, dataset: Samples, index: int) -> dict[str, np.ndarray]:
    """One sample as the model takes it. Raises InputError where it does not fit."""
    sample = dataset.sample(index)
    for tensor in graph.inputs:
        if tensor.name not in sample:
            raise InputError(f"sample {index} has no input {tensor.name!r}", f"it has {', '.join(sample) or 'none'}")
        array = sample[tensor.name]
        if array.shape != tensor.shape or array.dtype != tensor.dtype:
            raise InputError(
                f"sample {index}, input {tensor.name!r}: {array.dtype}{list(array.shape)} does not fit the model",
                f"the model takes {tensor.dtype}{list(tensor.shape)}",
            )
    return {tensor.name: sample[tensor.name] for tensor in graph.inputs}


def _passes(graph: Graph, names: Sequence[str]) -> list[list[str]]:
    """The tensors in groups whose values fit into memory together. One group, perhaps empty, where all do."""
    values = _values(graph.model)
    passes: list[list[str]] = [[]]
    held = 0
    for name in names:
        if name not in values:
            raise ValueError(f"the model has no tensor {name!r}")
        size = _bytes(values[name])
        if passes[-1] and held + size > _PASS_BYTES:
            passes.append([])
            held = 0
        passes[-1].append(name)
        held += size
    return passes


def _bytes(value: ir.Value) -> int:
    if value.dtype is None or not value.dtype.is_floating_point():
        raise ValueError(f"tensor {value.name!r} is not of a float type")
    return math.prod(value.shape.numpy()) * int(value.dtype.itemsize) if value.shape is not None else 0


def observed(model: ir.Model, names: Sequence[str]) -> bytes:
    """The model with the named tensors among its outputs."""
    copy = model.clone()
    values = _values(copy)
    outputs = copy.graph.outputs
    present = {value.name for value in outputs}
    outputs.extend(values[name] for name in names if name not in present)
    return to_bytes(copy)


def _values(model: ir.Model) -> dict[str, ir.Value]:
    return {value.name: value for node in model.graph for value in node.outputs if value.name}


def session_of(model: bytes, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU whose results do not change with the runtime's version; with another number of
    threads sums are added up in another order, and differ in their last bits.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Fusions beyond the basic ones would change the last bits with the runtime's version.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
