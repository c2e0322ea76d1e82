"""Measurements on a device through its runner: what it is, how long whole models take, what their nodes take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.conditions import Conditions, read_conditions
from edgekit.errors import GuardError, InputError
from edgekit.results import DeviceInfo, VectorsCheck
from edgekit.types import Figure, Kind, Latency

if TYPE_CHECKING:
    from edgekit.backends import Artifact, Backend

# A job is: (JSON job, time limit in seconds) -> JSON document.
RunJob = Callable[[dict[str, Any], float], dict[str, Any]]

_START_UP_S = 120.0  # generous: a loaded board imports the runtime and compiles the models within it
_VECTORS_S = 600.0
_FIRST_S = 600.0  # for one inference of a model of which nothing is known
# Inferences that each contestant is let have, at the time of the slowest one seen so far: a race takes some 40 of a
# slow model, profiling 12; another precision may be four times slower.
_RACE_RUNS = 160
_PROFILE_RUNS = 48


@dataclass(frozen=True)
class Raced:
    """One contestant's latency, and its ratio to the first contestant's: the median over the interleaved rounds, with
    the 10th and 90th percentile of the rounds and the 95 % confidence interval of that median. ``conditions`` are the
    race's. ``energy_mj`` and ``peak_memory_bytes`` are None unless the race was asked for them. A board that is not at
    hand, or is emulated, held no race: then ``kind`` says "predicted" (``source`` by what), or "none" and why.
    """

    latency_ms: Latency
    ratio: float
    ratio_low: float
    ratio_high: float
    ratio_ci_low: float | None = None
    ratio_ci_high: float | None = None
    conditions: Conditions | None = None
    energy_mj: Figure | None = None
    peak_memory_bytes: Figure | None = None
    kind: Kind = Kind.MEASURED
    source: str = ""


@dataclass(frozen=True)
class Device:
    """A machine that runs jobs of one backend; without a ``job_runner``, one that nobody has at hand. ``place`` is the
    board's address, '' for this machine: boards of one kind are two devices all the same.
    """

    backend: Backend
    job_runner: RunJob | None
    threads: int
    place: str = ""
    _seen_s: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def at_hand(self) -> bool:
        """Whether it can be raced on: a board that nobody named is only known by its profile, as is an emulated one,
        whose times mean nothing, and one whose shell program builds and measures whole bundles alone.
        """
        return self.job_runner is not None and self.backend.RUNNER.endswith(".py") and not self.emulated

    @property
    def emulated(self) -> bool:
        """Whether an emulator computes for it. Its results are a board's, its times are not."""
        return self.job_runner is not None and bool(self._probed["device"]["emulated"])

    @cached_property
    def _probed(self) -> dict[str, Any]:
        return self.run_job({"action": "probe"}, _START_UP_S)

    def run_job(self, job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Run a job there. Raises `InputError` where no board was named."""
        if self.job_runner is None:
            raise InputError(
                "this needs the board, and no --host says where it is",
                "pass --host user@address, or --host local where this machine is the board",
            )
        return self.job_runner(job, timeout_s)

    def probe(self) -> tuple[DeviceInfo, tuple[str, ...]]:
        """What the device is, and the precisions that its runtime claims (a claim, not a promise of speed)."""
        document = self._probed
        return _device_info(document["device"], self.threads), tuple(document["capabilities"])

    def check_bundle(self, folder: Path) -> VectorsCheck:
        """Run the test vectors of a bundle there. Raises `GuardError` where they do not come out as expected."""
        document = self.run_job({"action": "bundle", "folder": str(folder), "seconds": 0.0}, _START_UP_S + _VECTORS_S)
        found = document.get("vectors", {})
        if not document["ok"]:
            share = found.get("worst_error_share", 0.0)
            differ = f"its outputs differ from those here by {share:.3g} times the tolerance"
            raise GuardError(
                f"the model does not compute the same there: {document.get('error', differ)}",
                "compare the runtime's versions here and there, or keep more layers in float: --max-drop",
            )
        facts = document["device"]
        return VectorsCheck(
            count=found["count"],
            worst_error_share=found["worst_error_share"],
            outputs_sha256=found.get("outputs_sha256", ""),
            runtime=facts["runtime"],
            emulated=facts["emulated"],
        )

    def race(
        self,
        contestants: Mapping[str, Artifact],
        seconds: float,
        inputs: Path | None = None,
        footprint: bool = False,
    ) -> dict[str, Raced]:
        """Interleaved latencies of the contestants, ``seconds`` in all after warm-up, up to twice as long where other
        programs disturb it. With ``footprint``, energy and peak memory too: a few seconds more for each.
        """
        job = {
            "action": "race",
            "models": self._models(contestants),
            "threads": self.threads,
            "seconds": seconds,
            "inputs": None if inputs is None else str(inputs),
            "footprint": footprint,
        }
        start_up_s = _START_UP_S * len(contestants) * (1 + footprint)
        runs_s = _RACE_RUNS * len(contestants) * self._slowest_s(contestants)
        document = self.run_job(job, start_up_s + 10 * seconds + runs_s)
        self._seen_s.extend(row["latency_ms"]["p50"] / 1e3 for row in document["results"])
        conditions = read_conditions(document["conditions"])
        return {row["name"]: _raced(row, conditions, footprint) for row in document["results"]}

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
        each_s = _START_UP_S + 10 * seconds + _PROFILE_RUNS * self._slowest_s(models)
        document = self.run_job(job, len(models) * compiles * each_s)
        return {row["name"]: row["nodes"] for row in document["results"]}

    def _slowest_s(self, models: Mapping[str, Artifact]) -> float:
        """Seconds of the slowest inference seen there; before any, of the first model's: time limits grow with it."""
        if not self._seen_s:
            name, artifact = next(iter(models.items()))
            job = {
                "action": "race",
                "models": self._models({name: artifact}),
                "threads": self.threads,
                "seconds": 0.0,
                "min_rounds": 0,
            }
            document = self.run_job(job, _START_UP_S + _FIRST_S)
            self._seen_s.append(document["results"][0]["first_ms"] / 1e3)
        return max(self._seen_s)

    def _models(self, artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "path": str(artifact.path),
                "files": [str(file) for file in artifact.files],  # what travels to a board
                "hint": self.backend.hint(artifact.base),
            }
            for name, artifact in artifacts.items()
        ]


def _raced(row: Mapping[str, Any], conditions: Conditions, footprint: bool) -> Raced:
    return Raced(
        latency_ms=Latency(**row["latency_ms"]),
        ratio=row["ratio"],
        ratio_low=row["ratio_low"],
        ratio_high=row["ratio_high"],
        ratio_ci_low=row["ratio_ci_low"],
        ratio_ci_high=row["ratio_ci_high"],
        conditions=conditions,
        energy_mj=_energy(row["energy_mj"], conditions) if footprint else None,
        peak_memory_bytes=_memory(row["memory"], conditions) if footprint else None,
    )


def _energy(found: Mapping[str, float] | None, conditions: Conditions) -> Figure:
    if found is None:
        return Figure(Kind.NONE, source=conditions.missing["energy_mj"])
    source = f"{conditions.energy_source}, the idle board's {conditions.idle_w:.3g} W subtracted"
    return Figure(Kind.MEASURED, found["value"], found["low"], found["high"], source)


def _memory(found: Mapping[str, int] | None, conditions: Conditions) -> Figure:
    if found is None:
        return Figure(Kind.NONE, source=conditions.missing["memory"])
    runtime = f"{found['before_bytes'] / 1e6:.0f} MB of it the runtime before the model was loaded"
    return Figure(Kind.MEASURED, float(found["peak_bytes"]), source=f"a process of its own, {runtime}")


def _device_info(facts: Mapping[str, Any], threads: int) -> DeviceInfo:
    return DeviceInfo(
        cpu=facts["cpu"],
        threads=threads,
        runtime=facts["runtime"],
        governor=facts["governor"] or "",
        machine=facts["machine"],
        power_mode=facts.get("power_mode") or "",
    )
