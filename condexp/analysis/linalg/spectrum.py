"""Eigenvalues with a stated noise floor, and the measures of one spectrum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from condexp.analysis.linalg.bounds import PRODUCT_ERROR, largest_ranks
from condexp.analysis.linalg.estimate import Estimate, solve_or_estimate
from condexp.analysis.linalg.precision import exact_products
from condexp.analysis.linalg.ratios import RELATIVE_ERROR, KnownEigenvalues, ends, kappa_index
from condexp.analysis.vocabulary import SpectrumStatus

_EPS64 = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of a symmetric positive semi-definite matrix of one or more diagonal blocks.

    Each is known up to an error δ (``docs/theory.md`` §4), which bounds what products, solver, rows
    and the loss's own subtraction have rounded. Those up to the noise floor count as 0. Where
    ``status`` is ``unreliable``, ``nonfinite`` or ``incomplete`` every measure is NaN; where it is
    ``zero`` the ratios are.

    Attributes:
        blocks: ``[groups, d / groups]`` float64 on the CPU, each row descending: eigenvalues above
            the noise floor, and zeros.
        noise_floor: δ of the smallest eigenvalues, in units of the eigenvalues.
        status: Reason why the numbers cannot be believed, or ``ok``.
        dtype: Working precision of the matrix's products.
        num_rows: Rows the matrix was averaged over; its rank can't exceed them in any block.
        solved: The eigenvalues as they were computed, those under the floor too; None: ``blocks``.
        max_ranks: Number of eigenvalues of each block that are not 0 exactly, whatever the rounding
            (more features than rows, dead and duplicated units); None: all.
        relative: δ that grows with an eigenvalue, in its units.
        blur: Error of the singular values, whose squares are the eigenvalues.
        rows_decide: Whether the rows' precision, and not that of the products, sets the floor.
        estimates: Of a matrix too wide to be solved, of each block: ``blocks`` then holds the
            largest eigenvalues, and NaN; None for any other.

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
    solved: Tensor | None = None
    max_ranks: tuple[int, ...] | None = None
    relative: float = 0.0
    blur: float = 0.0
    rows_decide: bool = False
    estimates: tuple[Estimate, ...] | None = None

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
        scale: float = 1.0,
        centered: bool = False,
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
            scale: Number by which the matrix and its eigenvalues are to be multiplied.
            centered: Whether the rows' mean was taken off, which costs a rank.

        Returns:
            The spectrum, of length d.
        """
        square = (matrix[None] if matrix.ndim == 2 else matrix).detach().cpu()
        side, length = square.shape[-1], length or square.shape[-1]
        found, estimates = (
            (eigenvalues, None) if eigenvalues is not None else solve_or_estimate(square)
        )
        values = found.numpy()  # NumPy's calls cost less than torch's
        total = float(values.sum())
        if math.isnan(total):
            is_finite = math.isfinite(float(square.double().sum()))
            status = SpectrumStatus.UNRELIABLE if is_finite else SpectrumStatus.NONFINITE
            return cls._unknown(len(values), length, math.nan, status, dtype, num_rows)
        largest = max(float(values[:, 0].max()), 0.0) * scale
        eps, row_eps = torch.finfo(dtype).eps, torch.finfo(row_dtype).eps
        row_noise = 4 * row_eps**2
        diagonals = square.numpy().diagonal(axis1=-2, axis2=-1)
        floor = PRODUCT_ERROR * eps * math.sqrt(side) * max(float(diagonals.max()), 0.0) * scale
        rows_decide = row_noise * largest > floor
        floor += largest * ((side + 4) * _EPS64 + row_noise)
        floor += mean_square * row_noise + cancelled * side * _EPS64
        if float(values[:, -1].min()) * scale < -floor:
            status = SpectrumStatus.UNRELIABLE
            return cls._unknown(len(values), length, floor, status, dtype, num_rows)
        solved = np.zeros((len(values), length))
        solved[:, :side] = np.maximum(values, 0.0) * scale
        counts = solved > floor
        counted, ranks = np.where(counts, solved, 0.0), counts.sum(1)
        most = min(side, num_rows - centered) if length > side or centered else side
        spectrum = cls(
            torch.from_numpy(counted),
            floor,
            SpectrumStatus.OK if ranks.any() else SpectrumStatus.ZERO,
            dtype,
            num_rows,
            torch.from_numpy(solved),
            tuple(
                min(most, rank, max(num_rows - centered, 0))
                for rank in largest_ranks(square, diagonals, ranks, dtype)
            ),
            RELATIVE_ERROR * eps,
            # Rows err by eps of their entries, in directions of their own.
            row_eps * math.sqrt(max(total, 0.0) * scale / values.size),
            rows_decide,
        )
        return spectrum if estimates is None else spectrum._estimated(estimates, scale)

    def _estimated(self, estimates: Sequence[Estimate], scale: float) -> "Spectrum":
        """Return the spectrum of which only this much is known."""
        if self.status is not SpectrumStatus.OK:
            return self
        blocks = torch.full_like(self.blocks, math.nan)
        for own, counted, found in zip(blocks, self.blocks, estimates, strict=True):
            own[: len(found.top)] = counted[: len(found.top)]
            own[len(found.low) :] = 0.0
        scaled = tuple(each.scaled(scale, blocks.shape[1]) for each in estimates)
        return replace(self, blocks=blocks, status=SpectrumStatus.ESTIMATED, estimates=scaled)

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

    def with_floor_raised(self, by: float, *, hides_zeros: bool = False) -> "Spectrum":
        """Return the spectrum with a noise floor that is higher by the square of an error.

        Args:
            by: Square of a further error of the singular values.
            hides_zeros: Whether units that look dead may have lost numbers that were too small.

        Returns:
            The spectrum.
        """
        if not self.status.has_ratios or not by > 0:
            return self
        floor = self.noise_floor + by
        counted = torch.where(self.blocks <= floor, 0.0, self.blocks)
        status = self.status if bool((counted > 0).any()) else SpectrumStatus.ZERO
        raised = replace(
            self,
            blocks=counted,
            noise_floor=floor,
            status=status,
            blur=math.sqrt(self.blur**2 + by),
        )
        if not hides_zeros:
            return raised
        most = min(self.num_rows, self.blocks.shape[1])
        return replace(raised, max_ranks=(most,) * len(self.blocks))

    def with_null_vector(self) -> "Spectrum":
        """Return the spectrum of a matrix that has one null vector in exact arithmetic."""
        if len(self.blocks) > 1:
            return self
        side = self.blocks.shape[1]
        rank = min(side - 1, *(self.max_ranks or (side,)))
        counted = self.blocks.clone()
        counted[0, rank:] = 0.0
        status = self.status
        if status.has_ratios and not bool((counted > 0).any()):
            status = SpectrumStatus.ZERO
        return replace(self, blocks=counted, max_ranks=(rank,), status=status)

    @classmethod
    def _unknown(
        cls,
        groups: int,
        length: int,
        noise_floor: float,
        status: SpectrumStatus,
        dtype: torch.dtype,
        num_rows: int,
    ) -> "Spectrum":
        blocks = torch.full((groups, length), math.nan, dtype=torch.float64)
        return cls(blocks, noise_floor, status, dtype, num_rows)

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
        status = SpectrumStatus.INCOMPLETE
        return cls._unknown(1, max(1, length), math.nan, status, dtype, num_rows)

    def as_incomplete(self) -> "Spectrum":
        """Return a spectrum of the same length and blocks that says the same."""
        unknown = torch.full_like(self.blocks, math.nan)
        return replace(self, blocks=unknown, noise_floor=math.nan, status=SpectrumStatus.INCOMPLETE)

    @cached_property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of all blocks, ``[d]``, descending, zeros included.

        NaN where they are not known: of a matrix that is too wide, all but the largest.
        """
        if len(self.blocks) == 1:
            return self.blocks[0]
        values = self.blocks.flatten().sort(descending=True).values
        if self.estimates is None:
            return values
        # Those of another block that are not known may come after any block's last known one.
        last = max(float(found.top[-1]) for found in self.estimates)
        known = values[values >= last]
        return torch.cat([known, torch.full((len(self) - len(known),), math.nan)]).double()

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
        if self.estimates is not None:
            return float(self.block_traces.sum())
        return float(self.eigenvalues.sum())

    @cached_property
    def block_traces(self) -> Tensor:
        """The sum of each block's eigenvalues, ``[groups]``."""
        if self.estimates is not None and self.status.has_ratios:
            return torch.tensor([each.trace for each in self.estimates], dtype=torch.float64)
        return self.blocks.sum(1)

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
        return self.trace / self.lambda_max if self.status.has_ratios else math.nan

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of each eigenvalue, each in the shape of ``blocks``.

        λ is in [(√(λ̂ − δ) − η)², (√(λ̂ + δ) + η)²] with δ = noise of small eigenvalues + relative·λ̂
        and the blur η; an exact 0 is 0.
        """
        solved = self.computed.numpy()
        error = self.noise_floor - self.blur**2 + self.relative * solved
        low, high = ends(solved, error, self.blur)
        if self.estimates is not None:
            least = torch.stack([each.low for each in self.estimates]).numpy()
            most = torch.stack([each.high for each in self.estimates]).numpy()
            low, high = ends(least, error, self.blur)[0], ends(most, error, self.blur)[1]
        for block, rank in enumerate(self.max_ranks or ()):
            low[block, rank:] = high[block, rank:] = 0.0
        return torch.from_numpy(low), torch.from_numpy(high)

    @property
    def computed(self) -> Tensor:
        """``[groups, d / groups]`` descending: what was computed, under the noise floor too."""
        return self.blocks if self.solved is None else self.solved

    @cached_property
    def _known(self) -> KnownEigenvalues:
        values = self.blocks if self.estimates is None else self.computed
        parts = [values.numpy() for values in (values, *self.bounds)]
        if len(self.blocks) == 1:
            return KnownEigenvalues(*(values[0] for values in parts))
        return KnownEigenvalues(*(np.sort(values, axis=None)[::-1] for values in parts))

    def kappa(self, p: float = 1.0) -> float:
        """Return the generalised condition number κ_p = λ_1 / λ_{k(p)} (Huang et al. 2020).

        Args:
            p: Fraction of the spectrum, 0 < p ≤ 1; 1 gives the classical condition number.

        Returns:
            The ratio; +inf where λ_{k(p)} is 0 exactly; where it cannot be told from 0, the least
            that κ_p can be (the low end of :meth:`kappa_interval`, whose high end is +inf); NaN
            where the status is not ``ok``.
        """
        return self._kappa(p)[0]

    def kappa_interval(self, p: float = 1.0) -> tuple[float, float]:
        """Return the interval in which κ_p is: (λ_1 − δ) / (λ_k + δ) to (λ_1 + δ) / (λ_k − δ).

        Args:
            p: Fraction of the spectrum, 0 < p ≤ 1.

        Returns:
            Its ends: the high one +inf where λ_k cannot be told from 0, both where it is 0 exactly,
            NaN where the status is not ``ok``.
        """
        return self._kappa(p)[1:]

    def _kappa(self, p: float) -> tuple[float, float, float]:
        if p not in self._kappas:
            kappa_index(p, len(self))  # refuses what is no fraction, whatever the status
            known = self.status.has_ratios
            self._kappas[p] = self._known.kappa(p) if known else (math.nan, math.nan, math.nan)
        return self._kappas[p]

    @cached_property
    def _kappas(self) -> dict[float, tuple[float, float, float]]:
        return {}  # by p, as they are asked for


def entropy(values: Tensor) -> Tensor:
    """Return the entropy −Σ q ln q of q = values / Σ values, with 0·ln 0 = 0.

    Args:
        values: ``[..., n]``, non-negative.

    Returns:
        ``[...]`` in nats; NaN where all values are 0.
    """
    shares = values / values.sum(-1, keepdim=True)
    return -torch.xlogy(shares, shares).sum(-1)
