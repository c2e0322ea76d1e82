"""What trtexec reports, in the forms of TensorRT 8.0 to 11: latencies, outputs, and the layers of an engine joined to
those of the model.

Forms: samples/common/sampleReporting.cpp of each release in https://github.com/NVIDIA/TensorRT; those of layers are the
engine inspector's, as in the examples of its tools/experimental/trt-engine-explorer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.backends import ExecutedNode
from edgekit.backends.trtexec import WARM_UP_MS
from edgekit.errors import DeviceError
from edgekit.types import Precision

if TYPE_CHECKING:
    import numpy as np

    from edgekit.graph import Graph

_HIDDEN = "not shown"  # inside a region that the compiler fused
_WORDS = {
    Precision.FP32: "fp32",
    Precision.FP16: "fp16",
    Precision.BF16: "bf16",
    Precision.INT8: "int8",
    Precision.FP8: "fp8",
    Precision.W4: "int4",
}
_MOVES = frozenset({"Reformat", "NoOp", "Signal", "Wait", "Constant", "Shuffle", "Reshape"})


@dataclass(frozen=True)
class Timing:
    """One inference: data to the GPU, computing, data back, in milliseconds; ``start_ms`` counts from the first."""

    start_ms: float
    h2d_ms: float
    compute_ms: float
    d2h_ms: float
    latency_ms: float


@dataclass(frozen=True)
class EngineLayer:
    """A layer of the engine: the ONNX nodes fused into it, and the type that it computes in ('' where nobody tells)."""

    name: str
    nodes: tuple[str, ...]
    executed: str
    moves: bool
    reads: tuple[str, ...] = ()
    region: tuple[str, str] | None = None


# --- trtexec's own reports --------------------------------------------------------------------------------------------


def read_times(text: str, warm_up_ms: float = WARM_UP_MS) -> tuple[Timing, ...]:
    """``--exportTimes`` without the warm-up, which releases before 8.5 write too. Raises `DeviceError`."""
    try:
        timings = [
            Timing(row["startComputeMs"], row["h2dMs"], row["computeMs"], row["d2hMs"], row["latencyMs"])
            for row in _parsed(text, "times")
        ]
    except (KeyError, TypeError):
        raise _unreadable("times") from None
    # As samples/common/sampleReporting.cpp has it: what follows the first that starts after the warm-up counts.
    counted = next((index for index, one in enumerate(timings) if one.start_ms >= warm_up_ms), len(timings))
    if counted == len(timings):
        raise DeviceError("trtexec reports no inference after its warm-up", "measure for longer: --seconds")
    return tuple(timings[counted:])


def read_profile(text: str) -> dict[str, float]:
    """``--exportProfile``: milliseconds of each layer, the median where the release tells it (8.4), else the mean.
    Times of layers that share a name are added.
    """
    found: dict[str, float] = {}
    try:
        for row in _parsed(text, "profile"):
            if "name" in row:
                time_ms = row["medianMs"] if "medianMs" in row else row["averageMs"]
                found[row["name"]] = found.get(row["name"], 0.0) + time_ms
    except (KeyError, TypeError):
        raise _unreadable("profile") from None
    if not found:
        raise _unreadable("profile")
    return found


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """``--exportLayerInfo``, with details or names alone. Raises `DeviceError`."""
    document = _parsed(text, "layers")
    if not isinstance(document, dict) or not isinstance(document.get("Layers"), list):
        raise _unreadable("layers")
    return tuple(_engine_layer({"Name": row} if isinstance(row, str) else row) for row in document["Layers"])


def _engine_layer(row: Mapping[str, Any]) -> EngineLayer:
    name = str(row.get("Name", ""))
    copy = re.match(r"Reformatting CopyNode for (?:Input|Output) Tensor \d+ to (.*)", name)
    # A single node is a region too, where an accelerator computes it: github.com/NVIDIA-AI-IOT/jetson_dla_tutorial.
    region = re.fullmatch(r"\{ForeignNode\[(.+?)(?:\.\.\.(.+))?\]\}", name)
    told = re.findall(r"\[ONNX Layer: ([^\]]+)\]", row.get("Metadata") or "")
    nodes = told or [word.strip() for word in re.split(r" \+ | \|\| |[(),]", copy[1] if copy else name)]
    inputs = [one for one in row.get("Inputs", ()) if isinstance(one, dict)]
    return EngineLayer(
        name=name,
        nodes=tuple(dict.fromkeys(word for word in nodes if word)),
        executed=_executed(row, inputs),
        moves=copy is not None or row.get("LayerType") in _MOVES,
        reads=tuple(str(one.get("Name", "")) for one in inputs),
        region=(_first_of(region[1]), _first_of(region[2] or region[1])) if region else None,
    )


def _first_of(fused: str) -> str:
    """The node that "fc + fc.bias + ..." begins with."""
    return fused.split(" + ")[0]


def _executed(row: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> str:
    """The type that a layer multiplies in: that of its weights where it names them, else that of its first input."""
    weights = row.get("Weights")
    if isinstance(weights, dict) and weights.get("Type"):
        return type_word(str(weights["Type"]))
    return type_word(str(inputs[0].get("Format/Datatype", ""))) if inputs else ""


def type_word(text: str) -> str:
    """``fp32``, ``fp16`` ... of TensorRT's words: "Half", "Row major linear FP32", "... row major Int8 format"."""
    for pattern, word in (
        (r"bf16|bfloat", "bf16"),
        (r"fp16|half", "fp16"),
        (r"fp8", "fp8"),
        (r"fp4", "fp4"),
        (r"fp32|float", "fp32"),
        (r"int8", "int8"),
        (r"int4", "int4"),
        (r"int32", "int32"),
        (r"int64", "int64"),
        (r"bool", "bool"),
    ):
        if re.search(pattern, text, re.IGNORECASE):
            return word
    return text


def read_outputs(text: str) -> dict[str, np.ndarray]:
    """``--exportOutput``: arrays by name, as six digits have them."""
    import numpy as np

    found = {}
    try:
        for row in _parsed(text, "outputs"):
            shape = tuple(int(part) for part in row["dimensions"].split("x")) if row["dimensions"] else ()
            found[row["name"]] = np.array(row["values"], np.float64).reshape(shape)
    except (KeyError, TypeError, ValueError):
        raise _unreadable("outputs") from None
    if not found:
        raise _unreadable("outputs")
    return found


def _parsed(text: str | None, what: str) -> Any:
    try:
        return json.loads(text or "", strict=False)
    except ValueError:
        pass
    # C++ has its own words for what is no number.
    words = re.sub(
        r"(?<=[\s\[,:])(-?)(nan|inf)(?=[\s\],}])", lambda m: "NaN" if m[2] == "nan" else f"{m[1]}Infinity", text or ""
    )
    try:
        return json.loads(words, strict=False)
    except ValueError:
        raise _unreadable(what) from None


def _unreadable(what: str) -> DeviceError:
    return DeviceError(
        f"trtexec's report of {what} is not what its release writes",
        "look at it in the bundle's folder built on the board",
    )


# --- joined to the plan -----------------------------------------------------------------------------------------------


def rows_of(layers: str | None, profile: str | None, names: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The engine's layers with their times, as `executed_nodes` takes them. ``names``: of nodes in the file -> in the
    model. Without layers (TensorRT 8.0 tells none) the profile's names are all there is.
    """
    times = read_profile(profile) if profile else {}
    found = read_layers(layers) if layers else tuple(_engine_layer({"Name": name}) for name in times)
    own = names or {}
    return [
        {
            "name": one.name,
            "nodes": [own.get(node, node) for node in one.nodes],
            "region": None if one.region is None else [own.get(node, node) for node in one.region],
            "reads": list(one.reads),
            "moves": one.moves,
            "precision": one.executed,
            "latency_ms": times.get(one.name, 0.0),
        }
        for one in found
    ]


def executed_nodes(rows: Sequence[Mapping[str, Any]], graph: Graph) -> tuple[ExecutedNode, ...]:
    """The engine's layers, joined to those of the graph. What moves data belongs to the layer whose result it moves; a
    region that the compiler fused whole computes every layer from its first node to its last, in types not shown.
    """
    from edgekit.graph import to_bytes

    results = {layer.output: layer.name for layer in graph.layers}
    order = {layer.name: place for place, layer in enumerate(graph.layers)}
    nodes: list[ExecutedNode] = []
    previous: tuple[str, ...] = ()
    places = _places(to_bytes(graph.model)) if any(row["region"] for row in rows) else {}
    for row in rows:
        layers = tuple(sorted((name for name in row["nodes"] if name in order), key=order.__getitem__))
        word = row["precision"]
        if row["region"]:
            first, last = (places.get(node, -1) for node in row["region"])
            layers = tuple(name for name in order if first <= places.get(name, -2) <= last)
            word = _HIDDEN
        computes = bool(layers) and not row["moves"]
        moved = tuple(results[name] for name in row["reads"] if name in results)[:1]
        owner = layers if computes else moved or layers or previous
        nodes.append(ExecutedNode(owner, computes, word, row["latency_ms"]))
        previous = layers if computes else previous
    return tuple(nodes)


def _places(model: bytes) -> dict[str, int]:
    import onnx

    return {node.name: place for place, node in enumerate(onnx.load_model_from_string(model).graph.node)}


def executes_as(planned: Precision, executed: str) -> bool:
    """Whether an engine layer's type is what ``planned`` asks for."""
    return executed == _WORDS.get(planned)


__all__ = [
    "EngineLayer",
    "Timing",
    "executed_nodes",
    "executes_as",
    "read_layers",
    "read_outputs",
    "read_profile",
    "read_times",
    "rows_of",
    "type_word",
]
