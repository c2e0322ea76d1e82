"""ResNet-18 (He et al. 2016) at a quarter of its width, 16 to 128 channels, on pictures that it halves first."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

CLASSES = 46
WIDTHS = (16, 32, 64, 128)


class Basic(nn.Module):
    """Two 3x3 convolutions beside the input, or beside its 1x1 projection where the shape changes."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, made, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(made)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(made, made, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(made)
        nn.init.zeros_(self.bn2.weight)  # starts as the identity: learns sooner (Goyal et al. 2017)
        self.relu2 = nn.ReLU()
        same = stride == 1 and given == made
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))  # type: ignore[no-any-return]


def network() -> nn.Module:
    """Untrained; float32 [n, 3, 96, 96] in, logits [n, 46] out."""
    given = WIDTHS[0]
    layers: list[nn.Module] = [nn.AvgPool2d(2), nn.Conv2d(3, given, 3, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(given), nn.ReLU()]
    for made in WIDTHS:
        layers += [Basic(given, made, 1 if made == given else 2), Basic(made, made, 1)]
        given = made
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, CLASSES))


def module() -> nn.Module:
    """The trained network in evaluation mode; its weights lie beside this file."""
    net = network()
    net.load_state_dict(load_file(Path(__file__).with_name("weights.safetensors")))
    return net.eval()
