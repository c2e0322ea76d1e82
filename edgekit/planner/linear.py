"""A linear program that is solved again and again with other bounds and more rows: HiGHS (https://highs.dev) starts
where it ended the last time, which takes a fifth of the time of starting anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.planner.program import Program
    from edgekit.planner.table import Floats

_TOLERANCE = 1e-9  # of rows and of reduced costs; HiGHS's own 1e-7 is more than some plans leave of a budget


@dataclass(frozen=True, eq=False)
class Vertex:
    """A least value in the program's units, the columns there, their reduced costs and the rows' prices."""

    value: float  # infinite when nothing fits
    columns: Floats
    reduced: Floats
    prices: Floats


class Linear:
    """The relaxation of a program."""

    def __init__(self, program: Program) -> None:
        import highspy
        import numpy as np

        self._highs = highspy.Highs()
        for name, value in (
            ("output_flag", False),
            ("solver", "simplex"),
            ("presolve", "off"),  # a basis of what is left after it would be of no use
            ("parallel", "off"),
            ("primal_feasibility_tolerance", _TOLERANCE),
            ("dual_feasibility_tolerance", _TOLERANCE),
        ):
            self._highs.setOptionValue(name, value)
        self._width = len(program.cost)
        self._places = np.arange(self._width, dtype=np.int32)
        self._cost = program.cost
        self._fixed_rows = program.matrix.shape[0]
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = self._width, self._fixed_rows
        model.col_cost_, model.col_lower_, model.col_upper_ = program.cost, program.floor, program.ceiling
        model.row_lower_, model.row_upper_ = program.lower, program.upper
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = program.matrix.indptr
        model.a_matrix_.index_ = program.matrix.indices
        model.a_matrix_.value_ = program.matrix.data
        self._highs.passModel(model)

    def add(self, columns: Sequence[int], values: Sequence[float]) -> None:
        """Add a row: its bounds are given when it is solved."""
        import numpy as np

        at, amounts = np.array(columns, dtype=np.int32), np.array(values, dtype=np.float64)
        self._highs.addRow(-math.inf, math.inf, len(at), at, amounts)

    def solve(
        self, floor: Floats, ceiling: Floats, lower: Floats, upper: Floats, cutoff: float, seconds: float
    ) -> Vertex | None:
        """The optimum with these bounds of the columns, and of the rows that were added; nothing but the ``cutoff``
        where it is above that, ``None`` when it does not work out in the time given.
        """
        import highspy
        import numpy as np

        if seconds <= 0:
            return None
        highs, status = self._highs, highspy.HighsModelStatus
        highs.changeColsBounds(self._width, self._places, floor, ceiling)
        for row, (low, high) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True), self._fixed_rows):
            highs.changeRowBounds(row, low, high)
        highs.setOptionValue("objective_bound", cutoff)
        highs.setOptionValue("time_limit", min(1e9, highs.getRunTime() + seconds))
        highs.run()
        found = highs.getModelStatus()
        if found in (status.kInfeasible, status.kObjectiveBound):
            nothing, value = np.zeros(self._width), math.inf if found == status.kInfeasible else cutoff
            return Vertex(value, nothing, nothing, np.zeros(self._fixed_rows))
        if found != status.kOptimal:
            return None
        solution = highs.getSolution()
        return Vertex(
            float(highs.getInfo().objective_function_value),
            np.array(solution.col_value),
            np.array(solution.col_dual),
            np.array(solution.row_dual)[: self._fixed_rows],
        )
