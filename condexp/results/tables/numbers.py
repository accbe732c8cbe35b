"""Writes numbers, and what stands where there is none."""

import math
from datetime import timedelta
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from condexp.analysis.vocabulary import SpectrumStatus

Numbers = NDArray[np.float64]
BAD_STATUSES = tuple(str(each) for each in SpectrumStatus if not each.has_ratios)


class Mark(StrEnum):
    """What a cell says in place of a number, or of it; ``NONE`` where it speaks for itself."""

    NONE = ""
    AT_LEAST = "≥"  # the number is a lower bound: the eigenvalue cannot be told from zero
    ESTIMATED = "≈"  # of a matrix too wide to be solved for: it lies within an interval
    INFINITE = "∞"  # the eigenvalue counts as zero although the rows could have filled it
    ROWS = "rows"  # it is zero by construction: fewer rows than p·d
    ZERO = "zero"
    UNRELIABLE = "unreliable"
    NONFINITE = "nonfinite"
    INCOMPLETE = "incomplete"
    MISSING = "–"


def is_kappa(value: str) -> bool:
    """Tell whether a value is a condition number κ_p, which is compared in decades.

    Args:
        value: Name of a value.

    Returns:
        Whether it is one.

    >>> [is_kappa(v) for v in ("fc.input_kappa_0.5", "input_kappa_rank", "test_error")]
    [True, True, False]
    """
    return "_kappa_" in value


def kappa_mark(value: float, status: str, p: float, limit: float, high: float = math.nan) -> Mark:
    """Say why a condition number κ_p is not a plain number.

    Args:
        value: κ_p as stored.
        status: Status of the spectrum, as in the results file.
        p: Fraction of the spectrum, in (0, 1].
        limit: Share of the spectrum that the rows can fill; NaN where it is not known.
        high: High end of the interval of κ_p; NaN where it is not known.

    Returns:
        As `kappa_marks`.
    """
    values, limits, highs = (np.array([each]) for each in (value, limit, high))
    return Mark(kappa_marks(values, np.array([status]), p, limits, highs)[0])


def kappa_marks(
    values: Numbers, status: NDArray[np.str_], p: float, limits: Numbers, highs: Numbers
) -> NDArray[np.object_]:
    """Say of condition numbers κ_p of many matrices which are no plain numbers, and why.

    Args:
        values: κ_p as stored.
        status: Statuses of the spectra, as in the results file.
        p: Fraction of the spectrum, in (0, 1].
        limits: Share of each spectrum that the rows can fill; NaN where it is not known.
        highs: High ends of the intervals of κ_p; NaN where they are not known.

    Returns:
        ``ROWS`` where κ_p is infinite because the rows are fewer than p·d, ``AT_LEAST`` where it is
        finite and known from below only, ``ESTIMATED`` where it is of an estimated spectrum, else
        the measure's mark.
    """
    numbers = np.isfinite(values)
    bounds = numbers & np.isinf(highs) & np.isin(status, ["ok", "estimated"])
    # The factor of k(p) in docs/theory.md §4: a fraction that exactly fits is not past the limit.
    past_the_rows = np.isinf(values) & (p * (1 - 1e-12) > limits)
    marks = value_marks(values, status)
    put_mark(marks, past_the_rows, Mark.ROWS)
    put_mark(marks, numbers & (status == "estimated"), Mark.ESTIMATED)
    put_mark(marks, bounds, Mark.AT_LEAST)
    return marks


def measure_mark(value: float, status: str = "ok") -> Mark:
    """Say why a measure is not a plain number.

    Args:
        value: The measure as stored.
        status: Status of the spectrum it belongs to; ``ok`` for measures of a layer.

    Returns:
        As `value_marks`.
    """
    if status in BAD_STATUSES:
        return Mark(status)
    if math.isinf(value):
        return Mark.INFINITE
    return Mark.MISSING if math.isnan(value) else Mark.NONE


def value_marks(values: Numbers, status: NDArray[np.str_] | str = "ok") -> NDArray[np.object_]:
    """Say of many measures which are no plain numbers, and why.

    Args:
        values: The measures as stored.
        status: Statuses of the spectra they belong to; ``ok`` for measures of layers.

    Returns:
        The status where it has no numbers, ``INFINITE`` or ``MISSING`` for what else is no number.
    """
    marks = np.full(values.shape, None, dtype=object)
    put_mark(marks, np.ones(values.shape, dtype=bool), Mark.NONE)
    put_mark(marks, np.isnan(values), Mark.MISSING)
    put_mark(marks, np.isinf(values), Mark.INFINITE)
    for name in BAD_STATUSES:
        put_mark(marks, np.broadcast_to(np.equal(status, name), values.shape), Mark(name))
    return marks


def put_mark(marks: NDArray[np.object_], where: NDArray[np.bool_], mark: Mark) -> None:
    """Write a mark to some places of an array, as itself: assigned alone it would become a text.

    Args:
        marks: The array, changed in place.
        where: Its places.
        mark: The mark.
    """
    marks[where] = np.array([mark], dtype=object)


def format_number(value: float, mark: Mark = Mark.NONE) -> str:
    """Write a measure in three significant digits, or its mark.

    Args:
        value: The number.
        mark: What to write in its place, or before it where it is a bound.

    Returns:
        At most eight characters for a number, of either sign; two more for a bound.

    >>> [format_number(x) for x in (0.0, 0.0123, 12.345, 4321.0, 1.5e7, 8.004e-9)]
    ['0', '0.0123', '12.3', '4321', '1.5e7', '8e-9']
    >>> format_number(4e6, Mark.AT_LEAST), format_number(-math.inf)
    ('≥ 4e6', '-∞')
    """
    if mark in {Mark.AT_LEAST, Mark.ESTIMATED}:
        return f"{mark} {format_number(value)}"
    mark = mark or measure_mark(value)
    if mark is Mark.INFINITE and value < 0:  # a logarithm or a difference
        return f"-{mark}"
    if mark:
        return str(mark)
    # The borders are where rounding would need another digit.
    if value == 0 or 1e-2 <= abs(value) < 999.5:
        return f"{value:.3g}"
    if 999.5 <= abs(value) < 99999.5:
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def format_seconds(seconds: float) -> str:
    """Write a duration as hours, minutes and seconds.

    Args:
        seconds: The duration.

    Returns:
        For example ``"0:01:23"``.
    """
    return str(timedelta(seconds=round(seconds)))
