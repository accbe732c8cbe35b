"""Forward passes of a model, and calls of its layers, kept until their gradients have come."""

from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor, nn

from condexp.analysis.layers.rows import Layer, grad_output_rows, input_rows, window_of
from condexp.analysis.linalg.gram import RowLoader
from condexp.analysis.linalg.precision import summable
from condexp.analysis.options import AnalysisOptions
from condexp.errors import InputError


class PassMode(StrEnum):
    """Who runs the passes of one snapshot, and how many: it decides what of a layer's rows is kept.

    The rows of one layer may also come in several portions within a pass: from several signals, or
    because the layer is called more than once. Its statistics then take ``SEVERAL_PASSES``.
    """

    ONE_PASS = "one_pass"
    """One pass, and the snapshot before the weights change: nothing is copied, and of the rows only
    the spectrum is kept. Where a layer is called again, those rows are left out and it is named."""
    SEVERAL_PASSES = "several_passes"
    """Rows come in several portions, so none can be measured again: ``auto`` takes float64 products
    from the start, and ``fisher`` keeps its rows until the snapshot."""
    USER_PASSES = "user_passes"
    """The user runs one pass or more, and changes tensors as they like: rows are copied, and
    ``auto`` takes the first portion again in float64 before the next one comes."""


@dataclass(frozen=True)
class ForwardPass:
    """One call of the model.

    Args:
        number: Index of the call, from 0.
        num_samples: Number N of its samples.
        denominator: D, by which its loss divides.
        num_signals: Number of back-propagations that follow it; together they make one matrix.
    """

    number: int
    num_samples: int
    denominator: float
    num_signals: int = 1


@dataclass(eq=False)
class LayerCall:
    """One call of a layer.

    Args:
        name: The layer's name.
        module: The layer.
        options: ``conv_input`` and ``bias`` are read; they lay the input out.
        inputs: The input, detached; not copied.
        num_samples: N of the pass.
        grads: Gradients of the output, one for each signal so far, where they are kept.
        num_signals: Number of signals so far.

    Raises:
        InputError: If the input's rows cannot be told apart by samples.
    """

    name: str
    module: Layer
    options: AnalysisOptions
    inputs: Tensor
    num_samples: int
    grads: list[Tensor] = field(default_factory=list)
    num_signals: int = 0

    def __post_init__(self) -> None:
        self._version = self.inputs._version
        if self.inputs.ndim > 1 and len(self.inputs) % self.num_samples:
            raise InputError(
                f"layer {self.name!r} got an input of shape {list(self.inputs.shape)} for "
                f"{self.num_samples} samples: 'fisher' needs the samples first, or their rows "
                f"cannot be told apart; leave it out with exclude=[{self.name!r}]."
            )
        if isinstance(self.module, nn.Conv2d):
            height, width = window_of(self.module).output_size(self.inputs.shape[2:])
            num_rows = len(self.inputs) * height * width
        else:
            num_rows = self.inputs.numel() // self.module.in_features
        self.positions = num_rows // self.num_samples

    def input_rows(self, part: slice) -> Tensor:
        """Lay out the input of some samples.

        Args:
            part: The samples, from start to stop.

        Returns:
            ``[groups, n, T, d_in]``.

        Raises:
            InputError: If the input is no longer what the layer was called with.
        """
        if self.inputs._version != self._version:
            raise InputError(
                f"the input of layer {self.name!r} was changed in place after its call, so that "
                f"'fisher' cannot be taken: leave it out with exclude=[{self.name!r}]."
            )
        rows = input_rows(self.module, summable(self._of(self.inputs, part)), self.options)
        return rows.reshape(len(rows), -1, self.positions, rows.shape[2])

    def grad_rows(self, grad: Tensor, part: slice) -> Tensor:
        """Lay out a gradient of the output of some samples.

        Args:
            grad: The gradient, of the output's shape.
            part: The samples, from start to stop.

        Returns:
            ``[groups, n, T, d_out / groups]``.
        """
        rows = grad_output_rows(self.module, self._of(grad, part))
        return rows.reshape(len(rows), -1, self.positions, rows.shape[2])

    def _of(self, tensor: Tensor, part: slice) -> Tensor:
        """Return the samples' part of an input or output."""
        if isinstance(self.module, nn.Linear):
            return tensor.reshape(self.num_samples, self.positions, tensor.shape[-1])[part]
        images = len(tensor) // self.num_samples
        return tensor[part.start * images : part.stop * images]


def joined_inputs(calls: list[LayerCall]) -> RowLoader:
    """Return the rows a of some samples, the positions of all calls after one another.

    Args:
        calls: All calls of a pass.
    """
    return lambda part: torch.cat([call.input_rows(part) for call in calls], 2)


def joined_grads(calls: list[LayerCall], grads: list[Tensor]) -> RowLoader:
    """Return the rows g of some samples for one signal, in the order of the inputs'.

    Args:
        calls: All calls of a pass.
        grads: The gradient of each call's output.
    """
    both = list(zip(calls, grads, strict=True))
    return lambda part: torch.cat([call.grad_rows(grad, part) for call, grad in both], 2)
