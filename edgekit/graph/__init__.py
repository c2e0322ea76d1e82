"""Load an ONNX model, normalise it, and know its layers, their data flow and the memory they need."""

from edgekit.graph.liveness import (
    LiveTensor,
    live_activation_bytes,
    lowered_steps,
    peak_activation_bytes,
    planning_steps,
)
from edgekit.graph.load import Graph, Tensor, load, to_bytes

__all__ = [
    "Graph",
    "LiveTensor",
    "Tensor",
    "live_activation_bytes",
    "load",
    "lowered_steps",
    "peak_activation_bytes",
    "planning_steps",
    "to_bytes",
]
