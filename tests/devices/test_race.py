"""What a measurement on a device is given and told: its time limit, and the mode that the device was in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from edgekit.backends import Artifact, openvino
from edgekit.devices.race import Device
from edgekit.types import Precision
from tests.quantized import case, host


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder: Path = tmp_path_factory.mktemp("artifact")
    openvino.convert(case("conv_net").write({}), folder, Precision.FP32)
    return openvino.artifact(folder, Precision.FP32)


class Told:
    """A device that remembers its jobs with their limits, and whose clock runs ``slower`` than this machine's."""

    def __init__(self, slower: float) -> None:
        self.jobs: list[tuple[str, float]] = []
        self.slower = slower
        self.here = host()

    def run(self, job: dict[str, Any], limit_s: float) -> dict[str, Any]:
        self.jobs.append((job["action"], limit_s))
        document = self.here.run_job(job, 300.0)
        for row in document.get("results", ()):
            if "first_ms" in row:
                row["first_ms"] *= self.slower
        return document

    @property
    def device(self) -> Device:
        return Device(openvino, self.run, 1)


def test_a_race_is_let_as_long_as_its_inferences_take(artifact: Artifact) -> None:
    quick, slow = Told(1.0), Told(1e6)
    for told in (quick, slow):
        device = told.device
        device.race({"a": artifact, "b": artifact}, 0.2)
        device.profile({"a": artifact}, 0.05, compiles=1)
        assert [action for action, _ in told.jobs] == ["race", "race", "profile"], "it looks once before the first"
    (_, first), (_, race), (_, profile) = quick.jobs
    assert race < 300
    assert profile < 180
    assert first > 600, "nothing is known of the model yet"
    slowed = [limit for _, limit in slow.jobs[1:]]
    assert slowed[0] > 2 * 40 * 10
    assert slowed[1] > 12 * 10


def test_what_was_measured_in_another_power_mode_is_of_another_device() -> None:
    told = Told(1.0)
    facts = told.here.run_job({"action": "probe"}, 120.0)

    def probe(mode: str | None) -> dict[str, Any]:
        device = Device(openvino, lambda _job, _limit: facts | {"device": facts["device"] | {"power_mode": mode}}, 1)
        return asdict(device.probe()[0])

    assert probe("nvpmodel 0") != probe("nvpmodel 2")
    assert probe(None)["power_mode"] == ""
