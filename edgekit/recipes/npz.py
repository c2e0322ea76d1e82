"""Samples from an ``.npz``: keys are the model's input names, the first axis counts samples, ``labels`` is optional.

Headers are read and checked before any array is. Nothing is ever unpickled. Arrays up to ``IN_MEMORY_BYTES`` together
are read at once; larger files are mapped from disk, which needs them stored without compression (``numpy.savez``).
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.catalog import nearest
from edgekit.errors import InputError

if TYPE_CHECKING:
    from edgekit.graph import Tensor

IN_MEMORY_BYTES = 1 << 30
LABELS = "labels"
_BLOCK_BYTES = 16 << 20

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class NpzDataset:
    """Arrays by input name, all with the same first axis."""

    arrays: dict[str, Array]
    inputs: tuple[Tensor, ...]
    labels: tuple[object, ...] | None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes, values and labels; compression does not matter."""
        state = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            state.update(repr((name, array.dtype.str, array.shape)).encode())
            for block in _blocks(array):
                state.update(np.ascontiguousarray(block).data)
        state.update(repr(self.labels).encode())
        return state.hexdigest()

    def __len__(self) -> int:
        return len(self.arrays[self.inputs[0].name])

    def sample(self, i: int) -> dict[str, Array]:
        """Sample ``i``, cast to the model's dtypes (``read`` has made sure that this loses nothing but precision)."""
        return {
            tensor.name: np.array(self.arrays[tensor.name][i], dtype=tensor.dtype).reshape(tensor.shape)
            for tensor in self.inputs
        }


@dataclass(frozen=True)
class _Header:
    """What the header of one array says."""

    member: str
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def read(path: Path, inputs: tuple[Tensor, ...]) -> NpzDataset:
    """Open and check ``path`` against the model's inputs. Raises ``InputError`` that names the file, key and sample."""
    where = f"data {path}"
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {info.filename.removesuffix(".npy"): _header(archive, info, where) for info in archive.infolist()}
            _check_keys(headers, inputs, where)
            _check_shapes(headers, inputs, where)
            arrays = _load(archive, headers, path, where)
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{where}: not an .npz file, or cut short: {error}",
            hint="write it with numpy.savez(path, **{input_name: array}), or pass a folder",
        ) from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror or error}", hint="check the file") from None
    given_labels = None if LABELS in {t.name for t in inputs} else arrays.pop(LABELS, None)
    for tensor in inputs:
        _check_values(arrays[tensor.name], tensor, where)
    return NpzDataset(arrays, inputs, None if given_labels is None else _labels(given_labels, where))


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> _Header:
    key = info.filename.removesuffix(".npy")
    if info.flag_bits & 1:
        raise InputError(f"{where}: {key!r} is encrypted", hint="write it with numpy.savez")
    try:
        with archive.open(info) as stream:
            # Later versions are for headers above 64 kB and records, which no sample has; theirs could be of any size.
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError("its header is not version 1.0")
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
            header_bytes = stream.tell()
    except (ValueError, NotImplementedError, EOFError, zlib.error) as error:
        raise InputError(
            f"{where}: {key!r} is not a NumPy array: {error}", hint="write it with numpy.savez, arrays only"
        ) from None
    header = _Header(info.filename, shape, fortran_order, dtype)
    if dtype.hasobject:
        raise InputError(
            f"{where}: {key!r} holds Python objects, which are not read because they can run code",
            hint="make it one array of numbers or text: numpy.array(values, dtype=...); ragged samples need padding",
        )
    if info.file_size - header_bytes != header.size_bytes or min(shape, default=0) < 0:
        raise InputError(
            f"{where}: {key!r} says shape {shape}, dtype {dtype}, but stores {info.file_size - header_bytes} bytes",
            hint="the file is damaged: write it again",
        )
    return header


def _check_keys(headers: dict[str, _Header], inputs: tuple[Tensor, ...], where: str) -> None:
    expected = [tensor.name for tensor in inputs]
    wanted = f"keys are the model's input names: {', '.join(expected)}, and optionally {LABELS}"
    if not headers:
        raise InputError(f"{where}: holds no arrays", hint=wanted)
    for key in headers:
        if key not in (*expected, LABELS):
            close = nearest(key, expected)
            raise InputError(
                f"{where}: key {key!r} is not an input of the model; its inputs: {', '.join(expected)}",
                hint=f"did you mean {close!r}?" if close else wanted,
            )
    for name in expected:
        if name not in headers:
            raise InputError(f"{where}: no array for the model's input {name!r}; keys: {', '.join(headers)}", wanted)


def _check_shapes(headers: dict[str, _Header], inputs: tuple[Tensor, ...], where: str) -> None:
    for tensor in inputs:
        header = headers[tensor.name]
        forms = [tensor.shape, tensor.shape[1:]] if tensor.shape[:1] == (1,) else [tensor.shape]
        if not header.shape or header.shape[1:] not in forms:
            wanted = " or ".join("(n" + "".join(f", {d}" for d in form) + ")" for form in forms)
            raise InputError(
                f"{where}: {tensor.name!r} has shape {header.shape}; the model takes {wanted}, n = number of samples",
                hint="reshape the array, or freeze the model to other shapes with --shape",
            )
        given, taken = header.dtype, np.dtype(tensor.dtype)
        if given.kind != taken.kind and not (given.kind == "u" and taken.kind == "i"):
            bytes_for_float = given.kind in "iu" and taken.kind == "f"
            raise InputError(
                f"{where}: {tensor.name!r} is {given}; the model takes {taken}",
                hint=f"normalise the samples and convert them: array.astype({tensor.dtype!r})"
                if bytes_for_float
                else f"convert it: array.astype({tensor.dtype!r})",
            )
    counts = {name: header.shape[0] for name, header in headers.items() if header.shape}
    first = inputs[0].name
    if not counts[first]:
        raise InputError(f"{where}: holds 0 samples", hint="pass at least one; 64 or more calibrate better")
    for name, header in headers.items():
        if counts.get(name) != counts[first]:
            raise InputError(
                f"{where}: {name!r} has shape {header.shape}, but {first!r} holds {counts[first]} samples",
                hint="every array needs the same first axis",
            )


def _load(archive: zipfile.ZipFile, headers: dict[str, _Header], path: Path, where: str) -> dict[str, Array]:
    if sum(header.size_bytes for header in headers.values()) <= IN_MEMORY_BYTES:
        try:
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in headers}
        except (ValueError, EOFError, zlib.error) as error:
            raise InputError(f"{where}: is damaged: {error}", hint="write it again") from None
    return {key: _mapped(archive.getinfo(header.member), header, path, where) for key, header in headers.items()}


def _mapped(info: zipfile.ZipInfo, header: _Header, path: Path, where: str) -> Array:
    """The array in place: its bytes are the last ``size_bytes`` of the member (PKZIP APPNOTE 4.3.7, local header)."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise InputError(
            f"{where}: {header.size_bytes / 2**30:.1f} GiB of compressed {header.member.removesuffix('.npy')!r} would "
            "have to be unpacked into memory",
            hint="write it with numpy.savez instead of numpy.savez_compressed: it is then read in place; or use less",
        )
    with path.open("rb") as stream:
        stream.seek(info.header_offset + 26)
        name_bytes, extra_bytes = (int.from_bytes(stream.read(2), "little") for _ in range(2))
    end = info.header_offset + 30 + name_bytes + extra_bytes + info.file_size
    return np.memmap(
        path,
        dtype=header.dtype,
        mode="r",
        offset=end - header.size_bytes,
        shape=header.shape,
        order="F" if header.fortran_order else "C",
    )


def _blocks(array: Array) -> Iterator[Array]:
    """The array in pieces of whole samples, about ``_BLOCK_BYTES`` each."""
    step = max(1, _BLOCK_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step]


def _check_values(array: Array, tensor: Tensor, where: str) -> None:
    """NaN, Inf and what does not fit the model's dtype, named by sample."""
    taken = np.dtype(tensor.dtype)
    start = 0
    for block in _blocks(array):
        if taken.kind == "f":
            with np.errstate(over="ignore"):
                bad = ~np.isfinite(block.astype(taken, copy=False))
            problem = "NaN or Inf" if not np.isfinite(block[bad]).all() else f"values beyond {taken}"
        elif taken.kind in "iu" and not np.can_cast(array.dtype, taken):
            bad = (block < np.iinfo(taken).min) | (block > np.iinfo(taken).max)
            problem = f"values beyond {taken}"
        else:
            return
        if bad.any():
            sample = start + int(bad.reshape(len(block), -1).any(axis=1).argmax())
            raise InputError(
                f"{where}: {tensor.name!r} holds {problem} in sample {sample}", hint="remove or repair that sample"
            )
        start += len(block)


def _labels(array: Array, where: str) -> tuple[object, ...]:
    """Python values for labels [n] or [n, 1]; flat tuples of numbers where a label has any other shape."""
    if array.dtype.kind not in "biufUS":
        raise InputError(f"{where}: {LABELS!r} is {array.dtype}", hint="labels are integers, numbers or text")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        sample = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).argmax())
        raise InputError(
            f"{where}: {LABELS!r} holds NaN or Inf at sample {sample}", hint="repair or remove that sample"
        )
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    return tuple(array.tolist()) if array.ndim == 1 else tuple(map(tuple, array.reshape(len(array), -1).tolist()))
