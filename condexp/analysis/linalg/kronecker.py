"""Measures of A ⊗ B from the spectra of A and B: its 10⁷ eigenvalues are never formed."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from condexp.analysis.linalg.pair_products import Numbers, PairProducts
from condexp.analysis.linalg.precision import coarser
from condexp.analysis.linalg.ratios import interval, kappa_index
from condexp.analysis.linalg.spectrum import Spectrum, entropy
from condexp.analysis.vocabulary import SpectrumStatus

# Each is the state of the product if it is that of a factor, the first that applies.
_WORST_FIRST = (
    SpectrumStatus.INCOMPLETE,
    SpectrumStatus.NONFINITE,
    SpectrumStatus.UNRELIABLE,
    SpectrumStatus.ZERO,
)

_SORTED_UP_TO = 1 << 17

# Half of an interval's relative width at which no count is spent on a narrower one.
_NARROW = 2e-3


@dataclass(frozen=True, eq=False)
class KroneckerSpectrum:
    """Spectrum of A ⊗ B, or of the diagonal blocks A_g ⊗ B_g of a grouped layer.

    The eigenvalues are the products a_i·b_j of the factors' eigenvalues, so the factors' order does
    not matter; rank, trace and λ_1 are those of the counted ones. For
    K-FAC A = Σ_x and B = Σ_∇h (Martens & Grosse 2015, section 3).

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
        """The worse of the factors' states: incomplete, …, unreliable, zero, estimated, ok."""
        for status in _WORST_FIRST:
            if status in {self.a.status, self.b.status}:
                return status
        # Every block may have one dead factor though neither spectrum is zero as a whole.
        if not self.lambda_max > 0:
            return SpectrumStatus.ZERO
        return SpectrumStatus.ESTIMATED if self._is_estimated else SpectrumStatus.OK

    @property
    def _is_estimated(self) -> bool:
        return SpectrumStatus.ESTIMATED in {self.a.status, self.b.status}

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
        return self.trace / self.lambda_max if self.status.has_ratios else math.nan

    def kappa(self, p: float = 1.0) -> float:
        """Return κ_p = λ_1 / λ_{k(p)} over all products, exact, without forming them.

        Args:
            p: Fraction of the d_in·d_out eigenvalues, 0 < p ≤ 1.

        Returns:
            The ratio; +inf where λ_{k(p)} is 0 exactly; where it cannot be told from 0, the least
            that κ_p can be (the low end of :meth:`kappa_interval`); NaN where the status is not
            ``ok``.
        """
        low, high = self.kappa_interval(p)
        if math.isnan(low) or math.isinf(high):
            return low
        value = self._computed.largest(kappa_index(p, len(self)))
        # A product of tiny counted eigenvalues can still underflow to 0.
        return self.lambda_max / value if value > 0 else math.inf

    def kappa_interval(self, p: float = 1.0) -> tuple[float, float]:
        """Return the interval in which κ_p is, given what is known of all factors' eigenvalues.

        The k-th largest product lies between the k-th largest of all products of the factors' low
        ends and that of their high ends. Eigenvalues under a factor's noise floor are part of
        both: one of them times a large one of the other may outrank many that are above.

        Args:
            p: Fraction of the d_in·d_out eigenvalues, 0 < p ≤ 1.

        Returns:
            Its ends: the high one +inf where λ_{k(p)} cannot be told from 0, both where it is 0
            exactly, NaN where the status is not ``ok``.
        """
        if p not in self._intervals:
            self._intervals[p] = self._interval(kappa_index(p, len(self)))
        return self._intervals[p]

    @cached_property
    def _intervals(self) -> dict[float, tuple[float, float]]:
        return {}  # by p, as they are asked for

    def _interval(self, index: int) -> tuple[float, float]:
        if not self.status.has_ratios:
            return math.nan, math.nan
        if index > self._largest_rank:
            return math.inf, math.inf
        a, b = self.a.bounds, self.b.bounds
        firsts = [float((a[end][:, 0] * b[end][:, 0]).max()) for end in (0, 1)]
        near = self._computed.largest(index)
        if (margin := self._margin(near)) <= _NARROW * near:
            return interval(firsts[0], firsts[1], near - margin, near + margin)
        low, high = self._ends
        return interval(
            firsts[0],
            firsts[1],
            low.bound(near, index, is_low=True),
            high.bound(near, index, is_low=False),
        )

    @cached_property
    def _largest_rank(self) -> int:
        """The number of products that are not 0 exactly."""
        sides = [(len(s.blocks) * (s.blocks.shape[1],)) for s in (self.a, self.b)]
        ranks = [s.max_ranks or side for s, side in zip((self.a, self.b), sides, strict=True)]
        return sum(a * b for a, b in zip(*ranks, strict=True))

    def _margin(self, near: float) -> float:
        """Return what products near one err by at most.

        With δ of the factors' eigenvalues and η of their singular values that is
        a_1·δ_b + b_1·δ_a + δ_a·δ_b + 2·√near·(η_a·√b_1 + η_b·√a_1), and a part in proportion. The
        k-th largest of numbers that err by as much errs by no more.
        """
        a, b = self.a, self.b
        if self._is_estimated:  # its intervals are wider than what rounding leaves
            return math.inf
        blurred = a.blur * math.sqrt(b.lambda_max) + b.blur * math.sqrt(a.lambda_max)
        second_order = 1.25  # of blurs up to a tenth
        if 10 * a.blur**2 > a.lambda_max / 10 or 10 * b.blur**2 > b.lambda_max / 10:
            return math.inf
        margin = self.noise_floor + a.noise_floor * b.noise_floor
        margin += 2 * second_order * math.sqrt(near) * blurred
        return margin + 4 * max(a.relative, b.relative) * near

    @cached_property
    def _computed(self) -> "_Products":
        """The products of the eigenvalues as they were computed."""
        return _Products(self.a.computed.numpy(), self.b.computed.numpy())

    @cached_property
    def _ends(self) -> tuple["_Products", "_Products"]:
        """The products of all low ends, and of all high ones."""
        low, high = zip(self.a.bounds, self.b.bounds, strict=True)
        return _Products(*(end.numpy() for end in low)), _Products(*(end.numpy() for end in high))

    def _ratio(self, value: float) -> float:
        # A product of tiny counted eigenvalues can still underflow to 0.
        return self.lambda_max / value if value > 0 else math.inf

    @cached_property
    def _block_ranks(self) -> Tensor:
        return (self.a.blocks > 0).sum(1) * (self.b.blocks > 0).sum(1)

    @cached_property
    def _block_traces(self) -> Tensor:
        return self.a.block_traces * self.b.block_traces


_WIDTHS = (1e-12, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9, 1 - 1e-3, 1 - 1e-6, 1 - 1e-12)


class _Products:
    """The products of two factors' numbers: all sorted where they are few, else none formed.

    Args:
        a: ``[groups, m]``, non-negative, each row descending.
        b: ``[groups, n]`` likewise.
    """

    def __init__(self, a: Numbers, b: Numbers) -> None:
        self._pairs: PairProducts | None = None
        self._sorted: Numbers | None = None
        if a.size * b.shape[1] <= _SORTED_UP_TO:
            # They are sorted once for every p, which is quicker than selecting for each.
            positive = (
                np.multiply.outer(*(x[x > 0] for x in pair)) for pair in zip(a, b, strict=True)
            )
            self._sorted = np.sort(np.concatenate([products.ravel() for products in positive]))
        else:
            self._pairs = PairProducts(a, b)

    def largest(self, index: int) -> float:
        """Return the ``index``-th largest product, from 1 on; 0 where fewer are positive."""
        if self._sorted is not None:
            return float(self._sorted[-index]) if index <= len(self._sorted) else 0.0
        assert self._pairs is not None
        return self._pairs.largest(index)

    def bound(self, near: float, index: int, *, is_low: bool) -> float:
        """Return a bound on the ``index``-th largest product.

        A few counts find one within a tenth of its distance from a value that is near.

        Args:
            near: About the product, or 0.
            index: Its index from 1.
            is_low: Whether the bound is to be below the product, or above.

        Returns:
            The bound; 0 below a product that may be 0, and above one that is 0.
        """
        pairs = self._pairs
        if pairs is None:
            return self.largest(index)
        if index > pairs.num_positive:
            return 0.0
        if near <= 0:
            return 0.0 if is_low else pairs.largest(index)

        def at(width: float) -> float:
            return near * (1 - width) if is_low else near / (1 - width)

        def holds(value: float) -> bool:
            return (pairs.num_reaching(value) >= index) is is_low

        if holds(near if is_low else math.nextafter(near, math.inf)):
            return near
        fails = 0.0
        for width in _WIDTHS:
            if holds(at(width)):
                break
            fails = width
        else:
            return 0.0 if is_low else pairs.largest(index)
        for _ in range(4):
            middle = math.sqrt(fails * width) if fails else width / 10
            if holds(at(middle)):
                width = middle
            else:
                fails = middle
        return at(width)


def _last_counted(blocks: Tensor) -> Tensor:
    """Return the smallest positive value of each block, 0 where there is none."""
    index = ((blocks > 0).sum(1, keepdim=True) - 1).clamp(min=0)
    return blocks.gather(1, index).squeeze(1)
