"""How far a changed model's outputs are from the original's."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.compress.ranges import run_float
from edgekit.graph import Graph
from edgekit.sensitivity import relative_noise_power


def output_noise(graph: Graph, changed: Graph, data: Any) -> float:
    """Relative noise power at the outputs, mean over samples."""
    pairs = zip(run_float(changed, data), run_float(graph, data), strict=True)
    return float(np.mean([relative_noise_power(ours, theirs) for ours, theirs in pairs]))
