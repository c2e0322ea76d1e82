"""The plan written into the float model, one rule an operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from container import WEIGHTED, File, Refused, first_line
from naming import Numbered, Tagged

# Moves values without changing any: runs in the precision of what reads it.
VIEWS = {"PAD", "TRANSPOSE", "RESHAPE", "MAX_POOL_2D"}
# Through these a result stays recognisable, in ONNX and in TFLite.
PASSING_NODES = {
    *("Relu", "Clip", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh"),
    *("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "MaxPool", "Identity"),
}
PASSING_OPERATORS = {
    *("RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "MINIMUM", "MAXIMUM", "HARD_SWISH", "LOGISTIC", "TANH"),
    *("SQUEEZE", *VIEWS),
}
# What has no weights to be known by, and the nodes that it may come of.
GLUE = {
    "ADD": "Add",
    "CONCATENATION": "Concat",
    "MEAN": "GlobalAveragePool",
    "MUL": "Mul",
    "RESIZE_NEAREST_NEIGHBOR": "Resize",
}
# Glue where they read two activations; with a constant, a result stays recognisable through them.
PAIRED = {"ADD": "Add", "MUL": "Mul"}


def quantize(tagged: Tagged, numbered: Numbered, job: Mapping[str, Any]) -> bytes:
    """Write the plan into the model, one rule an operator."""
    from ai_edge_quantizer import qtyping, quantizer

    content = tagged.content
    file = File(content)
    owners = with_glue(file, tagged.owners, numbered)
    numbers = {name: number for number, name in enumerate(numbered.nodes)}
    plan = {numbers[name]: entry for name, entry in job["nodes"].items()}
    missing = [numbered.nodes[n] for n, entry in plan.items() if n not in owners and not entry.get("optional")]
    if missing:
        raise Refused(f"no operator of the converted model computes {', '.join(missing)}")
    engine = quantizer.Quantizer(content)
    ranges: dict[str, tuple[float, float]] = {}
    widths: dict[int, int] = {}  # operator -> bits of its activations
    rules = 0
    for index, operator in enumerate(file.operators):
        kind, owner = file.kind(operator), owners[index]
        entry = plan.get(owner) if owner is not None else None
        precision = entry["precision"] if entry else job["base"]
        if precision == "fp32" or (owner is None):
            continue
        weighted = any(file.constant(t) for t in file.operands(operator))
        granularity = qtyping.QuantGranularity(WEIGHTED.get(kind, "TENSORWISE"))
        scope, name = f"^o{index};", qtyping.TFLOperationName({"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}.get(kind, kind))
        try:
            if precision in ("int8", "int16x8"):
                bits = 8 if precision == "int8" else 16
                engine.add_static_config(scope, name, bits, 8, granularity)
                widths[index] = bits
                assert entry is not None
                note_ranges(file, operator, entry, ranges, numbered.nodes[owner])
            elif weighted and precision in ("w8", "w4"):
                engine.add_weight_only_config(scope, name, 8 if precision == "w8" else 4, granularity)
            elif weighted and precision == "fp16":
                engine.add_weight_only_config(
                    scope, name, 16, qtyping.QuantGranularity.TENSORWISE, quantizer.AlgorithmName.FLOAT_CASTING
                )
            else:
                continue
        except ValueError as error:
            if entry is None:
                continue  # the base precision of an operator that has only one
            raise Refused(f"{numbered.nodes[owner]}: {kind} has no {precision}: {first_line(error)}") from None
        rules += 1
    if not rules:
        return content
    for index, bits in glue(file, widths, ranges):
        engine.add_static_config(f"^o{index};", qtyping.TFLOperationName(file.kind(file.operators[index])), bits, 8)
    statistics = {
        name: {"min": np.float32([[low]]), "max": np.float32([[high]])} for name, (low, high) in ranges.items()
    }
    for name, statistic in statistics.items():
        rank = next(len(t.shape) for t in file.tensors if t.name.decode() == name)
        for key in ("min", "max"):
            statistic[key] = statistic[key].reshape((1,) * rank)
    try:
        return bytes(engine.quantize(statistics or None).quantized_model)
    except Exception as error:  # ValueError, RuntimeError, KeyError, AssertionError: all for a plan it cannot write
        raise Refused(f"ai-edge-quantizer cannot write the plan: {type(error).__name__}: {first_line(error)}") from None


def with_glue(file: File, owners: list[int | None], numbered: Numbered) -> list[int | None]:
    """The owners, with glue too. A sum has no name to be known by: it is known by what it adds, and so are others."""
    constants = {tensor.name for tensor in numbered.model.graph.initializer}
    made_by = {output: number for number, node in enumerate(numbered.model.graph.node) for output in node.output}

    def activations(node: onnx.NodeProto) -> list[str]:
        return [name for name in node.input if name and name not in constants]

    def source(name: str) -> int | None:
        number = made_by.get(name)
        while number is not None:
            node = numbered.model.graph.node[number]
            read = activations(node)
            alone = len(set(read)) == 1 and node.op_type in PAIRED.values()
            if not read or not (alone or node.op_type in PASSING_NODES):
                break
            number = made_by.get(read[0])
        return number

    glued: dict[tuple[str, frozenset[int | None]], list[int]] = {}
    for number, node in enumerate(numbered.model.graph.node):
        if node.op_type in GLUE.values():
            read = frozenset(source(name) for name in activations(node))
            glued.setdefault((node.op_type, read), []).append(number)
    found = list(owners)
    carries: dict[int, int | None] = {}  # tensor -> node whose result it is
    for index, operator in enumerate(file.operators):
        kind = file.kind(operator)
        carried = [carries.get(tensor) for tensor in dict.fromkeys(file.activations(operator))]
        if kind in GLUE and carried and None not in carried and (kind not in PAIRED or len(carried) == 2):
            waiting = glued.get((GLUE[kind], frozenset(carried)), [])
            found[index] = waiting.pop(0) if waiting else None
        alone = len(carried) == 1 and kind in PAIRED
        passed = carried[0] if carried and (alone or kind in PASSING_OPERATORS) else None
        for tensor in file.outputs(operator):
            carries[tensor] = found[index] if found[index] is not None else passed
    return found


def note_ranges(
    file: File, operator: Any, entry: Mapping[str, Any], ranges: dict[str, tuple[float, float]], node: str
) -> None:
    """Ranges of what an integer operator reads and writes, by tensor."""
    read, written = file.activations(operator), file.outputs(operator)
    if len(read) != len(entry["inputs"]) or entry.get("output") is None:
        raise Refused(f"{node}: {len(read)} activation inputs, ranges for {len(entry['inputs'])}")
    for tensor, found in [*zip(read, entry["inputs"], strict=True), (written[0], entry["output"])]:
        low, high = min(found[0], 0.0), max(found[1], 0.0)
        known = ranges.setdefault(file.name(tensor), (low, high))
        if not np.allclose(known, (low, high), rtol=1e-5, atol=1e-12):
            # Its writer and a reader disagree where a clip stands between them in ONNX and is gone here: the reader's.
            ranges[file.name(tensor)] = (low, high)


def glue(file: File, widths: Mapping[int, int], ranges: dict[str, tuple[float, float]]) -> Iterator[tuple[int, int]]:
    """Views that only integer operators read, from the last to the first, with their bits: they run in integers too,
    on the scale of what reads them.
    """
    readers: dict[int, list[int]] = {}
    for index, operator in enumerate(file.operators):
        for tensor in file.activations(operator):
            readers.setdefault(tensor, []).append(index)
    outputs = {int(tensor) for tensor in file.graph.outputs}
    known = dict(widths)
    for index in reversed(range(len(file.operators))):
        operator = file.operators[index]
        written = file.outputs(operator)
        if file.kind(operator) not in VIEWS or outputs & set(written):
            continue
        bits = {known.get(reader) for tensor in written for reader in readers.get(tensor, [])}
        read = file.activations(operator)
        if len(bits) != 1 or None in bits or len(read) != 1 or file.name(written[0]) not in ranges:
            continue
        value = ranges[file.name(written[0])]
        if not np.allclose(ranges.setdefault(file.name(read[0]), value), value, rtol=1e-5, atol=1e-12):
            continue
        known[index] = next(iter(bits)) or 8
        yield index, known[index]
