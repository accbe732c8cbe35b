"""Forward passes of a model, and calls of its layers, kept until their gradients have come."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from condexp.analysis.layers.rows import Operation, grad_output_rows, input_rows
from condexp.analysis.layers.samples import Layout, Owners, SampleTest
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
    """The user runs one pass or more, and changes tensors as they like: rows that are kept are
    copied where no error would tell of a change, and ``auto`` takes the first portion again in
    float64 before the next one comes."""


@dataclass(eq=False)
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


@dataclass(frozen=True)
class ExtraBackward:
    """Back-propagations of other cotangents than the loss's, which some layers measure."""

    names: frozenset[str]
    num_signals: int


@dataclass(eq=False)
class LayerCall:
    """One use of a layer's weight.

    Args:
        name: The layer's name.
        operation: What is computed with the weight.
        options: ``conv_input`` and ``bias`` are read; they lay the input out.
        inputs: The input, detached; not copied.
        output_shape: Shape of the output.
        num_samples: N of the pass.
        grads: Gradients of the output, one for each signal so far, where they are kept.
        num_signals: Number of signals so far.
    """

    name: str
    operation: Operation
    options: AnalysisOptions
    inputs: Tensor
    output_shape: torch.Size
    num_samples: int
    grads: list[Tensor] = field(default_factory=list)
    num_signals: int = 0

    def __post_init__(self) -> None:
        self._version = self.inputs._version
        rows, shape = self.operation.parts_are_rows, self.output_shape
        # Rows of a linear map, images of a convolution.
        self.num_parts = self.inputs[..., 0].numel() if rows else len(self.inputs)
        inner = shape[1:2] if self.operation.is_scale else shape[2:]
        self.positions = self.num_parts * (1 if rows else inner.numel()) // self.num_samples
        self.owners: Owners | None = None
        if self.num_parts % self.num_samples == 0:
            self.owners = Owners(self.num_samples, self.num_parts)

    @property
    def layout(self) -> Layout | None:
        """Where the rows of each sample stand; None where they do not belong to samples."""
        return None if self.owners is None else self.owners.layout

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In another process the input is another tensor.
        self.__dict__.update(state, _version=state["inputs"]._version)

    def test_samples(self, test: SampleTest, grad: Tensor) -> None:
        """Find out which rows belong to which sample.

        Args:
            test: The test.
            grad: Gradient of its cotangents with respect to the output.
        """
        if self.owners is not None:
            self.owners.test(test, grad.reshape(self.num_parts, -1))

    def indices(self) -> Tensor:
        """Return the indices into a table, ``[N, T]``."""
        whole = self._of(self.inputs, slice(None))
        return whole.reshape(self.num_samples, self.positions).long()

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
        rows = input_rows(self.operation, summable(self._of(self.inputs, part)), self.options)
        return rows.reshape(len(rows), -1, self.positions, rows.shape[2])

    def grad_rows(self, grad: Tensor, part: slice) -> Tensor:
        """Lay out a gradient of the output of some samples.

        Args:
            grad: The gradient, of the output's shape.
            part: The samples, from start to stop.

        Returns:
            ``[groups, n, T, d_out / groups]``.
        """
        rows = grad_output_rows(self.operation, self._of(grad, part))
        return rows.reshape(len(rows), -1, self.positions, rows.shape[2])

    def with_entries(self, entries: Tensor) -> "LayerCall":
        """Return the call of a table as one of a smaller table, which has the entries it uses.

        Args:
            entries: Their indices, ascending; −1, a row of zeros, stays what it is.
        """
        places = torch.where(self.inputs < 0, -1.0, torch.searchsorted(entries, self.inputs))
        operation = replace(self.operation, num_entries=max(1, len(entries)))
        found = replace(self, operation=operation, inputs=places.to(self.inputs.dtype))
        found.owners = self.owners
        return found

    def _of(self, tensor: Tensor, part: slice) -> Tensor:
        """Return the samples' part of an input or output, sample by sample."""
        layout = self.layout
        assert layout is not None
        rest = tensor.shape[-1:] if self.operation.parts_are_rows else tensor.shape[1:]
        parts = tensor.reshape(layout.outer, self.num_samples, layout.inner, *rest)
        return parts[:, part].movedim(1, 0).flatten(0, 2)


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
