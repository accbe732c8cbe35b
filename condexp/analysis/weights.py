"""What is measured of a layer's weight and of the loss's gradient with respect to it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from condexp.analysis.measures import domination, effective_lr, frobenius_norm
from condexp.analysis.options import AnalysisOptions, Matrix
from condexp.analysis.rows import Layer, weight_blocks
from condexp.linalg.precision import summable
from condexp.linalg.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class WeightMeasures:
    """Measures of a weight and its gradient; the names are :class:`LayerSnapshot`'s."""

    weight: Spectrum | None
    weight_grad: Spectrum | None
    weight_norm: float
    grad_norm: float
    domination_of: Callable[[], float]
    effective_lr: float


class WeightTape:
    """A layer's weight, as it was in the first recorded pass, and the mean of its gradients.

    Args:
        module: The layer.
        single: There is one pass, and nobody updates the weight before the snapshot is asked for:
            nothing is copied before then.
    """

    def __init__(self, module: Layer, *, single: bool) -> None:
        self._module, self._single = module, single
        self._weight: Tensor | None = None
        self._dtype = torch.float64
        self._gradient: Tensor | None = None
        self._num_samples = 0
        self._denominator = 0.0

    @property
    def was_used(self) -> bool:
        """Whether the layer was called."""
        return self._weight is not None

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient arrived."""
        return self._gradient is not None

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
        if self._gradient is None:
            self._gradient = grad if self._single else grad.clone()
        else:
            total = self._gradient.double() * self._denominator + grad.double() * denominator
            self._gradient = total / (self._denominator + denominator)
        self._num_samples += num_samples
        self._denominator += denominator

    def measures(
        self,
        options: AnalysisOptions,
        learning_rate: float | None,
        *,
        excess: float,
        power: float,
    ) -> WeightMeasures:
        """Measure them; a spectrum that only ``domination`` needs is left until it is asked for.

        Args:
            options: ``matrices`` is read.
            learning_rate: The optimizer's step length, or None.
            excess: See :meth:`condexp.analysis.root.RootNoise.excess`.
            power: Σ‖a‖²·Σ‖g‖² of the layer's rows per sample; 0 where not known.

        Returns:
            The measures.
        """
        assert self._weight is not None
        # What is worked out later is of the weight as it is now.
        both = {Matrix.WEIGHT, Matrix.WEIGHT_GRAD} <= set(options.matrices)
        weight, gradient = self._weight, self._gradient
        if self._single and not both:
            weight = weight.clone()
            gradient = None if gradient is None else gradient.clone()
        noise = self._noise(excess, power)

        def of_weight() -> Spectrum:
            return self._factor(weight, torch.float64)

        def of_gradient() -> Spectrum | None:
            if gradient is None:
                return None
            # A weight is what it is; a gradient carries the rounding of its computation.
            spectrum = self._factor(gradient, self._dtype)
            return spectrum.raised(noise + 4 * excess * spectrum.lambda_max)

        weight_spectrum = of_weight() if options.wants(Matrix.WEIGHT) else None
        grad_spectrum = of_gradient() if options.wants(Matrix.WEIGHT_GRAD) else None

        def turning() -> float:
            known = grad_spectrum or of_gradient()
            return math.nan if known is None else domination(known, weight_spectrum or of_weight())

        return WeightMeasures(
            weight=weight_spectrum,
            weight_grad=grad_spectrum,
            weight_norm=frobenius_norm(weight),
            grad_norm=math.nan if gradient is None else frobenius_norm(gradient),
            domination_of=turning,
            effective_lr=effective_lr(weight, learning_rate),
        )

    def _noise(self, excess: float, power: float) -> float:
        """Return what a sum of N products that may cancel, each rounded on its own, is off by."""
        if self._gradient is None:
            return 0.0
        relative = torch.finfo(self._dtype).eps ** 2 + excess
        return 4 * relative * power * self._num_samples / self._denominator**2

    def _factor(self, tensor: Tensor, row_dtype: torch.dtype) -> Spectrum:
        blocks = weight_blocks(self._module, tensor)
        return Spectrum.from_factor(blocks, dtype=torch.float64, row_dtype=row_dtype)
