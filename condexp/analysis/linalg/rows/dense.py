"""Protocol of rows whose second moment is taken, and its plain implementation."""

from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from condexp.analysis.linalg.precision import summable
from condexp.analysis.linalg.products import (
    column_sums,
    cross_products,
    in_range,
    inner_products,
    scaled,
)
from condexp.errors import InputError


class Rows(Protocol):
    """Rows of one or more blocks, laid out or not.

    A *reference* is what may be subtracted from all rows before they are multiplied: products of
    large constants lose the digits of what varies. The features' order is the kind's own, the same
    in all methods.
    """

    @property
    def num_rows(self) -> int:
        """R, the rows of each block."""

    @property
    def num_features(self) -> int:
        """d, the length of a row: the side of a block."""

    @property
    def device(self) -> torch.device:
        """Where the rows are."""

    @property
    def dtype(self) -> torch.dtype:
        """Their precision, at least float32."""

    @property
    def num_bytes(self) -> int:
        """Memory of the rows as they are stored."""

    @property
    def version(self) -> int:
        """Number of in-place changes of the tensors that hold the rows."""

    def dense(self) -> Tensor:
        """Return all rows, ``[groups, R, d]``."""

    def approximate_mean(self) -> Tensor:
        """Return about the rows' mean, as a reference to subtract; see :func:`as_reference`."""

    def reference_by_feature(self, reference: Tensor) -> Tensor:
        """Return a reference by feature, ``[groups, d]`` float64."""

    def minus(self, reference: Tensor, dtype: torch.dtype) -> "Rows":
        """Return the rows minus a reference, subtracted in their precision or a finer one."""

    def sums(self) -> Tensor:
        """Return Σ r, ``[groups, d]`` float64."""

    def square_sum(self) -> float:
        """Return Σ ‖r‖², over all blocks."""

    def products(self, dtype: torch.dtype) -> Tensor:
        """Return Σ r rᵀ in a precision, ``[groups, d, d]`` float64."""

    @property
    def factor(self) -> float:
        """Number by which all rows are multiplied; only :meth:`gram` leaves that to its caller."""

    def gram(self, dtype: torch.dtype) -> Tensor:
        """Return r_i·r_j / factor² in a precision, ``[groups, R, R]`` float64 or in that one."""

    def copy(self) -> Self:
        """Return a copy, which nobody else can change."""


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


@dataclass(frozen=True, eq=False)
class HeldRows:
    """Rows that are read again later, and not copied: whether they were changed is seen then.

    Args:
        rows: The rows.
        version: Their version when they were taken.
    """

    rows: Rows
    version: int

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """Hold rows as they are now.

        Args:
            rows: The rows.

        Returns:
            They, with their version.
        """
        return cls(rows, rows.version)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).of, (self.get(),)  # another process counts anew

    def get(self) -> Rows:
        """Return the rows.

        Raises:
            InputError: If they were changed in place meanwhile.
        """
        if self.rows.version != self.version:
            raise InputError(
                "an input or gradient of an analysed layer was changed in place after its call, "
                "and it is needed again: read the snapshot before that is done, or leave the layer "
                "out with exclude=[...]."
            )
        return self.rows


def as_reference(mean: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mean that can be subtracted from rows of a precision as it is.

    Args:
        mean: Mean of the rows, float64.
        dtype: Precision of the rows.

    Returns:
        The mean, to the 24 bits that float32 holds if that is the precision; 0 where not finite.
    """
    mean = torch.where(mean.isfinite(), mean, 0.0)
    if dtype == torch.float64:
        return mean
    mantissa, exponent = torch.frexp(mean)
    return torch.ldexp((mantissa * 2.0**24).round() * 2.0**-24, exponent)


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Rows that are laid out in a tensor, times a factor.

    Args:
        values: ``[groups, R, d]``, float32 or float64 (see :func:`summable`).
        factor: Number by which all values are multiplied.
    """

    values: Tensor
    factor: float = 1.0

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Return rows from a tensor of any floating dtype, on any device.

        Args:
            values: ``[groups, R, d]``.

        Returns:
            The rows, without a graph.
        """
        return cls(summable(values.detach()))

    @property
    def num_rows(self) -> int:
        """The number R."""
        return self.values.shape[1]

    @property
    def num_features(self) -> int:
        """The side d."""
        return self.values.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """Their precision."""
        return self.values.dtype

    @property
    def num_bytes(self) -> int:
        """Memory of the values."""
        return self.values.nbytes

    @property
    def version(self) -> int:
        """Number of in-place changes of the values."""
        return version_of(self.values)

    def dense(self) -> Tensor:
        """Return the rows."""
        return self.values if self.factor == 1 else self.values * self.factor

    def approximate_mean(self) -> Tensor:
        """Return the mean row, ``[groups, 1, d]``."""
        return as_reference(self.sums() / self.num_rows, self.dtype)[:, None]

    def reference_by_feature(self, reference: Tensor) -> Tensor:
        """Return the reference itself, in float64."""
        return reference.squeeze(1)

    def minus(self, reference: Tensor, dtype: torch.dtype) -> "DenseRows":
        """Return the rows minus a reference."""
        wide = torch.promote_types(self.dtype, dtype)
        return DenseRows(self.dense().to(wide) - reference.to(wide))

    def sums(self) -> Tensor:
        """Return Σ r."""
        sums = column_sums(self.values)
        return sums if self.factor == 1 else sums.mul_(self.factor)

    def square_sum(self) -> float:
        """Return Σ ‖r‖²."""
        by_row = torch.linalg.vector_norm(self.values, dim=2, dtype=torch.float64)
        return float(by_row.square().sum()) * self.factor**2

    def products(self, dtype: torch.dtype) -> Tensor:
        """Return Σ r rᵀ."""

        def of(factor: float) -> Tensor:
            rows = scaled(self.values, factor)
            return cross_products(rows, rows, dtype)

        return in_range(of, self.values, dtype).mul_(self.factor**2)

    def gram(self, dtype: torch.dtype) -> Tensor:
        """Return r_i·r_j of the values."""
        return in_range(
            lambda factor: inner_products(scaled(self.values, factor), dtype), self.values, dtype
        )

    def copy(self) -> Self:
        """Return a copy."""
        return replace(self, values=self.values.clone())
