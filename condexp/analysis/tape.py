"""What accumulates for one layer while a recorder listens; no hooks, no autograd here."""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from condexp.analysis.layers import describe
from condexp.analysis.measures import InputStatistics, domination, effective_lr, frobenius_norm
from condexp.analysis.moment import Moment
from condexp.analysis.options import AnalysisOptions, Matrix
from condexp.analysis.rows import (
    Layer,
    appends_one,
    check_rows,
    grad_output_rows,
    input_rows,
    unit_rows,
    weight_blocks,
)
from condexp.analysis.snapshot import LayerSnapshot
from condexp.errors import InputError
from condexp.linalg.kronecker import KroneckerSpectrum
from condexp.linalg.moments import Scale
from condexp.linalg.precision import summable
from condexp.linalg.spectrum import Spectrum


@dataclass(frozen=True)
class Pass:
    """One call of the model.

    Args:
        number: Counts the calls.
        num_samples: N, its samples.
        denominator: D, what its loss divides by.
    """

    number: int
    num_samples: int
    denominator: float


class Tape:
    """Everything one layer has shown so far.

    Args:
        name: The layer's name.
        module: The layer.
        options: What to measure.
        streaming: See :class:`Moment`; so for the layers of ``options.float64`` in any case.
    """

    def __init__(
        self, name: str, module: Layer, options: AnalysisOptions, *, streaming: bool
    ) -> None:
        self.name, self.module, self._options = name, module, options
        wants, streaming = options.wants, streaming or name in options.float64
        self._input = (
            Moment(Scale.MEAN, options, streaming=streaming)
            if wants(Matrix.INPUT, Matrix.KFAC)
            else None
        )
        self._grad_output = (
            Moment(Scale.SUM, options, streaming=streaming)
            if wants(Matrix.GRAD_OUTPUT, Matrix.KFAC)
            else None
        )
        self._statistics = InputStatistics()
        self._uses: Counter[int] = Counter()
        self._returns: Counter[int] = Counter()
        self._positions = 0
        # A copy: the weight may have been updated when the snapshot is asked for.
        self._weight: Tensor | None = None
        self._pass_dtype = torch.float64
        self._weight_grad: Tensor | None = None
        self._weight_grad_samples = 0
        self._weight_grad_denominator = 0.0

    @property
    def listens_to_gradients(self) -> bool:
        """Whether the gradients of the layer's output are wanted."""
        return self._grad_output is not None

    def forward(self, inputs: Tensor, output: Tensor, current: Pass) -> None:
        """Take in one call of the layer.

        Args:
            inputs: The layer's input, as the module was given it.
            output: Its output; only the shape is read.
            current: The pass it belongs to.
        """
        row_dtype, inputs = inputs.dtype, summable(inputs)
        rows = input_rows(self.module, inputs, self._options)
        num_rows = rows.shape[1]
        check_rows(self.name, num_rows, current.num_samples)
        if num_rows == 0:
            return
        if self._weight is None:
            self._weight = summable(self.module.weight.detach()).clone()
            self._pass_dtype = output.dtype  # autocast's, if there is one
        self._uses[current.number] += 1
        num_positions = output.numel() // (self._weight.shape[0] * current.num_samples)
        self._positions = self._positions or num_positions
        if self._input is not None:
            first = self._uses[current.number] == 1
            self._input.add(rows, current.num_samples if first else 0, row_dtype)
        plain = rows[..., :-1] if appends_one(self.module, self._options) else rows
        self._statistics.add(plain, unit_rows(self.module, inputs))

    @torch.no_grad()
    def backward(self, grad: Tensor, current: Pass) -> None:
        """Take in the gradient with respect to the output of one call.

        Args:
            grad: ∂L/∂h, of the output's shape.
            current: The pass the call belonged to.

        Raises:
            InputError: If the same call was back-propagated before.
        """
        if grad.numel() == 0:
            return
        self._returns[current.number] += 1
        if self._returns[current.number] > self._uses[current.number]:
            raise InputError(
                f"layer {self.name!r} was back-propagated twice after one forward pass, which "
                "would count its gradients double: record one backward pass a forward pass."
            )
        if self._grad_output is not None:
            # Promoted first: half precision would overflow once multiplied by the denominator.
            rows = grad_output_rows(self.module, summable(grad) * current.denominator)
            first = self._returns[current.number] == 1
            self._grad_output.add(rows, current.num_samples if first else 0, grad.dtype)

    @torch.no_grad()
    def weight_backward(self, grad: Tensor, current: Pass) -> None:
        """Take in ∂L/∂W of one backward pass; several are averaged by their denominators."""
        weighted = summable(grad).double() * current.denominator
        self._weight_grad = weighted if self._weight_grad is None else self._weight_grad + weighted
        self._weight_grad_samples += current.num_samples
        self._weight_grad_denominator += current.denominator

    def record(self, learning_rate: float | None, excess: float = 0.0) -> LayerSnapshot | None:
        """Close the layer's record.

        Args:
            learning_rate: The optimizer's step length, or None.
            excess: See :meth:`condexp.analysis.root.RootNoise.excess`.

        Returns:
            The record; None where the layer was never called.

        Raises:
            InputError: If a gradient was asked for and none arrived.
        """
        if self._weight is None:
            return None
        if self._options.needs_gradients and self._weight_grad is None:
            raise InputError(
                f"no gradient reached layer {self.name!r}: backward() did not run while "
                "recording, or the loss does not depend on the layer; leave it out with "
                f"exclude=[{self.name!r}] or ask for matrices=('input', 'weight') only."
            )
        wants, statistics = self._options.wants, self._statistics
        inputs = None if self._input is None else self._input.spectrum()
        grad_output = None if self._grad_output is None else self._grad_output.spectrum(excess)
        kfac = None
        if inputs is not None and grad_output is not None and wants(Matrix.KFAC):
            kfac = KroneckerSpectrum(inputs, grad_output)
        weight = self._factor(self._weight)
        gradient = self._mean_weight_grad()
        weight_grad = None if gradient is None else self._weight_grad_spectrum(gradient, excess)
        return LayerSnapshot(
            info=describe(
                self.name,
                self.module,
                self._options,
                positions=self._positions,
                uses=max(self._uses.values()),
            ),
            input=inputs if wants(Matrix.INPUT) else None,
            grad_output=grad_output if wants(Matrix.GRAD_OUTPUT) else None,
            kfac=kfac,
            weight=weight if wants(Matrix.WEIGHT) else None,
            weight_grad=weight_grad if wants(Matrix.WEIGHT_GRAD) else None,
            weight_norm=frobenius_norm(self._weight),
            grad_norm=math.nan if gradient is None else frobenius_norm(gradient),
            domination=math.nan if weight_grad is None else domination(weight_grad, weight),
            effective_lr=effective_lr(self._weight, learning_rate),
            input_mean_fraction=statistics.mean_fraction(),
            dead_fraction=statistics.dead_fraction(),
            full_fraction=statistics.full_fraction(),
        )

    def _mean_weight_grad(self) -> Tensor | None:
        if self._weight_grad is None:
            return None
        return self._weight_grad / self._weight_grad_denominator

    def _weight_grad_spectrum(self, gradient: Tensor, excess: float) -> Spectrum:
        # A weight is what it is; a gradient carries the rounding of its computation.
        spectrum = self._factor(gradient, self._pass_dtype)
        noise = 4 * excess * spectrum.lambda_max
        if self._input is not None and self._grad_output is not None:
            # A sum of N products that may cancel, each rounded on its own.
            squares = self._input.power() * self._grad_output.power() * self._weight_grad_samples
            relative = torch.finfo(self._pass_dtype).eps ** 2 + excess
            noise += 4 * relative * squares / self._weight_grad_denominator**2
        return spectrum.raised(noise)

    def _factor(self, tensor: Tensor, row_dtype: torch.dtype = torch.float64) -> Spectrum:
        blocks = weight_blocks(self.module, tensor)
        return Spectrum.from_factor(blocks, dtype=torch.float64, row_dtype=row_dtype)
