"""Finds the layers (the units of decision) in a normalised model, and how data flows between them."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgekit.types import Edge, Layer

LAYER_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape of a value of a normalised model."""
    assert value.shape is not None, value.name
    return tuple(dim if isinstance(dim, int) else _open(value) for dim in value.shape)


def _open(value: ir.Value) -> int:
    raise ValueError(f"{value.name!r} has no static shape")


def elements_of(value: ir.Value) -> int:
    """The number of elements of a value of a normalised model."""
    return math.prod(shape_of(value))


def find_layers(model: ir.Model) -> tuple[Layer, ...]:
    """The layers of the top-level graph in execution order; nodes inside subgraphs are not decided on."""
    return tuple(layer for node in model.graph if (layer := _layer(node)) is not None)


def _layer(node: ir.Node) -> Layer | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in LAYER_OPS:
        return None
    first = node.inputs[0]
    if first is None or first.dtype != ir.DataType.FLOAT:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        return _conv(node)
    return _recurrent(node) if node.op_type in _GATES else _product(node)


def _conv(node: ir.Node) -> Layer:
    x, w = _value(node, 0), _value(node, 1)
    made = node.outputs[0] if node.op_type == "Conv" else x
    per_element = math.prod(shape_of(w)[1:])
    constant = w.is_initializer()
    return _make(
        node,
        inputs=[v for v in (x, w) if not v.is_initializer()],
        weights=[w] if constant else [],
        axis=(0 if node.op_type == "Conv" else 1) if constant else -1,
        bias=_input(node, 2),
        macs=elements_of(made) * per_element,
    )


def _product(node: ir.Node) -> Layer:
    """MatMul and Gemm. A constant operand is the weight, whichever side it is on."""
    a, b = _value(node, 0), _value(node, 1)
    gemm = node.op_type == "Gemm"
    trans_a = gemm and bool(node.attributes.get_int("transA", 0))
    trans_b = gemm and bool(node.attributes.get_int("transB", 0))
    rank_a, rank_b = len(shape_of(a)), len(shape_of(b))
    weight, axis = None, -1
    if b.is_initializer():
        weight = b
        axis = (0 if trans_b else 1) if gemm else rank_b - 1 if rank_b > 1 else -1
    elif a.is_initializer():
        weight = a
        axis = (1 if trans_a else 0) if gemm else rank_a - 2 if rank_a > 1 else -1
    inner = shape_of(a)[0] if trans_a else shape_of(a)[-1]
    return _make(
        node,
        inputs=[v for v in (a, b) if not v.is_initializer()],
        weights=[] if weight is None else [weight],
        axis=axis,
        bias=_input(node, 2) if gemm else None,
        macs=elements_of(node.outputs[0]) * inner,
    )


def _recurrent(node: ir.Node) -> Layer:
    """LSTM, GRU, RNN: W [directions, gates*hidden, input], R [directions, gates*hidden, hidden]."""
    x, w, r, initial_h = _value(node, 0), _value(node, 1), _value(node, 2), _input(node, 5)
    constant = w.is_initializer() and r.is_initializer()
    seq, batch = shape_of(x)[:2]  # in either layout their product is what counts
    return _make(
        node,
        inputs=[v for v in (x, initial_h) if v is not None and not v.is_initializer()],
        weights=[w, r] if constant else [],
        axis=1 if constant else -1,
        bias=_input(node, 3),
        macs=seq * batch * (elements_of(w) + elements_of(r)),
    )


def _make(
    node: ir.Node, *, inputs: list[ir.Value], weights: list[ir.Value], axis: int, bias: ir.Value | None, macs: int
) -> Layer:
    output = next(o for o in node.outputs if o.name)
    return Layer(
        name=node.name or "",
        op_type=node.op_type,
        inputs=tuple(dict.fromkeys(v.name or "" for v in inputs)),
        output=output.name or "",
        weights=tuple(v.name or "" for v in weights),
        weight_axis=axis,
        weight_elements=sum(elements_of(v) for v in weights),
        bias_elements=elements_of(bias) if bias is not None and bias.is_initializer() else 0,
        input_elements=sum({v.name: elements_of(v) for v in inputs}.values()),
        output_elements=sum(elements_of(o) for o in node.outputs if o.name and o.shape is not None),
        macs=macs,
    )


def _input(node: ir.Node, place: int) -> ir.Value | None:
    value = node.inputs[place] if len(node.inputs) > place else None
    return value if value is not None and value.name else None


def _value(node: ir.Node, place: int) -> ir.Value:
    value = _input(node, place)
    assert value is not None, node.name
    return value


def reads_of(node: ir.Node) -> list[ir.Value]:
    """The values of the outer graph that a node reads, those its subgraphs capture included; each once."""
    found: dict[str, ir.Value] = {v.name: v for v in node.inputs if v is not None and v.name}
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            for graph in [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs():
                inner = {id(v) for v in graph.inputs} | {id(v) for v in graph.initializers.values()}
                made = inner | {id(o) for n in graph for o in n.outputs}
                captured = [v for n in graph for v in reads_of(n)] + list(graph.outputs)
                found.update({v.name: v for v in captured if v is not None and v.name and id(v) not in made})
    return list(found.values())


def find_edges(model: ir.Model, layers: tuple[Layer, ...]) -> tuple[Edge, ...]:
    """One edge for each (producer, consumer, tensor at the consumer), found through the operators between layers.

    A producer is a layer, or '' for any model input. Where several branches join (a residual Add, a Concat), each
    branch counts with the layer that ran last on it: what lies before that is behind another consumer's edge already,
    and a long residual stream has a number of edges that grows with its length, not with its square. Edges come in the
    execution order of the consumer, then of the producer, with '' first.
    """
    order = {layer.name: place for place, layer in enumerate(layers)}
    by_name = {layer.name: layer for layer in layers}
    sources: dict[str, frozenset[str]] = {v.name or "": frozenset({""}) for v in model.graph.inputs}
    edges: list[Edge] = []

    def ran(name: str) -> int:
        return order.get(name, -1)

    for node in model.graph:
        reads = [v for v in reads_of(node) if v.name in sources]
        layer = by_name.get(node.name or "")
        if layer is not None:
            for value in reads:
                if value.name in layer.inputs:
                    producers = sorted(sources[value.name], key=ran)
                    edges.extend(Edge(p, layer.name, value.name, elements_of(value)) for p in producers)
            reached = frozenset({layer.name})
        else:
            branches = [sources[v.name] for v in reads if v.name]
            joined = len(branches) > 1
            reached = frozenset().union(*({max(b, key=ran)} if joined and b else b for b in branches))
        sources.update({output.name: reached for output in node.outputs if output.name})
    return tuple(edges)
