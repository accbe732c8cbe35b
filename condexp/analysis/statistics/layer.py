"""Statistics of one layer, accumulated over forward and backward passes.

Hooks and autograd are not seen here: tensors are handed in by the methods' callers.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condexp.analysis.fisher.block import FisherBlock
from condexp.analysis.layers.calls import ForwardPass, PassMode
from condexp.analysis.layers.rows import (
    Layer,
    appends_one,
    check_rows,
    gradient_rows,
    moment_rows,
    unit_extremes,
)
from condexp.analysis.layers.select import describe
from condexp.analysis.linalg.kronecker import KroneckerSpectrum
from condexp.analysis.linalg.moments import Scale
from condexp.analysis.linalg.precision import summable
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import LayerSnapshot, PlainMeasures
from condexp.analysis.statistics.measures import RowMeans, UnitExtremes, mean_fraction
from condexp.analysis.statistics.moment import AdaptiveMoment, SolveQueue
from condexp.analysis.statistics.weights import WeightStatistics
from condexp.analysis.vocabulary import Matrix
from condexp.errors import InputError


@dataclass(frozen=True, eq=False)
class LayerState:
    """Statistics that one process has collected of a layer, for another one to merge.

    Args:
        parts: States of the parts of :class:`LayerStatistics`, in their order there.
        uses: Number of calls in a pass.
        positions: Number T of rows that a sample contributes in one call.
    """

    parts: tuple[Any, ...]
    uses: int
    positions: int


class LayerStatistics:
    """Statistics of one layer over all passes so far.

    Args:
        name: Name of the layer.
        module: The layer.
        options: What to measure.
        fisher: The layer's Fisher block, if it is measured.
        pass_mode: Who runs the passes, and how many. Of several signals, and in the layers of
            ``options.float64``, rows come in several portions whatever the mode.
        queue: See :class:`.AdaptiveMoment`.
        keep_weights: See :class:`.MeasurementHooks`.
    """

    def __init__(
        self,
        name: str,
        module: Layer,
        options: AnalysisOptions,
        fisher: FisherBlock | None = None,
        *,
        pass_mode: PassMode,
        queue: SolveQueue,
        keep_weights: bool = True,
    ) -> None:
        self.name, self.module, self.fisher, self._options = name, module, fisher, options
        if options.has_several_signals or name in options.float64:
            pass_mode = PassMode.SEVERAL_PASSES

        def moment(scale: Scale, matrix: Matrix) -> AdaptiveMoment | None:
            wanted = options.wants(matrix, Matrix.KFAC)
            return AdaptiveMoment(scale, options, pass_mode, queue) if wanted else None

        self._input = moment(Scale.MEAN, Matrix.INPUT)
        self._grad_output = moment(Scale.SUM, Matrix.GRAD_OUTPUT)
        self._weight = WeightStatistics(module, options, pass_mode, keep_values=keep_weights)
        self._units, self._means = UnitExtremes(), RowMeans()
        self._uses: Counter[int] = Counter()
        self._returns: Counter[int] = Counter()
        self._positions = 0

    def state(self) -> LayerState:
        """Return the statistics so far, of complete passes, for another process to merge."""
        moments = [m and m.state() for m in (self._input, self._grad_output)]
        fisher = self.fisher and self.fisher.state()
        parts = (*moments, self._weight.state(), self._units, self._means, fisher)
        return LayerState(parts, max(self._uses.values(), default=0), self._positions)

    def merge(self, state: LayerState) -> None:
        """Add the statistics of another process, of the same layer.

        Args:
            state: State of the other's statistics.
        """
        mine = (self._input, self._grad_output, self._weight, self._units, self._means, self.fisher)
        for part, other in zip(mine, state.parts, strict=True):
            if part is not None:
                part.merge(other)
        self._uses[0] = max(self._uses[0], state.uses)
        self._positions = self._positions or state.positions

    @property
    def needs_output_gradients(self) -> bool:
        """Whether the gradients of the layer's output are measured."""
        return self._grad_output is not None or self.fisher is not None

    @property
    def is_reused(self) -> bool:
        """Whether rows were left out under ``ONE_PASS``, because the layer was called again."""
        return any(m is not None and m.is_reused for m in (self._input, self._grad_output))

    def forward(self, inputs: Tensor, output: Tensor, current: ForwardPass) -> int:
        """Add one call of the layer.

        Args:
            inputs: Input of the layer, as the module was given it.
            output: Output of the layer; only the shape and dtype are read.
            current: The pass that the call belongs to.

        Returns:
            The index of this call within the pass, from 0.
        """
        use, num_rows = self._uses[current.number], output.numel() // len(self.module.weight)
        check_rows(self.name, num_rows, current.num_samples)
        if num_rows == 0:
            return use
        self._weight.forward(output.dtype)  # under autocast, that one's
        self._uses[current.number] += 1
        self._positions = self._positions or num_rows // current.num_samples
        given, inputs = inputs, summable(inputs)
        rows = moment_rows(self.module, inputs, self._options)
        # Autograd keeps a trained layer's input from changes; under autocast, a copy of it.
        if not self.module.weight.requires_grad or torch.is_autocast_enabled(inputs.device.type):
            rows = rows.copy()
        if self._input is not None:
            self._input.add(rows, current.num_samples if use == 0 else 0, given.dtype)
        else:
            self._means.add(rows)
        self._units.add(*unit_extremes(self.module, inputs))
        if self.fisher is not None:
            self.fisher.forward(given, current.num_samples, use)
        return use

    @torch.no_grad()
    def backward(self, grad: Tensor, current: ForwardPass, use: int) -> None:
        """Add the gradient with respect to the output of one call.

        Args:
            grad: Gradient ∂L/∂h, of the output's shape.
            current: The pass that the call belonged to.
            use: Index of the call within the pass.

        Raises:
            InputError: If the same call was back-propagated before.
        """
        if grad.numel() == 0:
            return
        first = self._returns[current.number] == 0
        self._returns[current.number] += 1
        if self._returns[current.number] > self._uses[current.number] * current.num_signals:
            raise InputError(
                f"layer {self.name!r} was back-propagated twice after one forward pass, which "
                "would count its gradients double: record one backward pass a forward pass."
            )
        # Promoted first: half precision would overflow once multiplied by the denominator.
        row_dtype, grad = grad.dtype, summable(grad)
        if self._grad_output is not None:
            rows = gradient_rows(self.module, grad, current.denominator)
            self._grad_output.add(rows, current.num_samples if first else 0, row_dtype)
        if self.fisher is not None:
            self.fisher.backward(grad * current.denominator, use, row_dtype)
            if self._returns[current.number] == self._uses[current.number] * current.num_signals:
                self.fisher.close()

    @torch.no_grad()
    def weight_backward(self, grad: Tensor, current: ForwardPass) -> None:
        """Add ∂L/∂W of one backward pass of the data's loss."""
        self._weight.backward(grad, current.num_samples, current.denominator)

    def plain(self) -> PlainMeasures | None:
        """Compute the measures that need no eigenvalues.

        Returns:
            The measures; None where the layer was never called.

        Raises:
            InputError: If a gradient was asked for and none arrived.
        """
        if not self._weight.was_used:
            return None
        if self._options.needs_gradients and not self._weight.has_gradient:
            raise InputError(
                f"no gradient reached layer {self.name!r}: backward() did not run while "
                "recording, or the loss does not depend on the layer; leave it out with "
                f"exclude=[{self.name!r}] or ask for matrices=('input', 'weight') only."
            )
        positions, uses = self._positions, max(self._uses.values())
        return PlainMeasures(
            info=describe(self.name, self.module, self._options, positions=positions, uses=uses),
            dead_fraction=self._units.dead_fraction(),
            full_fraction=self._units.full_fraction(),
        )

    def record(
        self, plain: PlainMeasures, learning_rate: float | None, loss_rounding: float = 0.0
    ) -> LayerSnapshot:
        """Compute the spectra, and return the layer's record.

        Args:
            plain: The measures of :meth:`plain`.
            learning_rate: Step length of the optimizer, or None.
            loss_rounding: See :meth:`.LossRounding.relative_square`.

        Returns:
            The record.
        """
        wants = self._options.wants
        # Cotangents of other labels are computed without the difference that rounds the loss's.
        of_signals = loss_rounding if self._options.is_empirical else 0.0
        inputs = None if self._input is None else self._input.spectrum()
        grad_output = None if self._grad_output is None else self._grad_output.spectrum(of_signals)
        kfac, power = None, 0.0
        if self._input is not None and self._grad_output is not None:
            power = self._input.power() * self._grad_output.power()
        if inputs is not None and grad_output is not None and wants(Matrix.KFAC):
            kfac = KroneckerSpectrum(inputs, grad_output)
        of_weight = self._weight.measures(learning_rate, loss_rounding=loss_rounding, power=power)
        return LayerSnapshot(
            **vars(plain),
            input=inputs if wants(Matrix.INPUT) else None,
            grad_output=grad_output if wants(Matrix.GRAD_OUTPUT) else None,
            kfac=kfac,
            fisher=None if self.fisher is None else self.fisher.spectrum(of_signals),
            input_mean_fraction=self._mean_fraction(),
            **vars(of_weight),
        )

    def _mean_fraction(self) -> float:
        if self._input is None:
            mean, power = self._means.mean, self._means.power
        else:
            mean, power = self._input.mean(), self._input.power()
        if appends_one(self.module, self._options):  # the bias's 1 is no unit; each block has one
            mean, power = mean[:, :-1], power - len(mean)
        return mean_fraction(mean, power)
