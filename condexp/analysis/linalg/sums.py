"""What second moments are made of, summed over rows that a reference was taken from."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from condexp.analysis.linalg.rows.dense import Rows


@dataclass(frozen=True, eq=False)
class Shift:
    """What was subtracted from rows before they were multiplied, r' = r − reference.

    Args:
        reference: It, as the rows take it.
        spread: The same by feature, ``[groups, d]``.
        rows: Σ r', ``[groups, d]``.
    """

    reference: Tensor
    spread: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over rows r', which are the rows r themselves where nothing was subtracted.

    Args:
        num_rows: R.
        products: Σ r' r'ᵀ, ``[groups, d, d]``.
        shift: What was subtracted; None: nothing, and the mean is not known.
    """

    num_rows: int
    products: Tensor
    shift: Shift | None

    @classmethod
    def of(cls, rows: Rows, reference: Tensor | None, dtype: torch.dtype) -> Self:
        """Take the sums of some rows.

        Args:
            rows: The rows.
            reference: What to subtract before they are multiplied; None: nothing.
            dtype: Working precision of the products.

        Returns:
            The sums.
        """
        if reference is None:
            return cls(rows.num_rows, rows.products(dtype), None)
        shifted = rows.less(reference, dtype)
        shift = Shift(reference, rows.spread(reference), shifted.sums())
        return cls(rows.num_rows, shifted.products(dtype), shift)

    def __add__(self, other: Self) -> Self:
        """Return the sums of both, whatever was subtracted from the other's rows."""
        device, shift = other.products.device, None
        if self.shift is not None and other.shift is not None:
            spread = self.shift.spread.to(device)
            if self.shift.reference is not other.shift.reference:
                other = other._less(spread)
            assert other.shift is not None
            rows = self.shift.rows.to(device) + other.shift.rows
            shift = Shift(self.shift.reference, spread, rows)
        products = self.products.to(device) + other.products
        return replace(
            self, num_rows=self.num_rows + other.num_rows, products=products, shift=shift
        )

    def _less(self, spread: Tensor) -> Self:
        """Return the sums of the rows minus another reference: r − s = r' + (spread − s)."""
        assert self.shift is not None
        change, rows = (self.shift.spread - spread)[:, None], self.shift.rows[:, None]
        changed = rows + self.num_rows * change
        left, right = torch.cat([rows, change], 1), torch.cat([change, changed], 1)
        shift = replace(self.shift, spread=spread, rows=changed[:, 0])
        return replace(self, products=torch.baddbmm(self.products, left.mT, right), shift=shift)

    def mean(self) -> Tensor:
        """Return the mean row, ``[groups, d]``, where something was subtracted."""
        assert self.shift is not None
        return self.shift.spread + self.shift.rows / self.num_rows

    def second_moment(self, *, center: bool) -> Tensor:
        """Return Σ r rᵀ, or Σ (r − m)(r − m)ᵀ, ``[groups, d, d]``.

        Args:
            center: Subtract the mean m of all rows.
        """
        if self.shift is None:
            return self.products
        sums, spread = self.shift.rows[:, None], self.shift.spread[:, None]
        if center:  # Σ r' r'ᵀ − R·m' m'ᵀ, whatever the rows were shifted by
            return torch.baddbmm(self.products, sums.mT, sums / -self.num_rows)
        left = torch.cat([sums, spread], 1)
        right = torch.cat([spread, sums + self.num_rows * spread], 1)
        return torch.baddbmm(self.products, left.mT, right)

    def cancelled(self, *, center: bool) -> Tensor | float:
        """Return the squares of what is subtracted before products and added after, or reversed.

        Args:
            center: As for :meth:`second_moment`.
        """
        if self.shift is None:
            return 0.0
        mean = self.shift.rows / self.num_rows
        parts = (mean,) if center else (mean, self.shift.spread)
        return sum(part.square().sum(-1).max() for part in parts) * self.num_rows
