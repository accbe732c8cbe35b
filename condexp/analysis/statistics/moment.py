"""A second moment in float32 where that suffices, in float64 where it does not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condexp.analysis.linalg.eigen import solve_all
from condexp.analysis.linalg.moments import MomentMatrix, Scale, SecondMoment
from condexp.analysis.linalg.rows.dense import Rows
from condexp.analysis.linalg.spectrum import Spectrum, kappa_index
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import Matrix, Precision, SpectrumStatus
from condexp.errors import InputError


def needs_float64(spectrum: Spectrum, kappa_p: Sequence[float], *, whole: bool = False) -> bool:
    """Return whether a spectrum must be taken again with float64 products (``Precision.AUTO``).

    That is so if a requested κ_p falls on an eigenvalue between 0 and 16·eps·λ_1, where 1 %
    accuracy ends, unless the number of rows already makes it an exact 0, or the rows themselves are
    too coarse to tell; or if float32 failed (status ``unreliable``).

    Args:
        spectrum: From products of any precision.
        kappa_p: The fractions p asked for.
        whole: They are asked of a Kronecker product with this factor too, whose eigenvalues are
            made of any of the factor's: none of those may be too small.

    Returns:
        True if products in float64 could change a requested κ_p.
    """
    if spectrum.dtype == torch.float64 or spectrum.status in {
        SpectrumStatus.ZERO,
        SpectrumStatus.NONFINITE,
    }:
        return False
    if spectrum.status is SpectrumStatus.UNRELIABLE:
        return True
    max_rank = spectrum.blocks.shape[0] * spectrum.num_rows
    threshold = 16 * torch.finfo(spectrum.dtype).eps * spectrum.lambda_max
    if spectrum.noise_floor > threshold:  # set by half-precision rows, whatever the products
        return False
    indices = [kappa_index(p, len(spectrum)) for p in kappa_p]
    if whole and indices:
        indices.append(min(len(spectrum), max_rank))  # the smallest that is no exact 0
    return any(
        index <= max_rank and float(spectrum.eigenvalues[index - 1]) < threshold
        for index in indices
    )


WAITING_BYTES = 56 * 2**20
"""What matrices and rows may take that wait for their eigenvalues."""


@dataclass(frozen=True, eq=False)
class _Result:
    spectrum: Spectrum
    mean: Tensor | None
    mean_square: float
    """The trace that centring took away."""

    @classmethod
    def of(cls, unsolved: MomentMatrix, eigenvalues: Tensor | None = None) -> "_Result":
        mean = None if unsolved.mean is None else unsolved.mean.cpu()
        return cls(unsolved.spectrum(eigenvalues), mean, float(unsolved.mean_square))


@dataclass(frozen=True, eq=False)
class _Portion:
    """Rows that may be taken again."""

    rows: Rows
    num_samples: int
    row_dtype: torch.dtype
    version: int

    @property
    def has_changed(self) -> bool:
        return self.rows.version != self.version


class SolveQueue:
    """Moments that wait for their spectra, which are worked out together."""

    def __init__(self) -> None:
        self._moments: list[AdaptiveMoment] = []
        self._bytes = 0

    def put(self, moment: "AdaptiveMoment", num_bytes: int) -> None:
        """Let a moment wait, until what all keep meanwhile is too much.

        Args:
            moment: What waits.
            num_bytes: What it keeps.
        """
        self._moments.append(moment)
        self._bytes += num_bytes
        if self._bytes > WAITING_BYTES:
            self.settle()

    def settle(self) -> None:
        """Work out all spectra, also those that have to be taken again."""
        while self._moments:
            solved = solve_all([moment.matrix() for moment in self._moments])
            moments, self._moments, self._bytes = self._moments, [], 0
            for moment, eigenvalues in zip(moments, solved, strict=True):
                moment.take(eigenvalues)
            for moment in moments:
                moment.look_again()


class AdaptiveMoment:
    """A second moment under the precision policy of ``docs/theory.md`` §4.

    Args:
        scale: Its 1/N.
        options: ``center``, ``precision``, ``kappa_p`` and ``matrices`` are read.
        streaming: Rows will come in several portions, so ``auto`` cannot look again at them and
            takes float64 from the start.
        waiting: Where all rows come in one portion: of them nothing but the spectrum is kept, once
            it is worked out with others; under ``auto`` they must not change before that. Where
            more come they are left out, and ``came_again`` says so.
    """

    def __init__(
        self,
        scale: Scale,
        options: AnalysisOptions,
        *,
        streaming: bool = False,
        waiting: SolveQueue | None = None,
    ) -> None:
        self._scale, self._options = scale, options
        self._streaming, self._waiting = streaming, waiting
        self._moment = self._new_moment()
        self._portion: _Portion | None = None
        self._unsolved: MomentMatrix | None = None
        self._result: _Result | None = None
        self.came_again = False

    def add(self, rows: Rows, num_samples: int, row_dtype: torch.dtype) -> None:
        """Add rows, computed in ``row_dtype``, of so many new samples."""
        if self._waiting is not None and (self._unsolved or self._result):
            self.came_again = True
            return
        self._result = None
        dtype = self._dtype(rows)
        rows = rows if self._waiting is not None else rows.kept()
        if self._options.precision is Precision.AUTO and dtype == torch.float32:
            self._portion = _Portion(rows, num_samples, row_dtype, rows.version)
        self._moment.add(rows, num_samples, dtype, row_dtype)
        if self._waiting is not None:
            self._wait(self._waiting)
        elif self._portion is not None:
            self._result = _Result.of(self._moment.unsolved())
            self.look_again()

    @property
    def share(self) -> SecondMoment:
        """What other processes need to know of it, where it is not waited for."""
        return self._moment

    def merge(self, share: SecondMoment) -> None:
        """Take in what another process has heard.

        Args:
            share: Its moment's.
        """
        self._moment.merge(share)
        self._result = None

    def _dtype(self, rows: Rows) -> torch.dtype:
        precision, again = self._options.precision, self._moment.num_rows > 0
        if precision is not Precision.AUTO:
            dtype: torch.dtype = getattr(torch, precision.value)
            return dtype
        fine = again or self._streaming or rows.dtype == torch.float64
        return torch.float64 if fine else torch.float32

    def _new_moment(self) -> SecondMoment:
        return SecondMoment(self._scale, center=self._options.center)

    def _wait(self, waiting: SolveQueue) -> None:
        self._unsolved, self._moment = self._moment.unsolved(), self._new_moment()
        held = 0 if self._portion is None else self._portion.rows.num_bytes
        waiting.put(self, held + self._unsolved.matrix.nbytes)

    def matrix(self) -> Tensor:
        """Return the matrix whose eigenvalues are waited for, on the CPU.

        Raises:
            InputError: If the rows, which may be needed again, are no longer what they were.
        """
        assert self._unsolved is not None
        if self._portion is not None and self._portion.has_changed:
            raise InputError(
                "an input or gradient of an analysed layer was changed in place after its call: "
                "put a condexp.Recorder around the pass, which copies them, or leave the layer out."
            )
        return self._unsolved.matrix.cpu()

    def take(self, eigenvalues: Tensor) -> None:
        """Take over the eigenvalues of :meth:`matrix`."""
        assert self._unsolved is not None
        self._result, self._unsolved = _Result.of(self._unsolved, eigenvalues), None

    def look_again(self) -> None:
        """Keep the result, or take it again in float64 while its rows are at hand."""
        held, self._portion = self._portion, None
        assert self._result is not None
        whole = self._options.wants(Matrix.KFAC)
        if held is None or not needs_float64(
            self._result.spectrum, self._options.kappa_p, whole=whole
        ):
            return
        self._moment, self._result = self._new_moment(), None
        self._moment.add(held.rows, held.num_samples, torch.float64, held.row_dtype)
        if self._waiting is not None:
            self._wait(self._waiting)

    def _results(self) -> _Result:
        if self._result is None and self._waiting is not None:
            self._waiting.settle()
        if self._result is None:
            self._result = _Result.of(self._moment.unsolved())
        return self._result

    def spectrum(self, excess: float = 0.0) -> Spectrum:
        """Return the spectrum of what was added so far.

        Args:
            excess: See :meth:`RootNoise.excess`; it raises the noise floor by
                4·excess·λ_1.
        """
        result = self._results()
        largest = result.spectrum.lambda_max + result.mean_square
        return result.spectrum.raised(4 * excess * largest)

    def power(self) -> float:
        """Return the trace before centring: the rows' squared length, per sample or position."""
        return self.spectrum().trace + self._results().mean_square

    def mean(self) -> Tensor:
        """Return the mean row of a ``MEAN``, ``[groups, d]`` float64 on the CPU."""
        mean = self._results().mean
        assert mean is not None
        return mean
