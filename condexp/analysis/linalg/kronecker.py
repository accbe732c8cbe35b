"""Measures of A ⊗ B from the spectra of A and B: its 10⁷ eigenvalues are never formed."""

import math
import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condexp.analysis.linalg.precision import coarser
from condexp.analysis.linalg.spectrum import Spectrum, entropy, kappa_index
from condexp.analysis.vocabulary import SpectrumStatus

# Each is the state of the product if it is that of a factor, the first that applies.
_WORST_FIRST = (
    SpectrumStatus.INCOMPLETE,
    SpectrumStatus.NONFINITE,
    SpectrumStatus.UNRELIABLE,
    SpectrumStatus.ZERO,
)

_SORTED_UP_TO = 1 << 17

# A quotient and a product round by eps / 2 each; twice that is certain.
_ROUNDING = 2 * torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class KroneckerSpectrum:
    """Spectrum of A ⊗ B, or of the diagonal blocks A_g ⊗ B_g of a grouped layer.

    The eigenvalues are the products a_i·b_j of the factors' counted eigenvalues, so the factors'
    order does not matter. For K-FAC A = Σ_x and B = Σ_∇h (Martens & Grosse 2015, section 3).

    Attributes:
        a: Spectrum of A.
        b: Spectrum of B, with as many blocks as A.

    >>> diagonals = torch.tensor([4.0, 1.0]), torch.tensor([3.0, 2.0])
    >>> a, b = (Spectrum.from_factor(d.sqrt().diag(), dtype=torch.float32) for d in diagonals)
    >>> kfac = KroneckerSpectrum(a, b)
    >>> len(kfac), round(kfac.lambda_max, 5), round(kfac.kappa(0.5), 5), round(kfac.kappa(1.0), 5)
    (4, 12.0, 1.5, 6.0)
    """

    a: Spectrum
    b: Spectrum

    def __len__(self) -> int:
        return self.a.blocks.numel() * self.b.blocks.shape[1]

    @cached_property
    def status(self) -> SpectrumStatus:
        """The worse of the factors' states: incomplete, nonfinite, unreliable, zero, ok."""
        for status in _WORST_FIRST:
            if status in {self.a.status, self.b.status}:
                return status
        # Every block may have one dead factor though neither spectrum is zero as a whole.
        return SpectrumStatus.OK if self.lambda_max > 0 else SpectrumStatus.ZERO

    @cached_property
    def dtype(self) -> torch.dtype:
        """The coarser of the factors' working precisions."""
        return coarser(self.a.dtype, self.b.dtype)

    @cached_property
    def noise_floor(self) -> float:
        """First-order bound on a product's error: the factors' floors times the other's λ_1.

        The rank follows from the factors' ranks, so smaller products may count as eigenvalues.
        """
        return self.a.noise_floor * self.b.lambda_max + self.b.noise_floor * self.a.lambda_max

    @cached_property
    def lambda_max(self) -> float:
        """The largest eigenvalue: λ_1(A)·λ_1(B)."""
        return float((self.a.blocks[:, 0] * self.b.blocks[:, 0]).max())

    @cached_property
    def lambda_min(self) -> float:
        """The smallest eigenvalue, 0 where a factor's counts as 0."""
        return float((self.a.blocks[:, -1] * self.b.blocks[:, -1]).min())

    @cached_property
    def trace(self) -> float:
        """The sum of the eigenvalues, the product of the factors' traces."""
        return float(self._block_traces.sum())

    @cached_property
    def rank(self) -> float:
        """The product of the factors' ranks (a float, as it may be NaN)."""
        known = self.status in {SpectrumStatus.OK, SpectrumStatus.ZERO}
        return float(self._block_ranks.sum()) if known else math.nan

    @cached_property
    def kappa_rank(self) -> float:
        """λ_1 / λ_rank: the condition number on the range."""
        if self.status is not SpectrumStatus.OK:
            return math.nan
        # A block with a dead factor contributes no eigenvalue, only zeros.
        smallest = _last_counted(self.a.blocks) * _last_counted(self.b.blocks)
        return self._ratio(float(smallest[self._block_ranks > 0].min()))

    @cached_property
    def effective_rank(self) -> float:
        """exp(entropy), where the entropy of a product is the sum of its factors' entropies.

        A union of blocks with shares w_g of the trace has Σ w_g·H_g plus the entropy of w.
        """
        if self.status is not SpectrumStatus.OK:
            return math.nan
        traces = self._block_traces
        alive = traces > 0
        shares = traces[alive] / traces.sum()
        within = entropy(self.a.blocks[alive]) + entropy(self.b.blocks[alive])
        return math.exp(float((shares * within).sum() + entropy(shares)))

    @cached_property
    def stable_rank(self) -> float:
        """Σλ / λ_1."""
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
        """Return κ_p = λ_1 / λ_{k(p)} over all products, exact, without forming them.

        Args:
            p: Fraction of the d_in·d_out eigenvalues, 0 < p ≤ 1.

        Returns:
            The ratio; +inf past the rank; NaN where the status is not ``ok``.
        """
        if p not in self._kappas:
            self._kappas[p] = self._kappa(kappa_index(p, len(self)))
        return self._kappas[p]

    @cached_property
    def _kappas(self) -> dict[float, float]:
        return {}  # by p, as they are asked for

    def _kappa(self, index: int) -> float:
        if self.status is not SpectrumStatus.OK:
            return math.nan
        if index > self.rank:
            return math.inf
        if self._sorted_products is not None:
            return self._ratio(float(self._sorted_products[-index]))
        return self._ratio(select_product(self.a.blocks, self.b.blocks, index))

    @cached_property
    def _sorted_products(self) -> NDArray[np.float64] | None:
        # A small product is sorted once for every p, which is quicker than selecting for each.
        if len(self) > _SORTED_UP_TO:
            return None
        products = self.a.blocks[:, :, None] * self.b.blocks[:, None, :]
        return np.sort(products.flatten().numpy())

    def _ratio(self, value: float) -> float:
        # A product of tiny counted eigenvalues can still underflow to 0.
        return self.lambda_max / value if value > 0 else math.inf

    @cached_property
    def _block_ranks(self) -> Tensor:
        return (self.a.blocks > 0).sum(1) * (self.b.blocks > 0).sum(1)

    @cached_property
    def _block_traces(self) -> Tensor:
        return self.a.blocks.sum(1) * self.b.blocks.sum(1)


def select_product(a: Tensor, b: Tensor, index: int) -> float:
    """Return the ``index``-th largest of all products a[g, i]·b[g, j], without forming them.

    Bisection over the bits of float64 for the largest value that at least ``index`` products reach:
    at most 63 counts of O(m log n) each, ties and all.

    Args:
        a: ``[groups, m]`` float64 on the CPU, non-negative, each row descending.
        b: ``[groups, n]`` likewise.
        index: 1 ≤ index ≤ groups·m·n.

    Returns:
        The product, rounded as ``a[g, i] * b[g, j]`` is (exact unless it is subnormal).

    >>> select_product(torch.tensor([[4.0, 1.0]]), torch.tensor([[3.0, 2.0]]), 3)
    3.0
    """
    # One search through the longer factor for each value of the shorter one.
    short, long = sorted((a.double(), b.double()), key=lambda factor: factor.shape[1])
    ascending = long.flip(1).contiguous()
    low, high = 0, _bits(float((short[:, 0] * long[:, 0]).max())) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if _count_reaching(_value(middle), short, long, ascending) >= index:
            low = middle
        else:
            high = middle
    return _value(low)


def _last_counted(blocks: Tensor) -> Tensor:
    """Return the smallest positive value of each block, 0 where there is none."""
    index = ((blocks > 0).sum(1, keepdim=True) - 1).clamp(min=0)
    return blocks.gather(1, index).squeeze(1)


def _count_reaching(value: float, short: Tensor, long: Tensor, ascending: Tensor) -> int:
    """Return the number of rounded products short[g, i]·long[g, j] ≥ value."""
    num = long.shape[1]
    needed = value / short
    # Rounding decides between these two counts; they differ only near a tie.
    certain = num - torch.searchsorted(ascending, needed * (1 + _ROUNDING))
    possible = num - torch.searchsorted(ascending, needed * (1 - _ROUNDING))
    while bool((certain < possible).any()):
        middle = (certain + possible) // 2
        product = short * long.gather(1, middle.clamp(max=num - 1))
        reaches = (product >= value) & (middle < possible)
        certain = torch.where(reaches, middle + 1, certain)
        possible = torch.where(reaches, possible, middle)
    return int(certain.sum())


def _bits(value: float) -> int:
    """Return the bits of a non-negative float64 as an integer; their order is the values' order."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits)


def _value(bits: int) -> float:
    (value,) = struct.unpack("<d", struct.pack("<q", bits))
    return float(value)
