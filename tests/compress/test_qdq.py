from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.compress.observers import Range, choose_range
from edgekit.compress.qdq import apply_precisions, quantization_points
from edgekit.compress.ranges import collect_ranges
from edgekit.compress.weights import affine_parameters
from edgekit.graph import to_bytes
from edgekit.types import Precision
from tests.graph.nets import random_nets
from tests.quantized import CASES, Case, case, case_of, run, sqnr_db
from tests.zoo import Net

INT8, W8, FP32 = Precision.INT8, Precision.W8, Precision.FP32


class Written:
    """A written model, checked on the way in, with the lookups that the tests need."""

    def __init__(self, source: Case, precisions: Mapping[str, Precision]) -> None:
        self.bytes = source.write(precisions)
        self.proto = onnx.load_model_from_string(self.bytes)
        onnx.checker.check_model(self.proto, full_check=True)
        graph = self.proto.graph
        self.nodes = {node.name: node for node in graph.node}
        self.producer = {value: node for node in graph.node for value in node.output}
        self.arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        assert len(self.nodes) == len(graph.node), "node names are unique"

    def kinds(self, op_type: str) -> list[onnx.NodeProto]:
        return [node for node in self.proto.graph.node if node.op_type == op_type]

    def made_by(self, value: str) -> str:
        return self.producer[value].op_type if value in self.producer else ""

    def weight(self, layer: str, place: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, int | None]:
        """Codes, scale, zero point and axis of a layer's quantized weight."""
        dequantize = self.producer[self.nodes[layer].input[place]]
        assert dequantize.op_type == "DequantizeLinear"
        axes = [attribute.i for attribute in dequantize.attribute if attribute.name == "axis"]
        codes, scale, zero = (self.arrays[name] for name in dequantize.input)
        return codes, scale, zero, axes[0] if axes else None


def fake(array: np.ndarray, bounds: Range) -> np.ndarray:
    """QuantizeLinear then DequantizeLinear, spelled out."""
    scale, zero = affine_parameters(bounds)
    codes = np.clip(np.rint(array / scale) + zero, 0, 255)
    return ((codes - zero) * scale).astype(np.float32)


def check_invariants(source: Case, precisions: Mapping[str, Precision]) -> None:
    written = Written(source, precisions)
    assert written.bytes == source.write(dict(reversed(precisions.items()))), "bytes do not depend on the plan's order"
    original = onnx.load_model_from_string(source.write({}))
    for side in ("input", "output"):
        theirs, ours = getattr(original.graph, side), getattr(written.proto.graph, side)
        assert [(v.name, v.type) for v in ours] == [(v.name, v.type) for v in theirs]
    quantized = [node.input[0] for node in written.kinds("QuantizeLinear")]
    assert len(quantized) == len(set(quantized)), "one pair a tensor"
    assert set(quantized) <= set(quantization_points(source.graph))
    before = {node.name: node for node in original.graph.node}
    layers = {layer.name: layer for layer in source.graph.layers}
    adds = set()
    for name, node in before.items():
        after = written.nodes[name]
        precision = precisions.get(name, FP32)
        layer = layers.get(name)
        assert (after.op_type, after.output, after.attribute) == (node.op_type, node.output, node.attribute)
        for place, value in enumerate(node.input):
            touched = after.input[place] != value
            if layer is None:
                if touched:
                    adds.add(name)
            elif value in layer.weights:
                assert touched == (precision in (INT8, W8)), f"{name} {value}"
                if touched:
                    codes, scale, zero, axis = written.weight(name, place)
                    assert codes.dtype == np.int8
                    assert codes.min() >= -127
                    assert not zero.any()
                    if layer.weight_axis < 0:
                        assert axis is None
                        assert scale.shape == ()
                    else:
                        assert axis == layer.weight_axis
                        assert scale.shape == (codes.shape[axis],)
            elif value in layer.inputs:
                assert touched == (precision is INT8), f"{name} reads {after.input[place]}"
            else:
                assert not touched, "biases and states stay float"
    for name in adds:  # what else reads quantized tensors is a residual Add, on both sides
        assert before[name].op_type == "Add"
        assert all(after != value for after, value in zip(written.nodes[name].input, before[name].input, strict=True))
    outputs = run(written.bytes, source.data.sample(0))
    reference = run(source.write({}), source.data.sample(0))
    assert {k: (v.shape, v.dtype) for k, v in outputs.items()} == {k: (v.shape, v.dtype) for k, v in reference.items()}
    assert sqnr_db(outputs, reference) > 15


@pytest.mark.parametrize("precision", [INT8, W8, FP32])
@pytest.mark.parametrize("name", CASES)
def test_uniform_models_keep_every_convention(name: str, precision: Precision) -> None:
    check_invariants(case(name), case(name).uniform(precision))


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_mixes_keep_every_convention(name: str, data: st.DataObject) -> None:
    source = case(name)
    check_invariants(source, {layer: data.draw(st.sampled_from([INT8, W8, FP32])) for layer in source.names})


@given(model=random_nets(), data=st.data())
@settings(max_examples=25, deadline=None)
def test_random_nets_keep_every_convention(model: onnx.ModelProto, data: st.DataObject) -> None:
    source = case_of(model)
    if any(np.abs(value).max() == 0 for value in run(source.write({}), source.data.sample(0)).values()):
        return  # a dead Relu leaves no signal to compare with
    check_invariants(source, {layer: data.draw(st.sampled_from([INT8, W8, FP32])) for layer in source.names})


def test_nothing_planned_changes_nothing() -> None:
    source = case("conv_net")
    assert source.write({}) == source.write(source.uniform(FP32)) == source.write(source.uniform(Precision.BF16))


def test_a_single_conv_is_the_fake_quant_worked_by_hand() -> None:
    net = Net()
    x = net.input("x", [1, 3, 6, 6])
    source = case_of(net.model([net.op("Conv", x, net.random(4, 3, 1, 1, name="w"), net.random(4, name="b"))]))
    (layer,) = source.graph.layers
    arrays = {
        one.name: numpy_helper.to_array(one) for one in onnx.load_model_from_string(source.write({})).graph.initializer
    }
    weight, bias = arrays["w"], arrays["b"]
    image = source.data.sample(0)["x"]
    scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    rounded = np.rint(weight[:, :, 0, 0] / scale[:, None]) * scale[:, None]
    for precision, seen in ((INT8, fake(image, source.ranges["x"])), (W8, image)):
        by_hand = np.einsum("oc,nchw->nohw", rounded, seen) + bias[:, None, None]
        (output,) = run(source.write({layer.name: precision}), {"x": image}).values()
        np.testing.assert_allclose(output, by_hand, rtol=1e-5, atol=1e-5)


def test_four_bits_leave_a_scale_that_the_weights_say_again() -> None:
    """A converter that sees only the floats must find the same codes: each channel uses an end of the grid."""
    source = case("conv_net")
    for name in source.names:
        codes, scale, _, axis = Written(source, {name: Precision.W4}).weight(name)
        rest = tuple(i for i in range(codes.ndim) if i != axis)
        assert (np.abs(codes).max(axis=rest) == 7).all()
        floats = np.abs(codes * scale.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])).max(axis=rest)
        np.testing.assert_allclose(floats / 7, scale, rtol=1e-6)


def test_sixteen_bits_are_symmetric_over_what_eight_bits_span() -> None:
    source = case("conv_net")
    name = source.names[1]
    written = Written(source, {name: Precision.INT16X8})
    (pair,) = written.kinds("QuantizeLinear")
    scale8, zero8 = affine_parameters(source.ranges[pair.input[0]])
    scale, zero = (written.arrays[one] for one in pair.input[1:])
    assert (zero.dtype, int(zero)) == (np.int16, 0)
    assert scale == pytest.approx(max(zero8, 255 - zero8) * float(scale8) / 32767, rel=1e-6)
    outputs, reference = run(written.bytes, source.data.sample(0)), run(source.write({}), source.data.sample(0))
    assert sqnr_db(outputs, reference) > sqnr_db(run(source.write({name: INT8}), source.data.sample(0)), reference)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_one_tensor_can_be_read_in_two_widths(data: st.DataObject) -> None:
    """What is written and read in different widths runs, one pair a tensor and width, whoever writes 8 or 16 bits."""
    source = case(data.draw(st.sampled_from(["inverted_residual", "squeeze_excite", "transformer", "conv_net"])))
    widths = st.sampled_from([FP32, INT8, Precision.INT16X8, W8])
    plan = {layer: data.draw(widths) for layer in source.names}
    seen = collect_ranges(source.graph, quantization_points(source.graph, results=True), source.data)
    ranges = {name: choose_range(one, "min-max") for name, one in seen.items()}
    content = to_bytes(apply_precisions(source.graph, plan, ranges, results=True))
    proto = onnx.load_model_from_string(content)
    onnx.checker.check_model(proto)
    arrays = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    pairs = [(n.input[0], arrays[n.input[2]].dtype) for n in proto.graph.node if n.op_type == "QuantizeLinear"]
    assert len(pairs) == len(set(pairs))
    sample = source.data.sample(0)
    assert sqnr_db(run(content, sample), run(source.write({}), sample)) > 12


@pytest.mark.parametrize(("trans_a", "trans_b", "axis"), [(0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 0)])
def test_gemm_scales_follow_the_output_channels(trans_a: int, trans_b: int, axis: int) -> None:
    net = Net()
    x = net.input("x", [5, 4] if trans_a else [4, 5])
    shape = (7, 5) if trans_b else (5, 7)
    values = net.rng.standard_normal(shape) * np.geomspace(1, 1e4, 7).reshape((7, 1) if trans_b else (1, 7))
    y = net.op("Gemm", x, net.weight(values), net.random(7), transA=trans_a, transB=trans_b)
    source = case_of(net.model([y]))
    (name,) = source.names
    codes, scale, _, written_axis = Written(source, {name: INT8}).weight(name)
    assert written_axis == axis
    assert scale.shape == (7,)
    assert (np.abs(codes).max(axis=1 - axis) == 127).all(), "each channel uses the whole grid"


def test_matmul_with_the_weight_on_the_left() -> None:
    net = Net()
    source = case_of(net.model([net.op("MatMul", net.random(6, 4), net.input("x", [4, 3]))]))
    (name,) = source.names
    _, scale, _, axis = Written(source, {name: INT8}).weight(name, place=0)
    assert (axis, scale.shape) == (0, (6,))


def test_a_vector_weight_has_one_scale() -> None:
    net = Net()
    source = case_of(net.model([net.op("MatMul", net.input("x", [3, 8]), net.random(8))]))
    (name,) = source.names
    _, scale, _, axis = Written(source, {name: INT8}).weight(name)
    assert (axis, scale.shape) == (None, ())
    check_invariants(source, {name: INT8})


def test_a_vector_input_and_batched_weights() -> None:
    net = Net()
    y = net.op("MatMul", net.input("x", [8]), net.random(2, 8, 5))
    source = case_of(net.model([y]))
    check_invariants(source, source.uniform(INT8))


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_recurrent_weights_have_a_scale_for_each_gate_and_unit(op_type: str) -> None:
    source = case(op_type.lower())
    layer = next(layer for layer in source.graph.layers if layer.op_type == op_type)
    written = Written(source, {layer.name: INT8})
    for place in (1, 2):
        codes, scale, _, axis = written.weight(layer.name, place)
        assert axis == 1
        assert scale.shape == (codes.shape[1],)


def test_grouped_transposed_convolution_shares_scales_between_groups() -> None:
    source = case("conv_transpose_grouped")
    layer = next(layer for layer in source.graph.layers if layer.op_type == "ConvTranspose")
    codes, scale, _, axis = Written(source, {layer.name: W8}).weight(layer.name)
    assert (codes.shape[:2], axis, scale.shape) == ((8, 4), 1, (4,))


def residual(relu: bool = False) -> tuple[Case, str]:
    net = Net()
    stem = net.conv(net.input("x", [1, 3, 8, 8]), 3, 8)
    stem = net.op("Relu", stem) if relu else stem
    add = net.op("Add", net.conv(stem, 8, 8), stem)
    source = case_of(net.model([net.conv(add, 8, 4)]))
    return source, next(
        node.name for node in onnx.load_model_from_string(source.write({})).graph.node if node.op_type == "Add"
    )


@pytest.mark.parametrize("relu", [False, True])
def test_an_add_between_int8_layers_reads_quantized(relu: bool) -> None:
    source, add = residual(relu)
    written = Written(source, source.uniform(INT8))
    assert [written.made_by(value) for value in written.nodes[add].input] == ["DequantizeLinear"] * 2
    assert len(written.kinds("QuantizeLinear")) == 4, "image, stem (shared with the Add), branch, sum"


@pytest.mark.parametrize("floating", [0, 1, 2])
def test_an_add_beside_a_float_layer_stays_float(floating: int) -> None:
    source, add = residual()
    plan = source.uniform(INT8) | {source.names[floating]: FP32}
    written = Written(source, plan)
    assert "DequantizeLinear" not in [written.made_by(value) for value in written.nodes[add].input]


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}), ("Transpose", {"perm": [0, 1, 3, 2]})],
)
def test_the_pair_stands_before_views_and_max_pooling(op_type: str, attributes: dict[str, list[int]]) -> None:
    net = Net()
    x = net.op("Sigmoid", net.input("x", [1, 4, 8, 8]))
    viewed = net.op(op_type, x, **attributes)
    source = case_of(net.model([net.conv(viewed, 4, 4), net.conv(viewed, 4, 2)]))
    first, second = source.names
    written = Written(source, {first: INT8})
    assert written.made_by(written.nodes[first].input[0]) == op_type
    twin = written.producer[written.nodes[first].input[0]]
    assert written.made_by(twin.input[0]) == "DequantizeLinear"
    (quantize,) = written.kinds("QuantizeLinear")
    assert quantize.input[0] == x, "the tensor before the view is what is quantized"
    assert written.nodes[second].input[0] == viewed, "the float reader reads the float view"
    assert written.made_by(viewed) == op_type
    assert written.producer[viewed].input[0] == x
    both = Written(source, {first: INT8, second: INT8})
    assert both.nodes[first].input[0] == both.nodes[second].input[0], "both share the twin"


def test_a_tensor_that_one_node_reads_twice() -> None:
    net = Net()
    x = net.op("Sigmoid", net.input("x", [1, 4, 4]))
    source = case_of(net.model([net.op("MatMul", x, x)]))
    (name,) = source.names
    written = Written(source, {name: INT8})
    assert written.nodes[name].input[0] == written.nodes[name].input[1]
    assert len(written.kinds("QuantizeLinear")) == 1
    seen = 1 / (1 + np.exp(-source.data.sample(0)["x"]))
    quantized = fake(seen, next(iter(source.ranges.values())))
    (output,) = run(written.bytes, source.data.sample(0)).values()
    np.testing.assert_allclose(output, quantized @ quantized, rtol=1e-4)


def test_a_product_of_a_tensor_with_its_own_transpose_needs_one_pair() -> None:
    net = Net()
    x = net.input("x", [1, 4, 6])
    source = case_of(net.model([net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1]))]))
    (name,) = source.names
    written = Written(source, {name: INT8})
    assert [node.input[0] for node in written.kinds("QuantizeLinear")] == ["x"]
    quantized = fake(source.data.sample(0)["x"], source.ranges["x"])
    (output,) = run(written.bytes, source.data.sample(0)).values()
    np.testing.assert_allclose(output, quantized @ quantized.transpose(0, 2, 1), rtol=1e-4)


def test_model_inputs_and_outputs_that_are_quantized_stay_what_they_were() -> None:
    net = Net()
    x = net.input("x", [1, 3, 8, 8])
    y = net.conv(x, 3, 4)
    source = case_of(net.model([y, net.conv(y, 4, 2)]))
    second = source.names[1]
    written = Written(source, {second: INT8})
    assert {node.input[0] for node in written.kinds("QuantizeLinear")} == {y}
    image = source.data.sample(0)
    np.testing.assert_array_equal(run(written.bytes, image)[y], run(source.write({}), image)[y])
    everything = Written(source, source.uniform(INT8))
    assert {node.input[0] for node in everything.kinds("QuantizeLinear")} == {"x", y}


@pytest.mark.parametrize("plan", [(INT8, FP32), (FP32, INT8), (INT8, INT8), (W8, INT8)])
def test_weights_that_two_layers_share(plan: tuple[Precision, Precision]) -> None:
    net = Net()
    shared = net.random(4, 4, 3, 3, name="shared")
    y = net.op("Conv", net.input("x", [1, 4, 8, 8]), shared, pads=[1] * 4)
    y = net.op("Conv", net.op("Relu", y), shared, pads=[1] * 4)
    source = case_of(net.model([y]))
    precisions = dict(zip(source.names, plan, strict=True))
    check_invariants(source, precisions)
    assert ("shared" in Written(source, precisions).arrays) == (FP32 in plan), "float weights stay while they are read"


TAKEN = ("x/scale", "x/zero_point", "x/quantize", "x/dequantize", "conv/w/int8", "conv/w/scale", "conv/w/dequantize")


@pytest.mark.parametrize("as_node", [False, True])
@pytest.mark.parametrize("taken", TAKEN)
def test_names_that_are_taken(taken: str, as_node: bool) -> None:
    def build(name: str) -> Case:
        net = Net()
        x = net.input("x", [1, 3, 8, 8])
        y = net.op("Conv", x, net.random(4, 3, 3, 3, name="w"), pads=[1] * 4)
        net.nodes[-1].name = "conv"
        net.nodes.append(
            helper.make_node("Sin", [y], [name], name=f"{name}/node" if as_node else name)
            if as_node
            else helper.make_node("Mul", [y, net.weight(np.full((1, 4, 8, 8), 0.7), name=name)], ["m"], name="mul")
        )
        net.nodes.append(helper.make_node("Cos", [name if as_node else "m"], ["out"], name="cos"))
        return case_of(net.model(["out"]))

    source, plain = build(taken), build("harmless")
    image = source.data.sample(0)
    check_invariants(source, {"conv": INT8})
    np.testing.assert_array_equal(
        run(source.write({"conv": INT8}), image)["out"], run(plain.write({"conv": INT8}), image)["out"]
    )


def test_a_view_whose_quantized_name_is_a_real_tensor() -> None:
    net = Net()
    x = net.op("Sigmoid", net.input("x", [1, 3, 8, 8]))
    net.nodes.append(helper.make_node("MaxPool", [x], ["v"], name="pool", kernel_shape=[2, 2], strides=[2, 2]))
    net.nodes.append(helper.make_node("Sin", ["v"], ["v/quantized"], name="pool/quantized"))
    source = case_of(net.model([net.conv("v", 3, 4), net.conv("v/quantized", 3, 4)]))
    check_invariants(source, source.uniform(INT8))


def test_quantized_layers_beside_a_subgraph() -> None:
    """An If reads the layer's float output from outside and has names of its own."""
    net = Net()
    y = net.conv(net.input("x", [1, 3, 8, 8]), 3, 4)
    branches = []
    for name, op_type in (("x/scale", "Relu"), ("other", "Neg")):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        branches.append(helper.make_graph([helper.make_node(op_type, [y], [name])], op_type, [], [value]))
    positive = net.op("Greater", net.op("ReduceMean", y, keepdims=0), net.weight(np.float32(0)))
    z = net.op("If", positive, then_branch=branches[0], else_branch=branches[1])
    source = case_of(net.model([net.op("Add", z, net.op("Sin", y))]))
    check_invariants(source, source.uniform(INT8))


def test_quantization_points_are_exactly_what_full_int8_needs() -> None:
    for name in CASES:
        source = case(name)
        assert set(source.ranges) == set(quantization_points(source.graph))
        assert list(quantization_points(source.graph)) == sorted(quantization_points(source.graph))
