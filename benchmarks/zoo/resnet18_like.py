"""ResNet-18, trained from scratch on printed characters on photographs; metric: top-1."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.zoo import ZooEntry, characters
from benchmarks.zoo.training import Schedule, trained_entry
from examples.ocr import lines

if TYPE_CHECKING:
    import torch

SCHEDULE = Schedule(batch=64, phases=((230, 3), (90, 2), (40, 1)), peak_rate=1.5e-3)


def prepare(out: Path) -> ZooEntry:
    """128 pictures to calibrate, 1,000 to score, labelled (needs torch; trains for some minutes)."""
    files = (__file__, characters.__file__, lines.__file__)
    return trained_entry("resnet18-like", out, SCHEDULE, characters.make, *files, start=initialise)


def initialise(net: torch.nn.Module) -> None:
    """Convolutions as He et al. 2015 begin (fan-out, normal), the last layer near zero; from the schedule's seed."""
    import torch

    torch.manual_seed(SCHEDULE.seed)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=0.01)
            torch.nn.init.zeros_(layer.bias)
