"""Which nodes are computed in one pass, so that what flows between them takes no memory.

OpenVINO's CPU plugin compiles such subgraphs (snippets), attention among them, and TensorRT has kernels for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgekit.graph.flow import Flow, is_op
from edgekit.graph.layers import elements_of, shape_of

# fmt: off
ELEMENTWISE_OPS = frozenset({
    "Abs", "Add", "BatchNormalization", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal",
    "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh",
    "ThresholdedRelu", "Where",
})
# Nodes of their own (Math) to OpenVINO: their results are new tensors, and nothing is computed in one pass with them.
_ALONE_OPS = frozenset({"Cos", "HardSigmoid", "Selu", "Sign", "Sin"})
# What no kernel computes of its result on the side (oneDNN has no such post-operation).
_APART_OPS = _ALONE_OPS | {
    "Ceil", "Celu", "Erf", "Exp", "Floor", "Log", "Max", "Min", "Pow", "Reciprocal", "Softplus", "Softsign",
    "ThresholdedRelu", "Where",
}
# fmt: on

# A float tensor becomes one of 8 bit: FakeQuantize to OpenVINO. See `lowering`.
QUANTIZE = "QuantizeLinear"
# Passes of their own: they may write over what they read, and join nothing.
_SINGLE_OPS = frozenset({"LayerNormalization", "Softplus", "Softsign"})


@dataclass(frozen=True)
class Pass:
    """Nodes that are computed in one pass over ``sources``, at the step ``last``: only its result is stored."""

    steps: set[int]
    last: int
    sources: tuple[str, ...]
    elementwise: bool


def find_passes(flow: Flow) -> dict[int, Pass]:
    """The pass that each step is in; no entry where a step is none of a pass.

    An elementwise node, or a Softmax of rows, joins its readers where all of them are in one pass over as many
    elements; layer normalisation is a pass alone. Attention is one pass: a MatMul, elementwise operators, Softmax, the
    MatMul that reads it, and the Transpose that puts its heads back.
    """
    last_of: dict[int, int] = {}
    for step in reversed(range(len(flow.nodes))):
        if not _elementwise(flow, step):
            continue
        if _is_single(flow.nodes[step]):
            last_of[step] = step
            continue
        name = flow.nodes[step].outputs[0].name or ""
        lasts = {last_of.get(reader) for reader in flow.readers[name]}
        if all(is_op(flow.nodes[reader], QUANTIZE) for reader in flow.readers[name]):
            lasts = {max((last_of[reader] for reader in flow.readers[name]), default=None)}
        (last,) = lasts if len(lasts) == 1 and name not in flow.outputs else {None}
        joins = last is not None and not _is_single(flow.nodes[last]) and _alike(flow, step, last)
        last_of[step] = last if last is not None and joins else step
    makers = {o.name: step for step, node in enumerate(flow.nodes) for o in node.outputs if o.name}
    for step in range(len(flow.nodes)):
        last_of.update(_attention(flow, step, last_of, makers))
    found: dict[int, Pass] = {}
    for last in set(last_of.values()):
        steps = {step for step, its in last_of.items() if its == last}
        made = {o.name for step in steps for o in flow.nodes[step].outputs}
        reads = [name for step in sorted(steps) for name in flow.reads[step] if name not in made]
        if reads:
            one = Pass(steps, last, tuple(dict.fromkeys(reads)), _elementwise(flow, last))
            found.update(dict.fromkeys(steps, one))
    return found


def done_by_kernel(node: ir.Node) -> bool:
    """Whether the kernel of a layer computes this function of its result on the side."""
    is_inverse = is_op(node, "Div") and node.inputs[0] is not None and node.inputs[0].is_initializer()
    return _in_activation(node) or (is_op(node, *(ELEMENTWISE_OPS - _APART_OPS)) and not is_inverse)


def _is_single(node: ir.Node) -> bool:
    """Whether it is a pass of its own."""
    return is_op(node, *_SINGLE_OPS) and not _in_activation(node)


def _in_activation(node: ir.Node) -> bool:
    """Whether it is the middle of Mish, x tanh(softplus(x)), or of Gelu, x (1 + erf(x / sqrt 2)) / 2, spelled out."""
    after = "Tanh" if is_op(node, "Softplus") else "Add" if is_op(node, "Erf") else ""
    readers = list(node.outputs[0].consumers())
    return bool(after and readers) and all(is_op(reader, after) for reader in readers)


def _attention(flow: Flow, softmax: int, last_of: dict[int, int], makers: dict[str, int]) -> dict[int, int]:
    """For a Softmax between two matrix products, the steps from the first to the second, each with the second."""
    if not _softmax_of_rows(flow.nodes[softmax]):
        return {}
    last = last_of.get(softmax, softmax)
    last = last if is_op(flow.nodes[last], QUANTIZE) else softmax
    weights = flow.nodes[last].outputs[0].name or ""
    steps = {step for step, its in last_of.items() if its == last}  # with what scales and masks the scores
    made = {flow.nodes[step].outputs[0].name for step in steps}
    sources = {name for step in steps for name in flow.reads[step] if name not in made}
    products = [makers[name] for name in sources if _product(flow, makers.get(name, -1))]
    after = flow.readers[weights]
    if len(products) != 1 or len(after) != 1 or not _product(flow, after[0]):
        return {}
    steps |= {products[0]}
    steps |= {
        makers[name] for step in (products[0], after[0]) for name in flow.reads[step] if _swapped(flow, makers, name)
    }
    inner = {o.name or "" for step in steps for o in flow.nodes[step].outputs}
    steps |= {after[0]}
    closed = all(steps.issuperset(flow.readers[name]) for name in inner) and not flow.outputs & inner
    end = after[0]
    result = flow.nodes[end].outputs[0].name or ""
    if (
        len(flow.readers[result]) == 1
        and result not in flow.outputs
        and _brings_heads_back(flow, flow.readers[result][0])
    ):
        end = flow.readers[result][0]
    return dict.fromkeys(steps | {end}, end) if closed else {}


def _brings_heads_back(flow: Flow, step: int) -> bool:
    """Whether a step is the Transpose of [batch, heads, length, width] after attention, which writes it so at once."""
    node = flow.nodes[step]
    if not is_op(node, "Transpose") or list(node.attributes.get_ints("perm", ())) != [0, 2, 1, 3]:
        return False
    return not any(_product(flow, reader) for reader in flow.readers[node.outputs[0].name or ""])


def _swapped(flow: Flow, makers: dict[str, int], name: str) -> bool:
    """Whether a value is a Transpose that leaves the rows whole, or turns matrices around: a product reads such rows
    where they are.
    """
    node = flow.nodes[makers[name]] if name in makers else None
    if node is None or not is_op(node, "Transpose") or len(flow.readers[name]) != 1:
        return False
    order = list(node.attributes.get_ints("perm", ()))
    return len(order) > 1 and len(order) - 1 in order[-2:]


def _product(flow: Flow, step: int) -> bool:
    return step >= 0 and is_op(flow.nodes[step], "MatMul") and len(flow.reads[step]) == 2


def _elementwise(flow: Flow, step: int) -> bool:
    node = flow.nodes[step]
    if step in {add for add, _ in flow.sums.values()} or len([o for o in node.outputs if o.name]) != 1:
        return False
    return is_op(node, *(ELEMENTWISE_OPS - _ALONE_OPS), QUANTIZE, "LayerNormalization") or _softmax_of_rows(node)


def _softmax_of_rows(node: ir.Node) -> bool:
    """Whether a row is all that it needs at a time, and where it is all that it writes over."""
    if not is_op(node, "Softmax"):
        return False
    return node.attributes.get_int("axis", -1) in (-1, len(shape_of(node.outputs[0])) - 1)


def _alike(flow: Flow, step: int, other: int) -> bool:
    """Whether two results are of one size; of one type too, but where one of them is quantized."""
    one, another = flow.nodes[step].outputs[0], flow.nodes[other].outputs[0]
    changes = any(is_op(flow.nodes[at], QUANTIZE) for at in (step, other))
    return elements_of(one) == elements_of(another) and (changes or one.dtype == another.dtype)
