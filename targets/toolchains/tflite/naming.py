"""Names decide which operator computes which layer, so none of the model's own gets as far as the converter: nodes,
weights and results get numbers before, and their own names back after.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx
from container import File, Refused


class Numbered:
    """The model under names of numbers, and its own names."""

    def __init__(self, model: onnx.ModelProto, nodes: list[str], inputs: list[str], outputs: list[str]) -> None:
        self.model = model
        self.nodes = nodes  # n<number>_ -> node
        self.inputs = inputs  # input_<number> -> model input
        self.outputs = outputs  # by the same places as the outputs of ``model``
        self.output_names = [value.name for value in model.graph.output]


def number(source: onnx.ModelProto) -> Numbered:
    """Nodes become ``n7``, their results ``n7_out0``, their constants ``n7_in1`` (one copy a reader), the inputs
    ``input_0``. Graphs inside nodes are refused: nothing here converts them.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    names = {value.name: f"input_{i}" for i, value in enumerate(v for v in graph.input if v.name not in constants)}
    inputs = list(names)
    outputs = [value.name for value in graph.output]
    for index, node in enumerate(graph.node):
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise Refused(f"{node.op_type} {node.name}: control flow cannot be converted to TFLite")
        for place, name in enumerate(node.output):
            if name:
                names[name] = f"n{index}_out{place}"
    kept = []
    nodes = []
    for index, node in enumerate(graph.node):
        nodes.append(node.name)
        node.name = f"n{index}"
        for place, name in enumerate(node.input):
            if name in constants:
                copy = kept.append(onnx.TensorProto()) or kept[-1]
                copy.CopyFrom(constants[name])
                copy.name = node.input[place] = f"n{index}_in{place}"
            elif name:
                node.input[place] = names[name]
        for place, name in enumerate(node.output):
            node.output[place] = names.get(name, "")
    del graph.initializer[:]
    graph.initializer.extend(kept)
    dynamic = [value for value in graph.input if value.name in names]
    del graph.input[:]
    graph.input.extend(dynamic)
    known = [value for value in graph.value_info if value.name in names]
    for value in (*graph.input, *graph.output, *known):
        value.name = names[value.name]
    del graph.value_info[:]
    graph.value_info.extend(known)
    return Numbered(model, nodes, inputs, outputs)


class Tagged:
    """The float .tflite with numbered results, and what its names said before."""

    def __init__(self, content: bytes, owners: list[int | None], names: list[list[str]], outputs: list[int]) -> None:
        self.content = content
        self.owners = owners  # operator -> node that it computes
        self.names = names  # operator -> names of its results
        self.outputs = outputs  # place among the file's outputs -> output of the model


def tag_operators(content: bytes, numbered: Numbered) -> Tagged:
    """Give every operator's results the operator's number, so that a rule can mean one operator.

    The names of results say where a tensor is read, not who made it; those of weights say whose they are. A product of
    two activations has no weights: it keeps its own result.
    """
    file = File(content)
    outputs = [numbered.output_names.index(file.name(int(tensor))) for tensor in file.graph.outputs]
    owners: list[int | None] = []
    names = []
    for operator in file.operators:
        weights = [tag(file.name(t)) for t in file.operands(operator) if file.constant(t)]
        if not weights and file.kind(operator) == "BATCH_MATMUL":
            weights = [tag(file.name(t)) for t in file.outputs(operator)]
        owners.append(next((number for number in weights if number is not None), None))
        names.append([file.name(tensor) for tensor in file.outputs(operator)])
    for index, operator in enumerate(file.operators):
        for place, tensor in enumerate(file.outputs(operator)):
            file.tensors[tensor].name = f"o{index};{place}".encode()
    return Tagged(file.content(), owners, names, outputs)


def tag(name: str) -> int | None:
    """The number of the node that a tensor is named after."""
    match = re.match(r"n(\d+)_", name)
    return int(match.group(1)) if match else None


def rename(file: File, tagged: Tagged, numbered: Numbered, results: Mapping[str, list[str]]) -> None:
    """Numbers back to names, those of the model's inputs and outputs exactly."""

    def named(name: str) -> str:
        match = re.match(r"o(\d+);(\d+)(.*)", name)
        if match:
            name = tagged.names[int(match.group(1))][int(match.group(2))] + match.group(3)
        match = re.match(r"n(\d+)_(?:out(\d+))?(.*)", name)
        if not match:
            return name
        node = numbered.nodes[int(match.group(1))]
        if match.group(2) is not None:
            return results[node][int(match.group(2))] + match.group(3)
        return f"{node}/{match.group(3)}"

    taken = {*numbered.inputs, *numbered.outputs}
    for tensor in file.tensors:
        name = named(tensor.name.decode())
        while name in taken:
            name += "_"
        taken.add(name)
        tensor.name = name.encode()
    inputs = {}
    for tensor in file.graph.inputs:
        inputs[int(tensor)] = numbered.inputs[int(file.name(int(tensor)).removeprefix("input_").rstrip("_"))]
    outputs = {int(t): numbered.outputs[tagged.outputs[place]] for place, t in enumerate(file.graph.outputs)}
    for tensor, name in (inputs | outputs).items():
        file.tensors[tensor].name = name.encode()
    for signature in file.model.signatureDefs or []:
        for names, ends in ((inputs, signature.inputs), (outputs, signature.outputs)):
            for end in ends:
                end.name = names[int(end.tensorIndex)].encode()
