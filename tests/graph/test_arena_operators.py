"""Which operators write over what they read, and which put out 8 bit: what is predicted against OpenVINO's arena.

Each net is so small but for one tensor and what is made of it that the arena tells what happens to that.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from edgekit.graph import Graph
from edgekit.types import Precision
from tests import zoo
from tests.graph.nets import arena_misfit_bytes, load_model

SLACK = 4096  # bytes that this process itself allocates or frees while OpenVINO's arena is measured
WIDE = 2**16  # elements of the tensor that counts

FUNCTIONS = (
    "Abs", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish",
    "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh",
    "ThresholdedRelu",
)  # fmt: skip


def assert_as_allocated(graph: Graph, layers: list[str]) -> None:
    """In float, and with every choice of the layers in int8."""
    for count in range(len(layers) + 1):
        for chosen in itertools.combinations(layers, count):
            misfit, arena = arena_misfit_bytes(graph, dict.fromkeys(chosen, Precision.INT8))
            assert abs(misfit) <= SLACK, (chosen, misfit, arena)


def layers_of(graph: Graph) -> list[str]:
    return [layer.name for layer in graph.layers if layer.weights]


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_between_two_convolutions(function: str, tmp_path: Path) -> None:
    net = zoo.Net(0)
    y = net.op(function, net.conv(net.input("x", [1, 16, 1, 1]), 16, WIDE, 1))
    graph = load_model(net.model([net.op("Relu", net.conv(y, WIDE, 16, 1))], opset=20), tmp_path)
    assert_as_allocated(graph, layers_of(graph))


@pytest.mark.slow
@pytest.mark.parametrize("function", ["Exp", "HardSigmoid", "LayerNormalization", "Relu", "Softmax", "Softsign"])
def test_functions_with_two_readers(function: str, tmp_path: Path) -> None:
    net, width = zoo.Net(0), WIDE // 64
    y = matmul(net, net.input("x", [1, 64, 16]), 16, width)
    affine = [net.random(width), net.random(width)] if function == "LayerNormalization" else []
    y = net.op(function, y, *affine)
    outputs = [net.op("Relu", matmul(net, y, width, 16)), net.op("Relu", matmul(net, y, width, 8))]
    graph = load_model(net.model(outputs), tmp_path)
    assert_as_allocated(graph, layers_of(graph))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["HardSwish", "Relu", ""])
@pytest.mark.parametrize(("window", "number"), [(2, False), (2, True), (3, False)])
def test_averages_with_two_readers(activation: str, window: int, number: bool, tmp_path: Path) -> None:
    net = zoo.Net(0)
    y = net.conv(net.input("x", [1, 16, 32, 32]), 16, 64, 1)
    y = net.op(activation, y) if activation else y
    y = net.op("Add", net.op("Mul", y, net.weight([0.5])), net.weight([0.5])) if number else y
    pads = [1, 1, 1, 1] if window == 3 else [0, 0, 0, 0]
    y = net.op("AveragePool", y, kernel_shape=[window, window], strides=[4 - window] * 2, pads=pads)
    outputs = [net.op("Relu", net.conv(y, 64, 8, 1)), net.op("Relu", net.conv(y, 64, 8, 1))]
    graph = load_model(net.model(outputs), tmp_path)
    assert_as_allocated(graph, layers_of(graph))


def matmul(net: zoo.Net, x: str, inputs: int, outputs: int) -> str:
    return net.op("MatMul", x, net.random(inputs, outputs))


@pytest.mark.slow
def test_a_convolution_that_is_flattened_is_laid_out_again(tmp_path: Path) -> None:
    net = zoo.Net(0)
    y = net.op("Flatten", net.op("Relu", net.conv(net.input("x", [1, 16, 32, 32]), 16, 64, 1)))
    graph = load_model(net.model([matmul(net, y, 64 * 32 * 32, 8)]), tmp_path)
    assert_as_allocated(graph, [])


@pytest.mark.slow
def test_averages_of_sequences_are_of_a_copy(tmp_path: Path) -> None:
    net = zoo.Net(0)
    x = net.input("x", [1, 16, 512])
    y = net.op("Conv", x, net.random(128, 16, 3), net.random(128), pads=[1, 1])
    y = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", y)))
    graph = load_model(net.model([matmul(net, y, 128, 8)]), tmp_path)
    assert_as_allocated(graph, layers_of(graph))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 16])
def test_pooled_inputs_of_few_channels_are_filled_up_to_a_block(channels: int, tmp_path: Path) -> None:
    net = zoo.Net(0)
    y = net.op("AveragePool", net.input("x", [1, channels, 96, 96]), kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Relu", matmul(net, net.op("Flatten", y), channels * 48 * 48, 8))
    assert_as_allocated(load_model(net.model([y]), tmp_path), [])


@pytest.mark.slow
def test_a_join_and_another_reader_are_two_quantizers(tmp_path: Path) -> None:
    net = zoo.Net(0)
    x = net.input("x", [1, 4, 64, 64])
    a, b = (net.op("Relu", net.conv(x, 4, 16)) for _ in range(2))
    outputs = [net.conv(net.op("Concat", a, b, axis=1), 32, 8), net.conv(a, 16, 8)]
    graph = load_model(net.model([net.op("GlobalAveragePool", one) for one in outputs]), tmp_path)
    assert_as_allocated(graph, layers_of(graph))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 64])
def test_maps_of_one_pixel_are_flattened_where_they_are(batch: int, tmp_path: Path) -> None:
    net = zoo.Net(0)
    y = net.op("Flatten", net.op("Relu", net.conv(net.input("x", [batch, 4, 1, 1]), 4, 2**14 // batch, 1)))
    graph = load_model(net.model([net.op("Relu", matmul(net, y, 2**14 // batch, 8))]), tmp_path)
    assert_as_allocated(graph, [])
