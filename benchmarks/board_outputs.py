"""Runs on a board: the outputs of a .tflite on some samples.

python3 board_outputs.py MODEL.tflite SAMPLES.npz OUT.npz

SAMPLES.npz and OUT.npz hold inputs and outputs by name, the first axis counting samples.
"""

from __future__ import annotations

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main() -> int:
    model, samples, out = sys.argv[1:]
    interpreter = Interpreter(model, num_threads=1)
    interpreter.allocate_tensors()
    if not any(row["op_name"] == "DELEGATE" for row in interpreter._get_ops_details()):
        sys.exit("XNNPACK is not in use: other kernels than those that are meant")
    with np.load(samples, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    found: dict[str, list[np.ndarray]] = {}
    for index in range(len(next(iter(arrays.values())))):
        for row in interpreter.get_input_details():
            interpreter.set_tensor(row["index"], arrays[row["name"]][index])
        interpreter.invoke()
        for row in interpreter.get_output_details():
            found.setdefault(row["name"], []).append(interpreter.get_tensor(row["index"]))
    np.savez(out, **{name: np.stack(rows) for name, rows in found.items()})  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())
