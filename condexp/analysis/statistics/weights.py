"""What is measured of a layer's weight and of the loss's gradient with respect to it."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from condexp.analysis.layers.rows import Layer, num_groups, weight_blocks
from condexp.analysis.linalg.norms import frobenius_norm
from condexp.analysis.linalg.precision import summable
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import WeightMeasures
from condexp.analysis.statistics.measures import domination, effective_lr
from condexp.analysis.vocabulary import SINGULAR_VALUES, Matrix


@dataclass(frozen=True, eq=False)
class WeightState:
    """What one process knows of a weight that all have.

    Args:
        dtype: The precision that the layer computes in.
        gradient: The mean of the gradients; None where none arrived.
        num_samples: N over its passes.
        denominator: D over its passes.
    """

    dtype: torch.dtype
    gradient: Tensor | None
    num_samples: int
    denominator: float


class WeightStatistics:
    """A layer's weight, as it was in the first recorded pass, and the mean of its gradients.

    Args:
        module: The layer.
        options: ``matrices`` is read.
        single: There is one pass, and nobody updates the weight before the snapshot is asked for:
            nothing is copied before then.
        keeps: Values are kept for a ``domination`` that is asked for later.
    """

    def __init__(
        self, module: Layer, options: AnalysisOptions, *, single: bool, keeps: bool
    ) -> None:
        self._module, self._options, self._single = module, options, single
        self._needs_gradient = keeps or not single or options.wants(*SINGULAR_VALUES)
        self._keeps = keeps
        self._weight: Tensor | None = None
        self._norm: Tensor | None = None
        self._dtype = torch.float64
        self._gradient: Tensor | None = None
        self._grad_norm: Tensor | None = None
        self._num_samples = 0
        self._denominator = 0.0

    @property
    def was_used(self) -> bool:
        """Whether the layer was called."""
        return self._weight is not None

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient arrived."""
        return self._num_samples > 0

    def forward(self, dtype: torch.dtype) -> None:
        """Take note of the weight, once, and of the precision that the layer computes in."""
        if self._weight is None:
            weight = summable(self._module.weight.detach())
            self._weight = weight if self._single else weight.clone()
            self._dtype = dtype

    def backward(self, grad: Tensor, num_samples: int, denominator: float) -> None:
        """Take in ∂L/∂W of one backward pass; several are averaged by their denominators.

        Args:
            grad: The gradient.
            num_samples: N of the pass.
            denominator: D of its loss.
        """
        grad = summable(grad)
        if self._norm is None and self._weight is not None:
            self._norm = frobenius_norm(self._weight)  # now that it is in the cache
        if not self._needs_gradient:  # held, autograd would have to copy it
            self._grad_norm = frobenius_norm(grad)
        elif self._gradient is None:
            self._gradient = grad if self._single else grad.clone()
        else:
            total = self._gradient.double() * self._denominator + grad.double() * denominator
            self._gradient = total / (self._denominator + denominator)
        self._num_samples += num_samples
        self._denominator += denominator

    @property
    def share(self) -> WeightState | None:
        """What other processes need to know of several passes; None where there was none."""
        if self._weight is None:
            return None
        return WeightState(self._dtype, self._gradient, self._num_samples, self._denominator)

    def merge(self, share: WeightState | None) -> None:
        """Take in what another process has heard.

        Args:
            share: Its tape's.
        """
        if share is not None:
            self.forward(share.dtype)
            if share.gradient is not None:
                self.backward(share.gradient, share.num_samples, share.denominator)

    def measures(
        self,
        learning_rate: float | None,
        *,
        excess: float,
        power: float,
    ) -> WeightMeasures:
        """Measure them; a spectrum that only ``domination`` needs is left until it is asked for.

        Args:
            learning_rate: The optimizer's step length, or None.
            excess: See :meth:`condexp.analysis.loss.rounding.LossRounding.excess`.
            power: Σ‖a‖²·Σ‖g‖² of the layer's rows per sample; 0 where not known.

        Returns:
            The measures.
        """
        assert self._weight is not None
        options, gradient = self._options, self._gradient
        both = set(options.matrices) >= SINGULAR_VALUES
        values = _Values(
            self._weight,
            self._gradient,
            num_groups(self._module),
            self._dtype,
            excess,
            self._noise(excess, power),
        )
        # What is worked out later is of the weight as it is now.
        values = values.copied() if self._single and self._keeps and not both else values
        weight = values.of_weight() if options.wants(Matrix.WEIGHT) else None
        weight_grad = values.of_gradient() if options.wants(Matrix.WEIGHT_GRAD) else None
        domination_of = Domination(None if both else values, weight, weight_grad)
        if not self._keeps:
            if options.wants(*SINGULAR_VALUES):
                domination_of()  # lets go of the values
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

    def _noise(self, excess: float, power: float) -> float:
        """Return what a sum of N products that may cancel, each rounded on its own, is off by."""
        if self._gradient is None:
            return 0.0
        relative = torch.finfo(self._dtype).eps ** 2 + excess
        return 4 * relative * power * self._num_samples / self._denominator**2


@dataclass(frozen=True, eq=False)
class _Values:
    """A weight, its gradient, and what the gradient's rounding makes of its small singular values.

    Args:
        weight: ``[d_out, ...]``.
        gradient: The same shape; None where none arrived.
        groups: Blocks of the layer.
        dtype: Precision the gradient was computed in.
        excess: See :meth:`condexp.analysis.loss.rounding.LossRounding.excess`.
        noise: What its spectrum's floor rises by.
    """

    weight: Tensor
    gradient: Tensor | None
    groups: int
    dtype: torch.dtype
    excess: float
    noise: float

    def copied(self) -> Self:
        # Nobody else changes a gradient that is held here.
        return replace(self, weight=self.weight.clone())

    def of_weight(self) -> Spectrum:
        # A weight is what it is; a gradient carries the rounding of its computation.
        blocks = weight_blocks(self.groups, self.weight)
        return Spectrum.from_factor(blocks, dtype=torch.float64)

    def of_gradient(self) -> Spectrum | None:
        if self.gradient is None:
            return None
        blocks = weight_blocks(self.groups, self.gradient)
        spectrum = Spectrum.from_factor(blocks, dtype=torch.float64, row_dtype=self.dtype)
        return spectrum.raised(self.noise + 4 * self.excess * spectrum.lambda_max)


@dataclass(eq=False)
class Domination:
    """σ_max(∂L/∂W) / σ_max(W), when it is called; the values are let go of then.

    Args:
        values: The weight and its gradient; None where both spectra are known.
        weight: The spectrum of W Wᵀ, if it is known.
        weight_grad: That of the gradient.
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
