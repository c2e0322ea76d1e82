"""onnxruntime's static quantization to Q/DQ: pre-processed, weights per channel, activations in uint8.

    python ort_static.py MODEL SAMPLES.npz OUT.onnx [--matrix]

``--matrix`` quantizes convolutions and matrix products alone, the default every operator that onnxruntime can. Shapes
are frozen to those of SAMPLES.npz, and operators older than opset 17, which know no scales per channel, converted.
onnxruntime's own defaults are signed activations and a scale for each whole weight; CPUs with VNNI want unsigned ones
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html), and scales per channel lose less.
It imports nothing of edgekit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

OPSET = 17
MATRIX = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def command(model: Path, samples: Path, out: Path, matrix: bool) -> list[str]:
    """The process to run, with this Python."""
    return [sys.executable, __file__, str(model), str(samples), str(out), *(["--matrix"] if matrix else [])]


class Samples:
    """A CalibrationDataReader."""

    def __init__(self, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        self._arrays = arrays
        self._next = 0

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The next sample, or None."""
        index, self._next = self._next, self._next + 1
        if index >= len(next(iter(self._arrays.values()))):
            return None
        return {name: array[index] for name, array in self._arrays.items()}


def frozen(model: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """The model in opset 17 or newer, with the shapes of the samples."""
    import onnx
    from onnx import version_converter

    opset = next(row.version for row in model.opset_import if row.domain in ("", "ai.onnx"))
    if opset < OPSET:
        model = version_converter.convert_version(model, OPSET)
    for value in model.graph.input:
        if value.name in arrays:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in arrays[value.name].shape[1:]:
                shape.dim.add().dim_value = size
    for value in model.graph.output:  # to be inferred anew
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model)


def main() -> int:
    parser = argparse.ArgumentParser(description="onnxruntime's static quantization.")
    for name in ("model", "samples", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--matrix", action="store_true")
    arguments = parser.parse_args()

    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

    with np.load(arguments.samples, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    ready = arguments.out.with_suffix(".float.onnx")
    onnx.save(frozen(onnx.load(arguments.model), arrays), ready)
    quant_pre_process(ready, ready, skip_symbolic_shape=True)  # shapes are known
    quantize_static(
        ready,
        arguments.out,
        Samples(arrays),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=list(MATRIX) if arguments.matrix else None,
    )
    ready.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
