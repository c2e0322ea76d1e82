"""The published latencies and the devices and networks that they are of: what the shipped profiles are fitted on."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgekit.catalog import device_profiles, read_toml, structure
from edgekit.cost.fit import Cell, Row
from edgekit.cost.profile import units
from edgekit.cost.work import Work, features
from edgekit.entries import DeviceProfile
from edgekit.types import Precision

HERE = Path(__file__).resolve().parent

# Networks of one design, by the beginning of their name: a fit that saw one of a family knows the others.
_FAMILIES = {
    "mobilenet-v1": ("mobilenet-v1", "mobilenet_yolo", "mobilenet_ssd"),
    "mobilenet-v2": ("mobilenet-v2", "mobilenet_v2", "mobilenetv2", "mnasnet", "proxylessnasnet"),
    "resnet": ("resnet",),
    "vgg": ("vgg",),
    "squeezenet": ("squeezenet",),
    "yolo-fastest": ("yolo-fastest", "fastestdet"),
    "yolov3": ("yolov3",),
    "yolo": ("yolo",),
    "shufflenet": ("shufflenet",),
    "regnet": ("regnet",),
    "inception": ("inception", "googlenet"),
    "efficientvit": ("efficientvit",),
    "efficientnet": ("efficientnet",),
    "mobilenet-v1 ": ("mobilenet",),
}


@dataclass(frozen=True)
class Published:
    """One row of `latencies.csv`, ready to fit; ``source`` is where it was published."""

    runtime: str
    row: Row
    kinds: frozenset[str]
    macs: float
    elements: float
    model: str
    shape: str
    source: str


def family_of(model: str) -> str:
    """The family of a network by its name in `latencies.csv`; a network without relatives is its own."""
    name = model.split("/")[-1].lower()
    for family, beginnings in _FAMILIES.items():
        if name.startswith(beginnings):
            return family.strip()
    return name


@cache
def tables() -> dict[tuple[str, str], tuple[Work, ...]]:
    """The kernels of every measured network by (model, input shape)."""
    found: dict[tuple[str, str], list[Work]] = defaultdict(list)
    with (HERE / "layers.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            sizes = (int(line[key]) for key in ("macs", "input_elements", "weight_elements", "output_elements"))
            found[line["model"], line["shape"]] += [Work("", line["kind"], *sizes)] * int(line["count"])
    return {key: tuple(work) for key, work in found.items()}


@cache
def devices() -> dict[str, DeviceProfile]:
    """Shipped profiles, and the facts of devices that were measured but are no target."""
    own = {
        path.stem: structure({"name": path.stem, **read_toml(path)}, DeviceProfile, str(path))
        for path in sorted((HERE / "devices").glob("*.toml"))
    }
    return {**device_profiles(), **own}


@cache
def published() -> tuple[Published, ...]:
    """All rows."""
    with (HERE / "latencies.csv").open(newline="") as file:
        return tuple(_published(line) for line in csv.DictReader(file))


def _published(line: dict[str, str]) -> Published:
    profile = devices()[line["device"]]
    part = profile.part(line["processor"])
    assert part is not None, line["device"]
    cell = Cell(profile.name, part.architecture, part.kind, Precision(line["precision"]), int(line["threads"]))
    work = tables()[line["model"], line["shape"]]
    total = features(work, units(profile, part, cell.precision, cell.threads)).sum(axis=0)
    total[0] = 1.0
    kinds = frozenset(one.kind for one in work if one.macs)
    return Published(
        line["runtime"],
        Row(cell, family_of(line["model"]), total, float(line["latency_ms"])),
        kinds,
        float(sum(one.macs for one in work)),
        float(sum(one.input_elements + one.output_elements for one in work)),
        line["model"],
        line["shape"],
        line["source"],
    )
