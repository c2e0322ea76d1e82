import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto, helper

from edgekit.compress.observers import Range
from edgekit.compress.weights import affine_parameters, dequantize_weights, quantize_weights, symmetric_parameters

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
weights = arrays(np.float32, array_shapes(min_dims=1, max_dims=4, max_side=5), elements=ordinary)


def along(scale, axis, ndim):
    shape = [1] * ndim
    shape[axis] = -1
    return scale.reshape(shape)


@given(weights, st.data(), st.sampled_from([(8, 127), (4, 7)]))
def test_error_is_at_most_half_a_step(array, data, width):
    bits, limit = width
    axis = data.draw(st.integers(-array.ndim, array.ndim - 1))
    codes, scale = quantize_weights(array, axis, bits=bits)
    assert codes.dtype == np.int8
    assert scale.dtype == np.float32
    assert codes.shape == array.shape
    assert scale.shape == (array.shape[axis],)
    assert -limit <= codes.min()
    assert codes.max() <= limit
    step = along(scale.astype(np.float64), axis, array.ndim)
    assert (np.abs(array - codes * step) <= step / 2 * (1 + 1e-4)).all()


@given(weights, st.data())
def test_observers_agree_on_who_is_better(array, data):
    axis = data.draw(st.integers(0, array.ndim - 1))
    rest = tuple(i for i in range(array.ndim) if i != axis)
    importance = np.abs(RNG.normal(size=array.shape))
    errors = []
    for observer in ("mse", "max-abs"):
        codes, scale = quantize_weights(array, axis, observer, importance)
        error = np.square(array - dequantize_weights(codes, scale, axis), dtype=np.float64)
        errors.append((error * importance).sum(axis=rest))
    assert (errors[0] <= errors[1]).all()


RNG = np.random.default_rng(0)


def test_clipping_pays_in_a_long_tailed_channel_only():
    generator = np.random.default_rng(0)  # its own: how often the tests before drew must not matter
    array = np.stack([generator.laplace(size=65_536), generator.uniform(-1, 1, 65_536)])
    _, plain = quantize_weights(array, 0)
    _, clipped = quantize_weights(array, 0, "mse")
    assert clipped[0] < 0.9 * plain[0]
    assert clipped[1] > 0.98 * plain[1]


def test_importance_moves_the_scale():
    array = np.append(np.random.default_rng(0).normal(size=20_000), 6.0)[None]
    weight = np.append(np.ones(20_000), 1e6)
    _, alone = quantize_weights(array, 0, "mse")
    _, weighted = quantize_weights(array, 0, "mse", weight)
    codes, _ = quantize_weights(array, 0, "mse", weight)
    assert alone < weighted
    assert abs(codes[0, -1] * weighted[0] - 6) < 0.05


def test_zero_channels_tiny_channels_and_none():
    codes, scale = quantize_weights(np.array([[0, 0], [1e-42, 0], [2, -2]], np.float32), 0)
    assert scale[0] == 1
    assert scale[1] == np.finfo(np.float32).tiny
    assert codes.tolist() == [[0, 0], [0, 0], [127, -127]]
    codes, scale = quantize_weights(np.zeros((0, 3), np.float32), 0)
    assert (codes.shape, scale.shape) == ((0, 3), (0,))
    codes, scale = quantize_weights(np.zeros((2, 0), np.float32), 0, "mse")
    assert scale.tolist() == [1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
@pytest.mark.parametrize("observer", ["max-abs", "mse"])
def test_weights_that_are_not_finite(bad, observer):
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize_weights(np.array([[1.0, bad]]), 0, observer)


def test_no_such_axis():
    with pytest.raises(ValueError, match="no axis 2"):
        quantize_weights(np.ones((2, 2)), 2)


@given(floats, floats, st.sampled_from([4, 8, 16]))
def test_affine_grid_covers_its_range(a, b, bits):
    bounds = Range(min(a, b, 0), max(a, b, 0))
    scale, zero_point = affine_parameters(bounds, bits)
    assert scale.dtype == np.float32
    assert scale >= np.finfo(np.float32).tiny
    assert 0 <= zero_point < 2**bits
    step = float(scale)
    lowest, highest = -zero_point * step, (2**bits - 1 - zero_point) * step
    slack = step * 0.5 + 2**bits * step * 1e-7
    assert lowest <= bounds.low + slack
    assert highest >= bounds.high - slack


@given(floats, st.sampled_from([4, 8]))
def test_symmetric_grid_covers_its_range(a, bits):
    bounds = Range(min(a, 0), max(a, 0))
    scale, zero_point = symmetric_parameters(bounds, bits)
    assert zero_point == 0
    assert float(scale) * (2 ** (bits - 1) - 1) >= abs(a) * (1 - 1e-6)


def test_known_parameters():
    assert affine_parameters(Range(0, 255)) == (1, 0)
    assert affine_parameters(Range(-1, 0)) == (np.float32(1 / 255), 255)
    assert affine_parameters(Range(-128, 127)) == (1, 128)
    assert affine_parameters(Range(0, 0)) == (1, 0)
    assert symmetric_parameters(Range(-127, 3)) == (1, 0)
    assert symmetric_parameters(Range(0, 0)) == (1, 0)


def quantize_session(code_type: int, axis: int | None):
    """x, scale, zero_point -> codes and dequantized values, as the runtime computes them."""
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    shape = [] if axis is None else ["c"]
    whole = ["n"] if axis is None else ["m", "c"]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, whole),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("z", code_type, shape),
    ]
    outputs = [
        helper.make_tensor_value_info("q", code_type, whole),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, whole),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "q", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


AFFINE = quantize_session(TensorProto.UINT8, None)
SYMMETRIC = quantize_session(TensorProto.INT8, 1)
moderate = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


@settings(deadline=None)
@given(arrays(np.float32, st.integers(1, 100), elements=moderate), moderate, moderate)
def test_activations_equal_the_runtime_bit_for_bit(array, a, b):
    scale, zero_point = affine_parameters(Range(min(a, b, 0.0), max(a, b, 0.0)))
    codes = np.clip(np.rint(array / scale) + np.float32(zero_point), 0, 255).astype(np.uint8)
    back = (codes.astype(np.int32) - zero_point).astype(np.float32) * scale
    expected = AFFINE.run(None, {"x": array, "s": np.array(scale), "z": np.array(zero_point, np.uint8)})
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(back, expected[1])
    inside = (array >= min(a, b, 0)) & (array <= max(a, b, 0))
    half = float(scale) / 2 * (1 + 1e-3)
    assert (np.abs(back.astype(np.float64) - array)[inside] <= half).all()


@settings(deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=moderate), st.booleans())
def test_weights_equal_the_runtime_bit_for_bit(array, clipped):
    codes, scale = quantize_weights(array, 1, "mse" if clipped else "max-abs")
    expected = SYMMETRIC.run(None, {"x": array, "s": scale, "z": np.zeros(len(scale), np.int8)})
    np.testing.assert_array_equal(codes, np.maximum(expected[0], -127))  # clipped: the runtime alone would use -128
    if not clipped:
        np.testing.assert_array_equal(dequantize_weights(codes, scale, 1), expected[1])


def test_rounding_is_half_to_even():
    codes, scale = quantize_weights(np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32), 0)
    assert scale == 1
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2]]
