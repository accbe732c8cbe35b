"""The rounding that every gradient of a pass inherits from the loss's own."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from condexp.analysis.linalg.precision import summable
from condexp.analysis.loss.denominator import remaining_square, subtracted_square


class LossRounding:
    """Relative rounding of the loss's gradient with respect to the model's output.

    The gradient of cross-entropy, p − 1_y, is rounded to eps absolutely, however small training
    makes it; back-propagation is linear in it, so all layers inherit the relative error.

    Args:
        loss_fn: The loss; one that is not torch's adds nothing.
    """

    def __init__(self, loss_fn: object) -> None:
        self._loss_fn = loss_fn
        self._rounding = self._remaining = 0.0

    def listener(self, outputs: Tensor, denominator: float) -> Callable[[Tensor], None]:
        """Return a hook for the outputs' gradient, which takes one pass in.

        Args:
            outputs: The model's.
            denominator: D of the pass.
        """
        # Half precision is promoted: torch takes a softmax in float32 and rounds afterwards. A
        # copy, for the loss may work in place.
        values = summable(outputs.detach()).clone()

        def hook(grad: Tensor) -> None:
            with torch.no_grad():
                gradient = summable(grad.detach()) * denominator
                eps = torch.finfo(values.dtype).eps
                self._rounding += eps**2 * subtracted_square(self._loss_fn, values)
                self._remaining += remaining_square(self._loss_fn, values, gradient)

        return hook

    def merge(self, other: "LossRounding") -> None:
        """Take in what another process has heard, of the same loss.

        Args:
            other: Its noise.
        """
        self._rounding += other._rounding
        self._remaining += other._remaining

    def excess(self) -> float:
        """Return eps²·Σm² / Σe²: what the square of the relative error is above eps².

        m is what the gradient subtracts, e what remains, summed over all passes.
        """
        known = self._remaining > 0 and math.isfinite(self._rounding + self._remaining)
        return self._rounding / self._remaining if known else 0.0
