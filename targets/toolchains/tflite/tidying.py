"""What the float conversion leaves between operators: transposes around joins and gates, activations behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from container import File

# Operators with a place for an activation that follows.
FUSING = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD"}
# Each value of their result comes of one value that they read.
FUNCTIONS = {"HARD_SWISH", "LOGISTIC", "TANH", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1"}


def tidy(content: bytes) -> bytes:
    """The same function of the same inputs, with less between its layers."""
    file = File(content)
    fuse_activations(file)
    sink_transposes(file)
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
        write_untransposed(file, operator, links)
        links = Links(file)
    drop_unread(file)


def sink_transposes(file: File) -> None:
    """A transpose moves behind functions of each value; means and gates read what it reads."""
    links = Links(file)
    for operator in list(file.operators):
        read = file.activations(operator)
        makers = [links.makers.get(tensor) for tensor in read]
        turns = [None if maker is None else permutation(file, maker) for maker in makers]
        if not any(turns):
            continue
        kind = file.kind(operator)
        if len(read) == 1 and links.read_once(read[0]) and (kind in FUNCTIONS or shifts(file, operator)):
            swap(file, makers[0], operator)
        elif kind == "MEAN":
            mean_untransposed(file, operator, turns[0], makers[0], links)
        elif kind == "MUL" and len(read) == 2:
            gate_untransposed(file, operator, turns, makers, links)
        links = Links(file)
    drop_unread(file)


def shifts(file: File, operator: Any) -> bool:
    """Whether it adds a number to each value, or multiplies each by one."""
    constants = [tensor for tensor in file.inputs(operator) if file.constant(tensor)]
    return file.kind(operator) in ("ADD", "MUL") and all(np.prod(file.tensors[one].shape) == 1 for one in constants)


def swap(file: File, transpose: Any, operator: Any) -> None:
    """The transpose behind the operator that reads it, over the same two results."""
    between, last = file.outputs(transpose)[0], file.outputs(operator)[0]
    source = int(transpose.inputs[0])
    operator.inputs = np.int32([source if int(tensor) == between else tensor for tensor in operator.inputs])
    operator.outputs = np.int32([between])
    file.tensors[between].shape = np.int32(file.tensors[source].shape)
    file.tensors[between].name = file.tensors[last].name + b"_last"
    transpose.inputs[0] = between
    transpose.outputs = np.int32([last])
    file.operators.remove(transpose)
    file.operators.insert(file.operators.index(operator) + 1, transpose)


def mean_untransposed(file: File, operator: Any, turn: tuple[int, ...], transpose: Any, links: Links) -> None:
    """A mean over all pixels of what a transpose reads. Only reshapes may read it: they do not see the other order."""
    written = file.tensors[file.outputs(operator)[0]]
    readers = links.readers.get(file.outputs(operator)[0], [])
    axes = file.tensors[int(operator.inputs[1])]
    shape = turned(written.shape, turn)
    if not readers or {file.kind(one) for one in readers} != {"RESHAPE"} or len(shape) != len(turn) or not flat(shape):
        return
    over = np.frombuffer(bytes(file.model.buffers[axes.buffer].data), np.int32)
    file.tensors.append(copied(file, axes))
    file.set_data(len(file.tensors) - 1, np.int32([turn[axis] for axis in over]))
    operator.inputs = np.int32([transpose.inputs[0], len(file.tensors) - 1])
    written.shape = np.int32(shape)


def gate_untransposed(
    file: File, operator: Any, turns: list[tuple[int, ...] | None], makers: list[Any], links: Links
) -> None:
    """A product of what a transpose reads with one factor a channel, where what is behind it transposes back."""
    place = 0 if turns[0] else 1
    turn, gate = turns[place], int(operator.inputs[1 - place])
    behind = links.readers.get(file.outputs(operator)[0], [])
    back = tuple(int(one) for one in np.argsort(turn))
    shape = file.tensors[gate].shape
    if not behind or {permutation(file, one) for one in behind} != {back} or len(shape) != len(back) or not flat(shape):
        return
    if file.outputs(operator)[0] in links.ends:
        return
    reshape, made = reshaped(file, gate, turned(shape, turn))
    file.operators.insert(file.operators.index(operator), reshape)
    operator.inputs[place], operator.inputs[1 - place] = makers[place].inputs[0], made
    write_untransposed(file, operator, links)


def write_untransposed(file: File, operator: Any, links: Links) -> None:
    """The results of the transposes behind an operator become its own, and they go."""
    behind = links.readers[file.outputs(operator)[0]]
    kept, *others = (file.outputs(one)[0] for one in behind)
    operator.outputs = np.int32([kept])
    for tensor in others:
        for reader in links.readers.get(tensor, []):
            reader.inputs = np.int32([kept if int(t) == tensor else t for t in reader.inputs])
    for one in behind:
        file.operators.remove(one)


def turned(shape: Any, turn: tuple[int, ...]) -> list[int]:
    """A shape as it was before a transpose by ``turn``."""
    return [int(shape[place]) for place in np.argsort(turn)] if len(shape) == len(turn) else []


def flat(shape: Any) -> bool:
    """Whether a tensor of that shape lies in memory the same in any order of axes."""
    return sum(int(size) > 1 for size in shape) <= 1


def reshaped(file: File, tensor: int, shape: list[int]) -> tuple[Any, int]:
    """An operator that reshapes a tensor, and its result."""
    schema = file.schema
    made, sizes = copied(file, file.tensors[tensor]), schema.TensorT()
    made.name += b"_last"
    made.shape = np.int32(shape)
    sizes.name, sizes.type = made.name + b"_shape", schema.TensorType.INT32
    file.tensors.extend([made, sizes])
    file.set_data(len(file.tensors) - 1, np.int32(shape))
    operator = schema.OperatorT()
    operator.opcodeIndex = file.code("RESHAPE")
    operator.inputs = np.int32([tensor, len(file.tensors) - 1])
    operator.outputs = np.int32([len(file.tensors) - 2])
    operator.builtinOptionsType, operator.builtinOptions = (
        schema.BuiltinOptions.ReshapeOptions,
        schema.ReshapeOptionsT(),
    )
    operator.builtinOptions.newShape = np.int32(shape)
    return operator, len(file.tensors) - 2


def copied(file: File, tensor: Any) -> Any:
    """A tensor of the same name and type, which holds nothing yet."""
    made = file.schema.TensorT()
    made.name, made.type = tensor.name, tensor.type
    return made


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
    made = copied(file, source)
    made.name += b"_transposed"
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
