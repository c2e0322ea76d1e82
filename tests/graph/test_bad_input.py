"""Files that must be refused: one clear line, a hint, never a traceback of another kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import InputError
from edgekit.graph import load
from tests import zoo
from tests.graph.nets import load_model


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def refused_model(model: onnx.ModelProto, folder: Path, message: str) -> None:
    path = folder / "model.onnx"
    onnx.save(model, path)
    refused(path, message)


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "no such file")


def test_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        load(tmp_path / ("x" * 300))
    with pytest.raises(InputError):
        load(str(tmp_path) + "/a\0b")


def test_directory(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory")


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    refused(tmp_path / "m.onnx", "the file is empty")


@pytest.mark.parametrize("content", [b"This is no model.\n", b"\x89PNG\r\n\x1a\n" + bytes(64), b"\n\n\n", bytes(100)])
def test_not_an_onnx_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    refused(tmp_path / "m.onnx", "not an ONNX model")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated(share: float, tmp_path: Path) -> None:
    content = zoo.conv_net().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / "m.onnx", "truncated|not a valid|not an ONNX")


@given(place=st.integers(0, 10**6), value=st.integers(0, 255), length=st.integers(1, 8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_never_give_a_traceback(place: int, value: int, length: int, tmp_path: Path) -> None:
    content = bytearray(zoo.conv_transpose().SerializeToString())
    place %= len(content) - length
    content[place : place + length] = bytes([value]) * length
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    try:
        load(path)
    except InputError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


def external(tmp_path: Path, **entries: str) -> Path:
    """A model with external data whose first tensor's entries are replaced."""
    path = zoo.save_external(zoo.conv_net(), tmp_path / "model.onnx")
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    found = {e.key: e.value for e in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in found.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_missing(tmp_path: Path) -> None:
    path = zoo.save_external(zoo.conv_net(), tmp_path / "model.onnx")
    (tmp_path / "weights.bin").unlink()
    refused(path, "external data file 'weights.bin' is missing")


def test_external_data_at_an_absolute_path(tmp_path: Path) -> None:
    refused(external(tmp_path, location="/etc/hostname"), "'/etc/hostname' is outside the model's folder")


@pytest.mark.parametrize("location", ["../weights.bin", "sub/../../weights.bin", "..\\weights.bin", ""])
def test_external_data_outside_of_the_folder(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = external(folder, location=location)
    (tmp_path / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
    refused(path, "is outside the model's folder")


def test_external_data_through_a_symbolic_link(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = zoo.save_external(zoo.conv_net(), folder / "model.onnx")
    (folder / "weights.bin").rename(tmp_path / "elsewhere.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    refused(path, "goes through a symbolic link")


def test_external_data_through_a_linked_folder(tmp_path: Path) -> None:
    folder, other = tmp_path / "inner", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    path = external(folder, location="link/weights.bin")
    (folder / "weights.bin").rename(other / "weights.bin")
    (folder / "link").symlink_to(other)
    refused(path, "goes through a symbolic link")


def test_external_data_too_short(tmp_path: Path) -> None:
    path = zoo.save_external(zoo.conv_net(), tmp_path / "model.onnx")
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:100])
    refused(path, "of 'weights.bin', which has 100")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "99999999"}, "needs bytes 99999999 to"),
        ({"offset": "-8"}, "needs bytes -8 to"),
        ({"length": "4"}, "4 bytes of external data, its shape needs"),
        ({"length": "much"}, "offset or length"),
    ],
)
def test_external_data_with_wrong_extent(entries: dict[str, str], message: str, tmp_path: Path) -> None:
    refused(external(tmp_path, **entries), message)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("as_nodes", [False, True])
def test_weights_that_are_not_finite_are_named(value: float, as_nodes: bool, tmp_path: Path) -> None:
    model = zoo.constants_as_nodes() if as_nodes else zoo.conv_net()
    if as_nodes:
        name, tensor = next((n.output[0], n.attribute[0].t) for n in model.graph.node if n.attribute[0].t.dims)
    else:
        tensor = model.graph.initializer[0]
        name = tensor.name
    values = numpy_helper.to_array(tensor).copy()
    values.flat[3] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    refused_model(model, tmp_path, f"weight '{name}' of Conv .*: 1 of {values.size} values are NaN or inf")


def test_infinity_in_a_mask_is_legitimate(tmp_path: Path) -> None:
    net = zoo.Net()
    x = net.input("x", [1, 4, 4])
    causal = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    scores = net.op("Add", net.op("MatMul", x, net.random(4, 4)), net.weight(causal))
    assert load_model(net.model([net.op("Softmax", scores, axis=-1)]), tmp_path).layers


def test_model_that_computes_nothing_but_nan(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.op("MatMul", net.input("x", [1, 4]), net.random(4, 4))
    refused_model(net.model([net.op("Mul", y, net.weight(np.float32([np.nan])))]), tmp_path, "NaN")


def test_unknown_operator(tmp_path: Path) -> None:
    model = zoo.conv_net()
    model.graph.node[3].op_type = "Frobnicate"
    refused_model(model, tmp_path, f"Frobnicate {model.graph.node[3].name}|No Op registered for Frobnicate")


def test_unknown_domain_names_the_nodes(tmp_path: Path) -> None:
    model = zoo.conv_net()
    node = next(n for n in model.graph.node if n.op_type == "Relu")
    node.op_type, node.domain = "Blur", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    refused_model(model, tmp_path, f"Blur {node.name}")


def test_operator_newer_than_the_opset(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.op("MatMul", net.input("x", [1, 4]), net.random(4, 4))
    model = net.model([net.op("Gelu", y)], opset=20)
    model.opset_import[0].version = 17
    refused_model(model, tmp_path, "Gelu")


@pytest.mark.parametrize(("opset", "message"), [(6, "opset 6; 7 is the oldest"), (99, "opset 99")])
def test_opset_out_of_range(opset: int, message: str, tmp_path: Path) -> None:
    model = zoo.conv_net()
    model.opset_import[0].version = opset
    refused_model(model, tmp_path, message)


def test_quantized_model(tmp_path: Path) -> None:
    net = zoo.Net()
    scale, zero = net.weight(np.float32(0.1)), net.weight(np.uint8(128))
    q = net.op("QuantizeLinear", net.input("x", [1, 4]), scale, zero)
    y = net.op("MatMul", net.op("DequantizeLinear", q, scale, zero), net.random(4, 4))
    refused_model(net.model([y]), tmp_path, "already quantized: QuantizeLinear QuantizeLinear_3, DequantizeLinear")


def test_half_precision_model(tmp_path: Path) -> None:
    net = zoo.Net()
    x = net.input("x", [1, 4], TensorProto.FLOAT16)
    model = net.model([net.op("MatMul", x, net.weight(np.ones((4, 4), np.float16), "half"))], kind=TensorProto.FLOAT16)
    refused_model(model, tmp_path, "2 float16 tensor.*'half'")


def test_double_precision_weights(tmp_path: Path) -> None:
    net = zoo.Net()
    x = net.input("x", [1, 4], TensorProto.DOUBLE)
    weights = numpy_helper.from_array(np.ones((4, 4)), "wide")
    net.weights.append(weights)
    model = net.model([net.op("MatMul", x, "wide")], kind=TensorProto.DOUBLE)
    refused_model(model, tmp_path, "weight 'wide' of MatMul .* is float64")


def test_shapes_that_depend_on_the_data(tmp_path: Path) -> None:
    net = zoo.Net()
    x = net.op("MatMul", net.input("x", [4, 4]), net.random(4, 4))
    y = net.op("Cast", net.op("NonZero", x), to=TensorProto.FLOAT)
    refused_model(net.model([y]), tmp_path, "depends on the data")


def test_control_flow_that_depends_on_an_input(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.op("MatMul", net.input("x", [4, 4]), net.random(4, 4))
    branches = []
    for name, size in (("then", 2), ("else", 3)):
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, 4])
        cut = helper.make_node("Slice", [y, f"{name}_start", f"{name}_end"], [name])
        ends = {"start": 0, "end": size}
        parts = [numpy_helper.from_array(np.array([end]), f"{name}_{key}") for key, end in ends.items()]
        branches.append(helper.make_graph([cut], name, [], [out], parts))
    condition = net.input("wide", [], TensorProto.BOOL)
    made = net.op("If", condition, then_branch=branches[0], else_branch=branches[1])
    refused_model(net.model([made]), tmp_path, "If If_.* chooses what to compute at run time")


def test_shape_that_does_not_fit_the_weights(tmp_path: Path) -> None:
    net = zoo.Net()
    y = net.op("Reshape", net.input("x", [1, "n"]), net.ints(1, 12))
    onnx.save(net.model([net.op("MatMul", y, net.random(12, 3))]), tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx", {"x": (1, 12)}).layers
    with pytest.raises(InputError):
        load(tmp_path / "m.onnx", {"x": (1, 13)})


def test_model_without_nodes(tmp_path: Path) -> None:
    model = zoo.conv_net()
    del model.graph.node[:]
    refused_model(model, tmp_path, "no nodes")
