"""Measures of a layer's weights, gradients and units (``theory.md`` §5): pure functions."""

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from condexp.linalg.moments import column_sums
from condexp.linalg.spectrum import Spectrum


def frobenius_norm(tensor: Tensor) -> float:
    """Return ‖T‖_F, accumulated in float64."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def domination(weight_grad: Spectrum, weight: Spectrum) -> float:
    """Return σ_max(∂L/∂W) / σ_max(W), how strongly a step can turn the weight.

    Under batch normalisation it scales as 1/α² when the weight is multiplied by α: large weights
    leave the network's function as it is but dominate their own gradient, which looks like a local
    minimum (Huang et al. 2020, "weight domination").

    Args:
        weight_grad: Squared singular values of the gradient.
        weight: Squared singular values of the weight.

    Returns:
        The ratio; NaN for a zero weight.
    """
    if weight.lambda_max == 0:
        return math.nan
    return math.sqrt(weight_grad.lambda_max / weight.lambda_max)


def effective_lr(weight: Tensor, learning_rate: float | None) -> float:
    """Return the median over output rows of ``lr / ‖w_i‖²``.

    Meaningful for layers followed by a normalisation, whose function depends on the direction of
    each ``w_i`` only.

    Args:
        weight: ``[d_out, ...]``.
        learning_rate: The step length, lr / (1 − momentum) for SGD; None where there is none.

    Returns:
        The median; NaN without a learning rate, +inf where at least half of the rows are zero.
    """
    if learning_rate is None:
        return math.nan
    squares = weight.flatten(1).to(torch.float64).square().sum(1).tolist()
    return statistics.median(learning_rate / s if s > 0 else math.inf for s in squares)


@dataclass
class InputStatistics:
    """Streaming statistics of a layer's input: its mean and the extremes of its units.

    Args:
        num_rows: Rows seen so far.
        row_sum: ``[groups, d]`` float64, the sum of the rows.
        square_sum: The sum of the rows' squared norms.
        lowest: ``[units]``, each unit's smallest value.
        highest: ``[units]``, each unit's largest value.
    """

    num_rows: int = 0
    row_sum: Tensor | float = 0.0
    square_sum: float = 0.0
    lowest: Tensor | None = None
    highest: Tensor | None = None

    def add(self, rows: Tensor, units: Tensor) -> None:
        """Take in one use of the layer.

        Args:
            rows: ``[groups, num_rows, d]``, without a column for the bias.
            units: ``[units, values]``, the same input by unit.
        """
        lowest, highest = units.aminmax(dim=1)
        self.lowest = lowest if self.lowest is None else torch.minimum(self.lowest, lowest)
        self.highest = highest if self.highest is None else torch.maximum(self.highest, highest)
        self.num_rows += rows.shape[1]
        self.row_sum = self.row_sum + column_sums(rows)
        square_sum = float(column_sums(rows.square()).sum())
        in_range = 1e-30 < square_sum < math.inf  # of what float32 can square
        self.square_sum += square_sum if in_range else frobenius_norm(rows) ** 2

    def mean_fraction(self) -> float:
        """Return ‖mean(a)‖² / E‖a‖², the share of the input's power that its mean carries.

        Returns:
            A number in [0, 1]; NaN where the input is all zero.
        """
        if self.square_sum == 0:
            return math.nan
        total = frobenius_norm(torch.as_tensor(self.row_sum))
        return total**2 / (self.num_rows * self.square_sum)

    def dead_fraction(self) -> float:
        """Return the share of the input units that are 0 on every sample and position."""
        if self.lowest is None or self.highest is None:
            return math.nan
        return _share((self.lowest == 0) & (self.highest == 0))

    def full_fraction(self) -> float:
        """Return the share of the input units that are > 0 on every sample and position."""
        return math.nan if self.lowest is None else _share(self.lowest > 0)


def _share(flags: Tensor) -> float:
    return float(flags.to(torch.float64).mean())
