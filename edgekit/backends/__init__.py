"""Adapters to the compilers and runtimes. A backend is a module with the functions of `Backend` and a row in
`BACKENDS`; it is imported when a target asks for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgekit.errors import InputError
from edgekit.types import Precision

if TYPE_CHECKING:
    import numpy as np

    from edgekit.graph import Graph

BACKENDS = {
    "openvino": "edgekit.backends.openvino",
    "tflite": "edgekit.backends.tflite",
    "tensorrt": "edgekit.backends.tensorrt",
}

# Stand-ins for a compiler that runs on boards alone.
PROXIES = {"tensorrt": "edgekit.backends.proxy"}

# Kernels for fp8 read 16 bytes at a time (cuBLAS, cublasLtMatmul; github.com/NVIDIA/CUDALibrarySamples/issues/172).
_FP8_STEP = 16

Session = Callable[[Mapping[str, "np.ndarray"]], dict[str, "np.ndarray"]]


@dataclass(frozen=True)
class Artifact:
    """A compiled or converted model in ``files``. ``base`` is the precision of everything that the plan left in float.
    ``compressed`` is what a bundle holds in place of some of the files, by their names; ``weight_bytes`` are those that
    ship.
    """

    path: Path
    files: tuple[Path, ...]
    base: Precision
    weight_bytes: int
    compressed: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class ExecutedNode:
    """One node that the runtime executes: the layers fused into it, or the layer whose result it moves or transforms
    (``computes`` is False then). ``layers`` is empty for work before the first layer. ``sources`` are the graph's nodes
    that it is named after, where the runtime tells.
    """

    layers: tuple[str, ...]
    computes: bool
    precision: str
    latency_ms: float
    sources: tuple[str, ...] = ()


class Backend(Protocol):
    """What a backend module provides."""

    #: What the runner program that runs on the device is called in targets/runners.
    RUNNER: str
    #: The toolchain that `convert` needs, '' for none.
    TOOLCHAIN: str
    #: Whether int8 layers write 8 bits too, whoever reads them, so that the model must say their ranges.
    quantizes_results: bool
    #: Whether activations are quantized around zero, so that the codes of a range reach as far below as above it.
    symmetric: bool
    #: Whether each operator has a float type of its own, which the model must say where it is not the base.
    types_floats: bool
    #: What the last size of a matrix of 4-bit weights must be a multiple of.
    four_bit_columns: int
    #: Bits of one weight element in memory, once the runtime has loaded a layer of that precision.
    runtime_weight_bits: Mapping[Precision, int]
    #: Operator types of the layers that may take a quantized precision: in any mix with other layers they compile, and
    #: compute what their Q/DQ pairs say.
    quantized_op_types: Mapping[Precision, frozenset[str]]

    #: Operator types of the layers whose kernels skip zeros where two of any four weights are.
    sparse_op_types: Mapping[Precision, frozenset[str]]

    def hint(self, base: Precision) -> str:
        """The runtime's word for the float precision ``base``, as the runner takes it."""
        ...

    def convert(self, onnx_bytes: bytes, folder: Path, base: Precision) -> Artifact:
        """Write the artifact of a (Q/DQ) ONNX model into ``folder``. The same model gives the same bytes."""
        ...

    def compress(self, folder: Path) -> None:
        """Write the weights of what `convert` wrote into ``folder`` once more, compressed by `files.deflate`."""
        ...

    def artifact(self, folder: Path, base: Precision) -> Artifact:
        """What `convert`, and perhaps `compress`, wrote into ``folder`` before."""
        ...

    def session(self, compiled: Artifact, threads: int, outputs: Sequence[str]) -> Session:
        """The artifact as a function from inputs to ``outputs`` by name, with the numerics of the device."""
        ...

    def compiled_rows(self, compiled: Artifact) -> Sequence[Mapping[str, Any]] | None:
        """What the artifact itself says that it executes, as profile rows; None where a device's compiler decides."""
        ...

    def executed_nodes(self, rows: Sequence[Mapping[str, Any]], graph: Graph) -> tuple[ExecutedNode, ...]:
        """The runner's profile rows, joined to the layers of the graph."""
        ...

    def executes_as(self, planned: Precision, executed: str) -> bool:
        """Whether the runtime's word ``executed`` is what ``planned`` asks of a layer."""
        ...


class Proxy(Protocol):
    """What a module provides that stands in for a board's compiler."""

    #: The toolchain that it needs, and its name in reports.
    TOOLCHAIN: str
    NAME: str

    def remark(self, compiled: Artifact) -> str:
        """What a report says of it, where no board could be asked. Does not raise."""
        ...


def able(graph: Graph, adapter: Backend, precision: Precision) -> tuple[str, ...]:
    """The layers whose kinds the backend has in a quantized ``precision``; with weights, where only those change.
    Depthwise convolutions in 4 bits are left out: converters have none, and there is next to nothing to save. So are
    products in fp8 whose second operand has odd sizes.
    """
    initializers = graph.model.graph.initializers
    from edgekit.graph.layers import shape_of

    kinds = adapter.quantized_op_types.get(precision, frozenset())
    weight_only = precision in (Precision.W8, Precision.W4)
    nodes = {node.name: node for node in graph.model.graph}
    found = []
    for layer in graph.layers:
        group = nodes[layer.name].attributes.get("group")
        grouped = layer.op_type == "Conv" and group is not None and group.as_int() > 1
        if layer.op_type not in kinds or (weight_only and not layer.weights):
            continue
        if precision is Precision.FP8:
            second = nodes[layer.name].inputs[1]
            assert second is not None
            sizes = shape_of(second)
            if len(sizes) < 2 or any(size % _FP8_STEP for size in sizes[-2:]):
                continue
        if precision is Precision.W4:
            last = [shape_of(initializers[name])[-1] for name in layer.weights]
            if grouped or any(size % adapter.four_bit_columns for size in last):
                continue
        found.append(layer.name)
    return tuple(found)


def backend(name: str) -> Backend:
    """The backend called ``name``. Raises `InputError` for a name that is not in `BACKENDS`."""
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}", f"the backends are {', '.join(sorted(BACKENDS))}")
    return cast(Backend, importlib.import_module(BACKENDS[name]))


def proxy(name: str) -> Proxy | None:
    """The stand-in for the compiler of the backend called ``name``, where it has one."""
    return cast(Proxy, importlib.import_module(PROXIES[name])) if name in PROXIES else None
