"""What accumulates for one layer while a recorder listens; no hooks, no autograd here."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from condexp.analysis.fisher.block import FisherBlock
from condexp.analysis.layers.calls import ForwardPass
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
from condexp.analysis.vocabulary import FisherType, Matrix
from condexp.errors import InputError


@dataclass(frozen=True, eq=False)
class LayerState:
    """What one process has heard of a layer, to be united with what others have.

    Args:
        parts: The shares of what the tape consists of, in its order.
        uses: Calls in a pass.
        positions: T.
    """

    parts: tuple[Any, ...]
    uses: int
    positions: int


class LayerStatistics:
    """Everything one layer has shown so far.

    Args:
        name: The layer's name.
        module: The layer.
        options: What to measure.
        fisher: The layer's Fisher block, if it is measured.
        streaming: See :class:`AdaptiveMoment`; the layers of ``options.float64`` always stream.
        waiting: See :class:`AdaptiveMoment`; then the weight need not be copied at once either.
        keeps_weights: See :class:`Listener`.
    """

    def __init__(
        self,
        name: str,
        module: Layer,
        options: AnalysisOptions,
        fisher: FisherBlock | None = None,
        *,
        streaming: bool,
        waiting: SolveQueue | None = None,
        keeps_weights: bool = True,
    ) -> None:
        self.name, self.module, self.fisher, self._options = name, module, fisher, options
        streaming, wants = streaming or name in options.float64, options.wants
        waiting = None if streaming else waiting
        moment = partial(AdaptiveMoment, options=options, streaming=streaming, waiting=waiting)
        self._input = moment(Scale.MEAN) if wants(Matrix.INPUT, Matrix.KFAC) else None
        self._grad_output = moment(Scale.SUM) if wants(Matrix.GRAD_OUTPUT, Matrix.KFAC) else None
        self._weight = WeightStatistics(
            module, options, single=waiting is not None, keeps=keeps_weights
        )
        self._units, self._means = UnitExtremes(), RowMeans()
        self._uses: Counter[int] = Counter()
        self._returns: Counter[int] = Counter()
        self._positions = 0

    @property
    def share(self) -> LayerState:
        """What other processes need to know of the passes so far, which are complete."""
        moments = [m and m.share for m in (self._input, self._grad_output)]
        fisher = self.fisher and self.fisher.share
        parts = (*moments, self._weight.share, self._units, self._means, fisher)
        return LayerState(parts, max(self._uses.values(), default=0), self._positions)

    def merge(self, share: LayerState) -> None:
        """Take in what another process has heard of the same layer.

        Args:
            share: Its tape's.
        """
        mine = (self._input, self._grad_output, self._weight, self._units, self._means, self.fisher)
        for part, other in zip(mine, share.parts, strict=True):
            if part is not None:
                part.merge(other)
        self._uses[0] = max(self._uses[0], share.uses)
        self._positions = self._positions or share.positions

    @property
    def listens_to_gradients(self) -> bool:
        """Whether the gradients of the layer's output are wanted."""
        return self._grad_output is not None or self.fisher is not None

    @property
    def came_again(self) -> bool:
        """Whether rows were left out: the layer was used again though it was said to be single."""
        return any(m is not None and m.came_again for m in (self._input, self._grad_output))

    def forward(self, inputs: Tensor, output: Tensor, current: ForwardPass) -> int:
        """Take in one call of the layer.

        Args:
            inputs: The layer's input, as the module was given it.
            output: Its output; only the shape and dtype are read.
            current: The pass it belongs to.

        Returns:
            The number of this call within the pass, from 0.
        """
        use, num_rows = self._uses[current.number], output.numel() // len(self.module.weight)
        check_rows(self.name, num_rows, current.num_samples)
        if num_rows == 0:
            return use
        self._weight.forward(output.dtype)  # autocast's, if there is one
        self._uses[current.number] += 1
        self._positions = self._positions or num_rows // current.num_samples
        given, inputs = inputs, summable(inputs)
        rows = moment_rows(self.module, inputs, self._options)
        # Autograd keeps a trained layer's input from changes; under autocast, a copy of it.
        if not self.module.weight.requires_grad or torch.is_autocast_enabled(inputs.device.type):
            rows = rows.kept()
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
        """Take in the gradient with respect to the output of one call.

        Args:
            grad: ∂L/∂h, of the output's shape.
            current: The pass the call belonged to.
            use: The number of the call within the pass.

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
        """Take in ∂L/∂W of one backward pass of the data's loss."""
        self._weight.backward(grad, current.num_samples, current.denominator)

    def plain(self) -> PlainMeasures | None:
        """Measure what takes no eigenvalues.

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
        self, plain: PlainMeasures, learning_rate: float | None, excess: float = 0.0
    ) -> LayerSnapshot:
        """Return the layer's record.

        Args:
            plain: Those of :meth:`plain`.
            learning_rate: The optimizer's step length, or None.
            excess: See :meth:`condexp.analysis.loss.rounding.LossRounding.excess`.

        Returns:
            The record.
        """
        wants = self._options.wants
        # Signals of other labels are not differences that a loss has taken.
        of_signals = excess if self._options.fisher_type is FisherType.EMPIRICAL else 0.0
        inputs = None if self._input is None else self._input.spectrum()
        grad_output = None if self._grad_output is None else self._grad_output.spectrum(of_signals)
        kfac, power = None, 0.0
        if self._input is not None and self._grad_output is not None:
            power = self._input.power() * self._grad_output.power()
        if inputs is not None and grad_output is not None and wants(Matrix.KFAC):
            kfac = KroneckerSpectrum(inputs, grad_output)
        of_weight = self._weight.measures(learning_rate, excess=excess, power=power)
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
        if appends_one(self.module, self._options):  # no unit, once a block
            mean, power = mean[:, :-1], power - len(mean)
        return mean_fraction(mean, power)
