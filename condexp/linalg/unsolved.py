"""A second moment of which all is known but the eigenvalues."""

from dataclasses import dataclass

import torch
from torch import Tensor

from condexp.analysis.linalg.eigen import descending_eigenvalues
from condexp.analysis.linalg.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class Unsolved:
    """The smaller side of a second moment, and what its spectrum's noise floor depends on.

    Args:
        matrix: The moment, or its dual where that is smaller, times a number: ``[groups, n, n]``
            where the rows are, in float64 or in the products' precision.
        scale: What the matrix, and so its eigenvalues, are to be multiplied by.
        num_features: d, the side of a block of the moment itself.
        num_rows: R.
        mean: The mean row, ``[groups, d]``; None where it is not known.
        mean_square: The trace that centring took away.
        cancelled: What was added and subtracted again in float64, as an eigenvalue. Both stay where
            the rows are until the spectrum is asked for: nobody waits for a device before.
        dtype: Working precision of the products.
        row_dtype: Precision the rows were computed in.
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

    def spectrum(self, eigenvalues: Tensor | None = None) -> Spectrum:
        """Return the spectrum, of length groups·d.

        Args:
            eigenvalues: The matrix's, as it is, if they are known.
        """
        if eigenvalues is None:
            eigenvalues = descending_eigenvalues(self.matrix.cpu())
        return Spectrum.from_matrix(
            self.matrix,
            dtype=self.dtype,
            num_rows=self.num_rows,
            row_dtype=self.row_dtype,
            mean_square=float(self.mean_square),
            cancelled=float(self.cancelled),
            length=self.num_features,
            eigenvalues=eigenvalues * self.scale,
        )
