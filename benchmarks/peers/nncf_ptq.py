"""NNCF's default post-training quantization of a model, calibrated with the samples that edgekit would use.

    python -m benchmarks.peers.nncf_ptq MODEL SAMPLES.npz OUT.xml [--transformer]

SAMPLES.npz holds the model's inputs by name, the first axis counting samples, as ``edgekit deploy --data`` takes it.
Runs in a process of its own: nncf's pins and its logging stay away from whoever compares against it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def quantize(model: Path, samples: Path, out: Path, python: Path | None = None, transformer: bool = False) -> Path:
    """Write the quantized OpenVINO IR of ``model`` to ``out`` (.xml, its .bin beside it) and return ``out``.

    ``transformer`` tells NNCF that the model is one, as its documentation asks for: it loses 22 dB on MiniLM without.
    ``python`` is the interpreter of an environment with benchmarks/requirements.txt (default: this one). Raises
    RuntimeError with the end of what the process said when it fails.
    """
    command = [str(python or sys.executable), "-m", "benchmarks.peers.nncf_ptq", str(model), str(samples), str(out)]
    command += ["--transformer"] if transformer else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=Path.cwd(), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"NNCF failed on {model.name}: {done.stderr.strip()[-400:]}")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description="NNCF's default post-training quantization.")
    for name in ("model", "samples", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--transformer", action="store_true")
    arguments = parser.parse_args()

    import nncf
    import openvino as ov

    core = ov.Core()
    model = core.read_model(arguments.model)
    with np.load(arguments.samples, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "labels"}
    for port in model.inputs:
        name = port.get_any_name()
        if arrays[name].ndim == len(port.partial_shape):  # samples without their leading 1
            arrays[name] = arrays[name][:, None]
    # Frozen as edgekit freezes them: both sides optimise the same problem.
    model.reshape({name: list(array.shape[1:]) for name, array in arrays.items()})
    count = len(next(iter(arrays.values())))
    samples = [{name: array[index] for name, array in arrays.items()} for index in range(count)]
    kind = nncf.ModelType.TRANSFORMER if arguments.transformer else None
    quantized = nncf.quantize(model, nncf.Dataset(samples), subset_size=count, model_type=kind)
    ov.save_model(quantized, arguments.out, compress_to_fp16=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
