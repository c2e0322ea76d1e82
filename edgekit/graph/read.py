"""Reads an ONNX file from disk: nothing in it is trusted, external data never leaves the model's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from edgekit.errors import InputError

# Protobuf cannot hold a larger message, and the model is handed on as one message.
MAX_BYTES = 2**31 - 1
# Holds everything that a float model of opset 21 can contain (https://onnx.ai/onnx/repo-docs/Versioning.html).
MAX_IR_VERSION = 10


def read(path: str | Path) -> tuple[onnx.ModelProto, str]:
    """Parse and check ``path``; external tensors are loaded into the returned message.

    Returns the message and the SHA-256 of the file's bytes followed by those of its external data files (in the order
    of their names). Raises InputError for anything that is not a whole, valid ONNX model.
    """
    path = Path(path)
    content = _bytes_of(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise InputError(
            f"{path}: not an ONNX model, or a truncated one ({len(content)} bytes)",
            "Copy or export the file again; edgekit reads .onnx files.",
        ) from None
    if not model.HasField("graph") or not model.opset_import:
        raise InputError(f"{path}: not an ONNX model (no graph or no opset inside)", "edgekit reads .onnx files.")
    if not model.graph.node:
        raise InputError(f"{path}: the model has no nodes", "Export the model again.")
    digest = hashlib.sha256(content)
    for data in _embed_external(model, path):
        digest.update(data.read_bytes())
    _check(model, path)
    # Exporters stamp the newest version that they know; runtimes refuse one that they do not, whatever is inside.
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    return model, digest.hexdigest()


def all_nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Every node of ``graph`` and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a control-flow node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in the model: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
    for graph in subgraphs(node):
        yield from _graph_tensors(graph)


def _bytes_of(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a directory, not an ONNX file", "Name the .onnx file inside it.")
        if not path.is_file():
            raise InputError(f"{path}: no such file", "Check the path of the model.")
        size = path.stat().st_size
        if size == 0:
            raise InputError(f"{path}: the file is empty", "Copy or export the model again.")
        if size > MAX_BYTES:
            raise InputError(f"{path}: {size} bytes; models over 2 GB are not supported", "Use a smaller model.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: cannot be read: {reason}", "Check the path and its permissions.") from None


def _embed_external(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Move external data into the message; the files that were read, by name."""
    files: dict[str, Path] = {}
    total = 0
    for tensor in tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        where = f"{path}: tensor {tensor.name!r}"
        if location not in files:
            files[location] = _external_file(where, location, path.parent)
        file = files[location]
        try:
            offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
        except ValueError:
            raise InputError(f"{where}: offset or length of its external data is no number", "Export again.") from None
        expected = _byte_count(where, tensor)
        if length < 0:
            length = expected
        if length != expected:
            raise InputError(f"{where}: {length} bytes of external data, its shape needs {expected}", "Export again.")
        size = file.stat().st_size
        if offset < 0 or offset + length > size:
            raise InputError(
                f"{where}: needs bytes {offset} to {offset + length} of {location!r}, which has {size}",
                "The external data file is truncated or belongs to another model: copy both files again.",
            )
        total += length
        if total > MAX_BYTES:
            raise InputError(f"{path}: models over 2 GB are not supported", "Use a smaller model.")
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return [files[location] for location in sorted(files)]


def _external_file(where: str, location: str, folder: Path) -> Path:
    parts = PurePosixPath(location.replace("\\", "/"))
    hint = "External data must lie in the model's folder, named by a relative path, and not through a symbolic link."
    if not location or "\0" in location or parts.is_absolute() or ".." in parts.parts or Path(location).is_absolute():
        raise InputError(f"{where}: external data at {location!r} is outside the model's folder", hint)
    folder = folder.resolve()
    file = folder / parts
    if file.resolve() != file:
        raise InputError(f"{where}: external data {location!r} goes through a symbolic link", hint)
    if not file.is_file():
        raise InputError(f"{where}: external data file {location!r} is missing", f"Put it into {folder}.")
    return file


def _byte_count(where: str, tensor: onnx.TensorProto) -> int:
    bits = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    try:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        width = bits.get(kind) or 8 * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError, TypeError):
        raise InputError(f"{where}: unknown data type {tensor.data_type}", "Export again.") from None
    elements = 1
    for dim in tensor.dims:
        if dim < 0:
            raise InputError(f"{where}: negative dimension {dim}", "Export again.")
        elements *= dim
    return (elements * width + 7) // 8


def _check(model: onnx.ModelProto, path: Path) -> None:
    if model.ByteSize() > MAX_BYTES:
        raise InputError(f"{path}: models over 2 GB are not supported", "Use a smaller model.")
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises many kinds, some of them plain RuntimeError from C++
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{path}: not a valid ONNX model: {first}", "Export the model again.") from None
