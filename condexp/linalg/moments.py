"""Second moments of rows, streamed over batches, and the one place of every 1/N."""

from enum import StrEnum

import torch
from torch import Tensor

from condexp.errors import InputError
from condexp.linalg.precision import exact_products, summable
from condexp.linalg.spectrum import Spectrum

CHUNK_ROWS = 256
"""Rows of one product in working precision; the sum of products is taken in float64."""

# Mean squares (of the largest feature) whose float32 products neither overflow nor lose
# precision to underflow: outside it the products are taken again with rescaled rows.
_SAFE_MEAN_SQUARES = (1e-24, 1e30)


class Scale(StrEnum):
    """What a second moment is divided by (Eschenhagen et al. 2023, section 3: KFAC-expand)."""

    MEAN = "mean"
    """``input``: 1/(N·T) Σ_{n,t} r rᵀ, the mean over all rows."""
    SUM = "sum"
    """``grad_output``: 1/N Σ_n Σ_t r rᵀ, summed over positions, the mean over samples."""


class SecondMoment:
    """Second moment of rows that arrive in pieces, one matrix for each block.

    ``MEAN``: M = 1/R Σ r rᵀ over all R rows. ``SUM``: M = 1/N Σ r rᵀ over the same rows, N samples.
    With ``center`` the rows' mean m is taken off first: Σ_x − m mᵀ, and Σ_∇h − T·ḡ ḡᵀ with T = R/N;
    everything is then accumulated relative to the first batch's mean, because the difference of two
    large float32 moments has no correct digits.

    Products are taken in a chosen dtype over chunks of 256 rows and summed in float64, so that the
    error does not grow with the number of rows. TF32 and autocast are kept out of them.

    Args:
        scale: What to divide by.
        center: Subtract the mean over all rows.

    >>> moment = SecondMoment(Scale.MEAN)
    >>> moment.add(torch.tensor([[[1.0, 0.0], [3.0, 0.0]]]), num_samples=2, dtype=torch.float64)
    >>> moment.matrix().tolist()
    [[[5.0, 0.0], [0.0, 0.0]]]
    """

    def __init__(self, scale: Scale, *, center: bool = False) -> None:
        self.scale = scale
        self.center = center
        self.num_rows = 0
        self.num_samples = 0
        self.dtype = self.row_dtype = torch.float64
        self._products = self._sum = self._shift = torch.zeros((), dtype=torch.float64)

    def add(
        self,
        rows: Tensor,
        num_samples: int,
        dtype: torch.dtype,
        row_dtype: torch.dtype | None = None,
    ) -> None:
        """Add rows; nothing but their sums is kept.

        Args:
            rows: ``[groups, num_rows, features]``, any floating dtype and device. No rows: no
                effect.
            num_samples: Samples these rows belong to; 0 where they were counted already (a second
                use of a module in the same pass).
            dtype: Working precision of the products.
            row_dtype: Precision the rows were computed in, where it is not their dtype.
        """
        if rows.shape[1] == 0:
            return
        self.row_dtype = _coarser(self.row_dtype, row_dtype or rows.dtype)
        rows = summable(rows.detach())
        if self.center:
            if self.num_rows == 0:
                self._shift = rows.mean(1, keepdim=True, dtype=torch.float64)
            rows = rows.double() - self._shift
        self._products = self._products.to(rows.device) + _sum_of_products(rows, dtype)
        self._sum = self._sum.to(rows.device) + column_sums(rows)[:, None]
        self.num_rows += rows.shape[1]
        self.num_samples += num_samples
        self.dtype = _coarser(self.dtype, dtype)

    @property
    def _count(self) -> int:
        """The one 1/N: rows for a mean, samples for a sum over positions."""
        return self.num_rows if self.scale is Scale.MEAN else self.num_samples

    def matrix(self) -> Tensor:
        """Return the second moment of all rows so far.

        Returns:
            ``[groups, features, features]``, float64, on the rows' device (the CPU for MPS).

        Raises:
            InputError: If no rows, or for ``SUM`` no samples, were added.
        """
        count = self._count
        if self.num_rows == 0 or count == 0:
            raise InputError(
                f"the second moment of {self.num_rows} rows of {self.num_samples} samples is not "
                "defined: add rows of at least one sample first"
            )
        if not self.center:
            return self._products / count
        # Σ (r−m)(r−m)ᵀ = Σ r rᵀ − R·m mᵀ, whatever the rows were shifted by.
        return (self._products - self._sum.mT @ (self._sum / self.num_rows)) / count

    def spectrum(self) -> Spectrum:
        """Return the spectrum of the second moment, with the noise floor of products and rows.

        Returns:
            The spectrum; its ``num_rows`` is the number of rows so far.
        """
        return Spectrum.from_matrix(
            self.matrix(),
            dtype=self.dtype,
            num_rows=self.num_rows,
            row_dtype=self.row_dtype,
            mean_square=self.mean_square(),
        )

    def mean_square(self) -> float:
        """Return what centring takes away, in units of the eigenvalues; 0 without ``center``."""
        if not self.center:
            return 0.0
        return float(self.mean().square().sum(1).max()) * self.num_rows / self._count

    def mean(self) -> Tensor:
        """Return the mean over all rows so far.

        Returns:
            ``[groups, features]``, float64, on the rows' device (the CPU for MPS).

        Raises:
            InputError: If no rows were added.
        """
        if self.num_rows == 0:
            raise InputError("the mean of no rows is not defined: add rows first")
        return (self._shift + self._sum / self.num_rows).squeeze(1)


def _coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    return max(one, other, key=lambda kind: torch.finfo(kind).eps)


def _sum_of_products(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Σ r rᵀ for each block: ``[groups, num_rows, d]`` → ``[groups, d, d]`` float64."""
    with exact_products(rows.device):
        products = _chunked_products(rows, dtype)
        if dtype == torch.float64:
            return products
        low, high = _SAFE_MEAN_SQUARES
        mean_square = float(products.diagonal(dim1=-2, dim2=-1).max()) / rows.shape[1]
        if low <= mean_square <= high:
            return products
        # An exploding or vanishing layer: its squares leave float32 long before its values do.
        largest = rows.abs().max()
        if not (0 < float(largest) < float("inf")):
            return products
        exponent = int(torch.frexp(largest.double()).exponent)
        rescaled = _chunked_products(rows.double() * 2.0**-exponent, dtype)
        return rescaled * 2.0**exponent * 2.0**exponent


def _chunked_products(rows: Tensor, dtype: torch.dtype) -> Tensor:
    groups, _, d = rows.shape
    total = torch.zeros(groups, d, d, dtype=torch.float64, device=rows.device)
    product = torch.empty(groups, d, d, dtype=dtype, device=rows.device)
    for piece in torch.split(rows, CHUNK_ROWS, dim=1):
        chunk = piece.to(dtype)
        torch.bmm(chunk.mT, chunk, out=product)
        total += product
    return total


def column_sums(rows: Tensor) -> Tensor:
    """Sum rows in their own precision within chunks of 256, in float64 over chunks.

    Args:
        rows: ``[groups, num_rows, features]``.

    Returns:
        ``[groups, features]`` float64.
    """
    groups, num_rows, d = rows.shape
    whole = num_rows - num_rows % CHUNK_ROWS
    chunks = rows[:, :whole].reshape(groups, -1, CHUNK_ROWS, d).sum(2)
    return chunks.sum(1, dtype=torch.float64) + rows[:, whole:].sum(1, dtype=torch.float64)
