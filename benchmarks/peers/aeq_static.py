"""ai-edge-quantizer's plain static int8 of a float .tflite: its own recipe, all operators, inputs and outputs in float.

    python -I aeq_static.py FLOAT.tflite SAMPLES.npz OUT.tflite

SAMPLES.npz holds the model's inputs by name, the first axis counting samples. It runs in the ``tflite`` toolchain, the
environment that edgekit's own files come from, and imports nothing of edgekit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np


def command(model: Path, samples: Path, out: Path, python: Path) -> list[str]:
    """What `quantize` runs."""
    return [str(python), "-I", __file__, str(model), str(samples), str(out)]


def quantize(model: Path, samples: Path, out: Path, python: Path) -> Path:
    """Write the quantized model to ``out`` and return it. Raises RuntimeError with the end of what the process said."""
    done = subprocess.run(command(model, samples, out, python), capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["it says nothing"]
        raise RuntimeError(f"ai-edge-quantizer failed: {said[-1][-300:]}")
    return out


def named_alike(quantized: bytes, plain: bytes) -> bytes:
    """The quantized model with the outputs' own names, which got an ending on the way."""
    from ai_edge_litert.tools import flatbuffer_utils

    made, source = (flatbuffer_utils.convert_bytearray_to_object(bytearray(one)) for one in (quantized, plain))
    after, before = made.subgraphs[0], source.subgraphs[0]
    for tensor, original in zip(after.outputs, before.outputs, strict=True):
        after.tensors[tensor].name = before.tensors[original].name
    return bytes(flatbuffer_utils.convert_object_to_bytearray(made, b""))


def main() -> int:
    parser = argparse.ArgumentParser(description="ai-edge-quantizer's static int8.")
    for name in ("model", "samples", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()

    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import qtyping, quantizer, recipe

    signatures = Interpreter(str(arguments.model)).get_signature_list()
    (signature,) = signatures
    with np.load(arguments.samples, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in signatures[signature]["inputs"]}
    count = len(next(iter(arrays.values())))
    samples = [{name: array[index] for name, array in arrays.items()} for index in range(count)]
    engine = quantizer.Quantizer(str(arguments.model), recipe.static_wi8_ai8())
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        engine.update_quantization_recipe(".*", end, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
    ranges = engine.calibrate({signature: samples}, num_threads=1)
    arguments.out.write_bytes(named_alike(bytes(engine.quantize(ranges).quantized_model), arguments.model.read_bytes()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
