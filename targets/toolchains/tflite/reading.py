"""What a written file says of its operators."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import onnx
from container import COMPUTES, File
from naming import Numbered, Tagged, rename


def finish(content: bytes, tagged: Tagged, numbered: Numbered, source: onnx.ModelProto) -> tuple[bytes, list[Any]]:
    """Put the model's own names back, and describe every operator from what the file says of its tensors."""
    file = File(content)
    made_by: dict[int, Any] = {}
    upstream: dict[int, int | None] = {}  # tensor -> node whose result it carries
    rows: list[dict[str, Any]] = []
    for operator in file.operators:
        written = file.outputs(operator)
        match = re.fullmatch(r"o(\d+);\d+", file.name(written[0]))
        owner = tagged.owners[int(match.group(1))] if match and file.kind(operator) in COMPUTES else None
        before = [upstream[t] for t in file.inputs(operator) if upstream.get(t) is not None]
        carried = owner if owner is not None else next(iter(before), None)
        for tensor in written:
            made_by[tensor] = operator
            upstream[tensor] = carried
        row = {"op": file.kind(operator), "layer": "" if owner is None else numbered.nodes[owner]}
        row["upstream"] = "" if carried is None else numbered.nodes[carried]
        rows.append(row | types(file, operator, made_by))
    nodes = {node: list(one.output) for node, one in zip(numbered.nodes, source.graph.node, strict=True)}
    rename(file, tagged, numbered, nodes)
    for row, operator in zip(rows, file.operators, strict=True):
        row["name"] = file.name(file.outputs(operator)[0])
    return file.content(), rows


def types(file: File, operator: Any, made_by: Mapping[int, Any]) -> dict[str, Any]:
    """Types of an operator's activations, weights as they are stored, and results; and the precision that they mean."""

    def stored(tensor: int) -> int | None:
        maker = made_by.get(tensor)
        if maker is not None and file.kind(maker) == "DEQUANTIZE":
            tensor = file.inputs(maker)[0]
        return tensor if file.constant(tensor) else None

    weights = [w for w in (stored(t) for t in file.operands(operator)) if w is not None]
    read = [t for t in file.operands(operator) if stored(t) is None]
    if file.kind(operator) not in COMPUTES:
        read = file.activations(operator)
    direct = [t for t in file.operands(operator) if file.constant(t)]
    found = {
        "inputs": [file.type(t) for t in read],
        "weights": file.type(weights[0]) if weights else "",
        "scales": file.scales(weights[0]) if weights else 0,
        "outputs": [file.type(t) for t in file.outputs(operator)],
    }
    words = {
        ("FLOAT32", "FLOAT32"): "fp32",
        ("FLOAT32", ""): "fp32",
        ("FLOAT32", "FLOAT16"): "fp16",
        ("FLOAT32", "INT8"): "int8 by ranges at run time" if direct else "w8",
        ("FLOAT32", "INT4"): "int4 by ranges at run time" if direct else "w4",
        ("INT8", "INT8"): "int8",
        ("INT8", ""): "int8",
        ("INT16", "INT8"): "int16x8",
        ("INT16", ""): "int16x8",
    }
    kinds = {*found["inputs"], *found["outputs"]}
    mixed = f"{'/'.join(found['inputs'])} with {found['weights'] or 'no'} weights".lower()
    one = words.get((kinds.pop(), found["weights"]), mixed) if len(kinds) == 1 else mixed
    return found | {"precision": one}


def weight_bytes(content: bytes) -> int:
    """What the file holds of constants."""
    return sum(0 if buffer.data is None else len(buffer.data) for buffer in File(content).model.buffers)
