"""KFAC-reduce: the positions at which a weight is applied within a sample make one row.

With T positions of all uses, a_n = 1/T Σ_t a_{n,t} and g_n = Σ_t g_{n,t} are the rows of ``input``
and ``grad_output`` (Eschenhagen et al. 2023, section 3.2).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condexp.analysis.layers.calls import ForwardPass, LayerCall, PassMode
from condexp.analysis.layers.rows import Operation
from condexp.analysis.layers.sample_calls import SampleCalls
from condexp.analysis.layers.samples import SampleTest
from condexp.analysis.layers.use import WeightUse
from condexp.analysis.linalg.moments import Scale, SecondMoment
from condexp.analysis.linalg.precision import coarser
from condexp.analysis.linalg.rows.dense import DenseRows
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import PlainMeasures
from condexp.analysis.statistics.layer import LayerStatistics
from condexp.analysis.statistics.moment import AdaptiveMoment, SolveQueue
from condexp.analysis.statistics.table import TableStatistics
from condexp.analysis.vocabulary import Matrix
from condexp.errors import InputError

_LAID_OUT = 1 << 22  # numbers of rows that are laid out at once


@dataclass(frozen=True, eq=False)
class _State:
    moment: SecondMoment
    square: float
    count: int
    row_dtype: torch.dtype
    obstacle: str | None


class ReducedFactor:
    """A factor of rows that have been reduced, one for each sample.

    Args:
        scale: The divisor of its sums.
        options: As for :class:`.AdaptiveMoment`.
        length: Number of its eigenvalues.
    """

    def __init__(self, scale: Scale, options: AnalysisOptions, length: int) -> None:
        # All signals' rows make one matrix; there are few, so float64 costs nothing.
        self._moment = AdaptiveMoment(scale, options, PassMode.SEVERAL_PASSES, SolveQueue())
        self._square, self._count, self._length = 0.0, 0, length
        self._row_dtype = torch.float64
        self.obstacle: str | None = None
        self.is_reused = False  # nothing is left out

    def add(self, rows: Tensor, num_samples: int, row_dtype: torch.dtype) -> None:
        """Add reduced rows, ``[groups, N, d]``, of so many new samples."""
        self._moment.add(DenseRows(rows), num_samples, row_dtype)

    def note(self, square: float, count: int, row_dtype: torch.dtype) -> None:
        """Note the squares of rows that were reduced, and what their mean divides them by."""
        self._square += square
        self._count += count
        self._row_dtype = coarser(self._row_dtype, row_dtype)

    def state(self) -> _State:
        """Return the rows so far for another process to merge."""
        about = self._square, self._count, self._row_dtype, self.obstacle
        return _State(self._moment.state(), *about)

    def merge(self, state: _State) -> None:
        """Add the rows of another process.

        Args:
            state: State of the other's factor.
        """
        self._moment.merge(state.moment)
        self.note(state.square, state.count, state.row_dtype)
        self.obstacle = self.obstacle or state.obstacle

    def spectrum(self, loss_rounding: float = 0.0) -> Spectrum:
        """Return the spectrum; rows that cancel in a sum leave their rounding in it."""
        if self.obstacle is not None:
            return Spectrum.of_incomplete(self._length, self._count, torch.float64)
        eps = torch.finfo(self._row_dtype).eps
        found = self._moment.spectrum(loss_rounding)
        return found.with_floor_raised(eps**2 * self.power() / self._length)

    def power(self) -> float:
        """Return the trace that the rows would have without being reduced."""
        return self._square / self._count if self._count else math.nan

    def mean(self) -> Tensor:
        """Return the mean row of a ``MEAN``."""
        return self._moment.mean()


class ReducedRows(SampleCalls):
    """The rows of one layer, reduced as they arrive.

    Args:
        name: The layer's name.
        options: ``bias`` and what :class:`.AdaptiveMoment` reads.
        d_in: Number of eigenvalues of ``input``.
        d_out: Likewise of ``grad_output``.
    """

    def __init__(self, name: str, options: AnalysisOptions, d_in: int, d_out: int) -> None:
        super().__init__(name, "weight_sharing='reduce'")
        self._options = options
        self._wants_grads = options.wants(Matrix.GRAD_OUTPUT, Matrix.KFAC)
        self.inputs = ReducedFactor(Scale.MEAN, options, d_in)
        self.grads = ReducedFactor(Scale.SUM, options, d_out)
        self._sums: list[Tensor] = []  # of the gradients of this pass, one for each signal
        self._reduced: dict[int, Tensor] = {}
        self._row_dtype = torch.float64

    def refuse(self, obstacle: str) -> None:
        """Measure nothing, for a reason."""
        super().refuse(obstacle)
        self.inputs.obstacle = self.grads.obstacle = self.obstacle

    def forward(self, use: WeightUse, num_samples: int, number: int, dtype: torch.dtype) -> None:
        """Add one use of the weight.

        Args:
            use: The use.
            num_samples: N of the pass.
            number: Index of the use within the pass, from 0.
            dtype: Precision in which its input was computed.

        Raises:
            InputError: If the pass before is not complete.
        """
        if number == 0:
            if self._wants_grads and any(not call.num_signals for call in self._calls.values()):
                raise InputError(
                    f"layer {self.name!r} was called again before its gradients came: with "
                    "weight_sharing='reduce' record each forward pass and then its backward pass."
                )
            self.close()
        inputs = use.inputs.detach()
        about = inputs, use.output_shape, num_samples
        self._add_call(LayerCall(self.name, use.operation, self._options, *about), number)
        self._row_dtype = coarser(self._row_dtype, dtype)

    def tests_are_over(self) -> None:
        """Reduce the inputs, now that it is known which rows belong to which sample."""
        super().tests_are_over()
        self._reduce_inputs()

    def backward(self, grad: Tensor, number: int, dtype: torch.dtype, denominator: float) -> None:
        """Add the gradient of one use's output, for the next signal.

        Args:
            grad: ∂L/∂h, in at least float32, of the output's shape.
            number: Index within the pass of the use it belongs to.
            dtype: Precision in which it was computed.
            denominator: D.
        """
        call = self._calls[number]
        call.num_signals += 1
        if self.obstacle is not None:
            return
        summed = call.grad_rows(grad, slice(None)).sum(2, dtype=torch.float64) * denominator
        square = float(torch.linalg.vector_norm(grad, dtype=torch.float64)) * denominator
        count = call.num_samples if number == 0 and call.num_signals == 1 else 0
        self.grads.note(square**2, count, dtype)
        if call.num_signals > len(self._sums):
            self._sums.append(summed)
        else:  # of an earlier use
            self._sums[call.num_signals - 1] += summed

    def close(self) -> None:
        """Complete the pass: add the rows of all its uses."""
        if not self._calls:
            return
        self._reduce_inputs()
        calls, parts, sums = self._calls, self._reduced, self._sums
        self._calls, self._reduced, self._sums = {}, {}, []
        if self.obstacle is not None:
            return
        num_samples = calls[0].num_samples
        num_positions = sum(call.positions for call in calls.values())
        self.inputs.add(sum(parts.values()) / num_positions, num_samples, self._row_dtype)  # type: ignore[arg-type]
        for signal, rows in enumerate(sums):
            self.grads.add(rows, 0 if signal else num_samples, self.grads._row_dtype)

    def _reduce_inputs(self) -> None:
        for number, call in self._calls.items():
            if number in self._reduced or self.obstacle is not None:
                continue
            summed, square = _sum_of_inputs(call)
            self._reduced[number] = summed
            self.inputs.note(square, call.num_samples * call.positions, self._row_dtype)


def _sum_of_inputs(call: LayerCall) -> tuple[Tensor, float]:
    """Return Σ_t a of each sample, ``[groups, N, d_in]`` float64, and Σ ‖a‖²."""
    entries = call.operation.num_entries
    if entries:
        indices = call.indices()
        counts = torch.zeros(1, len(indices), entries + 1, dtype=torch.float64)
        places = torch.where(indices < 0, entries, indices).cpu()
        counts[0].scatter_add_(1, places, torch.ones_like(places, dtype=torch.float64))
        return counts[:, :, :entries], float((indices >= 0).sum())
    parts, square, numbers = [], 0.0, call.inputs[:1].numel() * 9
    at_once = max(1, _LAID_OUT // max(1, numbers))
    for start in range(0, call.num_samples, at_once):
        rows = call.input_rows(slice(start, min(start + at_once, call.num_samples)))
        parts.append(rows.sum(2, dtype=torch.float64))
        square += float(torch.linalg.vector_norm(rows, dtype=torch.float64)) ** 2
    return torch.cat(parts, 1), square


class ReducedStatistics(LayerStatistics):
    """Statistics of a layer whose factors are of reduced rows.

    Args:
        *args: As for :class:`.LayerStatistics`.
        **kwargs: Likewise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        layer, operation = self.layer, self.layer.operation
        d_in = operation.groups * (layer.fan_in + operation.appends_one(self._options))
        self.reduced = ReducedRows(self.name, self._options, d_in, layer.d_out)
        self._input = None if self._input is None else self.reduced.inputs
        self._grad_output = None if self._grad_output is None else self.reduced.grads

    def forward(
        self, use: WeightUse, current: ForwardPass, *, recomputed: bool = False
    ) -> int | None:
        """Add one use of the layer's weight.

        Args:
            use: The use.
            current: The pass that it belongs to.
            recomputed: Whether it is computed in the backward pass.

        Returns:
            The index of this use within the pass; None where it has no rows.
        """
        number = super().forward(use, current, recomputed=recomputed)
        if number is not None:
            table = use.operation.num_entries > 0
            dtype = torch.float64 if table else use.row_dtype(convolves=self._convolves)
            self.reduced.forward(use, current.num_samples, number, dtype)
        return number

    def test_samples(
        self, test: SampleTest, operation: Operation, number: int, grad: Tensor
    ) -> None:
        """Find out which rows of a use belong to which sample.

        Args:
            test: The test.
            operation: What was computed.
            number: Index of the use within the pass.
            grad: Gradient of the test's cotangents with respect to its output.
        """
        super().test_samples(test, operation, number, grad)
        self.reduced.test_samples(test, grad, number)

    def _add_grads(
        self,
        _operation: Operation,
        number: int,
        grad: Tensor,
        current: ForwardPass,
        row_dtype: torch.dtype,
    ) -> None:
        self.reduced.backward(grad, number, row_dtype, current.denominator)

    def plain(self) -> PlainMeasures | None:
        """Compute the measures that need no eigenvalues.

        Returns:
            The measures; None where the layer was never called.
        """
        self.reduced.close()
        return super().plain()

    def state(self) -> Any:
        """Return the statistics so far, of complete passes, for another process to merge."""
        self.reduced.close()
        return super().state()

    @property
    def _obstacle(self) -> str | None:
        return super()._obstacle or self.reduced.inputs.obstacle


class ReducedTableStatistics(ReducedStatistics, TableStatistics):
    """Statistics of a table whose factors are of reduced rows: of how often, in each sample."""
