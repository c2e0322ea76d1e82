"""Release facts, and the targets that name them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekit import catalog, releases
from edgekit.errors import InputError
from edgekit.job import open_device
from edgekit.types import Precision

JETSONS = {name: one for name, one in catalog.targets().items() if one.backend == "tensorrt" and not one.accelerator}
PROMISED = {f"jetson-{name}" for name in ("nano", "tx2", "xavier-nx", "agx-xavier", "orin-nano", "orin-nx", "thor")}


def test_every_jetson_is_there() -> None:
    assert set(JETSONS) == PROMISED | {"jetson-agx-orin"}


@pytest.mark.parametrize("name", sorted(JETSONS))
def test_a_target_offers_what_its_gpu_has(name: str) -> None:
    target = JETSONS[name]
    profile = catalog.device_profile(target.device_profile)
    part = profile.part("gpu")
    assert part is not None
    gpu = releases.gpu(part.architecture)
    assert gpu is not None
    assert set(target.precisions) == set(gpu.precisions)
    assert set(target.sparsity) <= set(gpu.sparsity)
    assert set(gpu.precisions) - {Precision.W4} == set(part.peak_gmacs), "4-bit weights compute in float"
    named = releases.releases_of(target)
    assert {one.name for one in named} == set(target.releases)
    assert all(gpu.compute in one.compute for one in named)
    assert f"sm_{gpu.compute.replace('.', '')}" in part.name
    assert target.transport == "ssh"


def test_facts_are_whole() -> None:
    known = releases.releases()
    prefixes = [prefix for one in known.values() for prefix in one.l4t]
    assert len(prefixes) == len(set(prefixes))
    assert [one.version for one in known.values()] == sorted(one.version for one in known.values())
    profiles = set(catalog.device_profiles())
    for one in known.values():
        assert one.sources
        assert (one.typing == "strong") == (one.version >= (10,))
        assert set(one.dla) <= profiles
        assert one.opset >= (13 if one.version < (8, 5) else 17)
    assert [one.name for one in known.values() if one.names_layers] == ["jetpack-5.0.2", "jetpack-5.1"]


def test_why_something_is_not_offered() -> None:
    nano = JETSONS["jetson-nano"]
    why = releases.lacking(nano, catalog.device_profile("jetson-nano"))
    assert why == {"int8": "TensorRT has no int8 for compute capability 5.3 (its support matrix)"}
    orin = releases.lacking(JETSONS["jetson-agx-orin"], catalog.device_profile("jetson-agx-orin"))
    assert set(orin) == {"2:4", "fp8", "dla"}
    assert orin["dla"] == (
        "this target runs on the GPU; jetson-agx-orin-dla puts the network on the deep learning accelerator"
    )
    assert orin["fp8"] == "fp8 needs compute capability 8.9 (TensorRT support matrix)"
    assert releases.lacks_of("8.7")["fp8"] == orin["fp8"]
    assert releases.lacks_of("no such") == {}
    assert set(releases.lacking(JETSONS["jetson-thor"], catalog.device_profile("jetson-agx-thor"))) == {"2:4"}
    assert releases.lacking(catalog.target("host"), catalog.device_profile("host")) == {}


def test_older_releases_have_no_four_bits() -> None:
    orin = JETSONS["jetson-orin-nano"]
    assert releases.offered(orin) == orin
    older = releases.offered(replace(orin, releases=("jetpack-5.1",)))
    assert Precision.W4 not in older.precisions
    why = releases.lacking(older, catalog.device_profile("jetson-orin-nano"))
    assert why["w4"] == "TensorRT 8.5.2 has no 4-bit weights"
    assert releases.offered(catalog.target("host")) == catalog.target("host")
    volta = releases.lacking(JETSONS["jetson-xavier-nx"], catalog.device_profile("jetson-xavier-nx"))
    assert "w4" not in volta


def test_what_each_release_has_not() -> None:
    lacks = {name: set(one.lacks) for name, one in releases.releases().items()}
    assert lacks["jetpack-4.6"] == lacks["jetpack-5.1"] == {"fp8", "w4"}
    assert lacks["jetpack-6.1"] == lacks["jetpack-7.0"] == lacks["jetpack-7.2.2"] == set()


def test_operators_by_release() -> None:
    known = releases.operators()
    assert known["Conv"] == (8, 0)
    assert known["HardSwish"] == (8, 4)
    assert known["LayerNormalization"] == (8, 6)
    assert "Unique" not in known


def test_releases_that_do_not_go_together() -> None:
    target = replace(JETSONS["jetson-orin-nano"], releases=("jetpack-5.1", "jetpack-6.1"))
    with pytest.raises(InputError, match="networks of different form"):
        releases.releases_of(target)
    with pytest.raises(InputError, match=r"no release 'jetpack-6\.2'") as caught:
        releases.releases_of(replace(target, releases=("jetpack-6.2",)))
    assert "jetpack-6.1" in caught.value.hint


def test_a_release_that_the_board_cannot_run() -> None:
    target = replace(JETSONS["jetson-nano"], releases=("jetpack-6.1",))
    with pytest.raises(InputError, match="does not run on jetson-nano") as caught:
        open_device(target, None, profile=catalog.device_profile("jetson-nano"))
    assert "8.7" in caught.value.hint


@pytest.mark.parametrize("text", ['backend = "openvino"\nreleases = ["jetpack-4.6"]', 'backend = "tensorrt"'])
def test_releases_belong_to_tensorrt(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "targets" / "mine"
    folder.mkdir(parents=True)
    lines = f'description = ""\ndevice_profile = "jetson-nano"\nprecisions = ["fp32"]\n{text}\n'
    (folder / "target.toml").write_text(lines)
    with pytest.raises(InputError, match="releases: "):
        catalog.target("mine", [tmp_path])


def test_a_board_that_still_runs_an_older_release(tmp_path: Path) -> None:
    folder = tmp_path / "targets" / "old-orin"
    folder.mkdir(parents=True)
    (folder / "target.toml").write_text('extends = "jetson-orin-nano"\nreleases = ["jetpack-5.1"]\n')
    target = catalog.target("old-orin", [tmp_path])
    assert [one.typing for one in releases.releases_of(target)] == ["flags"]
    assert Precision.INT8 in target.precisions
