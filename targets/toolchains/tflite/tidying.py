"""What the float conversion leaves between operators: transposes around joins, activations behind transposes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from container import File

# Operators with a place for an activation that follows.
FUSING = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD"}


def tidy(content: bytes) -> bytes:
    """The same function of the same inputs, with less between its layers."""
    file = File(content)
    fuse_activations(file)
    join_untransposed(file)
    return file.content()


class Links:
    """Who makes and who reads each tensor."""

    def __init__(self, file: File) -> None:
        self.makers: dict[int, Any] = {}
        self.readers: dict[int, list[Any]] = {}
        for operator in file.operators:
            self.makers |= dict.fromkeys(file.outputs(operator), operator)
            for tensor in file.inputs(operator):
                self.readers.setdefault(tensor, []).append(operator)
        self.ends = {int(tensor) for tensor in file.graph.outputs}

    def read_once(self, tensor: int) -> bool:
        return tensor not in self.ends and len(self.readers.get(tensor, [])) == 1


def fuse_activations(file: File) -> None:
    """A RELU or RELU6 moves through the transposes before it into the operator that makes their input."""
    links = Links(file)
    words = vars(file.schema.ActivationFunctionType)
    for operator in list(file.operators):
        if file.kind(operator) not in ("RELU", "RELU6"):
            continue
        read, written = file.inputs(operator)[0], file.outputs(operator)[0]
        last = maker = links.makers.get(read)
        alone = links.read_once(read)
        while maker is not None and alone and file.kind(maker) == "TRANSPOSE":
            before = file.inputs(maker)[0]
            maker, alone = links.makers.get(before), links.read_once(before)
        if maker is None or not alone or file.kind(maker) not in FUSING:
            continue
        if maker.builtinOptions is None or maker.builtinOptions.fusedActivationFunction != words["NONE"]:
            continue
        maker.builtinOptions.fusedActivationFunction = words[file.kind(operator)]
        last.outputs = np.int32([written])
        links.makers[written] = last
        file.operators.remove(operator)


def join_untransposed(file: File) -> None:
    """A concatenation between a transpose on each side joins what they transpose, along the axis that it was."""
    links = Links(file)
    for operator in list(file.operators):
        if file.kind(operator) != "CONCATENATION":
            continue
        written = file.outputs(operator)[0]
        behind = links.readers.get(written, [])
        turns = {permutation(file, one) for one in behind}
        turn = next(iter(turns), None)
        if len(turns) != 1 or turn is None or written in links.ends:
            continue
        back = tuple(int(place) for place in np.argsort(turn))
        sources = list(untransposed(file, operator, links, back))
        if None in sources:
            continue
        axis = operator.builtinOptions.axis % len(turn)
        operator.inputs = np.int32([constant(file, one, turn) if file.constant(one) else one for one in sources])
        operator.builtinOptions.axis = back[axis]
        kept, *others = (file.outputs(one)[0] for one in behind)
        operator.outputs = np.int32([kept])
        for tensor in others:
            for reader in links.readers.get(tensor, []):
                reader.inputs = np.int32([kept if int(t) == tensor else t for t in reader.inputs])
        for one in behind:
            if not links.ends & set(file.outputs(one)):
                file.operators.remove(one)
        links = Links(file)
    drop_unread(file)


def permutation(file: File, operator: Any) -> tuple[int, ...] | None:
    """That of a TRANSPOSE whose result no one outside sees; None for other operators."""
    if file.kind(operator) != "TRANSPOSE" or set(file.outputs(operator)) & {int(t) for t in file.graph.outputs}:
        return None
    buffer = file.model.buffers[file.tensors[int(operator.inputs[1])].buffer]
    if buffer.data is None:
        return None
    return tuple(int(place) for place in np.frombuffer(bytes(buffer.data), np.int32))


def untransposed(file: File, operator: Any, links: Links, turn: tuple[int, ...]) -> Iterator[int | None]:
    """Each input as it was before a transpose by ``turn``; constants as they are; None where there is no such form."""
    for tensor in file.inputs(operator):
        maker = links.makers.get(tensor)
        if file.constant(tensor):
            yield tensor if file.type(tensor) == "FLOAT32" else None
        elif maker is not None and permutation(file, maker) == turn:
            yield file.inputs(maker)[0]
        else:
            yield None


def constant(file: File, tensor: int, turn: tuple[int, ...]) -> int:
    """A transposed copy of a float constant."""
    source = file.tensors[tensor]
    array = np.frombuffer(bytes(file.model.buffers[source.buffer].data), np.float32).reshape(source.shape)
    made = file.schema.TensorT()
    made.name, made.type = source.name + b"_transposed", source.type
    file.tensors.append(made)
    file.set_data(len(file.tensors) - 1, np.transpose(array, turn))
    return len(file.tensors) - 1


def drop_unread(file: File) -> None:
    """Without transposes that nobody reads any more, nor what only they read."""
    links = Links(file)
    for operator in reversed(list(file.operators)):
        unread = not any(links.readers.get(tensor) or tensor in links.ends for tensor in file.outputs(operator))
        if unread and file.kind(operator) == "TRANSPOSE":
            file.operators.remove(operator)
            links = Links(file)
    drop_unused(file)


def drop_unused(file: File) -> None:
    """Without tensors that no operator has to do with: calibrators read every tensor that there is."""
    graph = file.graph
    used = {tensor for operator in file.operators for tensor in (*file.inputs(operator), *file.outputs(operator))}
    used |= {int(tensor) for operator in file.operators for tensor in _inside(operator)}
    kept = sorted(used | {int(tensor) for tensor in (*graph.inputs, *graph.outputs)})
    places = {tensor: place for place, tensor in enumerate(kept)} | {-1: -1}
    file.tensors[:] = [file.tensors[tensor] for tensor in kept]
    for one in (graph, *file.operators):
        one.inputs = np.int32([places[int(tensor)] for tensor in one.inputs])
        one.outputs = np.int32([places[int(tensor)] for tensor in one.outputs])
    for operator in file.operators:
        if operator.intermediates is not None:
            operator.intermediates = np.int32([places[int(tensor)] for tensor in _inside(operator)])
    for signature in file.model.signatureDefs or []:
        for end in (*signature.inputs, *signature.outputs):
            end.tensorIndex = places[end.tensorIndex]
    held = {tensor.buffer for tensor in file.tensors} | {one.buffer for one in file.model.metadata or []}
    for place, buffer in enumerate(file.model.buffers):
        if place not in held:
            buffer.data = None


def _inside(operator: Any) -> list[int]:
    """Tensors that an operator keeps to itself."""
    return [] if operator.intermediates is None else [int(tensor) for tensor in operator.intermediates]
