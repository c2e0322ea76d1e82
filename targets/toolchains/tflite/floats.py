"""The float conversion, and what holds for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from container import File, Refused, first_line
from naming import Numbered

RANDOM_RUNS = 2
SMALLEST_SCALE = 1e-5  # of an output: the exponentials of two libraries differ by 1e-7


def convert_float(model: onnx.ModelProto) -> bytes:
    """The float32 .tflite of the model, inputs in the shapes and the order of axes that ONNX has."""
    import onnx2tf

    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        inside = Path.cwd()
        os.chdir(folder)  # it writes beside itself what it is not told where to
        try:
            onnx2tf.convert(
                input_onnx_file_path=str(path),
                output_folder_path=str(Path(folder) / "out"),
                tflite_backend="flatbuffer_direct",
                keep_shape_absolutely_input_names=[value.name for value in model.graph.input],
                # The graph is simplified already; this would call a program from PATH and go on without it.
                not_use_onnxsim=True,
                non_verbose=True,
                verbosity="error",
            )
        except (Exception, SystemExit) as error:  # it raises what it likes, and exits where it finds no way
            raise Refused(f"onnx2tf cannot convert the model: {first_line(error)}") from None
        finally:
            os.chdir(inside)
        # Of what it writes, the float16 file is left alone: most of them do not run.
        written = Path(folder) / "out" / "model_float32.tflite"
        if not written.is_file():
            raise Refused("onnx2tf wrote no float32 model")
        return written.read_bytes()


def fully_connected(content: bytes) -> bytes:
    """Products with a constant matrix as FULLY_CONNECTED: its int8 kernel takes one scale a channel, that of
    BATCH_MATMUL one in all, and no 16-bit kernel of it takes constants.
    """
    file = File(content)
    schema = file.schema
    for operator in file.operators:
        if file.kind(operator) != "BATCH_MATMUL":
            continue
        left, right = (int(tensor) for tensor in operator.inputs)
        options, shape = operator.builtinOptions, file.tensors[right].shape
        if options.adjX or file.constant(left) or not file.constant(right) or len(shape) != 2:
            continue
        matrix = np.frombuffer(bytes(file.model.buffers[file.tensors[right].buffer].data), np.float32).reshape(shape)
        file.set_data(right, matrix if options.adjY else matrix.T)
        operator.inputs = np.int32([left, right, -1])
        operator.opcodeIndex = file.code("FULLY_CONNECTED")
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        operator.builtinOptions.keepNumDims = True
    return file.content()


def channels_first(content: bytes, source: onnx.ModelProto, numbered: Numbered) -> bytes:
    """Outputs that the converter left with their channels last, as the model has them. Which ones they are is read from
    their values, since a cube looks the same both ways.
    """
    import onnxruntime

    file = File(content)
    feeds = random_inputs(source, numbered.inputs, seed=0)
    session = onnxruntime.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = dict(zip(numbered.output_names, session.run(numbered.outputs, feeds), strict=True))
    actual = runner(content)({f"input_{numbered.inputs.index(name)}": value for name, value in feeds.items()})
    for place, tensor in enumerate(file.graph.outputs):
        name = file.name(int(tensor))
        wanted, found = expected[name], actual[name]
        if wanted.ndim < 3 or (wanted.shape == found.shape and np.allclose(wanted, found, rtol=1e-2, atol=1e-3)):
            continue
        turn = [0, wanted.ndim - 1, *range(1, wanted.ndim - 1)]
        if np.transpose(found, turn).shape == wanted.shape:
            file.tensors[int(tensor)].name = f"{name}_last".encode()
            file.graph.outputs[place] = file.append_transpose(int(tensor), turn, name)
    return file.content()


def float_error(source: onnx.ModelProto, numbered: Numbered, content: bytes) -> float:
    """Largest difference of an output to onnxruntime's, as a share of that output's largest value, random inputs. An
    output that is next to nothing (a sigmoid's, far out) is held against `SMALLEST_SCALE`.
    """
    import onnxruntime

    reference = onnxruntime.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    run = runner(content)
    worst = 0.0
    for seed in range(RANDOM_RUNS):
        feeds = random_inputs(source, numbered.inputs, seed)
        expected = reference.run(numbered.outputs, feeds)
        actual = run({f"input_{numbered.inputs.index(name)}": value for name, value in feeds.items()})
        for index, one in enumerate(expected):
            found = actual.get(numbered.output_names[index])
            if found is None or found.shape != one.shape:
                raise Refused(f"output {numbered.outputs[index]} became {None if found is None else found.shape}")
            difference = np.abs(found.astype(np.float64) - one.astype(np.float64))
            scale = float(np.max(np.abs(one.astype(np.float64)), initial=SMALLEST_SCALE))
            worst = max(worst, float(np.max(difference, initial=0.0)) / scale)
    return worst if np.isfinite(worst) else float("inf")


def random_inputs(source: onnx.ModelProto, names: list[str], seed: int) -> dict[str, np.ndarray]:
    """Uniform floats and 0/1 integers, so that token ids and masks stay valid."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in source.graph.input:
        if value.name in names:
            kind = value.type.tensor_type
            shape = [dim.dim_value for dim in kind.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            draw = rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
            feeds[value.name] = draw.astype(dtype)
    return feeds


def runner(content: bytes) -> Any:
    """The model as a function, by the names of its tensors, with the kernels that a device uses as well."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=bytes(content), num_threads=1)
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise Refused(f"the converted model does not run: {first_line(error)}") from None
    inputs = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
    outputs = {detail["name"]: detail["index"] for detail in interpreter.get_output_details()}

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, index in inputs.items():
            interpreter.set_tensor(index, feeds[name])
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in outputs.items()}

    return run
