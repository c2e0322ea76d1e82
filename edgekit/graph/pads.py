"""Merges zero padding into the convolution that follows it. Left alone, it is an operator of its own in every runtime,
and between int8 layers one that works in float.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph.layers import shape_of


def fold_pads(model: ir.Model) -> None:
    """Turn ``Conv(Pad(x))`` into ``Conv(x)`` with larger pads, in place, where the padding is zeros around the spatial
    axes and nothing else reads it.
    """
    for node in list(model.graph):
        pads = _spatial_zero_pads(node)
        if pads is None:
            continue
        padded = node.outputs[0]
        uses = padded.uses()
        if len(uses) != 1 or padded.is_graph_output():
            continue
        (use,) = uses
        conv = use.node
        if conv.op_type != "Conv" or conv.domain or use.idx != 0:
            continue
        if conv.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            continue
        own = conv.attributes.get_ints("pads", [0] * len(pads))
        conv.attributes["pads"] = ir.AttrInt64s("pads", [mine + more for mine, more in zip(own, pads, strict=True)])
        conv.replace_input_with(0, node.inputs[0])
        model.graph.remove(node, safe=True)


def _spatial_zero_pads(node: ir.Node) -> list[int] | None:
    """Begins, then ends, of the spatial axes of a Pad that adds zeros to these alone; None for any other node."""
    if node.op_type != "Pad" or node.domain or node.attributes.get_string("mode", "constant") != "constant":
        return None
    data, amounts, *rest = node.inputs
    if data is None or amounts is None or amounts.const_value is None or len(rest) > 1:
        return None  # padding of chosen axes (opset 18) is rare: left as it is
    value = rest[0] if rest else None
    if value is not None and (value.const_value is None or value.const_value.numpy().any()):
        return None
    pads = [int(amount) for amount in amounts.const_value.numpy()]
    rank = len(shape_of(data))
    begins, ends = pads[:rank], pads[rank:]
    if len(ends) != rank or min(pads) < 0 or any(begins[:2]) or any(ends[:2]):
        return None
    return begins[2:] + ends[2:]
