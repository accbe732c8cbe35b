"""The rounding error that all gradients of a pass inherit from the loss's gradient."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from condexp.analysis.layers.calls import ForwardPass
from condexp.analysis.linalg.precision import summable
from condexp.analysis.loss.denominator import remaining_square, subtracted_square


class LossRounding:
    """Relative rounding of the loss's gradient with respect to the model's output.

    The gradient of cross-entropy, p − 1_y, is rounded to eps absolutely, however small training
    makes it; back-propagation is linear in it, so all layers inherit the relative error.

    Args:
        loss_fn: The loss; the rounding of one that is not torch's is unknown and counts as 0.
    """

    def __init__(self, loss_fn: object) -> None:
        self._loss_fn = loss_fn
        self._rounding = self._remaining = 0.0

    def output_hook(self, outputs: Tensor, current: ForwardPass) -> Callable[[Tensor], None]:
        """Return a hook for the gradient of the model's outputs, which adds one pass.

        Args:
            outputs: Outputs of the model in that pass.
            current: The pass, whose D is known when the gradient comes.
        """
        # Half precision is promoted: torch takes a softmax in float32 and rounds afterwards. A
        # copy, for the loss may work in place.
        values = summable(outputs.detach()).clone()

        def hook(grad: Tensor) -> None:
            with torch.no_grad():
                gradient = summable(grad.detach()) * current.denominator
                eps = torch.finfo(values.dtype).eps
                self._rounding += eps**2 * subtracted_square(self._loss_fn, values)
                self._remaining += remaining_square(self._loss_fn, values, gradient)

        return hook

    def merge(self, other: "LossRounding") -> None:
        """Add the passes of another process, of the same loss.

        Args:
            other: Sums over the other's passes.
        """
        self._rounding += other._rounding
        self._remaining += other._remaining

    def relative_square(self) -> float:
        """Return eps²·Σm² / Σe², by which the square of the relative error exceeds eps².

        m is what the gradient subtracts and e what remains, summed over all passes.
        """
        known = self._remaining > 0 and math.isfinite(self._rounding + self._remaining)
        return self._rounding / self._remaining if known else 0.0
