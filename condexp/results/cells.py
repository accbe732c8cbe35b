"""One cell of a table: the mean over its runs, and what became of the runs that are not in it."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from condexp.results.tables.numbers import Mark, format_number, kappa_mark, measure_mark


@dataclass(frozen=True)
class Cell:
    """The runs of one row and column.

    Attributes:
        mean: Mean over the runs that completed with a value; NaN where there are none.
        std: Standard deviation over them, with n − 1; NaN for fewer than two.
        num: Their number n.
        missing: Number of all other runs of the cell, by what became of them: their state, or
            ``"without value"``.
        mark: What stands in place of a mean that is no number.
    """

    mean: float
    std: float
    num: int
    missing: Mapping[str, int]
    mark: Mark

    @property
    def num_runs(self) -> int:
        """Number of runs of the cell, with and without a value."""
        return self.num + sum(self.missing.values())


def average(runs: pd.DataFrame, value: str) -> Cell:
    """Average a value over the complete runs of one cell.

    Args:
        runs: The runs of the cell, rows of `collect`'s frame.
        value: Name of the column to average.

    Returns:
        The cell. One infinite condition number makes the mean infinite.
    """
    values = runs[value].to_numpy(dtype=float, na_value=float("nan"))
    complete = runs["state"].to_numpy() == "complete"
    counted = complete & ~np.isnan(values)
    missing = Counter(map(str, runs["state"][~complete]))
    missing["without value"] = int((complete & ~counted).sum())
    used = values[counted]
    mean = float(used.mean()) if used.size else math.nan
    return Cell(
        mean=mean,
        std=float(used.std(ddof=1)) if used.size > 1 and math.isfinite(mean) else math.nan,
        num=int(used.size),
        missing={reason: num for reason, num in sorted(missing.items()) if num},
        mark=_mark(runs[counted], value, mean),
    )


def format_cell(cell: Cell | None) -> str:
    """Write a cell: mean ± std (n), and what is missing from it.

    Args:
        cell: The cell; ``None`` where the grid has no run.

    Returns:
        ``"12.34 ± 0.56 (5)"``, or ``"12.34 ± 0.56 (4 of 5: 1 diverged)"``; the deviation is left
        out for a single run.

    >>> format_cell(Cell(12.34, 0.56, 4, {"diverged": 1}, Mark.NONE))
    '12.34 ± 0.56 (4 of 5: 1 diverged)'
    """
    return f"{cell_number(cell)} ({cell_runs(cell)})"


def cell_number(cell: Cell | None) -> str:
    """Write a cell's mean and deviation.

    Args:
        cell: The cell; ``None`` where the grid has no run.

    Returns:
        ``"12.34 ± 0.56"``, or what stands in place of a number.
    """
    if cell is None:
        return str(Mark.MISSING)
    deviation = "" if math.isnan(cell.std) else f" ± {format_fixed(cell.std, cell.mean)}"
    return f"{cell.mark or format_fixed(cell.mean, cell.mean)}{deviation}"


def cell_runs(cell: Cell | None) -> str:
    """Write how many runs a cell has, and what became of those that are not in its mean.

    Args:
        cell: The cell; ``None`` where the grid has no run.

    Returns:
        ``"5"``, or ``"4 of 5: 1 diverged"``.
    """
    if cell is None:
        return "0"
    reasons = ", ".join(f"{num} {reason}" for reason, num in cell.missing.items())
    return f"{cell.num} of {cell.num_runs}: {reasons}" if reasons else str(cell.num)


def format_fixed(number: float, mean: float) -> str:
    """Write a number as its cell writes the mean: two decimals suit percentages.

    Args:
        number: The mean itself, its deviation, or an end of its interval.
        mean: The mean, which chooses the form.

    Returns:
        Two decimals, or three significant digits where the mean is small or large.
    """
    return f"{number:.2f}" if mean == 0 or 0.1 <= abs(mean) < 1e3 else format_number(number)


def _mark(runs: pd.DataFrame, value: str, mean: float) -> Mark:
    matrix, _, p = value.rpartition("_kappa_")
    limit = f"{matrix}_p_limit"
    if not math.isinf(mean) or limit not in runs:
        return measure_mark(mean)
    # One run whose rows would have sufficed makes the infinity a finding of the cell.
    limits = runs[limit][np.isinf(runs[value])]
    return kappa_mark(mean, "ok", float(p), float(limits.max(skipna=False)))
