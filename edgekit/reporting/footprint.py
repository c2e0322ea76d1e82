"""Energy of an inference and peak memory, where they were measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgekit.reporting import verdict, wording

if TYPE_CHECKING:
    from edgekit.results import DeployResult
    from edgekit.types import Candidate, Figure


def energy(candidate: Candidate) -> str:
    """ "12.3 mJ", or "" where it was not measured."""
    return _said(candidate.energy_mj, lambda value: f"{value:.3g} mJ")


def memory(candidate: Candidate) -> str:
    """ "142 MB", or "" where it was not measured."""
    return _said(candidate.peak_memory_bytes, wording.size)


def summary(result: DeployResult) -> str:
    """ "12.3 mJ an inference (float 31 mJ), peak memory of the process 142 MB (float 180 MB)"; "" where neither is
    known.
    """
    chosen, reference = verdict.shipped(result), verdict.float_candidate(result)
    parts = []
    for said, words in ((energy, "{} an inference"), (memory, "peak memory of the process {}")):
        if mine := said(chosen):
            theirs = said(reference) if chosen is not reference else ""
            parts.append(words.format(mine) + (f" (float {theirs})" if theirs else ""))
    return ", ".join(parts)


def reasons(result: DeployResult) -> tuple[str, ...]:
    """Why what ships has no energy or no peak memory: "energy: none (...)"; nothing where nobody asked."""
    chosen = verdict.shipped(result)
    asked = {"energy": chosen.energy_mj, "peak memory": chosen.peak_memory_bytes}
    return tuple(
        f"{name}: none ({figure.source})"
        for name, figure in asked.items()
        if figure is not None and (figure.value is None or not math.isfinite(figure.value))
    )


def _said(figure: Figure | None, words: Callable[[float], str]) -> str:
    if figure is None or figure.value is None or not math.isfinite(figure.value):
        return ""
    return words(figure.value)
