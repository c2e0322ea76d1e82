from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from edgekit.errors import InputError
from edgekit.graph import Graph, load, to_bytes
from edgekit.graph.channels import find_channels
from edgekit.graph.equality import require_equal
from tests import zoo
from tests.graph.nets import load_model, random_feed, random_nets, run


def check_normal_form(graph: Graph) -> None:
    model = graph.model
    names = [node.name for node in model.graph]
    assert all(names)
    assert len(set(names)) == len(names)
    assert not [node for node in model.graph if node.op_type in ("Constant", "Identity", "Dropout")]
    assert set(model.opset_imports) == {node.domain for node in model.graph} | {""}
    assert model.opset_imports[""] >= 17
    values = [v.name for v in (*model.graph.inputs, *(o for n in model.graph for o in n.outputs)) if v.name]
    values += list(model.graph.initializers)
    assert len(set(values)) == len(values)
    for node in model.graph:
        for value in node.outputs:
            assert not value.name or (value.shape is not None and value.shape.is_static() and value.dtype is not None)
    read = {v.name for node in model.graph for v in node.inputs if v is not None}
    assert set(model.graph.initializers) <= read
    onnx.checker.check_model(onnx.load_from_string(to_bytes(model)), full_check=True)


def check_same_outputs(original: onnx.ModelProto, graph: Graph) -> None:
    feed = random_feed(graph, 0)
    for want, got in zip(run(original.SerializeToString(), feed), run(to_bytes(graph.model), feed), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4 * max(1.0, float(np.abs(want).max())), rtol=0)


@pytest.mark.parametrize("name", sorted(zoo.STATIC))
def test_every_model_loads_in_normal_form_with_the_same_outputs(name: str, tmp_path: Path) -> None:
    original = zoo.STATIC[name]()
    graph = load_model(original, tmp_path)
    check_normal_form(graph)
    if name not in ("old_opset", "constants_as_nodes"):  # those two onnxruntime takes only after load has mended them
        check_same_outputs(original, graph)
    assert graph.sha256 == hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest()
    assert graph.layers
    assert {layer.name for layer in graph.layers} <= {node.name for node in graph.model.graph}


@given(model=random_nets())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_networks_keep_their_outputs(model: onnx.ModelProto, tmp_path: Path) -> None:
    graph = load_model(model, tmp_path)
    check_normal_form(graph)
    check_same_outputs(model, graph)


@pytest.mark.parametrize("name", ["conv_net", "inverted_residual", "grouped_conv", "conv_transpose", "old_opset"])
def test_batch_norm_is_folded(name: str, tmp_path: Path) -> None:
    graph = load_model(zoo.STATIC[name](), tmp_path)
    assert not [node for node in graph.model.graph if node.op_type == "BatchNormalization"]


def test_batch_norm_is_folded_into_grouped_conv_transpose(tmp_path: Path) -> None:
    original = zoo.conv_transpose(group=4)
    graph = load_model(original, tmp_path)
    assert not [node for node in graph.model.graph if node.op_type == "BatchNormalization"]
    check_same_outputs(original, graph)


def test_weights_shared_by_two_layers_are_not_folded_into_each_other(tmp_path: Path) -> None:
    net = zoo.Net()
    x, shared = net.input("x", [1, 4, 4, 4]), net.random(4, 4, 1, 1)
    a = net.op("Mul", net.op("ConvTranspose", x, shared), net.weight(np.float32([2])))
    original = net.model([net.op("Add", a, net.op("ConvTranspose", net.op("Relu", x), shared))])
    graph = load_model(original, tmp_path)
    assert "Mul" not in {node.op_type for node in graph.model.graph}
    check_same_outputs(original, graph)


def test_unique_node_names_are_kept_and_others_are_made_unique(tmp_path: Path) -> None:
    original = zoo.conv_net()
    graph = load_model(original, tmp_path)
    convs = [node.name for node in original.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [layer.name for layer in graph.layers] == convs
    duplicates = load_model(zoo.constants_as_nodes(), tmp_path)
    assert [layer.name for layer in duplicates.layers] == ["conv", "conv_2", "conv_3"]


def test_constant_if_disappears(tmp_path: Path) -> None:
    graph = load_model(zoo.constants_as_nodes(), tmp_path)
    assert "If" not in {node.op_type for node in graph.model.graph}


def test_shape_arithmetic_folds_once_shapes_are_frozen(tmp_path: Path) -> None:
    graph = load_model(zoo.dynamic_image(), tmp_path, {"x": (2, 3, 6, 10)})
    check_normal_form(graph)
    assert graph.inputs[0].shape == (2, 3, 6, 10)
    assert graph.outputs[0].shape == (2, 60, 4)
    assert not {"Shape", "Slice", "Concat"} & {node.op_type for node in graph.model.graph}


def test_metadata_survives_and_comments_do_not(tmp_path: Path) -> None:
    model = zoo.conv_net(opset=12)
    onnx.helper.set_model_props(model, {"character": "a\nb\nc", "author": "somebody"})
    model.graph.node[0].doc_string = "File /home/somebody/train.py, line 3"
    graph = load_model(model, tmp_path)
    assert dict(graph.model.metadata_props) == {"character": "a\nb\nc", "author": "somebody"}
    assert b"train.py" not in to_bytes(graph.model)


def test_model_with_local_functions_is_inlined(tmp_path: Path) -> None:
    model = zoo.conv_net()
    body = [onnx.helper.make_node("Mul", ["v", "v"], ["square"]), onnx.helper.make_node("Tanh", ["square"], ["r"])]
    opsets = [onnx.helper.make_opsetid("", 17)]
    model.functions.append(onnx.helper.make_function("local", "SquareTanh", ["v"], ["r"], body, opsets))
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    last = model.graph.node[-1]
    model.graph.node.append(onnx.helper.make_node("SquareTanh", [last.output[0]], ["r"], "f", domain="local"))
    model.graph.output[0].name = "r"
    graph = load_model(model, tmp_path)
    check_normal_form(graph)
    check_same_outputs(model, graph)


def test_external_data_is_read_and_hashed(tmp_path: Path) -> None:
    path = zoo.save_external(zoo.conv_net(), tmp_path / "model.onnx")
    graph = load(path)
    check_same_outputs(zoo.conv_net(), graph)
    both = path.read_bytes() + (tmp_path / "weights.bin").read_bytes()
    assert graph.sha256 == hashlib.sha256(both).hexdigest()


def test_bytes_do_not_depend_on_hash_seeds(tmp_path: Path) -> None:
    onnx.save(zoo.transformer(), tmp_path / "model.onnx")
    code = (
        "import sys, hashlib; from edgekit.graph import load, to_bytes;"
        "print(hashlib.sha256(to_bytes(load(sys.argv[1]).model)).hexdigest())"
    )
    root = str(Path(__file__).parents[2])
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "model.onnx")],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_symbolic_batch_alone_becomes_one(tmp_path: Path) -> None:
    assert load_model(zoo.dynamic_batch(), tmp_path).inputs[0].shape == (1, 3, 16, 16)
    assert load_model(zoo.dynamic_batch(), tmp_path, {"x": (4, 3, 16, 16)}).inputs[0].shape == (4, 3, 16, 16)


def test_symbolic_sequence_does_not_become_one_by_itself(tmp_path: Path) -> None:
    net = zoo.Net()
    model = net.model([net.op("MatMul", net.input("x", ["sequence_length", 8]), net.random(8, 2))])
    with pytest.raises(InputError, match=r"--shape x=\?x8"):
        load_model(model, tmp_path)


def test_one_dimension_name_means_one_size(tmp_path: Path) -> None:
    net = zoo.Net()
    a, b = net.input("a", ["n", "t"]), net.input("b", [2, "t"])
    model = net.model([net.op("MatMul", net.op("Concat", a, b, axis=0), net.random(6, 2))])
    graph = load_model(model, tmp_path, {"a": (1, 6)})
    assert [tensor.shape for tensor in graph.inputs] == [(1, 6), (2, 6)]


def test_dynamic_shape_names_the_flag_to_pass(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pass --shape x=\?x3x\?x\?$") as caught:
        load_model(zoo.dynamic_image(), tmp_path)
    assert "--shape x=1x3x224x224" in caught.value.hint


def test_shape_that_no_machine_can_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would have the shape"):
        load_model(zoo.dynamic_image(), tmp_path, {"x": (1, 3, 10**6, 10**6)})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": (1, 3, 8, 8)}, "names 'y', which is no input"),
        ({"x": (1, 3, 8)}, "has 3 dimensions, input 'x' has 4"),
        ({"x": (1, 4, 8, 8)}, r"contradicts the model, where 'x' is x=\?x3x\?x\?"),
        ({"x": (1, 3, 0, 8)}, "dimensions must be 1 or more"),
        ({"x": (1, 3, -8, 8)}, "dimensions must be 1 or more"),
    ],
)
def test_wrong_shapes(shapes: dict[str, tuple[int, ...]], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_model(zoo.dynamic_image(), tmp_path, shapes)
    assert caught.value.hint


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div", "BatchNormalization"])
@pytest.mark.parametrize("layer", ["Gemm", "Gemm transB", "Gemm beta", "MatMul", "Conv", "ConvTranspose"])
@pytest.mark.parametrize("swapped", [False, True])
def test_affine_operators_are_folded_exactly(op: str, layer: str, swapped: bool, tmp_path: Path) -> None:
    net = zoo.Net()
    kind, _, variant = layer.partition(" ")
    if kind in ("Conv", "ConvTranspose"):
        x, shape = net.input("x", [1, 6, 3, 3]), (6, 1, 1)
        y = net.op(kind, x, net.random(6, 3, 1, 1), net.random(6), group=2)
    else:
        x, shape = net.input("x", [3, 7]), (6,)
        weight = net.random(6, 7) if variant == "transB" else net.random(7, 6)
        trans, beta = int(variant == "transB"), 0.5 if variant == "beta" else 1.0
        more = {"transB": trans, "beta": beta, "alpha": 0.7} if kind == "Gemm" else {}
        y = net.op(kind, x, weight, *([net.random(6)] if more else []), **more)
    if op == "BatchNormalization":
        y = net.batch_norm(y, 6)
    else:
        constant = net.weight(net.rng.uniform(0.5, 1.5, shape))
        y = net.op(op, *((constant, y) if swapped else (y, constant)))
    original = net.model([y])
    graph = load_model(original, tmp_path)
    check_normal_form(graph)
    check_same_outputs(original, graph)
    foldable = variant != "beta" and (op != "Div" or not swapped) and (kind != "MatMul" or op in ("Mul", "Div"))
    if foldable:
        assert [node.op_type for node in graph.model.graph] == [kind]


def test_a_model_that_is_not_the_same_is_noticed() -> None:
    a, b = zoo.conv_net(seed=0).SerializeToString(), zoo.conv_net(seed=1).SerializeToString()
    inputs = [("x", (1, 3, 16, 16), "float32")]
    require_equal(a, a, inputs, "m.onnx")
    with pytest.raises(InputError, match=r"m\.onnx: normalisation changed the outputs: 'Gemm_36_out' differs by"):
        require_equal(a, b, inputs, "m.onnx")


def test_a_newer_ir_version_than_the_runtime_knows_loads(tmp_path: Path) -> None:
    model = zoo.conv_net()
    model.ir_version = onnx.IR_VERSION
    path = tmp_path / "new.onnx"
    onnx.save(model, path)
    assert load(path).model.ir_version <= 10


def scaled(net: zoo.Net, x: str, way: str) -> str:
    """A sixth of x."""
    if way == "Div":
        return net.op("Div", x, net.weight(np.float32(6)))
    factor = net.weight(np.float32([1 / 6]))
    return net.op("Mul", *((factor, x) if way == "swapped" else (x, factor)))


def window(net: zoo.Net, x: str, way: str) -> str:
    """clip(x + 3, 0, 6)."""
    three = net.weight(np.float32([3]))
    return net.clip6(net.op("Add", *((three, x) if way == "swapped" else (x, three))))


@pytest.mark.parametrize("way", ["Div", "Mul", "swapped"])
@pytest.mark.parametrize("place", ["after", "in the gate", "in the factor"])
def test_hard_swish_is_one_operator_wherever_its_sixth_stands(way: str, place: str, tmp_path: Path) -> None:
    net = zoo.Net()
    x = net.conv(net.input("x", (1, 3, 8, 8)), 3, 16)
    gate = window(net, x, way)
    gate = scaled(net, gate, way) if place == "in the gate" else gate
    factor = scaled(net, x, way) if place == "in the factor" else x
    y = net.op("Mul", *((gate, factor) if way == "swapped" else (factor, gate)))
    y = scaled(net, y, way) if place == "after" else y
    original = net.model([net.conv(y, 16, 4)])
    graph = load_model(original, tmp_path)
    assert [node.op_type for node in graph.model.graph] == ["Conv", "HardSwish", "Conv"]
    check_normal_form(graph)
    check_same_outputs(original, graph)


@pytest.mark.parametrize("to", [1.0, 6.0])
def test_a_hard_sigmoid_in_operators_is_one_operator(to: float, tmp_path: Path) -> None:
    net = zoo.Net()
    x = net.conv(net.input("x", (1, 3, 8, 8)), 3, 16)
    if to == 6:
        gate = scaled(net, window(net, x, "Div"), "Div")
    else:
        half = net.op("Add", scaled(net, x, "Mul"), net.weight(np.float32([0.5])))
        gate = net.op("Clip", half, net.weight(np.float32(0)), net.weight(np.float32(1)))
    original = net.model([net.conv(net.op("Add", gate, net.op("Relu", x)), 16, 4)])
    graph = load_model(original, tmp_path)
    assert sorted(node.op_type for node in graph.model.graph) == ["Add", "Conv", "Conv", "HardSigmoid", "Relu"]
    check_normal_form(graph)
    check_same_outputs(original, graph)


@pytest.mark.parametrize("unlike", ["shift", "limit", "scale", "another", "read twice", "an output", "more axes"])
def test_what_is_no_hard_swish_stays_as_it_is(unlike: str, tmp_path: Path) -> None:
    net = zoo.Net()
    x = net.conv(net.input("x", (1, 3, 8, 8)), 3, 16)
    y = net.op("Add", x, net.weight(np.float32([2 if unlike == "shift" else 3])))
    limit = net.weight(np.float32(5 if unlike == "limit" else 6))
    gate = net.op("Clip", y, net.weight(np.float32(0)), limit)
    product = net.op("Mul", net.op("Relu", x) if unlike == "another" else x, gate)
    six = np.float32([5 if unlike == "scale" else 6])
    y = net.op("Div", product, net.weight(six.reshape(1, 1, 1, 1, 1) if unlike == "more axes" else six))
    outputs = [net.op("GlobalAveragePool", y) if unlike != "more axes" else y]
    if unlike == "read twice":
        outputs.append(net.op("GlobalMaxPool", gate))
    if unlike == "an output":
        outputs.append(gate)
    original = net.model(outputs)
    graph = load_model(original, tmp_path)
    assert not {"HardSwish", "HardSigmoid"} & {node.op_type for node in graph.model.graph}
    check_same_outputs(original, graph)


@pytest.mark.parametrize("spelled_out", [True, False])
def test_hard_swish_is_one_operator_however_it_was_written(spelled_out: bool, tmp_path: Path) -> None:
    net = zoo.Net()
    hidden = net.conv(net.input("x", (1, 3, 8, 8)), 3, 16)
    if spelled_out:
        hidden = net.op("Mul", net.op("HardSigmoid", hidden, alpha=1 / 6), hidden)
    else:
        hidden = net.op("HardSwish", hidden)
    hidden = net.op("Mul", net.op("HardSigmoid", hidden), hidden)  # the default slope is another function
    original = net.model([net.conv(hidden, 16, 4)])
    graph = load_model(original, tmp_path)
    assert [node.op_type for node in graph.model.graph] == ["Conv", "HardSwish", "HardSigmoid", "Mul", "Conv"]
    check_normal_form(graph)
    check_same_outputs(original, graph)


def test_layers_that_share_a_bias_get_one_each(tmp_path: Path) -> None:
    net = zoo.Net()
    zeros = net.weight(np.zeros(16))
    hidden = net.op("Conv", net.input("x", (1, 3, 8, 8)), net.random(16, 3, 1, 1), zeros)
    hidden = net.op("Conv", net.op("Relu", hidden), net.random(16, 16, 1, 1), zeros)
    original = net.model([net.conv(net.op("Relu", hidden), 16, 4)])
    graph = load_model(original, tmp_path)
    first, second, _ = (node.inputs[2] for node in graph.model.graph if node.op_type == "Conv")
    assert first is not second
    assert [group.channels for group in find_channels(graph).groups] == [16, 16]
    check_normal_form(graph)
    check_same_outputs(original, graph)
