"""The first and only process of an emulated machine: counts the instructions of one inference of each model.

The machine's clock advances by 1 ns an instruction (QEMU's -icount shift=0), so a time is a count. It is read 62.5
million times a second, thus in steps of 16. It needs numpy and ai-edge-litert, and nothing of edgekit.
"""

import ctypes
import json
import time
import traceback
from pathlib import Path

PLACE = Path("/counted")
WARM_UP, FEW, MANY = 2, 1, 4


def mount(kind, place):
    if ctypes.CDLL(None, use_errno=True).mount(kind.encode(), place.encode(), kind.encode(), 0, None) != 0:
        raise OSError(ctypes.get_errno(), "cannot mount " + place)


def count(path):
    """Instructions of one inference, by the difference of two run lengths, so that what surrounds them cancels out; and
    SHA-256 of the outputs.
    """
    import hashlib

    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    made = Interpreter(model_path=path, num_threads=1)
    made.allocate_tensors()
    if not any(row["op_name"] == "DELEGATE" for row in made._get_ops_details()):
        raise RuntimeError("XNNPACK is not in use")
    rng = np.random.default_rng(0)
    for row in made.get_input_details():
        dtype, shape = np.dtype(row["dtype"]), tuple(row["shape"])
        draw = rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        made.set_tensor(row["index"], draw.astype(dtype))
    for _ in range(WARM_UP):
        made.invoke()
    counts = []
    for runs in (FEW, MANY):
        start = time.perf_counter_ns()
        for _ in range(runs):
            made.invoke()
        counts.append(time.perf_counter_ns() - start)
    digest = hashlib.sha256()
    for row in made.get_output_details():
        digest.update(made.get_tensor(row["index"]).tobytes())
    return {"instructions": (counts[1] - counts[0]) / (MANY - FEW), "outputs_sha256": digest.hexdigest()}


def main():
    mount("proc", "/proc")
    mount("sysfs", "/sys")
    mount("devtmpfs", "/dev")
    try:
        found = {path.stem: count(str(path)) for path in sorted(PLACE.glob("*.tflite"))}
    except Exception:
        found = {"error": traceback.format_exc()}
    print("@counted " + json.dumps(found), flush=True)
    time.sleep(0.2)  # for the serial line
    ctypes.CDLL(None).reboot(0x4321FEDC)  # RB_POWER_OFF


main()
