"""A .tflite file as objects, with words for what the schema leaves as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

# What computes a layer, and with which scales its weights may be quantized: the int8 kernel of a batched product takes
# one scale only, and computes nonsense in silence from one a channel.
WEIGHTED = {
    "CONV_2D": "CHANNELWISE",
    "DEPTHWISE_CONV_2D": "CHANNELWISE",
    "TRANSPOSE_CONV": "CHANNELWISE",
    "FULLY_CONNECTED": "CHANNELWISE",
    "BATCH_MATMUL": "TENSORWISE",
}
COMPUTES = {*WEIGHTED, "CONV_3D", "CONV_3D_TRANSPOSE", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM"}


class Refused(Exception):
    """A model or plan that cannot be converted; the message says why."""


class File:
    """A .tflite file as objects, with what the schema leaves as numbers."""

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools import flatbuffer_utils

        self.utils = flatbuffer_utils
        self.schema = schema
        self.model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
        if len(self.model.subgraphs) != 1:
            raise Refused("the converted model has more than one subgraph")
        self.graph = self.model.subgraphs[0]
        self.tensors = self.graph.tensors
        self.operators = self.graph.operators
        self._codes = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
        self._types = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}

    def content(self) -> bytes:
        return bytes(self.utils.convert_object_to_bytearray(self.model, b""))

    def kind(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        return self._codes[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def type(self, tensor: int) -> str:
        return self._types[self.tensors[tensor].type]

    def name(self, tensor: int) -> str:
        return self.tensors[tensor].name.decode()

    def constant(self, tensor: int) -> bool:
        buffer = self.model.buffers[self.tensors[tensor].buffer]
        return (buffer.data is not None and len(buffer.data) > 0) or buffer.size > 0

    def code(self, kind: str) -> int:
        """The place of an operator's code in the file, added where it is not there."""
        number = getattr(self.schema.BuiltinOperator, kind)
        for place, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number:
                return place
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def set_data(self, tensor: int, array: np.ndarray) -> None:
        """A constant's new value and shape, in a buffer of its own."""
        place = self.tensors[tensor].buffer
        if place == 0 or sum(one.buffer == place for one in self.tensors) > 1:  # buffer 0 is everyone's empty one
            self.model.buffers.append(self.schema.BufferT())
            place = self.tensors[tensor].buffer = len(self.model.buffers) - 1
        self.model.buffers[place].data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self.tensors[tensor].shape = np.int32(array.shape)

    def append_transpose(self, tensor: int, turn: list[int], name: str) -> int:
        """A transpose of a result at the end of the model; its new tensor."""
        schema, source = self.schema, self.tensors[tensor]
        order, result = schema.TensorT(), schema.TensorT()
        order.name, order.type = f"{name}_perm".encode(), schema.TensorType.INT32
        result.name, result.type, result.shape = name.encode(), source.type, np.int32([source.shape[i] for i in turn])
        self.tensors.extend([order, result])
        self.set_data(len(self.tensors) - 2, np.int32(turn))
        operator = schema.OperatorT()
        operator.opcodeIndex = self.code("TRANSPOSE")
        operator.inputs = np.int32([tensor, len(self.tensors) - 2])
        operator.outputs = np.int32([len(self.tensors) - 1])
        operator.builtinOptionsType = schema.BuiltinOptions.TransposeOptions
        operator.builtinOptions = schema.TransposeOptionsT()
        self.operators.append(operator)
        for signature in self.model.signatureDefs or []:
            for end in signature.outputs:
                if end.tensorIndex == tensor:
                    end.tensorIndex = len(self.tensors) - 1
        return len(self.tensors) - 1

    def inputs(self, operator: Any) -> list[int]:
        return [int(tensor) for tensor in operator.inputs if tensor >= 0]

    def outputs(self, operator: Any) -> list[int]:
        return [int(tensor) for tensor in operator.outputs if tensor >= 0]

    def operands(self, operator: Any) -> list[int]:
        """What an operator that computes a layer multiplies: activations, weights or both."""
        kind = self.kind(operator)
        if kind not in COMPUTES:
            return []
        places = (2, 1) if kind in ("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE") else (0, 1)
        return [int(operator.inputs[place]) for place in places]

    def scales(self, tensor: int) -> int:
        """How many scales a tensor is stored with."""
        quantization = self.tensors[tensor].quantization
        return 0 if quantization is None or quantization.scale is None else len(quantization.scale)

    def activations(self, operator: Any) -> list[int]:
        return [tensor for tensor in self.inputs(operator) if not self.constant(tensor)]


def first_line(error: BaseException) -> str:
    """What a message says first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
