"""A job's cures: which of them help, measured at the model's outputs on samples that nothing was solved on, and kept in
the cache under the digest of what they depend on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from edgekit.backends import able
from edgekit.compress.cures import NO_CURES, Cures
from edgekit.compress.rounding import Rounded
from edgekit.compress.torch_extra import has_torch
from edgekit.files import cache
from edgekit.recipes.samples import spread
from edgekit.sensitivity import METHOD, SENSITIVITY_SAMPLES, sample_losses
from edgekit.types import Precision
from edgekit.workbench.trials import Remedies

TRIALS = 24
"""Times that a model is tried at most."""

# A cure that takes away less of the noise than this share (0.2 dB) is luck.
_WORTHWHILE = 0.95
# One that does not help all layers, but does less harm than this, is tried for half of them.
_NEARLY = 1.1
# Layers are tried together up to this noise power (20 dB below the signal); the loudest ones, which would drown what
# happens to all others, only in the model where everything is quantized.
_QUIET = 0.01
# Loud layers whose losses are measured anew after their cures.
_MOST_LOUD = 8
_OBSERVERS = ("percentile", "mse", "min-max")
_RANGED = (Precision.INT8, Precision.INT16X8)
# Raised when the meaning of a cached entry changes.
_VERSION = 3
_JOIN = "\n"


@dataclass(frozen=True, eq=False)
class Cured:
    """The cures that helped, and what is left of the loss of each layer alone, as a share of what it was without."""

    cures: Cures = NO_CURES
    left: Mapping[Precision, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Curer:
    """Finds what helps the layers of one job's graph. ``losses`` are those of layers alone and uncured."""

    remedies: Remedies
    losses: Callable[[Precision, Sequence[str]], Mapping[str, float]]

    @cached_property
    def cured(self) -> Cured:
        """What helps; nothing where the samples are random, or too few to judge by others than were solved on."""
        pruner = self.remedies.pruner
        job = pruner.job
        if job.data.synthetic or pruner.judging is job.data.calibration:
            return Cured()
        recipe = job.data.recipe
        key = pruner.key(
            cures=_VERSION,
            method=METHOD,
            observer=recipe.observer,
            percentile=recipe.percentile,
            backend=job.target.backend,
            offered=[p.value for p in self.offered],
            **({"learns": True} if self.learns else {}),
        )
        stored = cache.read_arrays("cures", key)
        if stored is None:
            with job.progress.stage("try cures", TRIALS) as advance:
                stored = _to_arrays(_Search(self, advance).found())
            cache.write_arrays("cures", key, stored)
        return _from_arrays(stored)

    @property
    def cures(self) -> Cures:
        """The cures that helped."""
        return self.cured.cures

    @property
    def offered(self) -> tuple[Precision, ...]:
        """The quantized precisions that a plan may take here."""
        job = self.remedies.pruner.job
        sized = job.budget.weight_bytes is not None or job.budget.memory_bytes is not None
        asked = (*_RANGED, *((Precision.W8, Precision.W4) if sized else ()))
        return tuple(precision for precision in asked if precision in job.target.precisions)

    @cached_property
    def learns(self) -> bool:
        """Whether codes are learnt as well: those of 4 bits are worth the minutes that it takes."""
        return Precision.W4 in self.offered and has_torch()

    def applied(self, name: str, precision: Precision) -> tuple[str, ...]:
        """What was done to a layer in this precision: "equalised", "observer mse", "rounded", "bias"."""
        return self.remedies.applied(self.cures, name, precision)


_Step = Callable[[Cures, Sequence[str], tuple[str, ...]], Cures]


class _Search:
    """One search for cures, and how many trials are left to it."""

    def __init__(self, curer: Curer, advance: Callable[[], None]) -> None:
        self._curer = curer
        self._remedies = curer.remedies
        self._job = curer.remedies.pruner.job
        self._samples = spread(curer.remedies.pruner.judging, SENSITIVITY_SAMPLES)
        self._advance = advance
        self._left = TRIALS

    def found(self) -> Cured:
        """The cures that help, in all precisions."""
        job = self._job
        cures = NO_CURES
        left: dict[Precision, Mapping[str, float]] = {}
        for precision in self._curer.offered:
            names = able(job.graph, job.device.backend, precision)
            if names and precision is Precision.INT8:
                cures, left[precision] = self._int8(names)
            elif names:
                cures, share = self._codes_alone(cures, precision, names)
                left[precision] = dict.fromkeys(names, share)
        return Cured(cures, left)

    def _int8(self, names: tuple[str, ...]) -> tuple[Cures, dict[str, float]]:
        alone = self._curer.losses(Precision.INT8, names)
        quiet, loud = _parted(alone)
        plans = [quiet, names] if loud else [quiet]
        before = self._noise([(NO_CURES, plan) for plan in plans])
        cures, now = NO_CURES, list(before)
        for step in self._steps():
            cures, now = self._kept(step, cures, now, quiet, loud, names)
        left = dict.fromkeys(quiet, min(1.0, _share(now[0], before[0])))
        left |= dict.fromkeys(loud, 1.0)
        loudest = sorted(loud, key=lambda name: -alone[name])[:_MOST_LOUD]
        loudest = [name for name in loudest if self._curer.remedies.applied(cures, name, Precision.INT8)]
        if loudest:
            once, again = (self._noise([(c, (name,)) for name in loudest]) for c in (NO_CURES, cures))
            left |= {name: _share(after, first) for name, first, after in zip(loudest, once, again, strict=True)}
        return cures, left

    def _steps(self) -> list[_Step]:
        """The cures in the order in which they build on each other."""
        remedies, usual = self._remedies, self._job.data.recipe.observer
        steps: list[_Step] = []
        if remedies.sites:
            # All at once: the ranges of every other scaled graph would take one more pass over the samples.
            steps.append(lambda cures, names, plan: remedies.equalised(cures, plan) if names == plan else cures)
        for observer in _OBSERVERS:
            if observer != usual:
                steps.append(partial(self._observed, observer))
        steps.append(lambda cures, names, _plan: remedies.rounded(cures, names))
        return [*steps, remedies.corrected]

    def _observed(self, observer: str, cures: Cures, names: Sequence[str], _plan: tuple[str, ...]) -> Cures:
        return self._remedies.observed(cures, names, observer)

    def _kept(
        self,
        step: _Step,
        cures: Cures,
        now: list[np.ndarray],
        quiet: tuple[str, ...],
        loud: tuple[str, ...],
        whole: tuple[str, ...],
    ) -> tuple[Cures, list[np.ndarray]]:
        """The cures with this one for the layers that it helps, and the noise then: the quiet layers together, or one
        half of them; and the loud ones where everything is quantized.
        """
        before, made = cures, step(cures, quiet, quiet)
        if made is not cures and self._left >= 1:
            (loss,) = self._tried([(made, quiet)])
            if not _helps(loss, now[0]) and _share(loss, now[0]) < _NEARLY and len(quiet) > 1 and self._left >= 2:
                middle = len(quiet) // 2
                halves = [step(cures, half, quiet) for half in (quiet[:middle], quiet[middle:])]
                halves = [half for half in halves if half is not cures]
                for half, found in zip(halves, self._tried([(half, quiet) for half in halves]), strict=True):
                    if _share(found, loss) < 1:
                        loss, made = found, half
            if _helps(loss, now[0]):
                cures, now = made, [loss, *now[1:]]
        made = step(cures, loud, whole) if loud else cures
        if loud and cures is not before:
            now = [now[0], *self._noise([(cures, whole)])]
        if made is not cures and self._left >= 1:
            (loss,) = self._tried([(made, whole)])
            if _helps(loss, now[1]):
                cures, now = made, [now[0], loss]
        return cures, now

    def _codes_alone(self, cures: Cures, precision: Precision, names: tuple[str, ...]) -> tuple[Cures, float]:
        """The cures with chosen codes for one more precision, where they help all layers together; in 4 bits with those
        that are learnt from them, where they help again.
        """
        made = self._remedies.rounded(cures, names, precision)
        plain, rounded = self._noise([(cures, names), (made, names)], precision)
        if not _helps(rounded, plain):
            return cures, 1.0
        if self._curer.learns and precision is Precision.W4:
            better = self._remedies.learnt(made, precision)
            (learnt,) = self._noise([(better, names)], precision) if better is not made else (rounded,)
            if _helps(learnt, rounded):
                made, rounded = better, learnt
        return made, _share(rounded, plain)

    def _tried(self, tries: Sequence[tuple[Cures, tuple[str, ...]]]) -> tuple[np.ndarray, ...]:
        self._left -= len(tries)
        return self._noise(tries)

    def _noise(
        self, tries: Sequence[tuple[Cures, tuple[str, ...]]], precision: Precision = Precision.INT8
    ) -> tuple[np.ndarray, ...]:
        """The noise power [samples] at the model's outputs where these layers are quantized with these cures."""
        models = [self._remedies.written(cures, dict.fromkeys(names, precision)) for cures, names in tries]
        found = sample_losses(self._job.graph, models, self._samples, os.cpu_count() or 1)
        for _ in models:
            self._advance()
        return tuple(found)


def _share(after: np.ndarray, before: np.ndarray) -> float:
    """What is left of the noise of a typical sample: the geometric mean over samples, which no odd one decides."""
    return float(np.exp(np.mean(np.log(after / before))))


def _helps(after: np.ndarray, before: np.ndarray) -> bool:
    """Whether a typical sample has less noise, and all together no more than by chance."""
    return _share(after, before) < _WORTHWHILE and bool(after.mean() < _NEARLY * before.mean())


def _parted(alone: Mapping[str, float]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Layers whose losses together stay quiet, and the others, each in execution order; at least half are quiet."""
    ranked = sorted(alone, key=lambda name: alone[name])
    sums = np.cumsum([alone[name] for name in ranked])
    count = max(int((sums <= _QUIET).sum()), math.ceil(len(ranked) / 2))
    quiet = set(ranked[:count])
    return tuple(n for n in alone if n in quiet), tuple(n for n in alone if n not in quiet)


def _to_arrays(found: Cured) -> dict[str, np.ndarray]:
    """As arrays that need no pickle; the parts of a name are joined by a character that no name has."""
    cures = found.cures
    arrays: dict[tuple[str, ...], object] = {("factor", site): factor for site, factor in cures.factors.items()}
    arrays |= {("observer", tensor): observer for tensor, observer in cures.observers.items()}
    arrays |= {("bias", layer): shift for layer, shift in cures.shifts.items()}
    for (layer, precision), rounded in cures.rounded.items():
        arrays |= {("rounded", precision.value, layer, n): a for n, a in rounded.to_arrays("").items()}
    for precision, shares in found.left.items():
        arrays |= {("left", precision.value, layer): share for layer, share in shares.items()}
    return {_JOIN.join(parts): np.asarray(value) for parts, value in arrays.items()}


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Cured:
    kinds: dict[str, dict[tuple[str, ...], np.ndarray]] = {}
    for name, array in arrays.items():
        kind, *parts = name.split(_JOIN)
        kinds.setdefault(kind, {})[tuple(parts)] = array
    stored: dict[tuple[str, Precision], dict[str, np.ndarray]] = {}
    for (precision, layer, part), array in kinds.get("rounded", {}).items():
        stored.setdefault((layer, Precision(precision)), {})[part] = array
    rounded = {option: one for option, parts in stored.items() if (one := Rounded.from_arrays("", parts)) is not None}
    left: dict[Precision, dict[str, float]] = {}
    for (precision, layer), share in kinds.get("left", {}).items():
        left.setdefault(Precision(precision), {})[layer] = float(share)
    cures = Cures(
        factors={site: factor for (site,), factor in kinds.get("factor", {}).items()},
        observers={tensor: str(observer) for (tensor,), observer in kinds.get("observer", {}).items()},
        rounded=rounded,
        shifts={layer: shift for (layer,), shift in kinds.get("bias", {}).items()},
    )
    return Cured(cures, left)
