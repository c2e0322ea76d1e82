"""Freezes dynamic input shapes: from the user's ``--shape``, or a batch of one where nothing else is open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from edgekit.errors import InputError
from edgekit.graph.read import subgraphs

# Exporters that know no name for a dimension write one of these; such names say nothing about equality.
_NAMELESS = frozenset({"", "?", "None", "unk", "-1", "*"})
# A leading dimension with such a name is no batch, so it never becomes 1 by itself.
_NOT_A_BATCH = ("seq", "len", "time", "frame", "token", "step", "width", "height")

Dim = int | str


def drop_initializer_inputs(model: onnx.ModelProto) -> None:
    """Old models (IR < 4) list their weights as inputs too; edgekit treats every initializer as a constant."""
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(4, model.ir_version)


def freeze(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None, where: str) -> None:
    """Give every input of ``model`` a static shape, in place, and forget what was inferred from the open ones.

    Raises InputError when ``shapes`` does not fit the model, or when dimensions stay open; its text shows the flag.
    """
    inputs = {value.name: value for value in model.graph.input}
    dims = {name: _dims(value, where) for name, value in inputs.items()}
    _match(dims, shapes or {}, where)
    _propagate(dims, shapes or {}, model)
    _default_batches(dims)
    open_inputs = {name: d for name, d in dims.items() if any(not isinstance(x, int) for x in d)}
    if open_inputs:
        raise _open_error(open_inputs, where)
    for name, value in inputs.items():
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for dim in dims[name]:
            shape.dim.add().dim_value = int(dim)
        shape.SetInParent()  # a scalar keeps its (empty) shape
    _forget_inferred(model.graph)


def _dims(value: onnx.ValueInfoProto, where: str) -> list[Dim]:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise InputError(
            f"{where}: input {value.name!r} is a {kind}, not a tensor", "Only tensor inputs are supported."
        )
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise InputError(f"{where}: input {value.name!r} declares no rank", "Export the model with input shapes.")
    return [dim.dim_value if dim.dim_value > 0 else dim.dim_param for dim in tensor.shape.dim]


def _match(dims: dict[str, list[Dim]], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    for name, shape in shapes.items():
        if name not in dims:
            known = ", ".join(_flag(n, d) for n, d in dims.items())
            raise InputError(f"{where}: --shape names {name!r}, which is no input", f"The inputs are: {known}")
        declared = dims[name]
        text = _flag(name, list(shape))
        if len(shape) != len(declared):
            raise InputError(
                f"{where}: --shape {text} has {len(shape)} dimensions, input {name!r} has {len(declared)}",
                f"Its shape is {_flag(name, declared)}; put a number for each '?'.",
            )
        for given, fixed in zip(shape, declared, strict=True):
            if given < 1:
                raise InputError(f"{where}: --shape {text}: dimensions must be 1 or more", _example(name, declared))
            if isinstance(fixed, int) and fixed != given:
                raise InputError(
                    f"{where}: --shape {text} contradicts the model, where {name!r} is {_flag(name, declared)}",
                    "Only the places shown as '?' can be chosen.",
                )
        dims[name] = list(shape)


def _propagate(dims: dict[str, list[Dim]], frozen: Mapping[str, tuple[int, ...]], model: onnx.ModelProto) -> None:
    """One dimension name means one size: what the user fixed for one input holds for the others."""
    known: dict[str, int] = {}
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, frozen.get(value.name, ()), strict=False):
            if dim.dim_value <= 0 and dim.dim_param not in _NAMELESS:
                known.setdefault(dim.dim_param, size)
    for name, declared in dims.items():
        dims[name] = [known.get(dim, dim) if isinstance(dim, str) else dim for dim in declared]


def _default_batches(dims: dict[str, list[Dim]]) -> None:
    batches: set[str] = set()
    for declared in dims.values():
        places = [i for i, dim in enumerate(declared) if isinstance(dim, str)]
        if places == [0] and not any(word in str(declared[0]).lower() for word in _NOT_A_BATCH):
            batches.add(str(declared[0]))
            declared[0] = 1
    named = batches - _NAMELESS
    for name, declared in dims.items():
        dims[name] = [1 if isinstance(dim, str) and dim in named else dim for dim in declared]


def _open_error(open_inputs: Mapping[str, list[Dim]], where: str) -> InputError:
    flags = " ".join(f"--shape {_flag(name, declared)}" for name, declared in open_inputs.items())
    examples = " ".join(_example(name, declared) for name, declared in open_inputs.items())
    return InputError(
        f"{where}: the shape of {_names(open_inputs)} is not fixed; pass {flags}",
        f"Put a number for each '?', for example {examples}",
    )


def _names(names: Iterable[str]) -> str:
    listed = [repr(name) for name in names]
    return ("input " if len(listed) == 1 else "inputs ") + ", ".join(listed)


def _flag(name: str, dims: list[Dim]) -> str:
    return f"{name}=" + "x".join(str(dim) if isinstance(dim, int) else "?" for dim in dims)


def _example(name: str, dims: list[Dim]) -> str:
    filled: list[Dim] = []
    for place, dim in enumerate(dims):
        image = len(dims) == 4 and place > 0
        filled.append(dim if isinstance(dim, int) else 1 if place == 0 and len(dims) > 1 else 224 if image else 128)
    return f"--shape {_flag(name, filled)}"


def _forget_inferred(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for output in graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for inner in subgraphs(node):
            _forget_inferred(inner)
