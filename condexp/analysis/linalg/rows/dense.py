"""Rows whose second moment is taken: plain ones, and what every kind of row can do."""

from dataclasses import dataclass, replace
from typing import Protocol, Self

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
        """Memory that they take as they are."""

    @property
    def version(self) -> int:
        """Counts changes in place of what they are made of."""

    def dense(self) -> Tensor:
        """Return all rows, ``[groups, R, d]``."""

    def reference(self) -> Tensor:
        """Return the rows' mean, about: see :func:`as_reference`."""

    def spread(self, reference: Tensor) -> Tensor:
        """Return a reference by feature, ``[groups, d]`` float64."""

    def less(self, reference: Tensor, dtype: torch.dtype) -> "Rows":
        """Return the rows minus a reference, subtracted in their precision or a finer one."""

    def sums(self) -> Tensor:
        """Return Σ r, ``[groups, d]`` float64."""

    def square_sum(self) -> float:
        """Return Σ ‖r‖², over all blocks."""

    def products(self, dtype: torch.dtype) -> Tensor:
        """Return Σ r rᵀ in a precision, ``[groups, d, d]`` float64."""

    @property
    def factor(self) -> float:
        """What all rows are multiplied by; only :meth:`gram` leaves that to others."""

    def gram(self, dtype: torch.dtype) -> Tensor:
        """Return r_i·r_j / factor² in a precision, ``[groups, R, R]`` float64 or in that one."""

    def kept(self) -> Self:
        """Return rows that nobody else can change."""


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def as_reference(mean: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mean that can be subtracted from rows of a precision as it is.

    Args:
        mean: float64.
        dtype: The rows'.

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
    """Rows as they are, times a factor.

    Args:
        values: ``[groups, R, d]``, float32 or float64 (see :func:`summable`).
        factor: What all values are multiplied by.
    """

    values: Tensor
    factor: float = 1.0

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Take rows of any floating dtype, on any device.

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
        """Counts changes of the values."""
        return version_of(self.values)

    def dense(self) -> Tensor:
        """Return the rows."""
        return self.values if self.factor == 1 else self.values * self.factor

    def reference(self) -> Tensor:
        """Return the mean row, ``[groups, 1, d]``."""
        return as_reference(self.sums() / self.num_rows, self.dtype)[:, None]

    def spread(self, reference: Tensor) -> Tensor:
        """Return the reference itself, in float64."""
        return reference.squeeze(1)

    def less(self, reference: Tensor, dtype: torch.dtype) -> "DenseRows":
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

    def kept(self) -> Self:
        """Return a copy."""
        return replace(self, values=self.values.clone())
