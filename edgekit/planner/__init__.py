"""Numbers in, plan out: one option per layer and per channel group so that every budget holds, with a proof of how
good it is.

The choice is a mixed-integer linear program (a multiple-choice knapsack, Kellerer, Pferschy and Pisinger, *Knapsack
Problems*, 2004, ch. 11, with costs by combinations of options, pairwise boundary costs and one memory row per execution
step), solved by HiGHS (https://highs.dev) through ``scipy.optimize.milp``. No I/O and no ONNX here.
"""

from __future__ import annotations

from edgekit.planner.greedy import greedy
from edgekit.planner.prices import Price, prices
from edgekit.planner.problem import (
    ActivationTensor,
    Boundary,
    BoundaryPart,
    GroupOption,
    LayerOption,
    Limits,
    PlanningGroup,
    PlanningLayer,
    Problem,
    ShapeCost,
    Solution,
    TensorPart,
    Totals,
    evaluate,
)
from edgekit.planner.search import LATENCY_WINDOW, LOSS_WINDOW, pareto, solve
from edgekit.planner.solver import keeps

__all__ = [
    "LATENCY_WINDOW",
    "LOSS_WINDOW",
    "ActivationTensor",
    "Boundary",
    "BoundaryPart",
    "GroupOption",
    "LayerOption",
    "Limits",
    "PlanningGroup",
    "PlanningLayer",
    "Price",
    "Problem",
    "ShapeCost",
    "Solution",
    "TensorPart",
    "Totals",
    "evaluate",
    "greedy",
    "keeps",
    "pareto",
    "prices",
    "solve",
]
