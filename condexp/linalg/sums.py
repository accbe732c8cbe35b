"""What second moments are made of, summed over rows that a reference was taken from."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from condexp.linalg.rows import Rows


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over rows r' = r − reference.

    Args:
        num_rows: R.
        reference: What was subtracted; None: nothing.
        spread: The same by feature, ``[groups, d]``.
        rows: Σ r', ``[groups, d]``.
        products: Σ r' r'ᵀ, ``[groups, d, d]``.
    """

    num_rows: int
    reference: Tensor | None
    spread: Tensor
    rows: Tensor
    products: Tensor

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
            sums = rows.sums()
            products = rows.products(dtype)
            return cls(rows.num_rows, None, torch.zeros_like(sums), sums, products)
        shifted = rows.less(reference, dtype)
        spread = rows.spread(reference)
        return cls(rows.num_rows, reference, spread, shifted.sums(), shifted.products(dtype))

    def __add__(self, other: Self) -> Self:
        """Return the sums of both, whatever was subtracted from the other's rows."""
        device = other.rows.device
        mine = replace(
            self,
            spread=self.spread.to(device),
            rows=self.rows.to(device),
            products=self.products.to(device),
        )
        if self.reference is not other.reference:
            other = other._less(mine.spread)
        return replace(
            mine,
            num_rows=mine.num_rows + other.num_rows,
            rows=mine.rows + other.rows,
            products=mine.products + other.products,
        )

    def _less(self, spread: Tensor) -> Self:
        """Return the sums of the rows minus another reference: r − s = r' + (spread − s)."""
        shift = (self.spread - spread)[:, None]
        rows = self.rows[:, None]
        left, right = (
            torch.cat([rows, shift], 1),
            torch.cat([shift, rows + self.num_rows * shift], 1),
        )
        products = torch.baddbmm(self.products, left.mT, right)
        return replace(self, rows=(rows + self.num_rows * shift)[:, 0], products=products)

    def mean(self) -> Tensor:
        """Return the mean row, ``[groups, d]``."""
        return self.spread + self.rows / self.num_rows

    def second_moment(self, *, center: bool) -> Tensor:
        """Return Σ r rᵀ, or Σ (r − m)(r − m)ᵀ, ``[groups, d, d]``.

        Args:
            center: Subtract the mean m of all rows.
        """
        sums, spread = self.rows[:, None], self.spread[:, None]
        if center:  # Σ r' r'ᵀ − R·m' m'ᵀ, whatever the rows were shifted by
            return torch.baddbmm(self.products, sums.mT, sums / -self.num_rows)
        if self.reference is None:
            return self.products
        left = torch.cat([sums, spread], 1)
        right = torch.cat([spread, sums + self.num_rows * spread], 1)
        return torch.baddbmm(self.products, left.mT, right)

    def cancelled(self, *, center: bool) -> float:
        """Return the squares of what is subtracted before products and added after, or reversed.

        Args:
            center: As for :meth:`second_moment`.
        """
        if self.reference is None:
            return 0.0
        mean = self.rows / self.num_rows
        parts = (mean,) if center else (mean, self.spread)
        return sum(float(part.square().sum(-1).max()) for part in parts) * self.num_rows
