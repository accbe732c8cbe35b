"""Paired differences: what a change did, seed by seed, with a 95 % interval of its mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences with its 95 % t-interval.

    Attributes:
        num: Number n of pairs whose two members are finite.
        mean: Their mean difference; NaN where there is no pair.
        low: Lower end of the interval; NaN below two pairs.
        high: Upper end of the interval; NaN below two pairs.
    """

    num: int
    mean: float
    low: float
    high: float


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Average ``second - first`` over pairs, with the interval of Student's t-distribution.

    With differences d_1 … d_n, their mean m and standard deviation s (with n − 1), the interval is
    m ± t_{0.975, n−1} · s/√n.

    Args:
        first: One member of each pair, in any unit.
        second: The other, in the same order and unit.

    Returns:
        The mean difference; a pair with a member that is not finite is left out of it, so ``num``
        tells the caller how many those are.

    Raises:
        ValueError: If the two are not equally long.

    >>> paired_difference([10.0, 12.0, math.inf], [9.0, 10.0, 8.0]).mean
    -1.5
    """
    pairs = np.array(list(zip(first, second, strict=True)), dtype=float).reshape(-1, 2)
    finite = pairs[np.isfinite(pairs).all(axis=1)]
    differences = finite[:, 1] - finite[:, 0]
    num = len(differences)
    if num < 2:
        only = float(differences[0]) if num else math.nan
        return PairedDifference(num, only, math.nan, math.nan)
    mean = float(differences.mean())
    half = float(stdtrit(num - 1, (1 + LEVEL) / 2) * differences.std(ddof=1) / math.sqrt(num))
    return PairedDifference(num, mean, mean - half, mean + half)
