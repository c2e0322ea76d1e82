"""8-bit floating-point codes: e4m3 of the OCP 8-bit Floating Point Specification, without infinities and saturating, as
QuantizeLinear makes them from opset 19 on (https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html).

Codes have four digits wherever they are on the scale, from 448 down to 2**-6: one scale a tensor does, for weights too,
and nothing needs to be clipped for the sake of small values. Products with a scale for each output channel came to
TensorRT later than those with one (10.6, on Hopper: its release notes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.compress.weights import Codes

if TYPE_CHECKING:
    from edgekit.compress.observers import Range

GRID = ir.DataType.FLOAT8E4M3FN
#: The first opset that has such codes.
OPSET = 19
LARGEST = 448.0
# Anything smaller is no normal number in half precision, which scales have where the operator computes in halves.
_SMALLEST_SCALE = 2.0**-14


def scale_of(bounds: Range) -> np.float32:
    """The scale that takes the largest magnitude that was seen to the largest code. An empty range gets scale 1."""
    return _scale(bounds.peak or max(-bounds.low, bounds.high))


def float8_codes(weights: np.ndarray) -> Codes:
    """The nearest codes, of the same shape, with one scale for all of them."""
    array = np.asarray(weights, np.float32)
    scale = _scale(float(np.abs(array).max(initial=0.0)))
    return Codes(np.clip(array / scale, -LARGEST, LARGEST).astype(GRID.numpy()), np.asarray(scale))


def _scale(largest: float) -> np.float32:
    return max(np.float32(largest / LARGEST), np.float32(_SMALLEST_SCALE)) if largest else np.float32(1)
