"""From a path to a `Graph`: read, refuse, freeze, normalise, prove equal, find layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from edgekit.graph.equality import require_equal
from edgekit.graph.layers import find_edges, find_layers, shape_of
from edgekit.graph.normalise import normalise
from edgekit.graph.read import read
from edgekit.graph.refuse import refuse_unusable
from edgekit.graph.shapes import drop_initializer_inputs, freeze
from edgekit.graph.tidy import name_nodes
from edgekit.types import Edge, Layer


@dataclass(frozen=True)
class Tensor:
    """A model input or output; ``dtype`` is the numpy name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Graph:
    """A normalised model with its layers in execution order and the data flow between them.

    ``model`` is treated as immutable: whoever changes it clones it first. ``sha256`` is the digest of the original file
    including its external data.
    """

    model: ir.Model
    sha256: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    edges: tuple[Edge, ...]


def load(path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Graph:
    """Load the float ONNX model at ``path`` and normalise it.

    ``shapes`` fixes dynamic inputs, ``{"x": (1, 3, 48, 320)}``; a leading batch dimension that is the only open one of
    its input becomes 1. Raises InputError, with a hint, for any file that cannot be used and when the normalised model
    does not reproduce the outputs of the original.
    """
    where = str(path)
    proto, sha256 = read(path)
    refuse_unusable(proto, where)
    name_nodes(proto)
    original = proto.SerializeToString()
    drop_initializer_inputs(proto)
    freeze(proto, shapes, where)
    model = normalise(proto, where)
    inputs = tuple(_tensor(value) for value in model.graph.inputs)
    require_equal(original, to_bytes(model), [(t.name, t.shape, t.dtype) for t in inputs], where)
    return _graph(model, sha256)


def rebuilt(model: ir.Model, like: Graph) -> Graph:
    """The graph of a model that was made from the one of ``like``: smaller, say, and still of the same original."""
    return _graph(model, like.sha256)


def reread(content: bytes, like: Graph) -> Graph:
    """The graph of `to_bytes` of a model that was made from the one of ``like``."""
    return rebuilt(ir.serde.deserialize_model(onnx.load_model_from_string(content)), like)


def _graph(model: ir.Model, sha256: str) -> Graph:
    layers = find_layers(model)
    return Graph(
        model=model,
        sha256=sha256,
        inputs=tuple(_tensor(value) for value in model.graph.inputs),
        outputs=tuple(_tensor(value) for value in model.graph.outputs),
        layers=layers,
        edges=find_edges(model, layers),
    )


def to_bytes(model: ir.Model) -> bytes:
    """ONNX bytes of ``model``; the same model gives the same bytes."""
    content: bytes = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    return content


def _tensor(value: ir.Value) -> Tensor:
    assert value.dtype is not None, value.name
    return Tensor(value.name or "", shape_of(value), onnx.helper.tensor_dtype_to_np_dtype(value.dtype.value).name)
