"""Measurements on a device through its runner: what it is, how long whole models take, what their nodes take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.results import DeviceInfo
from edgekit.types import Latency

if TYPE_CHECKING:
    from edgekit.backends import Artifact, Backend

# A job is: (JSON job, time limit in seconds) -> JSON document.
RunJob = Callable[[dict[str, Any], float], dict[str, Any]]

_START_UP_S = 120.0  # generous: a loaded board imports the runtime and compiles the models within it


@dataclass(frozen=True)
class Raced:
    """One contestant's latency, and its ratio to the first contestant's: the median over the interleaved rounds, with
    the 10th and 90th percentile of the rounds.
    """

    latency_ms: Latency
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class Device:
    """A machine that runs jobs of one backend."""

    backend: Backend
    run_job: RunJob
    threads: int

    def probe(self) -> tuple[DeviceInfo, tuple[str, ...]]:
        """What the device is, and the precisions that its runtime claims (a claim, not a promise of speed)."""
        document = self.run_job({"action": "probe"}, _START_UP_S)
        return _device_info(document["device"], self.threads), tuple(document["capabilities"])

    def race(self, contestants: Mapping[str, Artifact], seconds: float, inputs: Path | None = None) -> dict[str, Raced]:
        """Interleaved latencies of the contestants, ``seconds`` in all after warm-up."""
        job = {
            "action": "race",
            "models": self._models(contestants),
            "threads": self.threads,
            "seconds": seconds,
            "inputs": None if inputs is None else str(inputs),
        }
        document = self.run_job(job, _START_UP_S * len(contestants) + 10 * seconds)
        return {
            row["name"]: Raced(Latency(**row["latency_ms"]), row["ratio"], row["ratio_low"], row["ratio_high"])
            for row in document["results"]
        }

    def profile(
        self, models: Mapping[str, Artifact], seconds: float, compiles: int = 5
    ) -> dict[str, Sequence[Mapping[str, Any]]]:
        """Executed nodes of each model with their time; at most ``seconds`` for each model and compilation."""
        job = {
            "action": "profile",
            "models": self._models(models),
            "threads": self.threads,
            "seconds": seconds,
            "compiles": compiles,
        }
        document = self.run_job(job, len(models) * compiles * (_START_UP_S + 10 * seconds))
        return {row["name"]: row["nodes"] for row in document["results"]}

    def _models(self, artifacts: Mapping[str, Artifact]) -> list[dict[str, str]]:
        return [
            {"name": name, "path": str(artifact.path), "hint": self.backend.hint(artifact.base)}
            for name, artifact in artifacts.items()
        ]


def _device_info(facts: Mapping[str, Any], threads: int) -> DeviceInfo:
    return DeviceInfo(
        cpu=facts["cpu"],
        threads=threads,
        runtime=facts["runtime"],
        governor=facts["governor"] or "",
        machine=facts["machine"],
    )
