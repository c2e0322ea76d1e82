"""A 1-D convolutional net for windows of inertial data: six channels of 128 samples to seven classes."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

CLASSES = 7


def network() -> nn.Module:
    """Untrained; float32 [n, 6, 128] in, logits [n, 7] out."""
    layers: list[nn.Module] = []
    given = 6
    for made, kernel, stride in ((32, 7, 1), (64, 5, 2), (64, 5, 1), (128, 5, 2), (128, 3, 1), (128, 3, 2)):
        conv = nn.Conv1d(given, made, kernel, stride, kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm1d(made), nn.ReLU()]
        given = made
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(given, CLASSES))


def module() -> nn.Module:
    """The trained network in evaluation mode; its weights lie beside this file."""
    net = network()
    net.load_state_dict(load_file(Path(__file__).with_name("weights.safetensors")))
    return net.eval()
