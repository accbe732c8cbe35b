"""Tables over runs: mean ± standard deviation (n) of any value, by any rows and columns.

Condition numbers are averaged in decades: their mean is geometric, their deviation a factor.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from condexp.errors import InputError
from condexp.results.tables.differences import Differences, make_differences
from condexp.results.tables.keys import Key, keys_of, require_key, sort_keys
from condexp.results.tables.numbers import Mark, is_kappa, kappa_mark, measure_mark
from condexp.results.tables.paired import median, paired_difference
from condexp.results.tables.published import Counterpart, find_published

Place = tuple[Key, Key]
# Configuration key: how a title says its values, and what it says for null beside a number.
SIZES = {
    "dataset.subset.train": ("{} training images", "all"),
    "dataset.subset.test": ("{} test images", "all"),
    "dataset.image_size": ("{} px", "unchanged"),
    "trainer.epochs": ("{} epochs", None),
    "trainer.steps": ("at most {} steps", None),
}


@dataclass(frozen=True)
class Cell:
    """The runs of one row and column.

    Attributes:
        mean: Mean over the runs that completed with a value, of condition numbers the geometric
            one; where one of them is infinite the median. NaN where there are none.
        std: Standard deviation over them, with n − 1, of condition numbers that of log₁₀ κ; NaN
            for fewer than two, or where one is infinite.
        num: Their number n.
        missing: Number of all other runs of the cell, by what became of them: their state, or
            ``"without value"``.
        mark: What stands in place of a mean that is no number.
        num_infinite: Runs among the n whose value is infinite.
        decades: Whether these are condition numbers, averaged as log₁₀ κ.
        num_bounds: Runs among the n whose condition number is known from below only; the mean is a
            lower bound then.
        num_estimates: Runs among the n whose condition number is of an estimated spectrum.
    """

    mean: float
    std: float
    num: int
    missing: Mapping[str, int]
    mark: Mark
    num_infinite: int = 0
    decades: bool = False
    num_bounds: int = 0
    num_estimates: int = 0

    @property
    def num_runs(self) -> int:
        """Number of runs of the cell, with and without a value."""
        return self.num + sum(self.missing.values())


@dataclass(frozen=True)
class ResultTable:
    """One value over a grid of runs.

    Attributes:
        value: Name of the value.
        title: What the table shows, and of what data.
        data: On what data and for how long the runs were trained.
        rows: Names of the keys that make the rows.
        cols: Names of the keys that make the columns.
        row_keys: Values of ``rows``, one tuple a row, sorted.
        col_keys: Values of ``cols``, one tuple a column, sorted.
        cells: The cells by row key and column key; absent where there is no run.
        best: The cells with the lowest mean of their row, or of the only column, of values of which
            less is better: where the paired difference from each other cell excludes 0.
        varied: Configuration keys but the seed that differ between the runs of one cell, so that
            its mean is over more than seeds.
        differences: Paired differences, where they were asked for.
        published: Published values by cell; ``None`` where they were not asked for.
    """

    value: str
    title: str
    data: str
    rows: tuple[str, ...]
    cols: tuple[str, ...]
    row_keys: tuple[Key, ...]
    col_keys: tuple[Key, ...]
    cells: Mapping[Place, Cell]
    best: frozenset[Place]
    varied: tuple[str, ...]
    differences: Differences | None = None
    published: Mapping[Place, Counterpart] | None = None


def make_table(
    frame: pd.DataFrame,
    rows: Sequence[str],
    cols: Sequence[str],
    value: str,
    *,
    title: str | None = None,
    paired: str | None = None,
    published: bool = False,
) -> ResultTable:
    """Average a value over the runs of each cell.

    Runs that did not complete never enter a mean; they are counted.

    Args:
        frame: One row a run, from `collect`.
        rows: Keys whose values make the rows, such as ``model.depth``.
        cols: Keys whose values make the columns; may be empty.
        value: What to average: ``test_error``, ``last_linear.input_kappa_0.5``, …
        title: What to write above; the value, the data and the epochs where None.
        paired: A key whose values are compared seed by seed: ``model.last_bn``, or
            ``model.norm=none`` to name the value that the others are compared with.
        published: Whether to look for published values.

    Returns:
        The table; every run of the frame is in one of its cells.

    Raises:
        InputError: If a key does not exist, or the value is no number.
    """
    for key in (*rows, *cols, value):
        require_key(frame, key)
    if not is_numeric_dtype(frame[value]) or is_bool_dtype(frame[value]):
        raise InputError(f"cannot average {value!r}: its values are not numbers.")
    row_of, col_of = keys_of(frame, rows), keys_of(frame, cols)
    members: dict[Place, list[int]] = {}
    for index, place in enumerate(zip(row_of, col_of, strict=True)):
        members.setdefault(place, []).append(index)
    cells = {place: average(frame.iloc[runs], value) for place, runs in members.items()}
    row_keys, col_keys, data = sort_keys(row_of), sort_keys(col_of), describe_data(frame)
    groups: Iterable[list[Place]] = [[(row, col) for col in col_keys] for row in row_keys]
    if len(col_keys) == 1:
        groups = [[(row, col_keys[0]) for row in row_keys]]
    return ResultTable(
        value=value,
        title=title if title is not None else f"{value} on {data}" if data else value,
        data=data,
        rows=tuple(rows),
        cols=tuple(cols),
        row_keys=row_keys,
        col_keys=col_keys,
        cells=cells,
        best=_best(frame, members, value, groups) if less_is_better(value) else frozenset(),
        varied=_varied(frame, (*rows, *cols), list(members.values())),
        differences=make_differences(frame, rows, cols, value, paired) if paired else None,
        published=_published(frame, members, value) if published else None,
    )


def average(runs: pd.DataFrame, value: str) -> Cell:
    """Average a value over the complete runs of one cell.

    Args:
        runs: The runs of the cell, rows of `collect`'s frame.
        value: Name of the column to average.

    Returns:
        The cell. One infinite condition number leaves no mean: the median stands in its place.
    """
    values = runs[value].to_numpy(dtype=float, na_value=float("nan"))
    complete = runs["state"].to_numpy() == "complete"
    counted = complete & ~np.isnan(values)
    missing = Counter(map(str, runs["state"][~complete]))
    missing["without value"] = int((complete & ~counted).sum())
    known = {reason: num for reason, num in sorted(missing.items()) if num}
    used, decades = values[counted], is_kappa(value)
    infinite = int(np.isinf(used).sum())
    compared = np.log10(used) if decades else used
    std = float(compared.std(ddof=1)) if used.size > 1 and not infinite else math.nan
    mean = median(used) if infinite else float(compared.mean()) if used.size else math.nan
    if decades and not infinite:
        mean = 10**mean
    mark = _mark(runs[counted], value, mean)
    bounds = int((np.isfinite(used) & ~np.isfinite(_largest(runs[counted], value))).sum())
    estimates = _num_estimates(runs[counted], value) if decades else 0
    return Cell(mean, std, len(used), known, mark, infinite, decades, bounds, estimates)


def _num_estimates(runs: pd.DataFrame, value: str) -> int:
    # A spectrum whose rank is not known was estimated.
    rank = f"{value.rpartition('_kappa_')[0]}_rank"
    return int((np.isfinite(runs[value]) & runs[rank].isna()).sum()) if rank in runs else 0


def describe_data(frame: pd.DataFrame) -> str:
    """Say on what data, and for how long, runs were trained.

    Args:
        frame: One row a run, from `collect`.

    Returns:
        ``"fashion_mnist, 8000 training images, 2000 test images, 14 px, 8 epochs"``; where runs
        differ, each value (``"all or 8000 training images"``). What is as the data set has it is
        left out. Empty where no run has a configuration.
    """
    if "dataset.name" not in frame:
        return ""
    known = frame[frame["dataset.name"].notna()]
    parts = [" and ".join(dict.fromkeys(map(str, known["dataset.name"])))]
    for key, (words, null) in SIZES.items():
        values = known[key] if key in known else pd.Series(dtype=float)
        numbers = pd.to_numeric(values, errors="coerce")  # a damaged run may hold anything
        given = [f"{value:.0f}" for value in sorted(set(numbers.dropna().astype(float)))]
        if given and null and values.isna().any():
            given.insert(0, null)
        if given:
            parts.append(words.format(" or ".join(given)))
    return ", ".join(filter(None, parts))


def less_is_better(value: str) -> bool:
    """Tell whether the lowest mean is the best: of errors, losses and condition numbers.

    Args:
        value: Name of a value.

    Returns:
        Whether it is one of those.

    >>> [less_is_better(v) for v in ("test_error", "train_loss", "fc.input_kappa_0.5", "fc.trace")]
    [True, True, True, False]
    """
    return value.endswith(("_error", "_loss")) or is_kappa(value)


def _best(
    frame: pd.DataFrame,
    members: Mapping[Place, Sequence[int]],
    value: str,
    groups: Iterable[Sequence[Place]],
) -> frozenset[Place]:
    """Return the lowest cells that their pairs tell from every other cell of their group."""
    centres = {
        place: average(frame.iloc[list(runs)], value).mean for place, runs in members.items()
    }
    best: set[Place] = set()
    for group in groups:
        means = {
            place: centres[place] for place in group if not math.isnan(centres.get(place, math.nan))
        }
        if len(means) > 1:
            lowest = min(means, key=means.__getitem__)
            others = [place for place in means if place != lowest]
            if all(_lower(frame, members[lowest], members[place], value) for place in others):
                best.add(lowest)
    return frozenset(best)


def _largest(runs: pd.DataFrame, value: str) -> NDArray[np.float64]:
    """Return what a value may be at most: infinite where a κ is known from below only."""
    values = runs[value].to_numpy(dtype=float, na_value=math.nan)
    matrix, _, p = value.rpartition("_kappa_")
    high = f"{matrix}_kappa_high_{p}"
    if not is_kappa(value) or high not in runs:
        return values
    bounded = np.isposinf(runs[high].to_numpy(dtype=float, na_value=math.nan))
    return np.where(bounded, np.inf, values)


def _lower(frame: pd.DataFrame, lowest: Sequence[int], other: Sequence[int], value: str) -> bool:
    """Return whether one cell's runs are below another's seed by seed, where seeds are unique."""
    if "seed" not in frame:
        return False
    cells = [frame.iloc[list(runs)] for runs in (lowest, other)]
    cells = [runs[runs["state"] == "complete"].set_index("seed") for runs in cells]
    # A lower bound is no number that another could be above.
    one, two = pd.Series(_largest(cells[0], value), cells[0].index), cells[1][value]
    seeds = one.index.intersection(two.index)
    if not (one.index.is_unique and two.index.is_unique) or not len(seeds):
        return False
    pairs = np.array([runs[seeds].to_numpy(dtype=float, na_value=math.nan) for runs in (one, two)])
    found = paired_difference(*map(list, np.log10(pairs) if is_kappa(value) else pairs))
    return found.excludes_zero and found.mean > 0


def _published(
    frame: pd.DataFrame, members: Mapping[Place, Sequence[int]], value: str
) -> Mapping[Place, Counterpart]:
    found = {
        place: find_published(frame.iloc[list(runs)], value) for place, runs in members.items()
    }
    return {place: one for place, one in found.items() if one}


def _varied(
    frame: pd.DataFrame, used: Sequence[str], cells: Sequence[Sequence[int]]
) -> tuple[str, ...]:
    keys = [key for key in frame.attrs.get("identity_keys", ()) if key in frame.columns]
    several = [list(runs) for runs in cells if len(runs) > 1]
    return tuple(
        key
        for key in keys
        if key not in {"seed", *used}
        and any(frame[key].iloc[runs].nunique(dropna=False) > 1 for runs in several)
    )


def _mark(runs: pd.DataFrame, value: str, mean: float) -> Mark:
    matrix, _, p = value.rpartition("_kappa_")
    limit = f"{matrix}_p_limit"
    if not math.isinf(mean) or limit not in runs:
        return measure_mark(mean)
    # One run whose rows would have sufficed makes the infinity a finding of the cell.
    limits = runs[limit][np.isinf(runs[value])]
    return kappa_mark(mean, "ok", float(p), float(limits.max(skipna=False)))
