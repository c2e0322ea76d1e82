"""The data flow of a model in the order in which a runtime executes it.

The order decides how much memory is needed at once, and so does the addition that a convolution does on the side. Both
are as in OpenVINO's CPU plugin (SortTopologically, FuseConvolutionSumAndConvolutionSumActivation in its sources): depth
first from the outputs, the operands of a node in their order. The order in the file has no say in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.graph.layers import elements_of, reads_of


@dataclass(frozen=True)
class Flow:
    """Who makes and who reads each activation of a model, by execution step.

    ``sums`` are the convolutions that add to a tensor: step -> (step of the Add, the tensor).
    """

    nodes: tuple[ir.Node, ...]
    values: dict[str, ir.Value]
    reads: tuple[tuple[str, ...], ...]
    readers: dict[str, list[int]]
    outputs: frozenset[str]
    sums: dict[int, tuple[int, str]]


def flow_of(model: ir.Model, alone: frozenset[str] = frozenset(), together: frozenset[str] = frozenset()) -> Flow:
    """Read the data flow of the top-level graph; what subgraphs capture counts as read by their node. The convolutions
    named ``alone`` add to nothing by the way. Nodes named ``together`` come right after what they read.
    """
    sums = sums_of(model, alone)
    nodes = _execution_order(model, sums, together)
    values = {v.name: v for v in (*model.graph.inputs, *(o for node in nodes for o in node.outputs)) if v.name}
    readers: dict[str, list[int]] = {name: [] for name in values}
    reads = []
    for step, node in enumerate(nodes):
        names = tuple(v.name for v in reads_of(node) if v.name in values)
        for name in names:
            readers[name].append(step)
        reads.append(names)
    outputs = frozenset(v.name for v in model.graph.outputs if v.name)
    place = {node: step for step, node in enumerate(nodes)}
    steps = {place[conv]: (place[add], peer.name or "") for conv, (add, peer) in sums.items()}
    return Flow(nodes, values, tuple(reads), readers, outputs, steps)


def is_op(node: ir.Node, *ops: str) -> bool:
    """Whether ``node`` is one of these standard operators."""
    return node.domain in ("", "ai.onnx") and node.op_type in ops


Sums = Mapping[ir.Node, tuple[ir.Node, ir.Value]]


def sums_of(model: ir.Model, alone: frozenset[str] = frozenset()) -> Sums:
    """Convolutions that add their result to what a tensor already holds, each with the Add and that tensor.

    That is a residual Add of two tensors of one shape, of which one comes straight from a convolution that nothing
    else reads, and the other is read by nothing but the Add and what the Add depends on: it can be written over.
    """
    found: dict[ir.Node, tuple[ir.Node, ir.Value]] = {}
    for node in model.graph:
        if not is_op(node, "Add") or len(node.inputs) != 2:
            continue
        for value, peer in (node.inputs, node.inputs[::-1]):
            if value is None or peer is None or value is peer or value.shape != peer.shape:
                continue
            conv = value.producer()
            if conv is None or conv.name in alone:
                continue
            if not is_op(conv, "Conv") or value.is_graph_output() or len(value.uses()) != 1:
                continue
            if peer.producer() is None or peer.is_graph_output() or peer in conv.inputs:
                continue
            if all(user is node or _depends(node, user) for user, _ in peer.uses()):
                found[conv] = (node, peer)
                break
    return found


def _depends(node: ir.Node, on: ir.Node) -> bool:
    """Whether ``node`` needs what ``on`` computes."""
    seen: set[ir.Node] = {node}
    stack = [node]
    while stack:
        for value in reads_of(stack.pop()):
            producer = value.producer()
            if producer is on:
                return True
            if producer is not None and producer not in seen:
                seen.add(producer)
                stack.append(producer)
    return False


def _execution_order(model: ir.Model, sums: Sums, together: frozenset[str]) -> tuple[ir.Node, ...]:
    """Every node once, after all that it depends on."""
    own = set(model.graph)
    done: dict[ir.Node, None] = {}

    def before(node: ir.Node) -> list[ir.Node]:
        reads = reads_of(node)
        if node in sums:
            reads = [*reads, sums[node][1]]
        elif is_op(node, "Add"):  # a convolution that does it comes first: it brings the other operand along
            reads = sorted(reads, key=lambda value: value.producer() not in sums)
        return [made for value in reads if (made := value.producer()) in own and made is not None and made not in done]

    for root in (*(value.producer() for value in model.graph.outputs), *model.graph):
        stack = [] if root is None or root in done else [root]
        while stack:
            missing = before(stack[-1])
            if missing:
                stack.append(missing[0])
            else:
                done.update(dict.fromkeys(_at_once(stack.pop(), together)))
    return tuple(done)


def _at_once(node: ir.Node, together: frozenset[str]) -> list[ir.Node]:
    """The node, with all others that cut the same tensor where these are slices that it falls into: that is a Split.
    Or with those that are computed ``together`` with what they read.
    """
    if followers := [user for o in node.outputs for user in o.consumers() if user.name in together]:
        return [node, *followers]
    value = node.inputs[0] if is_op(node, "Slice") else None
    if value is None:
        return [node]
    cuts = [user for user, place in value.uses() if is_op(user, "Slice") and place == 0]
    if any(other.producer() is not None for cut in cuts for other in cut.inputs[1:] if other is not None):
        return [node]  # where it cuts is computed
    return cuts if sum(elements_of(cut.outputs[0]) for cut in cuts) == elements_of(value) else [node]
