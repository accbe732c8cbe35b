"""The k-th largest of all products of two lists of numbers: NumPy alone, none is formed."""

import struct

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

# A quotient and a product round by eps / 2 each; twice that is certain.
_ROUNDING = 2 * float(np.finfo(np.float64).eps)


class PairProducts:
    """All products a[g, i]·b[g, j], rounded as NumPy rounds them.

    Args:
        a: ``[groups, m]``, non-negative, each row descending.
        b: ``[groups, n]`` likewise.

    >>> products = PairProducts(np.array([[4.0, 1.0]]), np.array([[3.0, 2.0]]))
    >>> products.num_positive, products.num_reaching(3.0), products.largest(3), products.largest(5)
    (4, 3, 3.0, 0.0)
    """

    def __init__(self, a: Numbers, b: Numbers) -> None:
        self._blocks: list[tuple[Numbers, Numbers]] = []
        for pair in zip(a, b, strict=True):
            # One search through the longer list for each number of the shorter one.
            short, long = sorted((x[: np.count_nonzero(x)] for x in pair), key=len)
            if len(short):
                self._blocks.append((short, long[::-1].copy()))

    @property
    def num_positive(self) -> int:
        """Number of products of positive numbers."""
        return sum(len(short) * len(long) for short, long in self._blocks)

    @np.errstate(over="ignore")
    def num_reaching(self, value: float) -> int:
        """Return the number of products that are ``value`` > 0 or more, in O(m log n)."""
        return sum(_num_reaching(value, *block) for block in self._blocks)

    def largest(self, index: int) -> float:
        """Return the ``index``-th largest product.

        Bisection over the bits of float64 for the largest value that at least ``index`` products
        reach: at most 63 counts, ties and all.

        Args:
            index: From 1 on.

        Returns:
            The product, exact unless it is subnormal; 0 where there are fewer positive ones.
        """
        if index > self.num_positive:
            return 0.0
        first = max(float(short[0] * long[-1]) for short, long in self._blocks)
        low, high = 0, _bits_of(first) + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.num_reaching(_value_of(middle)) >= index:
                low = middle
            else:
                high = middle
        return _value_of(low)


def _num_reaching(value: float, short: Numbers, ascending: Numbers) -> int:
    num, needed = len(ascending), value / short
    # Rounding decides between these two counts; they differ only near a tie.
    certain = num - ascending.searchsorted(needed * (1 + _ROUNDING))
    possible = num - ascending.searchsorted(needed * (1 - _ROUNDING))
    while (certain < possible).any():
        middle = (certain + possible) // 2
        product = short * ascending[num - 1 - np.minimum(middle, num - 1)]
        reaches = (product >= value) & (middle < possible)
        certain = np.where(reaches, middle + 1, certain)
        possible = np.where(reaches, possible, middle)
    return int(certain.sum())


def _bits_of(value: float) -> int:
    """Return the bits of a non-negative float64 as an integer; their order is the values' order."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _value_of(bits: int) -> float:
    """Return the float64 of these bits."""
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
