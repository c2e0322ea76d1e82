"""The data that the shipped profiles are fitted on, and the way from there to the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.profiles.cross_validate import HELD, roofline_errors, roofline_ms, scores_by
from benchmarks.profiles.ncnn_graphs import read_param
from benchmarks.profiles.published import devices, family_of, published, tables
from edgekit.catalog import device_profiles
from edgekit.cost.fit import fit
from edgekit.cost.interval import Held, coverage
from edgekit.cost.work import Work, macs_by_kind

PARAM = """7767517
5 6
Input data 0 1 data -23330=4,3,8,8,3 0=8 1=8 2=3
Convolution conv1 1 1 data a -23330=4,3,4,4,16 0=16 1=3 3=2 4=1 5=1 6=432 9=1
Split split 1 2 a a0 a1
ConvolutionDepthWise dw 1 1 a0 b 0=16 1=3 4=1 5=1 6=144 7=16
ReLU relu 1 1 b c
BinaryOp add 2 1 c a1 d
Pooling pool 1 1 d e 0=1 4=1
InnerProduct fc 1 1 e f 0=10 1=1 2=160
"""


def test_a_graph_of_ncnn(tmp_path: Path) -> None:
    """Shapes that the file states and shapes that follow; activations behind a convolution cost nothing."""
    (tmp_path / "net.param").write_text(PARAM)
    work, size = read_param(tmp_path / "net.param")
    assert size == "1x3x8x8"
    assert work == [
        Work("conv1", "conv", 432 * 16, 3 * 64, 432 + 16, 16 * 16),
        Work("dw", "depthwise", 144 * 16, 256, 144 + 16, 256),
        Work("add", "elementwise", 0, 512, 0, 256),
        Work("pool", "pool", 0, 256, 0, 16),
        Work("fc", "matmul", 160, 16, 170, 10),
    ]


@pytest.mark.parametrize(
    ("ncnn", "exported", "shape"),
    [
        ("ncnn/vgg16", "vgg16", "1x3x224x224"),
        ("ncnn/resnet18", "resnet18", "1x3x224x224"),
        ("ncnn/mobilenet", "MobileNet-v1 1.0", "1x3x224x224"),
        ("ncnn/shufflenet_v2", "shufflenet_v2", "1x3x224x224"),
        ("ncnn/regnety_400m", "regnety_004", "1x3x224x224"),
    ],
)
def test_two_ways_to_the_same_network_agree(ncnn: str, exported: str, shape: str) -> None:
    one, other = tables()[ncnn, shape], tables()[exported, shape]
    assert sum(macs_by_kind(one).values()) == pytest.approx(sum(macs_by_kind(other).values()), rel=0.02)
    assert sum(w.weight_elements for w in one) == pytest.approx(sum(w.weight_elements for w in other), rel=0.02)


@pytest.mark.parametrize(
    ("model", "shape", "gmacs"),
    [  # as their papers state
        ("MobileNet-v1 1.0", "1x3x224x224", 0.569),
        ("MobileNet-v1 0.25", "1x3x224x224", 0.041),
        ("MobileNet-v2 1.0", "1x3x224x224", 0.300),
        ("MobileNet-v2 1.4", "1x3x224x224", 0.585),
        ("resnet50", "1x3x224x224", 4.09),
        ("vgg16", "1x3x224x224", 15.5),
    ],
)
def test_tables_have_the_macs_that_the_papers_state(model: str, shape: str, gmacs: float) -> None:
    assert sum(macs_by_kind(tables()[model, shape]).values()) / 1e9 == pytest.approx(gmacs, rel=0.02)


def test_every_row_has_a_device_a_network_and_a_source() -> None:
    rows = published()
    assert len(rows) == 1288
    assert all(one.source and one.row.latency_ms > 0 for one in rows)
    assert {one.row.cell.device for one in rows} <= set(devices())
    assert not set(device_profiles()) - set(devices())


def test_relatives_are_held_out_together() -> None:
    assert family_of("ncnn/mobilenet") == family_of("MobileNet-v1 0.25") == family_of("ncnn/mobilenet_yolo")
    assert family_of("ncnn/mnasnet") == family_of("MobileNet-v2 1.0") == family_of("ncnn/mobilenetv2_yolov3")
    assert family_of("ncnn/yolo-fastest-1.1") != family_of("yolo11n")
    assert family_of("ncnn/alexnet") == "alexnet"


@pytest.mark.parametrize("runtime", ["tensorrt", "xnnpack"])
def test_the_shipped_costs_are_those_of_this_fit(runtime: str) -> None:
    rows = [one.row for one in published() if one.runtime == runtime]
    fitted = fit(rows, [row.cell for row in rows])
    checked = 0
    for name, profile in device_profiles().items():
        for cost in profile.costs:
            cells = [cell for cell in fitted.cells if (cell.device, cell.processor) == (name, cost.processor)]
            for cell in cells:
                if (cost.runtime, cost.precision, cost.threads) == (runtime, cell.precision, cell.threads):
                    np.testing.assert_allclose(list(cost.factors.values()), np.exp(fitted[cell].log_mean), rtol=0.02)
                    checked += 1
    assert checked >= 4


def test_tensorrt_on_families_and_devices_that_the_fit_did_not_see() -> None:
    """The figures of the README, with some room; the roofline alone is far worse."""
    mine = [one for one in published() if one.runtime == "tensorrt"]
    most: dict[Held, float] = {"family": 0.35, "device": 0.25}
    for held, group_of in HELD.items():
        scores = scores_by(held, [one.row for one in mine])
        median = float(np.median([score.relative_error for score in scores]))
        assert median < most[held]
        assert 0.85 <= coverage(scores, held=held) <= 0.95
        assert median < 0.7 * float(np.median(roofline_errors(mine, group_of, scores)))


def test_a_device_is_judged_by_families_that_others_were_measured_with() -> None:
    """The boards of the Edge TPU: two have YOLO alone, the third everything else."""
    mine = [one.row for one in published() if one.runtime == "edgetpu"]
    assert {score.group for score in scores_by("device", mine)} == {
        "coral-usb-raspberry-pi-4",
        "coral-usb-raspberry-pi-5",
    }
    assert len(scores_by("family", mine)) == len(mine)


def test_the_roofline_is_never_above_what_was_measured_by_much() -> None:
    """A theoretical best that is beaten is no theoretical best: Winograd may beat it by up to 2.25 where 3x3 rule."""
    beaten = [roofline_ms(one) / one.row.latency_ms for one in published() if one.runtime != "edgetpu"]
    assert np.quantile(beaten, 0.99) < 2.25
