"""The user's own device profiles: written whole, read by the catalog in place of the shipped ones."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import catalog
from edgekit.cost.anchoring import re_anchor
from edgekit.entries import Anchor, DeviceProfile, Memory, Processor
from edgekit.errors import InputError
from edgekit.profiles import own as own_profile
from edgekit.types import Precision
from tests.command import Desk


def test_every_shipped_profile_survives_being_written() -> None:
    for name, shipped in catalog.device_profiles().items():
        path = own_profile.save(shipped)
        assert path == catalog.own_profiles() / f"{name}.toml"
        assert catalog.profile_file(name) == path
        assert catalog.device_profile(name) == shipped
    assert [path.name for path in catalog.own_profiles().iterdir() if path.name.startswith(".")] == []


texts = st.text(st.characters(codec="utf-8"), max_size=30)
numbers = st.floats(1e-3, 1e6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(texts, texts, st.lists(texts, max_size=3), st.integers(1, 64), numbers, numbers, st.booleans())
def test_any_text_and_number_survives(
    description: str, evidence: str, sources: list[str], step: int, gbs: float, gmacs: float, more: bool
) -> None:
    part = Processor(description, "cpu", evidence, {Precision.FP32: gmacs, Precision.INT8: gbs}, 3)
    profile = DeviceProfile("mine", description, evidence, tuple(sources), step, memory=Memory(gbs, (1, 2)))
    profile = replace(profile, processors=(part,) if more else ())
    own_profile.save(profile)
    assert catalog.device_profile("mine") == profile


def test_an_own_profile_stands_in_place_of_the_shipped_one() -> None:
    shipped = catalog.device_profile("host")
    own_profile.save(replace(shipped, channel_step=32))
    assert catalog.device_profile("host").channel_step == 32
    assert catalog.device_profiles()["host"].channel_step == 32
    assert catalog.device_profile("host", own=False) == shipped
    assert catalog.target("host").device_profile == "host"


def test_other_entries_of_the_users_folder_do_not_count() -> None:
    folder = catalog.own_profiles().parent / "targets" / "host"
    folder.mkdir(parents=True)
    (folder / "target.toml").write_text("nonsense", encoding="utf-8")
    assert catalog.target("host").backend == "openvino"


def test_a_broken_one_is_named() -> None:
    path = own_profile.save(catalog.device_profile("host"))
    path.write_text("channel_step = 0\n" + path.read_text(encoding="utf-8").replace("channel_step = 16", ""))
    with pytest.raises(InputError, match=f"{path}: channel_step"):
        catalog.device_profile("host")


def test_what_cannot_be_written_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = catalog.device_profile("host")
    path = own_profile.save(profile)
    before = path.read_bytes()

    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "read_profile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own_profile.save(replace(profile, channel_step=2))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(InputError, match="cannot write"):
        own_profile.place_for("host", tmp_path / "no" / "such" / "folder.toml")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEKIT_DATA", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot write") as caught:
        own_profile.place_for("host")
    assert "EDGEKIT_DATA" in caught.value.hint


_ANCHOR = """
import sys
from edgekit.profiles import own as own_profile
from edgekit.cost.anchoring import re_anchor
from edgekit.entries import Anchor
from edgekit.types import Precision
for i in range(5):
    row = Anchor("tflite", "cpu", Precision.FP32, f"{sys.argv[1]}-{i}", 10.0, 11.0, "2026-01-01", 4)
    own_profile.change("raspberry-pi-4", lambda profile: re_anchor(profile, [row]))
"""


def test_two_at_once_lose_nothing() -> None:
    runs = [subprocess.Popen([sys.executable, "-c", _ANCHOR, name], env=os.environ.copy()) for name in "ab"]
    assert [run.wait() for run in runs] == [0, 0]
    kept = {row.model for row in catalog.device_profile("raspberry-pi-4").anchors}
    assert kept == {f"{name}-{i}" for name in "ab" for i in range(5)}


def test_what_changes_nothing_writes_nothing() -> None:
    own_profile.change("raspberry-pi-4", lambda profile: re_anchor(profile, []))
    assert not (catalog.own_profiles() / "raspberry-pi-4.toml").exists()


def test_targets_tells_whose_profile_it_is(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_DATA", str(desk.folder / "data"))
    assert "your own" not in desk.succeed("targets", "host").out
    path = own_profile.save(catalog.device_profile("host"))
    assert f"the device profile is your own: {path}" in desk.succeed("targets", "host").out


def test_anchors_are_checked() -> None:
    with pytest.raises(ValueError, match="measured_ms"):
        Anchor("tflite", "cpu", Precision.FP32, "m", 1.0, 0.0, "2026-01-01")
