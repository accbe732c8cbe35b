"""A second moment in float32 where that suffices, in float64 where it does not."""

import torch
from torch import Tensor

from condexp.analysis.options import AnalysisOptions, Matrix
from condexp.linalg.auto import Precision, needs_float64
from condexp.linalg.moments import Scale, SecondMoment
from condexp.linalg.spectrum import Spectrum


class Moment:
    """A second moment under the precision policy of ``theory.md`` §4.

    Args:
        scale: Its 1/N.
        options: ``center``, ``precision``, ``kappa_p`` and ``matrices`` are read.
        streaming: Rows will come in several portions, so ``auto`` cannot look again at them and
            takes float64 from the start.
    """

    def __init__(self, scale: Scale, options: AnalysisOptions, *, streaming: bool) -> None:
        self._scale, self._options, self._streaming = scale, options, streaming
        self._moment = SecondMoment(scale, center=options.center)
        self._spectrum: Spectrum | None = None

    def add(self, rows: Tensor, num_samples: int, row_dtype: torch.dtype) -> None:
        """Add rows ``[groups, num_rows, d]``, computed in ``row_dtype``, of so many new samples."""
        precision, again = self._options.precision, self._moment.num_rows > 0
        dtype, self._spectrum = torch.float32, None
        if precision is not Precision.AUTO:
            dtype = getattr(torch, precision.value)
        elif again or self._streaming or rows.dtype == torch.float64:
            dtype = torch.float64
        self._moment.add(rows, num_samples, dtype, row_dtype)
        auto = precision is Precision.AUTO and dtype == torch.float32
        if auto and self._is_too_coarse():
            self._moment = SecondMoment(self._scale, center=self._options.center)
            self._moment.add(rows, num_samples, torch.float64, row_dtype)
            self._spectrum = None

    def _is_too_coarse(self) -> bool:
        whole = self._options.wants(Matrix.KFAC)
        return needs_float64(self.spectrum(), self._options.kappa_p, whole=whole)

    def spectrum(self, excess: float = 0.0) -> Spectrum:
        """Return the spectrum of what was added so far.

        Args:
            excess: See :meth:`condexp.analysis.root.RootNoise.excess`; it raises the noise floor by
                4·excess·λ_1.
        """
        if self._spectrum is None:
            self._spectrum = self._moment.spectrum()
        largest = self._spectrum.lambda_max + self._moment.mean_square()
        return self._spectrum.raised(4 * excess * largest)

    def power(self) -> float:
        """Return the trace before centring: the rows' squared length, per sample or position."""
        return self.spectrum().trace + self._moment.mean_square()
