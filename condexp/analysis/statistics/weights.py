"""Statistics of a layer's weight and of the loss's gradient with respect to it."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from condexp.analysis.layers.calls import PassMode
from condexp.analysis.layers.kinds import Layer
from condexp.analysis.layers.rows import weight_blocks
from condexp.analysis.linalg.norms import frobenius_norm
from condexp.analysis.linalg.precision import summable
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import WeightMeasures
from condexp.analysis.statistics.certificate import GradientCertificate
from condexp.analysis.statistics.measures import domination, effective_lr
from condexp.analysis.vocabulary import SINGULAR_VALUES, Matrix


@dataclass(frozen=True, eq=False)
class WeightState:
    """Gradients that one process has collected of a weight that all processes share.

    Args:
        dtype: Precision in which the layer computes.
        gradient: Mean of the gradients; None where none arrived.
        num_samples: N over its passes.
        denominator: D over its passes.
        certificate: Sums of its passes.
    """

    dtype: torch.dtype
    gradient: Tensor | None
    num_samples: int
    denominator: float
    certificate: GradientCertificate


class WeightStatistics:
    """A layer's weight, as it was in the first recorded pass, and its gradient.

    Of several passes of the user's, the gradient is the sum of all that arrived, as in ``.grad``:
    that of the whole batch where the loss of each part was divided by the number of parts. Of
    several batches of one analysis it is their mean, weighted by the denominators.

    Args:
        layer: The layer.
        options: ``matrices`` is read.
        pass_mode: Under ``ONE_PASS`` nobody updates the weight before the snapshot, so nothing is
            copied before then.
        keep_values: Whether values are kept for a ``domination`` that is read later.
    """

    def __init__(
        self, layer: Layer, options: AnalysisOptions, pass_mode: PassMode, *, keep_values: bool
    ) -> None:
        one_pass = pass_mode is PassMode.ONE_PASS
        self.certificate = GradientCertificate()
        self._adds_up = pass_mode is PassMode.USER_PASSES
        self._layer, self._options, self._one_pass = layer, options, one_pass
        self._groups = layer.operation.groups
        self._needs_gradient = keep_values or not one_pass or options.wants(*SINGULAR_VALUES)
        self._keep_values = keep_values
        self._weight: Tensor | None = None
        self._norm: Tensor | None = None
        self._dtype = torch.float64
        self._gradient: Tensor | None = None
        self._grad_norm: Tensor | None = None
        self._num_samples = 0
        self._denominator = self._summed = 0.0

    @property
    def was_used(self) -> bool:
        """Whether the layer was called."""
        return self._weight is not None

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient arrived."""
        return self._num_samples > 0

    def forward(self, dtype: torch.dtype) -> None:
        """Note the weight, at the first call, and the precision in which the layer computes."""
        if self._weight is None:
            weight = summable(self._layer.lay_out(self._layer.weight.detach()))
            self._weight = weight if self._one_pass else weight.clone()
            self._dtype = dtype

    def backward(
        self,
        grad: Tensor,
        num_samples: int,
        denominator: float,
        *,
        is_new: bool = True,
        in_parts: bool = False,
    ) -> None:
        """Add a gradient ∂L/∂W.

        Args:
            grad: The gradient.
            num_samples: N of the pass.
            denominator: D of the pass's loss.
            is_new: Whether it is the first of its pass.
            in_parts: Whether the pass may bring others: an activation checkpoint back-propagates
                each of its segments by itself.
        """
        self._add(summable(self._layer.lay_out(grad)), num_samples, denominator, is_new, in_parts)

    def _add(
        self, grad: Tensor, num_samples: int, denominator: float, is_new: bool, in_parts: bool
    ) -> None:
        if self._norm is None and self._weight is not None:
            self._norm = frobenius_norm(self._weight)  # it was just used, so it is in the cache
        self._grad_norm = frobenius_norm(grad)
        self.certificate.add_gradient(self._groups, grad, self._grad_norm, self._dtype)
        if self._gradient is None:
            if self._needs_gradient or in_parts:  # if it were kept, autograd would copy it
                self._gradient = grad if self._one_pass and not in_parts else grad.clone()
        elif self._adds_up or not is_new:
            self._gradient = self._gradient.double() + grad
        else:
            total = self._gradient.double() * self._denominator + grad.double() * denominator
            self._gradient = total / (self._denominator + denominator)
        if is_new:
            self._num_samples += num_samples
            self._denominator += denominator
            self._summed += num_samples / denominator**2

    def state(self) -> WeightState | None:
        """Return the gradients so far for another process to merge; None without a pass."""
        if self._weight is None:
            return None
        return WeightState(
            self._dtype,
            self._gradient,
            self._num_samples,
            self._denominator,
            self.certificate,
        )

    def merge(self, state: WeightState | None) -> None:
        """Add the gradients of another process.

        Args:
            state: State of the other's weight; None has no effect.
        """
        if state is not None:
            self.forward(state.dtype)
            if state.gradient is not None:
                mine, self.certificate = self.certificate, GradientCertificate()
                self._add(state.gradient, state.num_samples, state.denominator, True, False)
                self.certificate = mine
            self.certificate.merge(state.certificate)

    def measures(
        self,
        learning_rate: float | None,
        *,
        loss_rounding: float,
        power: float,
    ) -> WeightMeasures:
        """Compute the measures; a spectrum that only ``domination`` needs waits until it is read.

        Args:
            learning_rate: Step length of the optimizer, or None.
            loss_rounding: See :meth:`.LossRounding.relative_square`.
            power: Product Σ‖a‖²·Σ‖g‖² of the layer's rows per sample; 0 where not known.

        Returns:
            The measures.
        """
        assert self._weight is not None
        options, gradient = self._options, self._gradient
        both = set(options.matrices) >= SINGULAR_VALUES
        values = _Values(
            self._weight,
            self._gradient,
            self._groups,
            self._dtype,
            loss_rounding,
            self._noise(loss_rounding, power),
        )
        # Domination may be read after the next update, and is to be of the weight as it is now.
        values = values.copied() if self._one_pass and self._keep_values and not both else values
        weight = values.of_weight() if options.wants(Matrix.WEIGHT) else None
        weight_grad = values.of_gradient() if options.wants(Matrix.WEIGHT_GRAD) else None
        domination_of = Domination(None if both else values, weight, weight_grad)
        if not self._keep_values:
            if options.wants(*SINGULAR_VALUES):
                domination_of()  # and the values can be freed
            else:
                domination_of = Domination(None, None, None)
        grad_norm = self._grad_norm if gradient is None else frobenius_norm(gradient)
        return WeightMeasures(
            weight=weight,
            weight_grad=weight_grad,
            weight_norm=float(frobenius_norm(self._weight) if self._norm is None else self._norm),
            grad_norm=math.nan if grad_norm is None else float(grad_norm),
            domination_of=domination_of,
            effective_lr=effective_lr(self._weight, learning_rate),
        )

    def _noise(self, loss_rounding: float, power: float) -> float:
        """Return the squared error of a sum of N products that may cancel, each rounded alone."""
        if self._gradient is None:
            return 0.0
        relative = torch.finfo(self._dtype).eps ** 2 + loss_rounding
        mean = 0.0 if self._denominator == 0 else self._num_samples / self._denominator**2
        return 4 * relative * power * (self._summed if self._adds_up else mean)


@dataclass(frozen=True, eq=False)
class _Values:
    """A weight, its gradient, and the gradient's rounding, which hides small singular values.

    Args:
        weight: Weight ``[d_out, ...]``.
        gradient: Gradient of the same shape; None where none arrived.
        groups: Number of the layer's blocks.
        dtype: Precision in which the gradient was computed.
        loss_rounding: See :meth:`.LossRounding.relative_square`.
        noise: Amount by which the gradient's noise floor rises.
    """

    weight: Tensor
    gradient: Tensor | None
    groups: int
    dtype: torch.dtype
    loss_rounding: float
    noise: float

    def copied(self) -> Self:
        # Only the weight: nobody changes a gradient that is kept here.
        return replace(self, weight=self.weight.clone())

    def of_weight(self) -> Spectrum:
        # A weight is exact as it is; a gradient carries the rounding of its computation.
        blocks = weight_blocks(self.groups, self.weight)
        return Spectrum.from_factor(blocks, dtype=torch.float64)

    def of_gradient(self) -> Spectrum | None:
        if self.gradient is None:
            return None
        blocks = weight_blocks(self.groups, self.gradient)
        spectrum = Spectrum.from_factor(blocks, dtype=torch.float64, row_dtype=self.dtype)
        return spectrum.with_floor_raised(self.noise + 2 * self.loss_rounding * spectrum.lambda_max)


@dataclass(eq=False)
class Domination:
    """The ratio σ_max(∂L/∂W) / σ_max(W), computed when it is called; the values are freed then.

    Args:
        values: Weight and gradient; None where both spectra are known.
        weight: Spectrum of W Wᵀ, if it is known.
        weight_grad: Spectrum of the gradient, if it is known.
    """

    values: _Values | None
    weight: Spectrum | None
    weight_grad: Spectrum | None

    def __call__(self) -> float:
        """Return the ratio; NaN where no gradient arrived."""
        if self.values is not None:
            self.weight = self.weight or self.values.of_weight()
            self.weight_grad = self.weight_grad or self.values.of_gradient()
            self.values = None
        if self.weight is None or self.weight_grad is None:
            return math.nan
        return domination(self.weight_grad, self.weight)
