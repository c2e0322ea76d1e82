"""fp8 in the hub model: codes by the specification spelled out, pairs where they must stand, what onnxruntime makes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgekit.compress.float8 import float8_codes, scale_of
from edgekit.compress.observers import Range
from edgekit.compress.qdq import apply_precisions, quantization_points
from edgekit.compress.ranges import collect_ranges
from edgekit.compress.symmetric import choose_ranges
from edgekit.graph import to_bytes
from edgekit.types import Precision
from tests.quantized import CASES, Case, case, case_of, run, sqnr_db
from tests.zoo import Net

FP8, INT8, FP32 = Precision.FP8, Precision.INT8, Precision.FP32


def grid() -> np.ndarray:
    """Every value of e4m3, by the specification: a sign, four bits of exponent (bias 7), three of mantissa; the one
    pattern of all ones is no number.
    """
    values = [2.0**-6 * m / 8 for m in range(8)]
    values += [2.0 ** (e - 7) * (1 + m / 8) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
    return np.array(values)


def nearest(array: np.ndarray) -> np.ndarray:
    """The nearest value of the grid, an even mantissa where two are as near; what is beyond goes to the end."""
    values = grid()
    distance = np.abs(np.abs(array.astype(np.float64))[..., None] - values)
    # The place of a value in the grid is its bit pattern: even places have even mantissas.
    place = np.where(distance == distance.min(axis=-1, keepdims=True), np.arange(values.size) % 2, 2).argmin(axis=-1)
    return np.sign(array) * values[place]


def fake(array: np.ndarray, largest: float) -> np.ndarray:
    scale = np.float32(largest / 448)
    return (nearest(array.astype(np.float32) / scale) * scale).astype(np.float32)


def product(inner: int = 32, outer: int = 16) -> Case:
    net = Net()
    return case_of(net.model([net.op("MatMul", net.input("x", [5, inner]), net.random(inner, outer, name="w"))]))


def written(source: Case, plan: dict[str, Precision]) -> onnx.ModelProto:
    proto = onnx.load_model_from_string(source.write(plan))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_the_grid() -> None:
    assert len(grid()) == 127
    assert grid().max() == 448


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_codes_are_the_nearest_of_the_grid(values: list[float]) -> None:
    array = np.array(values, np.float32)
    codes = float8_codes(array)
    np.testing.assert_array_equal(codes.codes.astype(np.float64), nearest(array / codes.scale))
    assert codes.scale.dtype == np.float32
    assert codes.scale.shape == ()


def test_scales() -> None:
    assert scale_of(Range(-2, 1)) == np.float32(2 / 448)
    assert scale_of(Range(-2, 1, peak=56)) == np.float32(56 / 448), "nothing that was seen is clipped"
    assert scale_of(Range(0, 0)) == 1
    assert scale_of(Range(0, 1e-6)) == 2.0**-14, "a normal number in half precision"


def test_a_product_worked_by_hand() -> None:
    source = product()
    (layer,) = source.graph.layers
    proto = written(source, {layer.name: FP8})
    arrays = {one.name: one for one in proto.graph.initializer}
    kinds = sorted(one.data_type for one in arrays.values())
    assert kinds == sorted([onnx.TensorProto.FLOAT8E4M3FN] * 3 + [onnx.TensorProto.FLOAT] * 2)
    assert next(o.version for o in proto.opset_import if o.domain == "") == 19
    weight = numpy_helper.to_array(onnx.load_model_from_string(source.write({})).graph.initializer[0])
    x = source.data.sample(0)["x"]
    bounds = source.ranges["x"]
    by_hand = fake(x, max(-bounds.low, bounds.high)) @ fake(weight, float(np.abs(weight).max()))
    (output,) = run(source.write({layer.name: FP8}), {"x": x}).values()
    np.testing.assert_allclose(output, by_hand, rtol=1e-5, atol=1e-5)


def test_ranges_around_zero_remember_what_was_seen() -> None:
    source = product()
    seen = collect_ranges(source.graph, ["x"], source.data)
    largest = max(float(np.abs(source.data.sample(i)["x"]).max()) for i in range(len(source.data)))
    found = choose_ranges(seen, "percentile", 50.0, symmetric=True)["x"]
    assert found.high < largest
    assert found.peak == pytest.approx(largest)
    assert scale_of(found) == pytest.approx(largest / 448)


def test_pairs_stand_right_before_the_operator() -> None:
    """Behind the transpose, with the range of the tensor before it; int8 has them before, so that it runs in 8 bits."""
    net = Net()
    turned = net.op("Transpose", net.input("x", [4, 8]), perm=[1, 0])
    source = case_of(net.model([net.op("MatMul", turned, net.random(4, 16))]))
    assert set(source.ranges) == {"x"}
    for precision, kinds in (
        (FP8, ["DequantizeLinear", "QuantizeLinear", "Transpose"]),
        (INT8, ["Transpose", "DequantizeLinear", "QuantizeLinear"]),
    ):
        proto = written(source, source.uniform(precision))
        made = {value: node for node in proto.graph.node for value in node.output}
        tensor, found = made[proto.graph.output[0].name].input[0], []
        while tensor in made:
            found.append(made[tensor].op_type)
            tensor = made[tensor].input[0]
        assert found == kinds


def test_one_tensor_read_in_both() -> None:
    net = Net()
    x = net.input("x", [4, 16])
    source = case_of(net.model([net.op("MatMul", x, net.random(16, 16)) for _ in range(3)]))
    first, second, third = source.names
    proto = written(source, {first: FP8, second: INT8, third: FP8})
    pairs = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    assert [node.input[0] for node in pairs] == ["x", "x"], "one pair a tensor and grid"
    assert (
        sqnr_db(run(proto.SerializeToString(), source.data.sample(0)), run(source.write({}), source.data.sample(0)))
        > 25
    )


def test_other_plans_stay_at_their_opset() -> None:
    source = product()
    assert next(o.version for o in written(source, source.uniform(INT8)).opset_import if o.domain == "") == 17


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_mixes_run(name: str, data: st.DataObject) -> None:
    """In any mix: what is planned in fp8 and nothing else reads such codes, and the outputs stay near."""
    source = case(name)
    kinds = {layer.name: layer.op_type in ("MatMul", "Gemm") for layer in source.graph.layers}
    widths = {True: st.sampled_from([FP32, INT8, FP8]), False: st.sampled_from([FP32, INT8])}
    plan = {layer: data.draw(widths[product]) for layer, product in kinds.items()}
    proto = written(source, plan)
    types = {one.name: one.data_type for one in proto.graph.initializer}
    made = {value: node for node in proto.graph.node for value in node.output}
    reading = {
        node.name
        for node in proto.graph.node
        for value in node.input
        if value in made and made[value].op_type == "DequantizeLinear"
        if types[made[value].input[2]] == onnx.TensorProto.FLOAT8E4M3FN
    }
    assert reading == {layer for layer, precision in plan.items() if precision is FP8}
    sample = source.data.sample(0)
    assert sqnr_db(run(proto.SerializeToString(), sample), run(source.write({}), sample)) > 12


def test_the_order_of_a_plan_does_not_matter() -> None:
    source = case("transformer")
    plan = {layer.name: FP8 for layer in source.graph.layers if layer.op_type == "MatMul"}
    ranges = {name: source.ranges[name] for name in quantization_points(source.graph)}
    assert source.write(plan) == to_bytes(apply_precisions(source.graph, dict(reversed(plan.items())), ranges))
