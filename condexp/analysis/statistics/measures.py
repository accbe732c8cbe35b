"""Measures of a layer's weights, gradients and units (``docs/theory.md`` §5): pure functions."""

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from condexp.analysis.linalg.norms import frobenius_norm, row_norms
from condexp.analysis.linalg.rows.dense import Rows
from condexp.analysis.linalg.spectrum import Spectrum


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
    lengths = row_norms(weight).tolist()
    # Divided twice, because the square of a length may leave the range.
    return statistics.median(
        learning_rate / length / length if length != 0 else math.inf for length in lengths
    )


def mean_fraction(mean: Tensor, power: float) -> float:
    """Return ‖mean(a)‖² / E‖a‖², the share of the input's power that its mean carries.

    Args:
        mean: Mean of all rows, of any shape.
        power: Mean of their squared lengths.

    Returns:
        A number in [0, 1]; NaN where the input is all zero.
    """
    return float(frobenius_norm(mean)) ** 2 / power if power != 0 else math.nan


def underflow(grad: Tensor, norm: Tensor, num_columns: int) -> float:
    """Return the square of the error of a gradient's singular values by numbers too small for it.

    Denormal numbers have an absolute error of half their spacing q. As a matrix of R rows of d
    numbers it has a largest singular value of q/2·(√R + √d) at most, as random signs have.

    Args:
        grad: The gradient, in the precision in which it was computed.
        norm: Its Frobenius norm.
        num_columns: d.

    Returns:
        The square; 0 where less than a thousandth of the numbers are so small.
    """
    info = torch.finfo(grad.dtype)
    if grad.dtype == torch.float64:
        return 0.0
    if info.tiny < 1e-30 and float(norm) > info.tiny * 1e6:
        return 0.0  # the range of float32 is far away
    small = (grad.abs() < info.tiny) & (grad != 0)
    if float(small.float().mean()) < 1e-3:
        return 0.0
    spacing = info.tiny * info.eps
    rows = grad.numel() / num_columns
    return (spacing / 2 * (math.sqrt(rows) + math.sqrt(num_columns))) ** 2


@dataclass
class UnitExtremes:
    """The extremes of a layer's input units over all calls so far.

    Args:
        lowest: Smallest value of each unit, ``[units]``; None before the first call.
        highest: Largest value of each unit, ``[units]``; None before the first call.
    """

    lowest: Tensor | None = None
    highest: Tensor | None = None

    def add(self, lowest: Tensor, highest: Tensor) -> None:
        """Add the extremes of one call of the layer, ``[units]`` each."""
        self.lowest = lowest if self.lowest is None else torch.minimum(self.lowest, lowest)
        self.highest = highest if self.highest is None else torch.maximum(self.highest, highest)

    def merge(self, other: "UnitExtremes") -> None:
        """Add the extremes that another process has seen of the same units.

        Args:
            other: Extremes of the other's calls; without calls there is no effect.
        """
        if other.lowest is not None and other.highest is not None:
            self.add(other.lowest, other.highest)

    def dead_fraction(self) -> float:
        """Return the share of the input units that are 0 on every sample and position."""
        if self.lowest is None or self.highest is None:
            return math.nan
        low, high = self.lowest.cpu().numpy(), self.highest.cpu().numpy()  # quicker than torch
        return float(((low == 0) & (high == 0)).mean())

    def full_fraction(self) -> float:
        """Return the share of the input units that are > 0 on every sample and position."""
        return math.nan if self.lowest is None else float((self.lowest.cpu().numpy() > 0).mean())


@dataclass
class RowMeans:
    """The mean row and the mean squared length of the rows, for a layer without a second moment.

    Args:
        num_rows: Number of rows so far.
        row_sum: Sum Σ r, ``[groups, d]``.
        square_sum: Sum Σ ‖r‖².
    """

    num_rows: int = 0
    row_sum: Tensor | float = 0.0
    square_sum: float = 0.0

    def add(self, rows: Rows) -> None:
        """Add rows."""
        self.merge(RowMeans(rows.num_rows, rows.sums().cpu(), rows.square_sum()))

    def merge(self, other: "RowMeans") -> None:
        """Add the sums of other rows.

        Args:
            other: Sums of the other rows.
        """
        self.num_rows += other.num_rows
        self.row_sum = self.row_sum + other.row_sum
        self.square_sum += other.square_sum

    @property
    def mean(self) -> Tensor:
        """The mean row."""
        return torch.as_tensor(self.row_sum) / self.num_rows

    @property
    def power(self) -> float:
        """The mean of ‖r‖²."""
        return self.square_sum / self.num_rows
