"""One use of a weight, and the tensor whose gradient is that of what it gave."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from condexp.analysis.layers.rows import Operation
from condexp.analysis.linalg.precision import computed_in


@dataclass(frozen=True, eq=False)
class WeightUse:
    """One multiplication of an input with a weight.

    Args:
        operation: What is computed of the two, as the layer's kind lays them out.
        given: The input, as it was given.
        inputs: The input that the operation is of; without a graph where it is not ``given``.
        images: Of a convolution, the input without what was put between its pixels.
        output_shape: Shape of the operation's output.
        dtype: Precision in which it was computed: under autocast, that one's.
        lay_out: Brings a gradient of the product into that shape.
    """

    operation: Operation
    given: Tensor
    inputs: Tensor
    images: Tensor
    output_shape: torch.Size
    dtype: torch.dtype
    lay_out: Callable[[Tensor], Tensor]

    @property
    def num_rows(self) -> int:
        """Number of rows of a linear map, of windows of a convolution."""
        shape = self.output_shape
        channels = -1 if self.operation.window is None else 1
        return shape.numel() // shape[channels] if shape.numel() else 0

    def row_dtype(self, *, convolves: bool) -> torch.dtype:
        """Return the precision of the input, which a function may have promoted before the product.

        Args:
            convolves: See :func:`.computed_in`.

        Returns:
            ``dtype`` where it holds every value of the input.
        """
        inputs, dtype = self.given, self.dtype
        if torch.finfo(dtype).eps <= torch.finfo(inputs.dtype).eps:
            if not inputs.requires_grad:
                return inputs.dtype
            return computed_in(inputs.dtype, inputs.device, convolves=convolves)
        values = inputs.detach()
        return dtype if torch.equal(values.to(dtype).to(values.dtype), values) else values.dtype

    def may_change(self, weight: Tensor, *, read_later: bool) -> bool:
        """Return whether the input may be changed in place without an error of autograd's.

        Autograd keeps the input of a trained weight from changes until its gradient has come; under
        autocast, a copy of it. Programs write anew what they own: a batch, a buffer, what a
        function of their own returns.

        Args:
            weight: The weight.
            read_later: Whether it may be read after the pass.
        """
        given = self.given
        if not weight.requires_grad or torch.is_autocast_enabled(given.device.type):
            return True
        if not read_later:
            return False
        base = given if given._base is None else given._base
        is_part = base.untyped_storage().nbytes() > 2 * given.nbytes  # a copy lets the rest go
        own = base.grad_fn is None or base.grad_fn.name().startswith("Copy")
        return own or is_part or isinstance(base.grad_fn, BackwardCFunction)

    def detached(self) -> "WeightUse":
        """Return the use without the graph of its input."""
        given = self.given.detach()
        alone = given if self.inputs is self.given else self.inputs
        images = alone if self.images is self.inputs else self.images.detach()
        return replace(self, given=given, inputs=alone, images=images)


Listener = Callable[[str, WeightUse, Tensor], None]
Listeners = Callable[[Tensor, str], list[Callable[[WeightUse, Tensor], None]]]
"""From a weight and the name of a function to those who are to be told of that use."""


def gradient_source(output: Tensor) -> Tensor:
    """Return a tensor whose gradient is that of an output, and which nobody takes out of the graph.

    An output of more than two dimensions may be a view of the product, and an operation in place
    gives a view another history: a hook on it would never be called.
    """
    base = output._base
    return base if base is not None and base.numel() == output.numel() else output
