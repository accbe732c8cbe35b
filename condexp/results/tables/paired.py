"""Paired differences: the t-interval of their mean, and ranks where one of them is infinite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
POWER, MOST_PAIRS = 0.9, 1000  # of a plan: probability to find what is there, and the search's end
EXACT_PAIRS = 13  # up to here all 2^n signs are tried; scipy's normal approximation takes over


@dataclass(frozen=True)
class PairedDifference:
    """The centre of paired differences, and how well it is known.

    Attributes:
        num: Number n of pairs that have both numbers.
        mean: Their mean difference; NaN where there is no pair. Where one of them is infinite,
            their median.
        low: Lower end of the 95 % t-interval; NaN below two pairs, or where one is infinite.
        high: Upper end of the interval, likewise.
        num_infinite: Number of pairs whose difference is infinite.
        p_value: Two-sided p-value of Wilcoxon's signed-rank test, of pairs one of which is
            infinite; else NaN.
    """

    num: int
    mean: float
    low: float
    high: float
    num_infinite: int = 0
    p_value: float = math.nan

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval, or the ranks where there is none, tell the difference from 0."""
        if self.num_infinite:
            return self.p_value <= 1 - LEVEL
        return self.low > 0 or self.high < 0


def differences(first: Sequence[float], second: Sequence[float]) -> NDArray[np.float64]:
    """Subtract pairwise, +∞ being the largest number there is.

    Args:
        first: One member of each pair, in any unit.
        second: The other, in the same order and unit.

    Returns:
        ``second - first`` of the pairs without a NaN; 0 where both are the same infinity.

    Raises:
        ValueError: If the two are not equally long.

    >>> differences([1.0, 2.0, math.inf, math.nan], [3.0, math.inf, math.inf, 1.0]).tolist()
    [2.0, inf, 0.0]
    """
    pairs = np.array(list(zip(first, second, strict=True)), dtype=float).reshape(-1, 2)
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    same = pairs[:, 0] == pairs[:, 1]
    with np.errstate(invalid="ignore"):
        return np.where(same, 0.0, pairs[:, 1] - pairs[:, 0])


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Average ``second - first`` over pairs, with the interval of Student's t-distribution.

    With differences d_1 … d_n, their mean m and standard deviation s (with n − 1), the interval is
    m ± t_{0.975, n−1} · s/√n. ``scipy.stats.ttest_1samp`` has the same ends to 1e-14, but takes
    half a second longer to import than the quantile alone, and warns where differences are equal.
    Where a difference is infinite there is no mean: their median and the signed ranks speak.

    Args:
        first: One member of each pair, in any unit.
        second: The other, in the same order and unit.

    Returns:
        The difference; a pair with a NaN is left out of it, so ``num`` tells the caller how many
        those are.

    Raises:
        ValueError: If the two are not equally long.

    >>> paired_difference([10.0, 12.0, math.nan], [9.0, 10.0, 8.0]).mean
    -1.5
    >>> paired_difference([math.inf, math.inf, 3.0], [1.0, 1.0, 2.0]).mean
    -inf
    """
    found = differences(first, second)
    num, infinite = len(found), int(np.isinf(found).sum())
    if infinite:
        p_value = signed_rank_p(found)
        return PairedDifference(num, median(found), math.nan, math.nan, infinite, p_value)
    if num < 2:
        only = float(found[0]) if num else math.nan
        return PairedDifference(num, only, math.nan, math.nan)
    from scipy.special import stdtrit  # takes a quarter of a second

    mean = float(found.mean())
    half = float(stdtrit(num - 1, (1 + LEVEL) / 2) * found.std(ddof=1) / math.sqrt(num))
    return PairedDifference(num, mean, mean - half, mean + half)


def median(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Find the median, infinities being the largest and smallest numbers there are.

    Args:
        values: Numbers without a NaN.

    Returns:
        The median; NaN where there are none, or the two in the middle are both infinities.
    """
    if not len(values):
        return math.nan
    with np.errstate(invalid="ignore"):
        return float(np.median(np.asarray(values, dtype=float)))


def signed_rank_p(
    found: Sequence[float] | NDArray[np.float64], above: float | None = None
) -> float:
    """Test by Wilcoxon's signed ranks whether differences lie around a number.

    Infinite differences have the largest rank, all of them the same. Up to thirteen pairs the
    p-value is exact, over all signs.

    Args:
        found: The differences, without a NaN.
        above: The number that they are to be above, one-sided; where None, whether they lie around
            0, two-sided.

    Returns:
        The p-value; 1 where there is no difference, or one pair only.

    >>> signed_rank_p([math.inf, math.inf, 2.0, 1.0, 3.0], above=0.5)
    0.03125
    """
    values = np.asarray(found, dtype=float) - (above or 0.0)
    if len(values) < 2 or not values.any():
        return 1.0
    from scipy import stats  # takes half a second

    finite = np.abs(values[np.isfinite(values)])
    largest = 2 * finite.max(initial=1.0)
    ranked = np.where(np.isinf(values), np.copysign(largest, values), values)
    exact = len(ranked) <= EXACT_PAIRS
    test = stats.wilcoxon(
        ranked,
        zero_method="zsplit",
        alternative="two-sided" if above is None else "greater",
        method=stats.PermutationMethod(n_resamples=2 ** (EXACT_PAIRS + 1)) if exact else "auto",
    )
    return float(test.pvalue)


def pairs_needed(mean: float, deviation: float, power: float = POWER) -> float:
    """Estimate how many pairs tell a mean difference from 0, before they are measured.

    The smallest n ≥ 2 for which the 95 % t-interval of n differences excludes 0 with the given
    probability, if they are drawn from a normal distribution of this mean and deviation: by the
    noncentral t-distribution with n − 1 degrees of freedom and the parameter √n · mean/deviation.

    Args:
        mean: Mean difference expected, such as that of a pilot.
        deviation: Standard deviation expected of the differences.
        power: The probability.

    Returns:
        n; infinite where more than a thousand are needed.

    >>> pairs_needed(1.0, 1.0), pairs_needed(1.0, 2.0, power=0.8)
    (13, 34)
    """
    if deviation == 0 and mean != 0:
        return 2
    from scipy.special import nctdtr, stdtrit

    for num in range(2, MOST_PAIRS + 1):
        bound, shift = stdtrit(num - 1, (1 + LEVEL) / 2), math.sqrt(num) * abs(mean) / deviation
        if 1 - nctdtr(num - 1, shift, bound) + nctdtr(num - 1, shift, -bound) >= power:
            return num
    return math.inf
