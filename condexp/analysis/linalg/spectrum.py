"""Eigenvalues with a stated noise floor, and the measures of one spectrum."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from condexp.analysis.linalg.eigen import descending_eigenvalues
from condexp.analysis.linalg.precision import exact_products
from condexp.analysis.vocabulary import SpectrumStatus
from condexp.errors import InputError


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of a symmetric positive semi-definite matrix of one or more diagonal blocks.

    Eigenvalues under the noise floor λ_1·(4·eps(dtype) + n·eps(float64) + 4·eps(row_dtype)²) count
    as 0. Where ``status`` is ``unreliable`` or ``nonfinite`` every measure is NaN; where it is
    ``zero`` the ratios are.

    Attributes:
        blocks: ``[groups, d / groups]`` float64 on the CPU, each row descending.
        noise_floor: In units of the eigenvalues.
        status: Reason why the numbers cannot be believed, or ``ok``.
        dtype: Working precision of the matrix's products.
        num_rows: Rows the matrix was averaged over; its rank can't exceed them in any block.

    >>> spectrum = Spectrum.from_matrix(
    ...     torch.diag(torch.tensor([4.0, 1.0, 0.0])), dtype=torch.float64, num_rows=10
    ... )
    >>> spectrum.lambda_max, spectrum.rank, spectrum.kappa(0.5), spectrum.kappa(1.0)
    (4.0, 2.0, 4.0, inf)
    """

    blocks: Tensor
    noise_floor: float
    status: SpectrumStatus
    dtype: torch.dtype
    num_rows: int

    @classmethod
    def from_matrix(
        cls,
        matrix: Tensor,
        *,
        dtype: torch.dtype,
        num_rows: int,
        row_dtype: torch.dtype = torch.float64,
        mean_square: float = 0.0,
        cancelled: float = 0.0,
        length: int | None = None,
        eigenvalues: Tensor | None = None,
    ) -> "Spectrum":
        """Compute the spectrum of a symmetric matrix, in float64 on the CPU.

        Args:
            matrix: ``[d, d]``, or ``[groups, d / groups, d / groups]`` for diagonal blocks.
            dtype: Working precision of the products the matrix was made of.
            num_rows: Rows the matrix was averaged over.
            row_dtype: Precision the rows were computed in. Where they are 0 in theory (the null
                vector of a softmax's gradients) their rounding leaves an eigenvalue of up to
                0.3·eps(row_dtype)²·λ_1 (measured), not 0.
            mean_square: Part that centring took away, as an eigenvalue: it was rounded too.
            cancelled: Part that was added and subtracted again in float64, as an eigenvalue.
            length: Eigenvalues of a block, if ``matrix`` is a dual of fewer; the rest are 0.
            eigenvalues: Eigenvalues of the matrix, if they are known.

        Returns:
            The spectrum, of length d.
        """
        square = matrix[None] if matrix.ndim == 2 else matrix
        side, length = square.shape[-1], length or square.shape[-1]
        # Off the device first: MPS has no float64.
        solved = descending_eigenvalues(square.cpu()) if eigenvalues is None else eigenvalues
        values = solved.numpy()  # NumPy's calls cost less than torch's
        unknown = torch.full((len(values), length), math.nan, dtype=torch.float64)
        if np.isnan(values).any() and not math.isfinite(float(square.cpu().double().sum())):
            return cls(unknown, math.nan, SpectrumStatus.NONFINITE, dtype, num_rows)
        largest = max(float(values.max()), 0.0)
        eps, eps64 = torch.finfo(dtype).eps, torch.finfo(torch.float64).eps
        row_noise = 4 * torch.finfo(row_dtype).eps ** 2
        floor = largest * (4 * eps + side * eps64 + row_noise)
        floor += mean_square * row_noise + cancelled * side * eps64
        if not float(values.min()) >= -floor:  # NaN too: no solver converged
            return cls(unknown, floor, SpectrumStatus.UNRELIABLE, dtype, num_rows)
        counted = np.zeros((len(values), length))
        counted[:, :side] = np.where(values > floor, values, 0.0)
        status = SpectrumStatus.OK if counted.any() else SpectrumStatus.ZERO
        return cls(torch.from_numpy(counted), floor, status, dtype, num_rows)

    @classmethod
    def from_factor(
        cls, factor: Tensor, *, dtype: torch.dtype, row_dtype: torch.dtype = torch.float64
    ) -> "Spectrum":
        """Compute the eigenvalues of F Fᵀ: the squared singular values of F.

        The product is taken on the smaller side, whose eigenvalues are the same but for zeros.

        Args:
            factor: ``[m, n]``, or ``[groups, m, n]`` for diagonal blocks.
            dtype: Precision that sets the noise floor; the product itself is taken in float64.
            row_dtype: Precision the factor was computed in; float64 where it is exact as it is.

        Returns:
            The spectrum, of length groups·min(m, n); its ``num_rows`` is n.
        """
        wide = factor.detach().cpu().double()
        num_rows = wide.shape[-1]
        wide = wide if wide.shape[-2] <= num_rows else wide.mT
        with exact_products(wide.device):
            product = wide @ wide.mT
        return cls.from_matrix(product, dtype=dtype, num_rows=num_rows, row_dtype=row_dtype)

    def with_floor_raised(self, by: float) -> "Spectrum":
        """Return the spectrum with a noise floor that is higher by this amount."""
        if self.status is not SpectrumStatus.OK or not by > 0:
            return self
        floor = self.noise_floor + by
        counted = torch.where(self.blocks > floor, self.blocks, 0.0)
        status = SpectrumStatus.OK if bool(counted.any()) else SpectrumStatus.ZERO
        return replace(self, blocks=counted, noise_floor=floor, status=status)

    @classmethod
    def of_incomplete(cls, length: int, num_rows: int, dtype: torch.dtype) -> "Spectrum":
        """Return a spectrum of NaN that says that its matrix lacks something.

        Args:
            length: Number of eigenvalues.
            num_rows: Rows that the matrix was averaged over.
            dtype: Working precision of its products.

        Returns:
            The spectrum, of status ``incomplete``.
        """
        unknown = torch.full((1, max(1, length)), math.nan, dtype=torch.float64)
        return cls(unknown, math.nan, SpectrumStatus.INCOMPLETE, dtype, num_rows)

    def as_incomplete(self) -> "Spectrum":
        """Return a spectrum of the same length and blocks that says the same."""
        unknown = torch.full_like(self.blocks, math.nan)
        return replace(self, blocks=unknown, noise_floor=math.nan, status=SpectrumStatus.INCOMPLETE)

    @cached_property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of all blocks, ``[d]``, descending, zeros included."""
        if len(self.blocks) == 1:
            return self.blocks[0]
        return self.blocks.flatten().sort(descending=True).values

    def __len__(self) -> int:
        return self.blocks.numel()

    @cached_property
    def lambda_max(self) -> float:
        """The largest eigenvalue λ_1."""
        return float(self.blocks[:, 0].max())

    @cached_property
    def lambda_min(self) -> float:
        """The smallest eigenvalue λ_d, 0 where it is under the noise floor."""
        return float(self.blocks[:, -1].min())

    @cached_property
    def trace(self) -> float:
        """The sum of the eigenvalues."""
        return float(self.eigenvalues.sum())

    @cached_property
    def rank(self) -> float:
        """The number of eigenvalues above the noise floor (a float, as it may be NaN)."""
        known = self.status in {SpectrumStatus.OK, SpectrumStatus.ZERO}
        return float((self.eigenvalues > 0).sum()) if known else math.nan

    @cached_property
    def kappa_rank(self) -> float:
        """λ_1 / λ_rank: the condition number on the matrix's range."""
        if self.status is not SpectrumStatus.OK:
            return math.nan
        return self.lambda_max / float(self.eigenvalues[int(self.rank) - 1])

    @cached_property
    def effective_rank(self) -> float:
        """exp(−Σ q ln q) with q = λ / Σλ (Roy & Vetterli 2007, section 2)."""
        if self.status is not SpectrumStatus.OK:
            return math.nan
        return math.exp(float(entropy(self.eigenvalues)))

    @cached_property
    def stable_rank(self) -> float:
        """Σλ / λ_1: the stable rank of the data matrix."""
        return self.trace / self.lambda_max if self.status is SpectrumStatus.OK else math.nan

    def kappa_interval(self, p: float = 1.0) -> tuple[float, float]:
        """Return the ends of the interval of κ_p: both κ_p itself, until spectra know better.

        Args:
            p: Fraction of the spectrum, 0 < p ≤ 1.

        Returns:
            The low and the high end.
        """
        return self.kappa(p), self.kappa(p)

    def kappa(self, p: float = 1.0) -> float:
        """Return the generalised condition number κ_p = λ_1 / λ_{k(p)} (Huang et al. 2020).

        Args:
            p: Fraction of the spectrum, 0 < p ≤ 1; 1 gives the classical condition number.

        Returns:
            The ratio; +inf where λ_{k(p)} counts as 0; NaN where the status is not ``ok``.
        """
        value = float(self.eigenvalues[kappa_index(p, len(self)) - 1])
        if self.status is not SpectrumStatus.OK:
            return math.nan
        return self.lambda_max / value if value > 0 else math.inf


def entropy(values: Tensor) -> Tensor:
    """Return the entropy −Σ q ln q of q = values / Σ values, with 0·ln 0 = 0.

    Args:
        values: ``[..., n]``, non-negative.

    Returns:
        ``[...]`` in nats; NaN where all values are 0.
    """
    shares = values / values.sum(-1, keepdim=True)
    return -torch.xlogy(shares, shares).sum(-1)


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
