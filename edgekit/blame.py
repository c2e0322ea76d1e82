"""Which layers cost the accuracy that uniform int8 loses, and what would cure each: measured trials, not guesses."""

from __future__ import annotations

import math
import os

from edgekit.guards import Contestant
from edgekit.planning import Planned
from edgekit.recipes.samples import spread
from edgekit.results import Blame
from edgekit.sensitivity import SENSITIVITY_SAMPLES, layer_losses
from edgekit.types import Precision
from edgekit.workbench.scoring import Scorer
from edgekit.workbench.stages import Workbench

MOST_LAYERS = 3
_OBSERVERS = ("min-max", "percentile", "mse")
# An observer that takes away less than this (decibel) cures nothing.
_CURES_DB = 3.0


def blame(bench: Workbench, scorer: Scorer, planned: Planned, chosen: Contestant) -> tuple[Blame, ...]:
    """The layers with the largest share of the loss of everything in int8, worst first, with the drop of the metric
    that each causes alone and its cure.
    """
    losses = {name: row[Precision.INT8] for name, row in planned.planning.losses.items() if Precision.INT8 in row}
    total = sum(losses.values())
    if not total:
        return ()
    worst = sorted(losses, key=lambda name: -losses[name])[:MOST_LAYERS]
    cures = _cures(bench, worst, losses)
    found = []
    for name in worst:
        artifact = bench.artifact({name: Precision.INT8}, planned.base)
        score = scorer.score(artifact, f"{name} alone in int8")
        lost = scorer.drop(planned.float_score, score).value
        kept = chosen.precisions.get(name, Precision.FP32)
        done = f"kept in {kept.value}" if kept is not Precision.INT8 else "kept in int8: its loss fits the budget"
        cure = "; ".join(part for part in (done, cures[name]) if part)
        found.append(Blame(name, Precision.INT8, losses[name] / total, lost, cure))
    return tuple(found)


def _cures(bench: Workbench, names: list[str], losses: dict[str, float]) -> dict[str, str]:
    """For each layer the observer that would help most, where one helps at all."""
    job = bench.job
    used = job.data.recipe.observer
    others = [observer for observer in _OBSERVERS if observer != used]
    samples = spread(job.data.calibration, SENSITIVITY_SAMPLES)
    trials: dict[str, dict[str, float]] = {}
    with job.progress.stage("look for cures", len(names) * len(others)) as advance:
        for observer in others:
            trials[observer] = layer_losses(
                job.graph,
                Precision.INT8,
                names,
                bench.observed_by(observer),
                samples,
                os.cpu_count() or 1,
                lambda _name, _loss: advance(),
                job.device.backend.quantizes_results,
            )
    cures = {}
    for name in names:
        best = min(others, key=lambda observer: trials[observer][name])
        gain_db = 10 * math.log10(max(losses[name], 1e-14) / max(trials[best][name], 1e-14))
        cures[name] = f"observer {best} would gain {gain_db:.0f} dB over {used}" if gain_db > _CURES_DB else ""
    return cures
