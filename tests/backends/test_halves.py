"""Casts, opsets and pairs: the rewritten models against the ones they came from, in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.backends import halves, opsets, typed
from edgekit.compress.qdq import apply_precisions
from edgekit.compress.symmetric import around_zero
from edgekit.graph import raising, to_bytes
from edgekit.types import Precision
from tests.quantized import CASES, case, case_of, run, sqnr_db
from tests.zoo import Net

INT8 = frozenset({"Conv", "Gemm", "MatMul"})


def hub(name: str, quantized: bool = True) -> ir.Model:
    """A zoo model with its pairs around zero: all layers in int8 that can be."""
    source = case(name)
    ranges = {tensor: around_zero(bounds) for tensor, bounds in source.ranges.items()}
    plan = {layer.name: Precision.INT8 for layer in source.graph.layers if quantized and layer.op_type in INT8}
    return apply_precisions(source.graph, plan, ranges)


def checked(model: ir.Model) -> bytes:
    content = to_bytes(model)
    onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)
    return content


def types(content: bytes) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content), strict_mode=True)
    return {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("quantized", [False, True])
def test_halves_compute_what_the_float_model_does(name: str, quantized: bool) -> None:
    source, model = case(name), hub(name, quantized)
    typed.sign_codes(model)
    before = run(checked(model), source.data.sample(0))
    found = halves.cast_to_halves(model, frozenset())
    assert halves.HALF in found.values()
    checked(model)
    halves.simulate(model)
    after = run(checked(model), source.data.sample(0))
    assert {k: v.dtype for k, v in after.items()} == {k: v.dtype for k, v in before.items()}
    assert sqnr_db(after, before) > (25 if quantized else 45)


def test_a_clone_leaves_its_original_alone() -> None:
    model = hub("conv_net")
    before = to_bytes(model)
    halves.cast_to_halves(model.clone(), frozenset())
    assert to_bytes(model) == before


@pytest.mark.parametrize("name", ["conv_net", "transformer", "lstm"])
def test_named_nodes_stay_single(name: str) -> None:
    model = case(name).graph.model.clone()
    single = frozenset(node.name or "" for node in model.graph if node.op_type in ("Conv", "MatMul", "LSTM"))
    outputs = {value.name for node in model.graph if node.name in single for value in node.outputs}
    found = halves.cast_to_halves(model, single)
    assert all(found[name] is halves.SINGLE for name in single)
    written = types(checked(model))
    assert {written[name] for name in outputs if name in written} == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT16 in written.values()


def test_everything_single_means_no_cast() -> None:
    model = case("conv_net").graph.model.clone()
    halves.cast_to_halves(model, frozenset(node.name or "" for node in model.graph))
    assert all(node.op_type != "Cast" for node in model.graph)


def test_overflow_is_seen() -> None:
    net = Net()
    large = net.op("Mul", net.input("x", [1, 4]), net.weight(np.array([1000], np.float32)))
    content = net.model([net.op("Mul", large, net.weight(np.array([0.001], np.float32)))], opset=17)
    model = ir.serde.deserialize_model(content)
    x = {"x": np.full((1, 4), 100, np.float32)}
    assert np.allclose(next(iter(run(to_bytes(model), x).values())), 100)
    single = model.clone()
    halves.cast_to_halves(model, frozenset())
    halves.simulate(model)
    assert np.isinf(next(iter(run(checked(model), x).values()))).all()
    halves.cast_to_halves(single, frozenset(node.name or "" for node in single.graph))
    halves.simulate(single)
    assert np.allclose(next(iter(run(checked(single), x).values())), 100)


def test_rounding_is_that_of_halves() -> None:
    net = Net()
    sums = net.op("Add", net.input("x", [1, 64]), net.weight(np.array([0.1], np.float32)))
    model = ir.serde.deserialize_model(net.model([net.op("Mul", sums, net.weight(np.array([3], np.float32)))]))
    halves.cast_to_halves(model, frozenset())
    halves.simulate(model)
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    half = x.astype(np.float16).astype(np.float32) + np.float32(np.float16(0.1))
    half = half.astype(np.float16).astype(np.float32) * 3
    (found,) = run(checked(model), {"x": x}).values()
    assert np.array_equal(found, half.astype(np.float16).astype(np.float32))


def test_pairs_with_scales_too_small_for_halves_make_their_layer_single() -> None:
    net = Net()
    weak = net.weight(net.rng.standard_normal((4, 3, 1, 1)) * 1e-5)
    y = net.op("Relu", net.op("Conv", net.input("x", [1, 3, 8, 8]), weak))
    y = net.op("Sigmoid", net.op("Mul", y, net.weight(np.array([1e5], np.float32))))
    source = case_of(net.model([net.op("Conv", y, net.random(4, 4, 1, 1))]))
    ranges = {tensor: around_zero(bounds) for tensor, bounds in source.ranges.items()}
    model = apply_precisions(source.graph, source.uniform(Precision.INT8), ranges)
    typed.sign_codes(model)
    before = run(checked(model), source.data.sample(0))
    first, second = (layer.name for layer in source.graph.layers)
    small = frozenset(node.name or "" for node in model.graph if node.op_type in ("Relu", "Mul"))
    found = halves.cast_to_halves(model, small)
    assert (found[first], found[second]) == (halves.SINGLE, halves.HALF)
    written = types(checked(model))
    for node in model.graph:
        if node.name in (first, second):  # no cast between a pair and its layer
            pairs = [value for value in node.inputs[:2] if value is not None]
            assert [value.producer().op_type for value in pairs] == ["DequantizeLinear"] * 2  # type: ignore[union-attr]
            assert len({written[value.name or ""] for value in pairs}) == 1
    halves.simulate(model)
    assert sqnr_db(run(checked(model), source.data.sample(0)), before) > 30


@pytest.mark.parametrize("name", CASES)
def test_weight_pairs_and_own_pairs_change_no_value(name: str) -> None:
    source, model = case(name), hub(name)
    typed.sign_codes(model)
    before = run(checked(model), source.data.sample(0))
    typed.pair_weights(model)
    typed.dedicate_pairs(model)
    content = checked(model)
    after = run(content, source.data.sample(0))
    assert all(np.array_equal(after[key], before[key]) for key in before)
    proto = onnx.load_model_from_string(content)
    assert {w.data_type for w in proto.graph.initializer if w.name.endswith("/float")} <= {onnx.TensorProto.FLOAT}
    readers: dict[str, int] = {}
    for node in proto.graph.node:
        for value in node.input:
            readers[value] = readers.get(value, 0) + 1
    constants = {w.name for w in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear":
            assert readers[node.output[0]] == 1
            assert node.input[0] not in constants
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = next(w for w in proto.graph.initializer if w.name == node.input[2])
            assert not np.any(onnx.numpy_helper.to_array(zero))
            assert zero.data_type == onnx.TensorProto.INT8


def test_codes_with_another_zero_point_are_refused() -> None:
    source = case("conv_net")
    model = apply_precisions(source.graph, source.uniform(Precision.INT8), source.ranges)
    with pytest.raises(ValueError, match="zero point"):
        typed.sign_codes(model)


def spelled_net() -> onnx.ModelProto:
    net = Net()
    y = net.op("HardSwish", net.conv(net.input("x", [1, 3, 8, 8]), 3, 4))
    y = net.op("Reshape", y, net.ints(1, 4, 64))
    y = net.op("LayerNormalization", y, net.random(64), net.random(64), axis=-1, epsilon=1e-5)
    made: onnx.ModelProto = net.model([net.op("MatMul", y, net.random(64, 5))])
    return made


def test_operators_are_spelled_out_for_opset_13() -> None:
    source = case_of(spelled_net())
    model = source.graph.model.clone()
    assert {node.op_type for node, _ in opsets.too_new(model, 13)} >= {"LayerNormalization"}
    for node in model.graph:
        node.metadata_props["mark"] = node.name or ""
    opsets.spell_out(model, frozenset(opsets.SPELLED))
    assert opsets.too_new(model, 13) == []
    opsets.lower(model, 13)
    content = checked(model)
    proto = onnx.load_model_from_string(content)
    assert proto.opset_import[0].version == 13
    assert {"HardSwish", "LayerNormalization"}.isdisjoint(node.op_type for node in proto.graph.node)
    assert all(node.metadata_props["mark"] for node in model.graph)
    before = run(to_bytes(source.graph.model), source.data.sample(0))
    assert sqnr_db(run(content, source.data.sample(0)), before) > 100


def test_a_normalisation_that_is_shrunk_fits_into_halves() -> None:
    net = Net()
    y = net.op("Mul", net.input("x", [1, 64]), net.weight(np.array([1000], np.float32)))
    y = net.op("LayerNormalization", y, net.random(64), net.random(64), axis=-1, epsilon=1e-12)
    source = case_of(net.model([net.op("MatMul", y, net.random(64, 5))]))
    x = {"x": np.linspace(-2, 2, 64, dtype=np.float32).reshape(1, 64)}
    before = run(to_bytes(source.graph.model), x)
    for factor, fits in ((1.0, False), (2.0**-5, True)):
        model = source.graph.model.clone()
        name = next(node.name or "" for node in model.graph if node.op_type == "LayerNormalization")
        opsets.spell_out(model, frozenset(opsets.SPELLED), {name: factor})
        assert sqnr_db(run(checked(model), x), before) > 100
        halves.cast_to_halves(model, frozenset())
        halves.simulate(model)
        after = run(checked(model), x)
        assert (sqnr_db(after, before) > 40) == fits
        flat = run(checked(model), {"x": np.ones((1, 64), np.float32)})
        assert all(np.isfinite(array).all() for array in flat.values())


@pytest.mark.parametrize("name", CASES)
def test_zoo_models_at_opset_13_and_19(name: str) -> None:
    source = case(name)
    before = run(to_bytes(source.graph.model), source.data.sample(0))
    low = source.graph.model.clone()
    opsets.spell_out(low, frozenset(opsets.SPELLED))
    assert opsets.too_new(low, 13) == []
    opsets.lower(low, 13)
    assert sqnr_db(run(checked(low), source.data.sample(0)), before) > 100
    raising.raise_to(low, 19)
    assert sqnr_db(run(checked(low), source.data.sample(0)), before) > 100
    high = source.graph.model.clone()
    raising.raise_to(high, 19)
    assert sqnr_db(run(checked(high), source.data.sample(0)), before) > 100


def test_what_opset_13_cannot_say() -> None:
    net = Net()
    y = net.op("Reshape", net.input("x", [1, 8]), net.ints(1, 8), allowzero=1)
    model = ir.serde.deserialize_model(net.model([net.op("Trilu", net.op("MatMul", y, net.random(8, 8)))]))
    found = {node.op_type: reason for node, reason in opsets.too_new(model, 13)}
    assert found == {"Reshape": "opset 13 has no attribute allowzero of Reshape", "Trilu": "opset 13 has no Trilu"}


def test_plain_names_are_unique_and_say_whose_they_are() -> None:
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", [1, 3, 8, 8]), 3, 4))
    model = ir.serde.deserialize_model(net.model([net.op("Relu", y)]))
    for node, name in zip(model.graph, ["a:b", "a_b", "a b + c"], strict=True):
        node.name = name
    assert typed.name_plainly(model) == {"a_b_": "a:b", "a_b___c": "a b + c"}
    assert [node.name for node in model.graph] == ["a_b_", "a_b", "a_b___c"]
