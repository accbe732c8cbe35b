"""Statistics of a table, such as an embedding: a linear map of unit vectors, which are counted."""

from typing import Any

import torch
from torch import Tensor

from condexp.analysis.layers.use import WeightUse
from condexp.analysis.linalg.counts import spectrum_of_counts
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.statistics.layer import LayerStatistics
from condexp.analysis.statistics.measures import RowMeans
from condexp.analysis.vocabulary import Matrix


class EntryCounts:
    """How often each entry was looked up: Σ_x of unit vectors is diagonal, and kept as that.

    Args:
        center: Whether the rows' mean is taken off for the spectrum.
    """

    def __init__(self, *, center: bool) -> None:
        self.is_reused = False  # nothing is left out
        self._center, self._num_rows = center, 0
        self._counts: Tensor | None = None

    def add(self, counts: Tensor, num_rows: int) -> None:
        """Add rows.

        Args:
            counts: Number of rows for each entry, ``[entries]``.
            num_rows: Number of all rows, those of no entry (padding) too.
        """
        self._counts = counts if self._counts is None else self._counts + counts
        self._num_rows += num_rows

    def state(self) -> "EntryCounts":
        """Return the counts so far for another process to merge."""
        return self

    def merge(self, state: "EntryCounts") -> None:
        """Add the counts of another process.

        Args:
            state: The other's counts.
        """
        if state._counts is not None:
            self.add(state._counts, state._num_rows)

    def spectrum(self, loss_rounding: float = 0.0) -> Spectrum:
        """Return the spectrum of the rows so far; see :meth:`.AdaptiveMoment.spectrum`."""
        assert self._counts is not None
        found = spectrum_of_counts(self._counts, self._num_rows, center=self._center)
        return found.with_floor_raised(2 * loss_rounding * found.lambda_max)

    def power(self) -> float:
        """Return the trace before centring: the share of rows that are not 0."""
        assert self._counts is not None
        return float(self._counts.sum()) / self._num_rows

    def mean(self) -> Tensor:
        """Return the mean row, ``[1, entries]``."""
        assert self._counts is not None
        return self._counts[None] / self._num_rows


class TableStatistics(LayerStatistics):
    """Statistics of a table over all passes so far.

    Args:
        *args: As for :class:`.LayerStatistics`.
        **kwargs: Likewise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._options.wants(Matrix.INPUT, Matrix.KFAC):
            self._input = EntryCounts(center=self._options.center)

    def _add_inputs(self, use: WeightUse, inputs: Tensor, _num_samples: int) -> None:
        indices = inputs.flatten()
        entries = indices[indices >= 0].long()
        counts = torch.bincount(entries, minlength=use.operation.num_entries).cpu().double()
        num_rows = len(indices)
        if isinstance(self._input, EntryCounts):
            self._input.add(counts, num_rows)
        else:
            self._means.merge(RowMeans(num_rows, counts[None], float(counts.sum())))
        self._units.add((counts == num_rows).double(), (counts > 0).double())
