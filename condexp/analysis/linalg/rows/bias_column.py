"""Rows with a last column of ones, which makes a bias one more weight."""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from condexp.analysis.linalg.rows.dense import Rows


@dataclass(frozen=True, eq=False)
class WithOne:
    """Rows with a 1 after the last feature, by which a bias is multiplied.

    Args:
        rows: The rows without it.
    """

    rows: Rows

    @property
    def num_rows(self) -> int:
        """The number R of rows."""
        return self.rows.num_rows

    @property
    def num_features(self) -> int:
        """The length of a row: that of the rows without the 1, and 1."""
        return self.rows.num_features + 1

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.rows.device

    @property
    def factor(self) -> float:
        """1: the factor of the rows is applied already."""
        return 1.0

    @property
    def dtype(self) -> torch.dtype:
        """Their precision."""
        return self.rows.dtype

    @property
    def num_bytes(self) -> int:
        """Memory of the rows; the ones take none."""
        return self.rows.num_bytes

    @property
    def version(self) -> int:
        """Number of in-place changes of the rows."""
        return self.rows.version

    def dense(self) -> Tensor:
        """Return all rows, the ones included."""
        rows = self.rows.dense()
        return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)

    def approximate_mean(self) -> Tensor:
        """Return the reference of the rows; nothing is subtracted from the ones."""
        return self.rows.approximate_mean()

    def reference_by_feature(self, reference: Tensor) -> Tensor:
        """Return the reference by feature, 0 for the ones."""
        return F.pad(self.rows.reference_by_feature(reference), (0, 1))

    def minus(self, reference: Tensor, dtype: torch.dtype) -> Self:
        """Return the rows minus a reference, and the ones."""
        return replace(self, rows=self.rows.minus(reference, dtype))

    def sums(self) -> Tensor:
        """Return Σ r."""
        return F.pad(self.rows.sums(), (0, 1), value=float(self.num_rows))

    def square_sum(self) -> float:
        """Return Σ ‖r‖²; the ones are of every block."""
        return self.rows.square_sum() + self.num_rows * len(self.sums())

    def products(self, dtype: torch.dtype) -> Tensor:
        """Return Σ r rᵀ: the products of the ones are the rows' sums."""
        products = F.pad(self.rows.products(dtype), (0, 1, 0, 1))
        products[:, -1] = products[:, :, -1] = self.sums()
        return products

    def gram(self, dtype: torch.dtype) -> Tensor:
        """Return r_i·r_j."""
        return self.rows.gram(dtype).double() * self.rows.factor**2 + 1

    def copy(self) -> Self:
        """Return a copy."""
        return replace(self, rows=self.rows.copy())
