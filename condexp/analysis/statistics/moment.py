"""Second moments in float32 where that suffices, in float64 where a κ_p needs it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Protocol

import torch
from torch import Tensor

from condexp.analysis.layers.calls import PassMode
from condexp.analysis.linalg.device import fetched, has_fast_float64
from condexp.analysis.linalg.eigen import solve_all
from condexp.analysis.linalg.moments import MomentMatrix, Scale, SecondMoment
from condexp.analysis.linalg.ratios import is_wide
from condexp.analysis.linalg.rows.dense import HeldRows, Rows
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import Matrix, Precision, SpectrumStatus

_CHEAP = 4  # rows for each feature, or features for each row
WIDTH = 0.01
"""Relative width of an interval of κ_p up to which it counts as known."""


def needs_float64(spectrum: Spectrum, kappa_p: Sequence[float], *, whole: bool = False) -> bool:
    """Return whether a spectrum must be computed again with float64 products (``Precision.AUTO``).

    That is so if the interval of a requested κ_p is wider than 1 % and the rows could tell better:
    not where half-precision rows set the noise floor; or if float32 failed (status ``unreliable``).

    Args:
        spectrum: Spectrum from products of any precision.
        kappa_p: The fractions p asked for.
        whole: Whether κ_p of a Kronecker product with this factor is asked for too: its eigenvalues
            are products of any of the factor's, none of which may be too small.

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
    if spectrum.rows_decide:
        return False
    asked_for = [1.0, *kappa_p] if whole and kappa_p else kappa_p
    if spectrum.estimates is not None:  # whose own intervals are wider
        exact = replace(spectrum, noise_floor=0.0, blur=0.0, relative=0.0)
        ends = [[s.kappa_interval(p)[1] for s in (exact, spectrum)] for p in asked_for]
        return any(_is_uncertain(*highs) for highs in ends)
    return any(_is_uncertain(*spectrum.kappa_interval(p)) for p in asked_for)


def _solves_in_no_time(rows: Rows) -> bool:
    """Return whether eigenvalues, at once and alone, cost less than a copy of the rows."""
    return rows.device.type == "cpu" and rows.num_features**2 <= rows.num_rows


def _is_uncertain(low: float, high: float) -> bool:
    # Both are infinite where the eigenvalue is 0 exactly.
    return not math.isinf(low) and high > (1 + WIDTH) * low


WAITING_BYTES = 56 * 2**20
"""Bytes of queued matrices, and of rows kept with them, at which the queue is solved."""


@dataclass(frozen=True, eq=False)
class _Result:
    spectrum: Spectrum
    mean: Tensor | None
    mean_square: float
    """Trace that centring took away."""

    @classmethod
    def of(cls, matrix: MomentMatrix, eigenvalues: Tensor | None = None) -> "_Result":
        mean = None if matrix.mean is None else matrix.mean.cpu()
        return cls(matrix.spectrum(eigenvalues), mean, float(matrix.mean_square))


@dataclass(frozen=True, eq=False)
class _Portion:
    """Rows that may be multiplied again, in float64."""

    held: HeldRows
    num_samples: int
    row_dtype: torch.dtype


class SolveQueue:
    """Moments whose eigenvalues are computed together, several at a time where threads allow it."""

    def __init__(self) -> None:
        self._waiting: dict[AdaptiveMoment, int] = {}
        self._num_bytes = 0

    def add(self, moment: "AdaptiveMoment", num_bytes: int = 0) -> None:
        """Queue a moment; solve the queue once it exceeds ``WAITING_BYTES``.

        Args:
            moment: The moment.
            num_bytes: Bytes that it keeps until its eigenvalues are known.
        """
        self._num_bytes += num_bytes - self._waiting.get(moment, 0)
        self._waiting[moment] = num_bytes
        if self._num_bytes > WAITING_BYTES:
            self.solve()

    def solve(self) -> None:
        """Compute the spectra of all queued moments, also those that need float64 after all."""
        while self._waiting:
            moments: list[AdaptiveMoment] = []
            matrices: list[Tensor] = []
            num_bytes = 0
            while self._waiting and num_bytes <= WAITING_BYTES:
                moment, held = self._waiting.popitem()
                self._num_bytes -= held
                if not moment.is_solved:
                    moments.append(moment)
                    matrices.append(moment.matrix())
                    num_bytes += matrices[-1].nbytes
            on_cpu = fetched(matrices)
            narrow = [not is_wide(matrix.shape[-1]) for matrix in matrices]
            solved = iter(
                solve_all(list(compress(on_cpu, narrow)), list(compress(matrices, narrow)))
            )
            for moment, matrix, is_narrow in zip(moments, on_cpu, narrow, strict=True):
                moment.set_eigenvalues(matrix, next(solved) if is_narrow else None)
            for moment in moments:
                moment.refine()
                moment.enqueue()


class Factor(Protocol):
    """A factor of ``kfac``, of rows that have been added."""

    @property
    def is_reused(self) -> bool:
        """Whether rows were left out under ``ONE_PASS``."""

    def state(self) -> Any:
        """Return the rows so far for another process to merge."""

    def merge(self, state: Any) -> None:
        """Add the rows of another process."""

    def spectrum(self, loss_rounding: float = 0.0) -> Spectrum:
        """Return the spectrum; see :meth:`AdaptiveMoment.spectrum`."""

    def power(self) -> float:
        """Return the trace before centring."""

    def mean(self) -> Tensor:
        """Return the mean row of a ``MEAN``, ``[groups, d]`` float64 on the CPU."""


class AdaptiveMoment:
    """A second moment under the precision policy of ``docs/theory.md`` §4.

    Args:
        scale: The divisor of its sums.
        options: ``center``, ``precision``, ``kappa_p`` and ``matrices`` are read.
        pass_mode: How many portions of rows will come, and who may change them. Under ``ONE_PASS``
            a second portion is left out and ``is_reused`` becomes true.
        queue: Queue in which the moment waits for its spectrum. Under ``ONE_PASS`` and ``auto`` its
            rows must not change before that.
    """

    def __init__(
        self,
        scale: Scale,
        options: AnalysisOptions,
        pass_mode: PassMode,
        queue: SolveQueue,
    ) -> None:
        self._scale, self._options = scale, options
        self._pass_mode, self._queue = pass_mode, queue
        self._moment = self._new_moment()
        self._portion: _Portion | None = None
        self._queued: MomentMatrix | None = None
        self._result: _Result | None = None
        self.is_reused = False

    def add(
        self, rows: Rows, num_samples: int, row_dtype: torch.dtype, *, may_change: bool = True
    ) -> None:
        """Add rows.

        Args:
            rows: The rows; copied where they are kept and may change.
            num_samples: Number of new samples that they belong to.
            row_dtype: Precision in which they were computed.
            may_change: Whether somebody may change them before the snapshot, as programs do.
        """
        one_pass = self._pass_mode is PassMode.ONE_PASS
        if one_pass and (self._queued or self._result):
            self.is_reused = True
            return
        self._settle()
        self._result = None
        dtype = self._dtype(rows)
        again = self._options.precision is Precision.AUTO and dtype == torch.float32
        at_once = again and may_change and _solves_in_no_time(rows)
        if may_change and not at_once and (again or (not one_pass and self._moment.keeps(rows))):
            rows = rows.copy()
        if again:
            self._portion = _Portion(HeldRows.of(rows), num_samples, row_dtype)
        self._moment.add(rows, num_samples, dtype, row_dtype)
        if at_once:
            self._settle()
        elif one_pass:
            self._multiply()
        elif self._portion is not None:
            self._queue.add(self, rows.num_bytes)

    def _settle(self) -> None:
        """Take the first portion again in float64 if that is needed: no other can be."""
        if self._portion is not None:
            self._result = _Result.of(self._moment.moment_matrix())
            self.refine()

    @property
    def is_solved(self) -> bool:
        """Whether the eigenvalues are known."""
        return self._result is not None

    def enqueue(self) -> None:
        """Queue the moment, with others, for its eigenvalues, if they are not known."""
        if not self.is_solved and self._moment.num_rows > 0:
            self._queue.add(self)

    def state(self) -> SecondMoment:
        """Return the rows so far for another process to merge; not under ``ONE_PASS``."""
        self._settle()
        return self._moment

    def merge(self, state: SecondMoment) -> None:
        """Add the rows of another process.

        Args:
            state: State of the other's moment.
        """
        self._moment.merge(state)
        self._result = None

    def _dtype(self, rows: Rows) -> torch.dtype:
        precision, again = self._options.precision, self._moment.num_rows > 0
        if precision is not Precision.AUTO:
            dtype: torch.dtype = getattr(torch, precision.value)
            return dtype
        several = again or self._pass_mode is PassMode.SEVERAL_PASSES
        sizes = rows.num_rows, rows.num_features
        # A float64 product then costs less than the second solve that float32 would mostly lead to.
        is_cheap = max(sizes) <= _CHEAP * min(sizes)
        is_cheap = is_cheap or has_fast_float64(rows.device)
        fine = several or is_cheap or rows.dtype == torch.float64
        return torch.float64 if fine else torch.float32

    def _new_moment(self) -> SecondMoment:
        return SecondMoment(self._scale, center=self._options.center)

    def _multiply(self) -> None:
        self._queued, self._moment = self._moment.moment_matrix(), self._new_moment()
        held = 0 if self._portion is None else self._portion.held.rows.num_bytes
        self._queue.add(self, held + self._queued.matrix.nbytes)

    def matrix(self) -> Tensor:
        """Return the matrix whose eigenvalues are wanted, where its rows are.

        Raises:
            InputError: If the rows, which may be needed again, were changed in place.
        """
        if self._queued is None:
            self._queued = self._moment.moment_matrix()
        if self._portion is not None:
            self._portion.held.get()
        return self._queued.matrix

    def set_eigenvalues(self, matrix: Tensor, eigenvalues: Tensor | None) -> None:
        """Set the eigenvalues of :meth:`matrix`.

        Args:
            matrix: The same matrix, on the CPU.
            eigenvalues: None: it is too wide to be solved.
        """
        assert self._queued is not None
        queued, self._queued = replace(self._queued, matrix=matrix), None
        self._result = _Result.of(queued, eigenvalues)

    def refine(self) -> None:
        """Keep the result, or compute it again in float64 while its rows are at hand."""
        portion, self._portion = self._portion, None
        assert self._result is not None
        whole = self._options.wants(Matrix.KFAC)
        if portion is None or not needs_float64(
            self._result.spectrum, self._options.kappa_p, whole=whole
        ):
            return
        self._moment, self._result = self._new_moment(), None
        self._moment.add(portion.held.get(), portion.num_samples, torch.float64, portion.row_dtype)
        if self._pass_mode is PassMode.ONE_PASS:
            self._multiply()

    def _results(self) -> _Result:
        if self._result is None:
            self._queue.add(self)
            self._queue.solve()
        assert self._result is not None
        return self._result

    def spectrum(self, loss_rounding: float = 0.0) -> Spectrum:
        """Return the spectrum of the rows so far.

        Args:
            loss_rounding: See :meth:`.LossRounding.relative_square`; it raises the noise floor by
                2·loss_rounding·λ_1.
        """
        result = self._results()
        largest = result.spectrum.lambda_max + result.mean_square
        return result.spectrum.with_floor_raised(2 * loss_rounding * largest)

    def power(self) -> float:
        """Return the trace before centring: the rows' squared length, per sample or position."""
        return self.spectrum().trace + self._results().mean_square

    def mean(self) -> Tensor:
        """Return the mean row of a ``MEAN``, ``[groups, d]`` float64 on the CPU."""
        mean = self._results().mean
        assert mean is not None
        return mean
