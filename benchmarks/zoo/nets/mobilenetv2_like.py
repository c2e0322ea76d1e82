"""MobileNetV2 at width 1 (Sandler et al. 2018, table 2), with a linear layer for 46 classes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

CLASSES = 46
# Expansion, channels, repeats, stride of the first.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def unit(given: int, made: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution, normalisation, ReLU6."""
    conv = nn.Conv2d(given, made, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(made), nn.ReLU6()]


class Inverted(nn.Module):
    """Expand, depthwise, project without activation; with the input added where the shape stays."""

    def __init__(self, given: int, made: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = given * expansion
        layers = unit(given, wide, 1) if expansion != 1 else []
        layers += unit(wide, wide, 3, stride, groups=wide)
        self.layers = nn.Sequential(*layers, nn.Conv2d(wide, made, 1, bias=False), nn.BatchNorm2d(made))
        self.skip = stride == 1 and given == made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return x + y if self.skip else y


def network() -> nn.Module:
    """Untrained; float32 [n, 3, 96, 96] in, logits [n, 46] out."""
    layers = unit(3, 32, 3, 2)
    given = 32
    for expansion, made, repeats, stride in STAGES:
        for index in range(repeats):
            layers.append(Inverted(given, made, stride if index == 0 else 1, expansion))
            given = made
    layers += unit(given, 1280, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, CLASSES))


def module() -> nn.Module:
    """The trained network in evaluation mode; its weights lie beside this file."""
    net = network()
    net.load_state_dict(load_file(Path(__file__).with_name("weights.safetensors")))
    return net.eval()
