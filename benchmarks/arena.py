"""What OpenVINO's CPU plugin really allocates for the activations of a model.

Its memory planner packs all tensors between a model's inputs and outputs into one block (MemoryManagerStatic in its
sources). `CompiledModel.release_memory` gives that block back, and the next inference takes it again: the heap shrinks
by its size, which glibc tells to the byte. Other threads of the process must be quiet meanwhile.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from edgekit.errors import MissingToolError

_FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def heap_bytes() -> int:
    """Bytes that the process holds from malloc. Raises `MissingToolError` without glibc >= 2.33."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        raise MissingToolError("reading the heap needs mallinfo2 of glibc >= 2.33", "run it on a newer Linux") from None
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


def arena_bytes(model: Path | bytes, precision_hint: str = "f32") -> int:
    """Size of the block, a few dozen bytes of bookkeeping included. ``model`` is ONNX, or a path to ONNX or IR."""
    import openvino

    heap_bytes()
    config = {"INFERENCE_PRECISION_HINT": precision_hint, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": "1"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", config)
    request = compiled.create_infer_request()
    for port in compiled.inputs:
        request.get_tensor(port).data[:] = np.ones(1)
    found = []
    for _ in range(3):
        request.infer()
        held = heap_bytes()
        compiled.release_memory()
        found.append(held - heap_bytes())
    return max(0, sorted(found)[1])
