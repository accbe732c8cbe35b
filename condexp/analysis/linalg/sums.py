"""Sums of rows and of their products, of which second moments are made."""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from condexp.analysis.linalg.rows.dense import Rows

_STRIPE = 64  # rows


@dataclass(frozen=True, eq=False)
class Shift:
    """A reference that was subtracted from rows before they were multiplied, r' = r − reference.

    Args:
        reference: The reference, in the shape in which :meth:`.Rows.minus` takes it.
        by_feature: The reference by feature, ``[groups, d]``.
        row_sum: Sum Σ r', ``[groups, d]``.
    """

    reference: Tensor
    by_feature: Tensor
    row_sum: Tensor


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over rows r', which are the rows r themselves where nothing was subtracted.

    Args:
        num_rows: Number R of rows.
        products: Sum Σ r' r'ᵀ, ``[groups, d, d]``.
        shift: Reference that was subtracted; without one the mean is not known.
    """

    num_rows: int
    products: Tensor
    shift: Shift | None

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process gets half of the symmetric matrix.
        products, side = upper_stripes(self.products), self.products.shape[-1]
        return _of_stripes, (type(self), self.num_rows, products, side, self.shift)

    @classmethod
    def of(cls, rows: Rows, reference: Tensor | None, dtype: torch.dtype) -> Self:
        """Return the sums of some rows.

        Args:
            rows: The rows.
            reference: Reference to subtract before they are multiplied; None for nothing.
            dtype: Working precision of the products.

        Returns:
            The sums.
        """
        if reference is None:
            return cls(rows.num_rows, rows.products(dtype), None)
        shifted = rows.minus(reference, dtype)
        shift = Shift(reference, rows.reference_by_feature(reference), shifted.sums())
        return cls(rows.num_rows, shifted.products(dtype), shift)

    def __add__(self, other: Self) -> Self:
        """Return the sums of both, whatever was subtracted from the other's rows."""
        device, shift = other.products.device, None
        if self.shift is not None and other.shift is not None:
            by_feature = self.shift.by_feature.to(device)
            if self.shift.reference is not other.shift.reference:
                other = other._minus(by_feature)
            assert other.shift is not None
            row_sum = self.shift.row_sum.to(device) + other.shift.row_sum
            shift = Shift(self.shift.reference, by_feature, row_sum)
        products = self.products.to(device) + other.products
        return replace(
            self, num_rows=self.num_rows + other.num_rows, products=products, shift=shift
        )

    def _minus(self, by_feature: Tensor) -> Self:
        """Return the sums of the rows minus another reference s: r − s = r' + (reference − s)."""
        assert self.shift is not None
        change = (self.shift.by_feature - by_feature)[:, None]
        rows = self.shift.row_sum[:, None]
        changed = rows + self.num_rows * change
        left, right = torch.cat([rows, change], 1), torch.cat([change, changed], 1)
        shift = replace(self.shift, by_feature=by_feature, row_sum=changed[:, 0])
        return replace(self, products=torch.baddbmm(self.products, left.mT, right), shift=shift)

    def mean(self) -> Tensor:
        """Return the mean row, ``[groups, d]``, where something was subtracted."""
        assert self.shift is not None
        return self.shift.by_feature + self.shift.row_sum / self.num_rows

    def second_moment(self, *, center: bool) -> Tensor:
        """Return Σ r rᵀ, or Σ (r − m)(r − m)ᵀ, ``[groups, d, d]``.

        Args:
            center: Subtract the mean m of all rows.
        """
        if self.shift is None:
            return self.products
        sums, reference = self.shift.row_sum[:, None], self.shift.by_feature[:, None]
        if center:  # Σ r' r'ᵀ − R·m' m'ᵀ, whatever the rows were shifted by
            return torch.baddbmm(self.products, sums.mT, sums / -self.num_rows)
        left = torch.cat([sums, reference], 1)
        right = torch.cat([reference, sums + self.num_rows * reference], 1)
        return torch.baddbmm(self.products, left.mT, right)

    def cancelled(self, *, center: bool) -> Tensor | float:
        """Return the squares of what is subtracted before products and added after, or reversed.

        Args:
            center: As for :meth:`second_moment`.
        """
        if self.shift is None:
            return 0.0
        mean = self.shift.row_sum / self.num_rows
        parts = (mean,) if center else (mean, self.shift.by_feature)
        return sum(part.square().sum(-1).max() for part in parts) * self.num_rows


def upper_stripes(matrices: Tensor) -> Tensor:
    """Return the upper half of symmetric matrices, each stripe of rows from its diagonal block on.

    Args:
        matrices: ``[groups, d, d]``.

    Returns:
        ``[groups, numbers]``, about d²/2 of each.
    """
    side = matrices.shape[-1]
    stripes = (matrices[:, i : i + _STRIPE, i:].flatten(1) for i in range(0, side, _STRIPE))
    return torch.cat(list(stripes), dim=1)


def from_upper_stripes(stripes: Tensor, side: int) -> Tensor:
    """Return the whole matrices.

    Args:
        stripes: What :func:`upper_stripes` returned.
        side: Their side d.

    Returns:
        ``[groups, d, d]``, symmetric but for what the blocks on the diagonal were not.
    """
    groups, first = len(stripes), 0
    matrices = stripes.new_empty(groups, side, side)
    for start in range(0, side, _STRIPE):
        height, width = min(_STRIPE, side - start), side - start
        stripe = stripes[:, first : first + height * width].view(groups, height, width)
        matrices[:, start : start + height, start:] = stripe
        matrices[:, start + height :, start : start + height] = stripe[:, :, height:].mT
        first += height * width
    return matrices


def _of_stripes(
    kind: type[Sums], num_rows: int, stripes: Tensor, side: int, shift: Shift | None
) -> Sums:
    return kind(num_rows, from_upper_stripes(stripes, side), shift)
