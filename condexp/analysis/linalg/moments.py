"""Second moments of rows that arrive in pieces, and the only place where a 1/N is applied."""

import functools
import operator
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from condexp.analysis.linalg.precision import coarser, exact_products
from condexp.analysis.linalg.rows.dense import DenseRows, HeldRows, Rows
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.linalg.sums import Sums
from condexp.errors import InputError


@dataclass(frozen=True, eq=False)
class MomentMatrix:
    """The matrix whose spectrum is wanted: the smaller side of a second moment.

    It carries what the spectrum's noise floor depends on.

    Args:
        matrix: The moment, or its dual where that is smaller, times a number: ``[groups, n, n]``
            where the rows are, in float64 or in the products' precision.
        scale: Number by which the matrix, and so its eigenvalues, is to be multiplied.
        num_features: Side d of a block of the moment itself.
        num_rows: Number R of rows.
        mean: Mean row, ``[groups, d]``; None where it is not known.
        mean_square: Trace that centring took away.
        cancelled: Part that was added and subtracted again in float64, as an eigenvalue. Like
            ``mean_square`` it stays on the rows' device until the spectrum is computed, because
            reading a number would wait for the device.
        dtype: Working precision of the products.
        row_dtype: Precision in which the rows were computed.
        centered: Whether the rows' mean was taken off.
    """

    matrix: Tensor
    scale: float
    num_features: int
    num_rows: int
    mean: Tensor | None
    mean_square: Tensor | float
    cancelled: Tensor | float
    dtype: torch.dtype
    row_dtype: torch.dtype
    centered: bool = False

    def spectrum(self, eigenvalues: Tensor | None = None) -> Spectrum:
        """Return the spectrum, of length groups·d.

        Args:
            eigenvalues: Eigenvalues of the unscaled matrix, if they are known.
        """
        return Spectrum.from_matrix(
            self.matrix,
            dtype=self.dtype,
            num_rows=self.num_rows,
            row_dtype=self.row_dtype,
            mean_square=float(self.mean_square),
            cancelled=float(self.cancelled),
            length=self.num_features,
            eigenvalues=eigenvalues,
            scale=self.scale,
            centered=self.centered,
        )


class Scale(StrEnum):
    """The divisor of a second moment (Eschenhagen et al. 2023, section 3: KFAC-expand)."""

    MEAN = "mean"
    """``input``: 1/(N·T) Σ_{n,t} r rᵀ, the mean over all rows."""
    SUM = "sum"
    """``grad_output``: 1/N Σ_n Σ_t r rᵀ, summed over positions, the mean over samples."""


class SecondMoment:
    """Second moment of rows that arrive in pieces, one matrix for each block.

    ``MEAN``: M = 1/R Σ r rᵀ over all R rows. ``SUM``: M = 1/N Σ r rᵀ over the same rows, N samples.
    With ``center`` the rows' mean m is taken off first: Σ_x − m mᵀ, and Σ_∇h − T·ḡ ḡᵀ with T = R/N.

    While there are fewer rows than features the rows are kept, and the spectrum comes from their
    Gram matrix r_i·r_j, whose non-zero eigenvalues are the same (Dangel et al. 2022).

    Products are taken in a chosen dtype over chunks of 256 rows (of a Gram matrix: 1024 features)
    and summed in float64, so that the error does not grow with the number of rows. From the rows of
    a ``MEAN``, and with ``center``, about their mean is subtracted before and added again after, in
    float64: float32 products of large constants have no digits left for what varies. TF32 and
    autocast are kept out.

    Args:
        scale: Divisor of the sums.
        center: Whether the mean over all rows is subtracted.

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
        self._num_features = 0
        self.dtype = self.row_dtype = torch.float64
        self._kept: list[HeldRows] = []
        self._sums: Sums | None = None

    def add(
        self,
        rows: Rows | Tensor,
        num_samples: int,
        dtype: torch.dtype,
        row_dtype: torch.dtype | None = None,
    ) -> None:
        """Add rows; while they are few they are kept as they are, later only their sums.

        Args:
            rows: Rows, or a tensor ``[groups, num_rows, features]`` of any floating dtype and
                device. No rows: no effect.
            num_samples: Number of samples that these rows belong to; 0 where they were counted
                already (a second call of a module in the same pass).
            dtype: Working precision of the products.
            row_dtype: Precision in which the rows were computed, where it is not their dtype.
        """
        if isinstance(rows, Tensor):
            rows, row_dtype = DenseRows.of(rows), row_dtype or rows.dtype
        if rows.num_rows == 0:
            return
        self.row_dtype = coarser(self.row_dtype, row_dtype or rows.dtype)
        self.dtype = coarser(self.dtype, dtype)
        self.num_rows += rows.num_rows
        self.num_samples += num_samples
        self._num_features = rows.num_features
        self._kept.append(HeldRows.of(rows))
        if self._sums is not None or self.num_rows >= self._num_features:
            self._sums = self._all_sums()
            self._kept.clear()

    def keeps(self, rows: Rows) -> bool:
        """Return whether :meth:`add` would keep rows as they are, and not their sums."""
        return self._sums is None and self.num_rows + rows.num_rows < rows.num_features

    def merge(self, other: "SecondMoment") -> None:
        """Add the rows of another moment of the same kind: Σ sums / Σ counts.

        Args:
            other: Moment of the other rows, which is not changed; without rows it has no effect.
        """
        if other.num_rows == 0:
            return
        self.row_dtype = coarser(self.row_dtype, other.row_dtype)
        self.dtype = coarser(self.dtype, other.dtype)
        self.num_rows += other.num_rows
        self.num_samples += other.num_samples
        self._num_features = other._num_features
        if other._sums is None:
            self._kept += other._kept
            few = self._sums is None and self.num_rows < self._num_features
            if not few:
                self._sums = self._all_sums()
                self._kept.clear()
            return
        mine = self._all_sums() if self._sums is not None or self._kept else None
        self._sums = other._sums if mine is None else mine + other._sums
        self._kept.clear()

    @property
    def _count(self) -> int:
        """The one 1/N: rows for a mean, samples for a sum."""
        return self.num_rows if self.scale is Scale.MEAN else self.num_samples

    @property
    def _shifts(self) -> bool:
        """Whether a reference near the mean is subtracted, so that the mean is known."""
        return self.center or self.scale is Scale.MEAN

    def matrix(self) -> Tensor:
        """Return the second moment of all rows so far.

        Returns:
            ``[groups, features, features]``, float64, on the rows' device (the CPU for MPS).

        Raises:
            InputError: If no rows, or for ``SUM`` no samples, were added.
        """
        self._refuse_nothing()
        return self._summed() / self._count

    def moment_matrix(self) -> MomentMatrix:
        """Return the matrix whose spectrum is that of all rows so far: the smaller side."""
        self._refuse_nothing()
        matrix, scale = self._gram() if self._kept else (self._summed(), 1.0)
        cancelled = 0.0 if self._sums is None else self._sums.cancelled(center=self.center)
        mean = self.mean() if self._shifts else None
        mean_square: Tensor | float = 0.0
        if self.center and mean is not None:
            mean_square = mean.square().sum() * self.num_rows / self._count
        return MomentMatrix(
            matrix,
            scale / self._count,
            self._num_features,
            self.num_rows,
            mean,
            mean_square,
            cancelled / self._count,
            self.dtype,
            self.row_dtype,
            self.center,
        )

    def spectrum(self) -> Spectrum:
        """Return the spectrum of the second moment, with the noise floor of products and rows.

        Returns:
            The spectrum, of length groups·features, of the rows so far.
        """
        return self.moment_matrix().spectrum()

    def mean(self) -> Tensor:
        """Return the mean over all rows so far.

        Returns:
            ``[groups, features]``, float64, on the rows' device (the CPU for MPS).

        Raises:
            InputError: If no rows were added, or the sum of their products alone is taken.
        """
        if self.num_rows == 0:
            raise InputError("the mean of no rows is not defined: add rows first")
        if not self._shifts:
            raise InputError("the mean of a 'sum' is known with center=True only")
        if self._sums is not None:
            return self._sums.mean()
        return (
            functools.reduce(operator.add, (held.get().sums() for held in self._kept))
            / self.num_rows
        )

    def _refuse_nothing(self) -> None:
        if self.num_rows == 0 or self._count == 0:
            raise InputError(
                f"the second moment of {self.num_rows} rows of {self.num_samples} samples is not "
                "defined: add rows of at least one sample first"
            )

    def _summed(self) -> Tensor:
        return self._all_sums().second_moment(center=self.center)

    def _all_sums(self) -> Sums:
        """Return the sums of all rows, those of the kept ones included."""
        total = self._sums
        reference = total.shift.reference if total and total.shift else None
        for rows in (held.get() for held in self._kept):
            with exact_products(rows.device):
                if self._shifts and reference is None:
                    reference = rows.approximate_mean()
                sums = Sums.of(rows, reference, self.dtype)
                total = sums if total is None else total + sums
        assert total is not None
        return total

    def _gram(self) -> tuple[Tensor, float]:
        """Return (r_i − m)·(r_j − m) of the kept rows, m = 0 without ``center``, over a number."""
        kept = [held.get() for held in self._kept]
        rows = kept[0]
        if self.center or len(kept) > 1:
            rows = DenseRows(torch.cat([each.dense() for each in kept], dim=1))
        if self.center:
            rows = rows.minus(rows.approximate_mean(), self.dtype)
        with exact_products(rows.device):
            products = rows.gram(self.dtype)
        if self.center:  # takes away the mean's last digits too
            products = products.double()
            products = products - products.mean(1, keepdim=True)
            products = products - products.mean(2, keepdim=True)
        return products, rows.factor**2
