"""Condition numbers of eigenvalues that are stored: NumPy alone, so that reading needs no torch."""

import math
from dataclasses import dataclass

import numpy as np

from condexp.analysis.linalg.pair_products import Numbers, PairProducts
from condexp.errors import InputError

RELATIVE_ERROR = 2.0
"""Bound on the error that grows with the eigenvalue itself, in units of eps·λ."""

WIDE = 8192
"""Side up to which eigenvalues are solved for; of a wider matrix they are estimated."""


def is_wide(side: int) -> bool:
    """Return whether the eigenvalues of a matrix of this side are estimated.

    Args:
        side: The smaller of its number of features and its number of rows.
    """
    return side > WIDE


def interval(first_low: float, first_high: float, low: float, high: float) -> tuple[float, float]:
    """Return the ends of λ_1 / λ_k.

    Args:
        first_low: Smallest value of λ_1.
        first_high: Largest value of λ_1.
        low: Smallest value of λ_k.
        high: Largest value of λ_k.

    Returns:
        The ends, at least 1; +inf for a division by 0.
    """
    least = max(1.0, first_low / high) if high > 0 else math.inf
    return least, first_high / low if low > 0 else math.inf


def ends(values: Numbers, error: Numbers | float, blur: float) -> tuple[Numbers, Numbers]:
    """Return the smallest and the largest value of eigenvalues λ: (√(λ ∓ δ) ∓ η)².

    Args:
        values: The eigenvalues as they were computed.
        error: δ, of each.
        blur: η, the error of the singular values √λ.
    """
    low, high = np.maximum(values - error, 0.0), values + error
    if blur > 0:
        low = np.maximum(np.sqrt(low) - blur, 0.0) ** 2
        high = (np.sqrt(high) + blur) ** 2
    return low, high


def kappa_index(p: float, d: int) -> int:
    """Return the 1-based index k(p) = min(d, max(1, ⌈p·d·(1 − 10⁻¹²)⌉)) that κ_p looks at.

    The guard keeps a rounded p·d from reaching past its integer: 0.07·100 is 7.000000000000001.

    Args:
        p: Fraction of the spectrum, 0 < p ≤ 1.
        d: Length of the spectrum.

    Returns:
        The index of the eigenvalue, counted from 1 in descending order.

    Raises:
        InputError: If p is not a fraction.

    >>> kappa_index(0.07, 100), kappa_index(0.5, 5), kappa_index(1.0, 3)
    (7, 3, 3)
    """
    if not 0 < p <= 1:
        raise InputError(
            f"kappa_p = {p!r} is not a fraction of the spectrum: give 0 < p <= 1, for example 0.5"
        )
    return min(d, max(1, math.ceil(p * d * (1 - 1e-12))))


def p_limit(
    matrix: str, d_in: int, d_out: int, groups: int, num_rows: int, num_gradients: int
) -> float:
    """Share of a spectrum that this many rows can fill: κ_p is +inf by construction past it.

    The blocks of ``input`` and ``grad_output`` have rank min(rows, side) at most, ``kfac`` and
    ``ekfac`` the product of the two, ``weight`` is not limited by rows (docs/theory.md §1).

    Args:
        matrix: Name of the matrix, as in the results file.
        d_in: Side of one group's block of the input matrix.
        d_out: Number of outputs of all groups together.
        groups: Number of groups; they all have the same limit.
        num_rows: Rows that entered each block of ``input``: samples × positions × uses.
        num_gradients: The same of ``grad_output``: times the signals back-propagated.

    Returns:
        Largest rank divided by the number of eigenvalues, in (0, 1].

    >>> p_limit("input", d_in=64, d_out=10, groups=1, num_rows=32, num_gradients=32)
    0.5
    """
    side_out = d_out // groups
    fill_in, fill_out = min(1.0, num_rows / d_in), min(1.0, num_gradients / side_out)
    by_matrix = {
        "input": fill_in,
        "grad_output": fill_out,
        "kfac": fill_in * fill_out,
        "ekfac": fill_in * fill_out,
        "weight": 1.0,
        "weight_grad": min(1.0, num_rows / min(d_in, side_out)),
        "fisher": 1.0,  # its spectrum has no more eigenvalues than there are rows
    }
    return by_matrix[matrix]


@dataclass(frozen=True)
class KnownEigenvalues:
    """What a stored spectrum tells of its eigenvalues: the numbers, and where they may lie.

    Attributes:
        values: ``[n]``, descending; those under the noise floor are 0.
        low: ``[n]``, the least that each can be.
        high: ``[n]``, the most.
    """

    values: Numbers
    low: Numbers
    high: Numbers

    @classmethod
    def of(
        cls, values: Numbers, noise_floor: float, eps: float, share: float
    ) -> "KnownEigenvalues":
        """Bound eigenvalues as ``docs/theory.md`` §4 does.

        The blur of the singular values, which is not stored, is at most the root of the noise
        floor: so the bounds are those of the measurement, or a little wider.

        Args:
            values: ``[n]``, as stored.
            noise_floor: As stored.
            eps: Of the working precision.
            share: The share of them that the rows can fill: what is past it is 0 exactly.

        Returns:
            The eigenvalues.
        """
        error, blur = noise_floor + RELATIVE_ERROR * eps * values, math.sqrt(noise_floor)
        least, high = ends(values, error, blur)
        high[round(share * len(values)) :] = 0.0
        return cls(values, np.where(values > 0, least, 0.0), high)

    def kappa(self, p: float) -> tuple[float, float, float]:
        """Return κ_p and the ends of its interval.

        Args:
            p: Fraction of the spectrum, 0 < p ≤ 1.

        Returns:
            The ratio, which is its low end where the high one is infinite; both ends.
        """
        index = kappa_index(p, len(self.values)) - 1
        parts = self.values, self.low, self.high
        return _ratio(*((float(each[0]), float(each[index])) for each in parts))


def kronecker_kappa(
    a: KnownEigenvalues, b: KnownEigenvalues, p: float
) -> tuple[float, float, float]:
    """Return κ_p of a Kronecker product of two matrices of one block, and its interval's ends.

    Args:
        a: One factor's eigenvalues.
        b: The other's.
        p: Fraction of all products, 0 < p ≤ 1.

    Returns:
        As :meth:`KnownEigenvalues.kappa`.
    """
    index = kappa_index(p, len(a.values) * len(b.values))
    pairs = ((a.values, b.values), (a.low, b.low), (a.high, b.high))
    return _ratio(
        *((float(x[0] * y[0]), PairProducts(x[None], y[None]).largest(index)) for x, y in pairs)
    )


def _ratio(
    value: tuple[float, float], low: tuple[float, float], high: tuple[float, float]
) -> tuple[float, float, float]:
    least, most = interval(low[0], high[0], low[1], high[1])
    if math.isinf(most):
        return least, least, most
    return min(max(value[0] / value[1], least), most), least, most
