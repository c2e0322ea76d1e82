"""What is predicted for random nets and random mixes of int8 and float, against what OpenVINO allocates."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
import pytest

from edgekit.types import Precision
from tests import zoo
from tests.graph.nets import arena_misfit_bytes, load_model

NETS = 24
SLACK = 4096  # bytes that this process itself allocates or frees while OpenVINO's arena is measured


def random_net(chance: random.Random) -> onnx.ModelProto:
    """A chain of convolutions with residual sums, concatenations and pooling, on x [1, 4, 64, 64]."""
    net = zoo.Net(chance.randrange(2**16))
    channels = chance.choice([8, 16])
    y = net.op("Relu", net.conv(net.input("x", [1, 4, 64, 64]), 4, channels))
    for block in chance.choices(("conv", "depthwise", "residual", "dense", "pool"), k=chance.randint(3, 7)):
        if block == "conv":
            wider = chance.choice([8, 16, 32])
            y, channels = net.op("Relu", net.conv(y, channels, wider, chance.choice([1, 3]))), wider
        elif block == "depthwise":
            y = net.op("Relu", net.conv(y, channels, channels, group=channels))
        elif block == "residual":
            inner = net.conv(net.op("Relu", net.conv(y, channels, channels)), channels, channels, 1)
            y = net.op("Relu", net.op("Add", *chance.sample([inner, y], 2)))
        elif block == "dense":
            y, channels = net.op("Concat", y, net.op("Relu", net.conv(y, channels, 8)), axis=1), channels + 8
        else:
            y = net.op("MaxPool", y, kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1])
    return net.model([net.op("GlobalAveragePool", net.conv(y, channels, 8))])


@pytest.mark.slow
@pytest.mark.parametrize("share_int8", [0.0, 0.5, 1.0])
def test_random_nets_within_one_percent(share_int8: float, tmp_path: Path) -> None:
    for seed in range(NETS):
        chance = random.Random(seed)
        graph = load_model(random_net(chance), tmp_path)
        chosen = {x.name: Precision.INT8 for x in graph.layers if chance.random() < share_int8}
        misfit, arena = arena_misfit_bytes(graph, chosen)
        assert abs(misfit) <= max(SLACK, 0.01 * arena), (seed, misfit, arena)
