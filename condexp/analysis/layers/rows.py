"""Rows of inputs and gradients: the only place where linear maps and convolutions differ."""

from dataclasses import dataclass

import torch
from torch import Tensor

from condexp.analysis.linalg.rows.bias_column import WithOne
from condexp.analysis.linalg.rows.dense import DenseRows, Rows
from condexp.analysis.linalg.rows.patches import Window, pixel_rows, unfold_patches
from condexp.analysis.linalg.rows.pixels import PixelRows
from condexp.analysis.linalg.rows.stride1_patches import PatchRows
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import ConvInput


@dataclass(frozen=True)
class Operation:
    """What is computed of an input and a weight: a linear map, or a convolution.

    Args:
        window: Geometry of the convolution; None for a linear map.
        has_bias: Whether a bias is added.
        num_entries: Number of entries of a table, which maps unit vectors linearly: its input holds
            their indices, ``[..., 1]``, or −1 for a row of zeros. 0 for all else.
        function: Name of the function in torch that computes it.
        is_scale: Whether it multiplies each feature by a number, as normalisations do: its input
            ``[parts, positions, c]`` is what they multiply.
    """

    window: Window | None
    has_bias: bool
    num_entries: int = 0
    function: str = "linear"
    is_scale: bool = False

    @property
    def parts_are_rows(self) -> bool:
        """Whether each row of the input is a part of its own; else an image is, with its pixels."""
        return self.window is None and not self.is_scale

    @property
    def groups(self) -> int:
        """Number of separate blocks: a convolution's groups, 1 for a linear map."""
        return 1 if self.window is None else self.window.groups

    def appends_one(self, options: AnalysisOptions) -> bool:
        """Return whether the input rows end with a 1, the input of the bias."""
        return options.bias and self.has_bias


def input_rows(operation: Operation, inputs: Tensor, options: AnalysisOptions) -> Tensor:
    """Lay out an input as the rows ``a`` of ``h = W a + b``.

    Args:
        operation: What is computed.
        inputs: Linear: ``[..., d_in]``; convolution: ``[N, C_in, H, W]``.
        options: ``conv_input`` and ``bias`` are read.

    Returns:
        ``[groups, num_rows, d_in]``; with ``bias`` a last column of ones where there is one.
    """
    rows = _plain_rows(operation, inputs, options)
    return WithOne(DenseRows(rows)).dense() if operation.appends_one(options) else rows


def _plain_rows(operation: Operation, inputs: Tensor, options: AnalysisOptions) -> Tensor:
    window = operation.window
    if operation.num_entries:
        entries = torch.arange(operation.num_entries, dtype=inputs.dtype, device=inputs.device)
        return (inputs.reshape(1, -1, 1) == entries).to(inputs.dtype)
    if window is None:
        return inputs.reshape(1, -1, inputs.shape[-1])
    if options.conv_input is ConvInput.CHANNELS:
        return pixel_rows(inputs, window.groups)
    return unfold_patches(inputs, window)


def moment_rows(operation: Operation, inputs: Tensor, options: AnalysisOptions) -> Rows:
    """Return the rows of an input as its second moment takes them.

    Args:
        operation: What is computed.
        inputs: As for :func:`input_rows`, at least float32.
        options: ``conv_input`` and ``bias`` are read.

    Returns:
        The rows of :func:`input_rows`; the patches of a convolution of stride 1 are not laid out.
    """
    rows: Rows
    window = operation.window
    if window is not None and _shifts_suffice(window, options):
        rows = PatchRows(inputs, window)
    else:
        rows = DenseRows(_plain_rows(operation, inputs, options))
    return WithOne(rows) if operation.appends_one(options) else rows


def _shifts_suffice(window: Window, options: AnalysisOptions) -> bool:
    """Return whether products of shifted images will do; they are quicker than laid-out patches."""
    several = tuple(window.kernel_size) != (1, 1)
    patches = options.conv_input is ConvInput.PATCHES
    return several and patches and tuple(window.stride) == (1, 1)


def grad_output_rows(operation: Operation, grad: Tensor) -> Tensor:
    """Lay out the gradient with respect to an output as rows.

    Args:
        operation: What is computed.
        grad: Linear: ``[..., d_out]``; convolution: ``[N, C_out, H_out, W_out]``.

    Returns:
        ``[groups, num_rows, d_out / groups]``.
    """
    if operation.window is None:
        return grad.reshape(1, -1, grad.shape[-1])
    return pixel_rows(grad, operation.groups)


def gradient_rows(operation: Operation, grad: Tensor, factor: float) -> Rows:
    """Return the rows of :func:`grad_output_rows` as a second moment takes them.

    Args:
        operation: What is computed.
        grad: As for :func:`grad_output_rows`, at least float32.
        factor: Number by which all rows are multiplied.

    Returns:
        The rows; many pixels of few channels are not laid out.
    """
    groups = operation.groups
    if operation.window is not None and grad[0, 0].numel() >= grad.shape[1] // groups:
        return PixelRows(grad, groups, factor)
    return DenseRows(grad_output_rows(operation, grad), factor)


def weight_blocks(groups: int, tensor: Tensor) -> Tensor:
    """Lay out a weight, or its gradient, as one matrix a group.

    Args:
        groups: Blocks of the layer.
        tensor: A tensor of the weight's shape.

    Returns:
        ``[groups, d_out / groups, d_in]``, columns in the order of the patches' features.
    """
    return tensor.reshape(groups, tensor.shape[0] // groups, -1)


def unit_extremes(operation: Operation, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value of each unit of an input.

    Args:
        operation: What is computed; units are features or channels.
        inputs: As for :func:`input_rows`.

    Returns:
        ``[units]`` twice.
    """
    units = inputs.ndim - 1 if operation.window is None else 1
    rest = [axis for axis in range(inputs.ndim) if axis != units]
    return (inputs.amin(rest), inputs.amax(rest)) if rest else (inputs, inputs)
