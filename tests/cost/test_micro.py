"""The small networks are what their names say, and are counted to the last multiplication."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgekit.cost import micro
from edgekit.cost.work import MAC_KINDS, Work, macs_by_kind, work_of
from edgekit.graph import load


def work(name: str, folder: Path) -> tuple[Work, ...]:
    onnx.save(micro.build(name), folder / "network.onnx")
    return work_of(load(folder / "network.onnx"))


@pytest.mark.parametrize("name", micro.NETWORKS)
def test_every_network_is_valid_and_small(name: str) -> None:
    model = micro.build(name)
    onnx.checker.check_model(model, full_check=True)
    assert model.ByteSize() < 40e6, "it travels to boards"
    assert model.SerializeToString(deterministic=True) == micro.build(name).SerializeToString(deterministic=True)


def test_every_kind_that_multiplies_has_networks() -> None:
    assert {name.split("/")[0] for name in micro.NETWORKS} >= {*MAC_KINDS, "call", "elementwise"}


@pytest.mark.parametrize(
    ("name", "kind", "macs"),
    [
        ("call/empty", "pointwise", 4 * 4),
        ("conv3x3/64x40", "conv3x3", 3 * 64 * 64 * 9 * 40 * 40),
        ("conv/halving", "conv", 9 * (32 * 64 * 28**2 + 64 * 128 * 14**2 + 128 * 256 * 7**2)),
        ("conv/stem", "conv", 3 * 32 * 9 * 112**2),
        ("conv/transposed", "conv", 64 * 32 * 2 * 2 * 28**2),
        ("depthwise/192x28", "depthwise", 3 * 192 * 9 * 28**2),
        ("grouped/8x128", "grouped", 3 * 128 * 16 * 9 * 28**2),
        ("pointwise/48-192x28", "pointwise", (3 * 48 + 3 * 48 * 192) * 28**2),  # and the three colours before it
        ("matmul/16x768", "matmul", 2 * 16 * 768 * 768),
        ("attention/4x40x32", "attention", 2 * 2 * 4 * 40 * 40 * 32),
        ("recurrent/lstm64", "recurrent", 32 * 4 * 64 * (64 + 64)),
        ("recurrent/gru96", "recurrent", 32 * 3 * 96 * (96 + 96)),
        ("block/encoder64x128", "matmul", 64 * 128 * 128 * (4 + 4 + 4)),
    ],
)
def test_its_work_is_counted_exactly(name: str, kind: str, macs: int, tmp_path: Path) -> None:
    found = macs_by_kind(work(name, tmp_path))
    assert found[kind] == macs
    assert set(found) <= {kind, "pointwise", "attention"}


def test_elements_and_weights_of_a_chain(tmp_path: Path) -> None:
    _, first, *_ = work("depthwise/192x28", tmp_path)
    assert (first.input_elements, first.output_elements) == (192 * 28 * 28,) * 2
    assert first.weight_elements == 192 * 9 + 192


def test_step_networks_differ_in_their_channels_alone(tmp_path: Path) -> None:
    for count in (48, 49):
        model = micro.step_network(count)
        shapes = [list(w.dims) for w in model.graph.initializer if len(w.dims) == 4]
        assert shapes == [[count, 3, 1, 1], *[[count, count, 3, 3]] * 3]
