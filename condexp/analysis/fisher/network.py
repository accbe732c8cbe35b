"""The exact Fisher matrix of all layers together (``docs/theory.md`` §3)."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from condexp.analysis.linalg.eigen import descending_eigenvalues
from condexp.analysis.linalg.precision import coarser
from condexp.analysis.linalg.ratios import is_wide
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.errors import InputError


class NetworkFisher:
    """The whole network's Fisher matrix: the Gram matrices of its layers add up to its dual."""

    def __init__(self) -> None:
        self._gram: Tensor | None = None
        self._blocks_square = 0.0  # Σ ‖F_k‖_F² of the layers' blocks
        self._num_weights = 0
        self._dtype = self._row_dtype = torch.float64
        self._num_left_out = 0

    def leave_out(self, num_rows: int, num_weights: int) -> None:
        """Note that a layer is missing, so that the sum of the others is not the network's.

        Args:
            num_rows: Number of its gradients.
            num_weights: Number d of its weights.
        """
        self._num_left_out = num_rows
        self._num_weights += num_weights

    def add(
        self,
        name: str,
        gram: Tensor,
        num_weights: int,
        dtype: torch.dtype,
        row_dtype: torch.dtype,
        blocks_square: float | None = None,
    ) -> None:
        """Add one layer, or several whose sum is known.

        Args:
            name: Name of the layer, for messages.
            gram: Gram matrix ``[rows, rows]`` of its gradients, float64.
            num_weights: Number d of its weights.
            dtype: Precision of its products.
            row_dtype: Precision of its rows.
            blocks_square: Of several, the sum of their squared Frobenius norms.

        Raises:
            InputError: If its samples are not those of the layers before.
        """
        if self._gram is not None and len(gram) != len(self._gram):
            raise InputError(
                f"layer {name!r} has {len(gram)} gradients where others have "
                f"{len(self._gram)}, for it was not called in every batch: the samples of the "
                f"layers do not correspond; leave it out with exclude=[{name!r}]."
            )
        self._gram = gram if self._gram is None else self._gram + gram
        self._num_weights += num_weights
        self._blocks_square += _square(gram) if blocks_square is None else blocks_square
        self._dtype = coarser(self._dtype, dtype)
        self._row_dtype = coarser(self._row_dtype, row_dtype)

    def merge(self, other: "NetworkFisher") -> None:
        """Add the layers that another process computed, of the same samples.

        Args:
            other: Sum over the other's layers.
        """
        if other._num_left_out:
            missing = other._num_weights if other._gram is None else 0
            self.leave_out(other._num_left_out, missing)
        if other._gram is not None:
            gram = other._gram if self._gram is None else other._gram.to(self._gram.device)
            about = other._num_weights, other._dtype, other._row_dtype, other._blocks_square
            self.add("of a process", gram, *about)

    @property
    def block_diagonal_cosine(self) -> float:
        """‖B‖_F / ‖F‖_F of the layers' blocks B: ⟨F, B⟩ = ‖B‖²; NaN where F is not known, or 0."""
        whole = 0.0 if self._gram is None or self._num_left_out else _square(self._gram)
        if not 0 < whole < math.inf:
            return math.nan
        return min(1.0, math.sqrt(self._blocks_square / whole))

    def spectrum(self, loss_rounding: float = 0.0) -> Spectrum | None:
        """Return the spectrum, min(rows, weights) eigenvalues; None where there was no layer.

        Args:
            loss_rounding: See :meth:`.LossRounding.relative_square`; it raises the noise floor by
                2·loss_rounding·λ_1.
        """
        if self._num_left_out:
            return Spectrum.of_incomplete(
                min(self._num_left_out, self._num_weights), self._num_left_out, self._dtype
            )
        if self._gram is None:
            return None
        rows, found = len(self._gram), None
        if is_wide(rows) and not is_wide(
            self._num_weights
        ):  # it has no more eigenvalues than these
            found = descending_eigenvalues(self._gram.cpu()[None])
        spectrum = Spectrum.from_matrix(
            self._gram,
            dtype=self._dtype,
            num_rows=rows,
            row_dtype=self._row_dtype,
            eigenvalues=found,
        )
        spectrum = spectrum.with_floor_raised(2 * loss_rounding * spectrum.lambda_max)
        return replace(spectrum, blocks=spectrum.blocks[:, : self._num_weights])


def _square(gram: Tensor) -> float:
    return float(torch.linalg.vector_norm(gram)) ** 2
