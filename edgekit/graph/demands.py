"""In which width each reader wants an activation: what decides it, and when.

A layer reads in 8 bit where it is int8. Operators that a Q/DQ pair stands before (`TRANSPARENT_OPS`) want what their
own readers want, in both widths where these differ; such that a pair is pushed up through (`PUSHED_OPS`, Concat among
them) run in 8 bit only where nothing wants their float result. A residual Add reads 8 bit where all layers before it
are int8 and one behind it. Everything else reads float.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.graph.buffers import VIEW_OPS
from edgekit.graph.flow import Flow, is_op
from edgekit.graph.layers import shape_of

TRANSPARENT_OPS = VIEW_OPS | {"Transpose", "MaxPool"}
PUSHED_OPS = frozenset({"Relu", "Clip", "Concat", "Slice", "Split", "Pad"})


@dataclass(frozen=True)
class Demand:
    """The float value is wanted where one of the layers ``float_if`` is not int8 (``None``: always), the 8-bit value
    where one of ``int8_if`` is.
    """

    float_if: frozenset[str] | None
    int8_if: frozenset[str] = frozenset()


FLOAT = Demand(None)
NOTHING = Demand(frozenset())


def both(demands: Iterable[Demand]) -> Demand:
    """What at least one of them wants."""
    found = NOTHING
    for demand in demands:
        known = found.float_if is not None and demand.float_if is not None
        float_if = (found.float_if or frozenset()) | (demand.float_if or frozenset()) if known else None
        found = Demand(float_if, found.int8_if | demand.int8_if)
    return found


def find_demands(flow: Flow, inputs: Mapping[str, tuple[str, ...]]) -> dict[tuple[int, str], Demand]:
    """What a step wants of a value that it reads. ``inputs`` are those of the layers that int8 would quantize."""
    adds = quantizable_adds(flow, frozenset(inputs))
    found: dict[tuple[int, str], Demand] = {}
    for step in reversed(range(len(flow.nodes))):
        node = flow.nodes[step]
        for name in flow.reads[step]:
            if (layer := node.name or "") in inputs:
                one = frozenset({layer})
                found[step, name] = Demand(one, one) if name in inputs[layer] else FLOAT
            elif step in adds:
                found[step, name] = Demand(adds[step])
            elif is_op(node, *TRANSPARENT_OPS, *PUSHED_OPS):
                needs = both(of_readers(flow, o.name, found) for o in node.outputs if o.name)
                alone = needs.float_if == needs.int8_if and len(needs.int8_if) == 1
                found[step, name] = needs if alone or is_op(node, *TRANSPARENT_OPS) else Demand(needs.float_if)
            else:
                found[step, name] = FLOAT
    return found


def of_readers(flow: Flow, name: str, demands: Mapping[tuple[int, str], Demand]) -> Demand:
    """What the readers of a value want of it; a model output is float."""
    return both(demands[step, name] for step in flow.readers[name]) if name not in flow.outputs else FLOAT


def quantizable_adds(flow: Flow, layers: frozenset[str]) -> dict[int, frozenset[str]]:
    """Residual Adds by step, each with the layers that must all be int8 for it to read 8 bit: those that make its
    operands, directly or through other such Adds. Where a single layer reads the sum, it is among them; where several
    do, one of those is taken to be int8.
    """
    found: dict[int, frozenset[str]] = {}
    place = {node: step for step, node in enumerate(flow.nodes)}
    for step, node in enumerate(flow.nodes):
        if not is_op(node, "Add") or len(flow.reads[step]) != 2 or len({shape_of(v) for v in node.inputs if v}) != 1:
            continue
        needed: frozenset[str] | None = frozenset()
        for value in node.inputs:
            maker = _maker(value)
            if needed is None or maker is None:
                needed = None
            elif maker.name in layers:
                needed |= {maker.name}
            else:
                needed = needed | found[place[maker]] if place[maker] in found else None
        fed = layers_fed_by(node, layers) if needed else frozenset()
        if needed and fed:  # what no layer reads, directly or summed with others, is put out in float
            found[step] = needed | fed if len(fed) == 1 else needed
    return found


def layers_fed_by(node: ir.Node, layers: frozenset[str]) -> frozenset[str]:
    """The layers that read a node's result as it is, or summed with others."""
    found, seen, waiting = set[str](), {node}, [node]
    while waiting:
        for reader in waiting.pop().outputs[0].consumers():
            if (name := reader.name or "") in layers:
                found.add(name)
            elif is_op(reader, *TRANSPARENT_OPS, "Relu", "Clip", "Add") and reader not in seen:
                seen.add(reader)
                waiting.append(reader)
    return frozenset(found)


def _maker(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    while node is not None and is_op(node, *TRANSPARENT_OPS, "Relu", "Clip"):
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    return node
