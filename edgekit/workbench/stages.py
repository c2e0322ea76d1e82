"""The steps between a job and its plan, each kept in the cache under the digest of what it depends on, so that a killed
run resumes and a second one is quick.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from edgekit import toolchains
from edgekit.backends import Artifact
from edgekit.compress.cures import NO_CURES, Cures, shifted
from edgekit.compress.half import label_types
from edgekit.compress.observers import Histogram, Range, from_arrays, to_arrays
from edgekit.compress.qdq import apply_precisions, quantization_points
from edgekit.compress.ranges import collect_ranges
from edgekit.compress.symmetric import choose_ranges
from edgekit.cost.measured import FLOAT_PRECISIONS, MeasuredCosts, measure_costs, rank_float_precisions
from edgekit.cost.pruned import profile_shapes
from edgekit.cost.shapes import ShapeProfile
from edgekit.cost.table import CostTable
from edgekit.devices.race import Raced
from edgekit.errors import InputError
from edgekit.files import cache, deflate
from edgekit.graph import Graph, to_bytes
from edgekit.job import Job
from edgekit.profiles import forecast
from edgekit.recipes.samples import spread
from edgekit.results import DeviceInfo, DroppedOption
from edgekit.sensitivity import METHOD, SENSITIVITY_SAMPLES, layer_losses
from edgekit.types import Mask, Plan, Precision
from edgekit.workbench.channels import Pruner
from edgekit.workbench.cures import Curer
from edgekit.workbench.half_safety import HalfSafety, half_safety
from edgekit.workbench.trials import Remedies
from edgekit.workbench.weights import Masker

# Raised when the meaning of a cached entry changes.
_VERSION = 7
_SHAPES = 3
# They read activations in codes, so that ranges must be known.
_RANGED = (Precision.INT8, Precision.FP8, Precision.INT16X8)


@dataclass(frozen=True)
class Workbench:
    """A job at work: its ranges, artifacts and measurements, each made when it is first asked for."""

    job: Job

    @cached_property
    def graph_key(self) -> str:
        """Digest of the normalised model."""
        return self.job.graph_key

    @cached_property
    def _probed(self) -> tuple[DeviceInfo, tuple[str, ...]]:
        job = self.job
        if job.device.job_runner is not None:
            with job.progress.stage(f"probe {job.target.name}"):
                found = job.device.probe()
            if job.device.at_hand:
                return found
        return forecast.device_info(job.target, job.profile, job.device.threads), ()

    @property
    def device_info(self) -> DeviceInfo:
        """What the device is."""
        return self._probed[0]

    @cached_property
    def device_key(self) -> dict[str, Any]:
        """What a measurement holds for."""
        info, capabilities = self._probed
        place = self.job.device.place
        return {**asdict(info), "capabilities": list(capabilities), "place": place, "version": _VERSION}

    @cached_property
    def pruner(self) -> Pruner:
        """What removes channels from the graph."""
        return Pruner(self.job, self.graph_key)

    @cached_property
    def masker(self) -> Masker:
        """What puts zeros among the weights, or holds them to few values."""
        return Masker(self.pruner)

    @cached_property
    def curer(self) -> Curer:
        """What makes quantizing layers cost less."""
        return Curer(Remedies(self.pruner, self.observed_by), self._losses_uncured)

    def graph_of(self, kept: Mapping[str, int] | None = None) -> Graph:
        """The graph of a plan that keeps only so many channels of some groups."""
        return self.pruner.pruned(kept) if kept else self.job.graph

    def histograms(self, graph: Graph) -> dict[str, Histogram]:
        """What the activations of a graph do on the calibration samples."""
        job = self.job
        results = {"results": True} if job.device.backend.quantizes_results else {}
        points = quantization_points(graph, **results)
        graph_key = hashlib.sha256(to_bytes(graph.model)).hexdigest()
        keyed = {"points": list(points)} if results else {}
        key = cache.key(version=_VERSION, graph=graph_key, data=job.data.calibration.digest, **keyed)
        stored = cache.read_arrays("ranges", key)
        if stored is None:
            samples = job.data.calibration
            with job.progress.stage("observe ranges", len(samples)) as advance:
                seen = collect_ranges(graph, points, samples, lambda _done, _total: advance())
                stored = to_arrays(seen.values())
            cache.write_arrays("ranges", key, stored)
        return from_arrays(stored)

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """The range of each tensor that may be quantized, by the recipe's observer."""
        return self.observed_by(self.job.data.recipe.observer)

    def observed_by(self, observer: str, graph: Graph | None = None) -> dict[str, Range]:
        """The ranges that an observer chooses, those of the whole graph or of a pruned one."""
        percentile = self.job.data.recipe.percentile
        seen = self._seen if graph is None else self.histograms(graph)
        return choose_ranges(seen, observer, percentile, self.job.device.backend.symmetric)

    @cached_property
    def _seen(self) -> dict[str, Histogram]:
        return self.histograms(self.job.graph)

    def model_bytes(
        self,
        precisions: Mapping[str, Precision],
        kept: Mapping[str, int] | None = None,
        masks: Mapping[str, Mask] | None = None,
        cured: bool = True,
    ) -> bytes:
        """The compressed ONNX of a plan: channels go first, then weights of what is left, then bits, with the cures of
        whole graphs where they are wanted.
        """
        ranged = any(precision in _RANGED for precision in precisions.values())
        quantized = any(precision not in FLOAT_PRECISIONS for precision in precisions.values())
        if cured and quantized and not kept and not masks:
            cures, remedies = self.curer.cures, self.curer.remedies
            graph = shifted(remedies.graph_of(cures), cures.biases(precisions))
            return self._written(graph, precisions, remedies.ranges(cures) if ranged else {}, cures)
        graph, cures = self.masker.masked(self.graph_of(kept), masks or {}), NO_CURES
        if cured and ranged and kept and self.curer.cures:
            cures = self.curer.remedies.for_pruned(self.curer.cures, graph, kept, masks or {})
        ranges: Mapping[str, Range] = {}
        if ranged and (kept or masks):
            usual = self.job.data.recipe.observer
            used = {usual, *cures.observers.values()}
            ranges = cures.ranges({observer: self.observed_by(observer, graph) for observer in used}, usual)
        elif ranged:
            ranges = self.ranges
        return self._written(shifted(graph, cures.biases(precisions)), precisions, ranges, cures)

    def _written(
        self,
        graph: Graph,
        precisions: Mapping[str, Precision],
        ranges: Mapping[str, Range],
        cures: Cures = NO_CURES,
    ) -> bytes:
        """The hub model; for backends that ask for it, each node says the float type that it needs."""
        adapter = self.job.device.backend
        model = apply_precisions(graph, precisions, ranges, adapter.quantizes_results, cures.codes(precisions))
        if adapter.types_floats:
            safety = self.half_safety
            names = [layer.name for layer in graph.layers]
            label_types(model, names, precisions, safety.unsafe, safety.shrink)
        return to_bytes(model)

    @cached_property
    def half_safety(self) -> HalfSafety:
        """Which nodes must not compute in half precision, by the calibration samples."""
        return half_safety(self.job)

    def artifact(
        self,
        precisions: Mapping[str, Precision],
        base: Precision,
        kept: Mapping[str, int] | None = None,
        masks: Mapping[str, Mask] | None = None,
        compressed: bool = False,
        cured: bool = True,
    ) -> Artifact:
        """The artifact of a plan's decisions, converted unless it was before."""
        return self._converted(self.model_bytes(precisions, kept, masks, cured), base, compressed)

    def artifact_of(self, plan: Plan, base: Precision) -> Artifact:
        """The artifact of a plan."""
        return self.artifact(plan.precisions(), base, plan.kept(), plan.masks(), plan.compressed)

    def timing_artifact(
        self, precisions: Mapping[str, Precision], base: Precision, kept: Mapping[str, int]
    ) -> Artifact:
        """A plan's artifact with neither weights re-solved nor ranges observed for it: it takes as long as the plan."""
        ranges = self.ranges if any(precision in _RANGED for precision in precisions.values()) else {}
        return self._converted(self._written(self.pruner.cut(kept), precisions, ranges), base)

    @cached_property
    def _toolchain(self) -> dict[str, str]:
        """What converts, where that is not the runtime itself."""
        name = self.job.device.backend.TOOLCHAIN
        return {"toolchain": toolchains.toolchain(name).version} if name else {}

    def _converted(self, content: bytes, base: Precision, compressed: bool = False) -> Artifact:
        adapter = self.job.device.backend
        stored: dict[str, Any] = {"compressed": deflate.VERSION} if compressed else {}
        if adapter.TOOLCHAIN:
            stored |= {**self._toolchain, "base": base.value}
        if adapter.types_floats:
            stored |= {"adapter": repr(adapter), "base": base.value}
        key = cache.key(version=_VERSION, runtime=self.device_info.runtime, model=content, **stored)

        def convert(path: Path) -> None:
            adapter.convert(content, path, base)
            if compressed:
                adapter.compress(path)

        folder = cache.folder("artifacts", key, convert)
        return adapter.artifact(folder, base)

    def float_precisions(self) -> tuple[dict[Precision, float], tuple[DroppedOption, ...]]:
        """Float precisions worth considering, fastest first, relative to fp32; and those that lost."""
        job = self.job
        if not job.device.at_hand:
            ratios, dropped = forecast.forecast_floats(job.graph, job.target, job.profile, job.device.threads)
            return self._convertible(ratios, dropped)
        offered = tuple(job.target.precisions)
        key = cache.key(device=self.device_key, graph=self.graph_key, offered=[p.value for p in offered])
        stored = cache.read_json("float-precisions", key)
        if stored is None:
            with self.job.progress.stage("race float precisions"):
                ratios, dropped = rank_float_precisions(self.job.device, self.artifact, offered)
            stored = {"ratios": {p.value: r for p, r in ratios.items()}, "dropped": [asdict(row) for row in dropped]}
            cache.write_json("float-precisions", key, stored)
        ratios = {Precision(name): float(ratio) for name, ratio in stored["ratios"].items()}
        return ratios, tuple(DroppedOption(**row) for row in stored["dropped"])

    def _convertible(
        self, ratios: Mapping[Precision, float], dropped: tuple[DroppedOption, ...]
    ) -> tuple[dict[Precision, float], tuple[DroppedOption, ...]]:
        """Without the float precisions that the board's software cannot give this model."""
        kept = dict(ratios)
        if self.job.device.backend.types_floats and self.half_safety.unsafe:
            for precision in [p for p in ratios if p is not Precision.FP32]:
                try:
                    self.artifact({}, precision)
                except InputError as error:
                    del kept[precision]
                    dropped += (DroppedOption(precision.value, "model", str(error)),)
        return kept, dropped

    def costs(self, base: Precision, weight_only: bool) -> MeasuredCosts:
        """The in-network cost table with ``base`` as the float precision: measured, or forecast where the device is not
        at hand.
        """
        job = self.job
        if not job.device.at_hand:
            threads = job.device.threads
            single = self.half_safety.unsafe if job.device.backend.types_floats and base is Precision.FP16 else {}
            return forecast.forecast_costs(job.graph, job.target, job.profile, threads, base, weight_only, single)
        offered = tuple(job.target.precisions)
        key = cache.key(
            device=self.device_key,
            graph=self.graph_key,
            data=self.job.data.calibration.digest,
            base=base.value,
            weight_only=weight_only,
            offered=[p.value for p in offered],
            interval=self.job.profile.prediction_error,
            **self._toolchain,
        )
        stored = cache.read_json("costs", key)
        if stored is None:
            _ = self.ranges
            with self.job.progress.stage("measure layer costs on the device"):
                measured = measure_costs(
                    self.job.graph,
                    self.job.device,
                    partial(self.artifact, cured=False),  # cures change no time
                    base,
                    offered=offered,
                    weight_only=weight_only,
                    interval=self.job.profile.prediction_error,
                )
            stored = _costs_to_json(measured)
            cache.write_json("costs", key, stored)
        return _costs_from_json(stored)

    def shape_profiles(self, table: CostTable, offered: Mapping[int, Sequence[int]]) -> tuple[ShapeProfile, ...]:
        """Profiles of models in which the groups keep some of the counts that they are ``offered``, and of whole ones;
        none where the device is not at hand.
        """
        if not self.job.device.at_hand:
            return ()
        groups = self.pruner.channels.groups
        full = [group.channels for group in groups]
        key = cache.key(
            version=_SHAPES,
            device=self.device_key,
            graph=self.graph_key,
            data=self.job.data.calibration.digest,
            table=_table_to_json(table),
            offered={groups[index].name: list(counts) for index, counts in offered.items()},
        )
        stored = cache.read_json("shape-profiles", key)
        if stored is None:

            def build(kept: Sequence[int], precisions: Mapping[str, Precision], base: Precision) -> Artifact:
                named = {g.name: k for g, k in zip(groups, kept, strict=True) if k < g.channels}
                return self.timing_artifact(precisions, base, named)

            with self.job.progress.stage("measure pruned shapes on the device"):
                found = profile_shapes(self.job.graph, self.job.device, build, table, full, offered)
            stored = [asdict(profile) for profile in found]
            cache.write_json("shape-profiles", key, stored)
        return tuple(
            ShapeProfile(
                tuple(row["kept"]),
                {name: Precision(precision) for name, precision in row["precisions"].items()},
                row["times_ms"],
            )
            for row in stored
        )

    def losses(self, precision: Precision, names: Sequence[str]) -> dict[str, float]:
        """The loss of each named layer alone in ``precision``, with the cures that help."""
        alone, left = self._losses_uncured(precision, names), self.curer.cured.left.get(precision, {})
        return {name: loss * left.get(name, 1.0) for name, loss in alone.items()}

    def _losses_uncured(self, precision: Precision, names: Sequence[str]) -> dict[str, float]:
        """The loss of each named layer alone in ``precision``; each is kept as soon as it is known."""
        job = self.job
        samples = spread(job.data.calibration, SENSITIVITY_SAMPLES)
        results = {"results": True} if job.device.backend.quantizes_results else {}
        around = {"symmetric": True} if job.device.backend.symmetric else {}
        keys = {
            name: cache.key(
                **results,
                **around,
                version=_VERSION,
                method=METHOD,
                graph=self.graph_key,
                data=job.data.calibration.digest,
                observer=job.data.recipe.observer,
                percentile=job.data.recipe.percentile,
                samples=samples.digest,
                layer=name,
                precision=precision.value,
            )
            for name in names
        }
        known = {name: stored for name in names if (stored := cache.read_json("losses", keys[name])) is not None}
        missing = [name for name in names if name not in known]
        if missing:
            ranges = self.ranges if precision in _RANGED else {}
            with job.progress.stage(f"sensitivity of {precision.value}", len(missing)) as advance:

                def keep(name: str, loss: float) -> None:
                    cache.write_json("losses", keys[name], loss)
                    advance()

                workers = os.cpu_count() or 1
                known |= layer_losses(job.graph, precision, missing, ranges, samples, workers, keep, bool(results))
        return {name: float(known[name]) for name in names}

    def race(
        self, contestants: Mapping[str, Artifact], seconds: float, title: str, footprint: bool = False
    ) -> dict[str, Raced]:
        """The contestants' latencies, interleaved on the device; with ``footprint`` energy and peak memory too."""
        from cattrs import structure

        digests = {name: [_digest(artifact), artifact.base.value] for name, artifact in contestants.items()}
        asked = {"order": list(contestants), "seconds": seconds, "footprint": footprint}
        key = cache.key(device=self.device_key, contestants=digests, **asked)
        stored = cache.read_json("races", key)
        if stored is None:
            with self.job.progress.stage(title):
                raced = self.job.device.race(contestants, seconds, footprint=footprint)
            stored = {name: asdict(row) for name, row in raced.items()}
            cache.write_json("races", key, stored)
        return {name: structure(stored[name], Raced) for name in contestants}

    def profile(self, artifact: Artifact) -> Sequence[Mapping[str, Any]]:
        """The executed nodes of one artifact with their times; without times what the file says, where no device is at
        hand, or nothing.
        """
        if not self.job.device.at_hand:
            return self.job.device.backend.compiled_rows(artifact) or ()
        key = cache.key(device=self.device_key, artifact=_digest(artifact), base=artifact.base.value)
        stored = cache.read_json("profiles", key)
        if stored is None:
            with self.job.progress.stage("read back what was compiled"):
                stored = list(self.job.device.profile({"plan": artifact}, seconds=0.6)["plan"])
            cache.write_json("profiles", key, stored)
        rows: Sequence[Mapping[str, Any]] = stored
        return rows


def _digest(artifact: Artifact) -> str:
    return cache.key(files=[Path(file).read_bytes() for file in artifact.files])


def _costs_to_json(costs: MeasuredCosts) -> dict[str, Any]:
    return {"table": _table_to_json(costs.table), "dropped": [asdict(row) for row in costs.dropped]}


def _table_to_json(table: CostTable) -> dict[str, Any]:
    return {
        **asdict(replace(table, floats={}, latency_ms={}, anchors_ms={})),
        "floats": {name: precision.value for name, precision in table.floats.items()},
        "latency_ms": {n: {p.value: ms for p, ms in row.items()} for n, row in table.latency_ms.items()},
        "anchors_ms": {p.value: ms for p, ms in table.anchors_ms.items()},
    }


def _costs_from_json(stored: Mapping[str, Any]) -> MeasuredCosts:
    row = stored["table"]
    latency = {n: {Precision(p): float(ms) for p, ms in times.items()} for n, times in row["latency_ms"].items()}
    anchors = {Precision(p): float(ms) for p, ms in row["anchors_ms"].items()}
    floats = {name: Precision(precision) for name, precision in row["floats"].items()}
    read = {"base": Precision(row["base"]), "floats": floats, "latency_ms": latency, "anchors_ms": anchors}
    table = CostTable(**{**row, **read})
    return MeasuredCosts(table, tuple(DroppedOption(**dropped) for dropped in stored["dropped"]))
