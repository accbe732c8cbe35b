"""Rows of a layer's inputs and gradients: the only place where Linear and Conv2d differ."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from condexp.analysis.linalg.rows.bias_column import WithOne
from condexp.analysis.linalg.rows.dense import DenseRows, Rows
from condexp.analysis.linalg.rows.patches import Window, pixel_rows, unfold_patches
from condexp.analysis.linalg.rows.pixels import PixelRows
from condexp.analysis.linalg.rows.stride1_patches import PatchRows
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import ConvInput
from condexp.errors import InputError

Layer = nn.Linear | nn.Conv2d


def count_samples(arguments: object) -> int:
    """Return N, the first dimension of the first tensor a model is called with.

    Args:
        arguments: Nested tuples, lists and mappings of anything.

    Returns:
        The number of samples.

    Raises:
        InputError: If there is no tensor with a dimension.
    """
    batch = _first_tensor(arguments)
    if batch is None or batch.ndim == 0:
        raise InputError("the model was called without a tensor [N, ...], so N is unknown.")
    return batch.shape[0]


def num_groups(module: Layer) -> int:
    """Return the number of separate blocks: a convolution's groups, 1 for a linear layer."""
    return module.groups if isinstance(module, nn.Conv2d) else 1


def appends_one(module: Layer, options: AnalysisOptions) -> bool:
    """Return whether the layer's input rows end with a 1, the input of its bias."""
    return options.bias and module.bias is not None


def input_rows(module: Layer, inputs: Tensor, options: AnalysisOptions) -> Tensor:
    """Lay out a layer's input as the rows ``a`` of ``h = W a + b``.

    Args:
        module: The layer.
        inputs: Linear: ``[..., d_in]``; convolution: ``[N, C_in, H, W]``.
        options: ``conv_input`` and ``bias`` are read.

    Returns:
        ``[groups, num_rows, d_in]``; with ``bias`` a last column of ones where the layer has one.

    Raises:
        InputError: If a convolution is called without a batch dimension.
    """
    rows = _plain_rows(module, inputs, options)
    return WithOne(DenseRows(rows)).dense() if appends_one(module, options) else rows


def _plain_rows(module: Layer, inputs: Tensor, options: AnalysisOptions) -> Tensor:
    if isinstance(module, nn.Linear):
        return inputs.reshape(1, -1, module.in_features)
    if inputs.ndim != 4:
        raise InputError(
            f"a Conv2d was called on an input of shape {tuple(inputs.shape)}: "
            "its analysis needs a batch, [N, C, H, W]; add the batch dimension."
        )
    if options.conv_input is ConvInput.CHANNELS:
        return pixel_rows(inputs, module.groups)
    return unfold_patches(inputs, window_of(module))


def moment_rows(module: Layer, inputs: Tensor, options: AnalysisOptions) -> Rows:
    """Return the rows of a layer's input as its second moment takes them.

    Args:
        module: The layer.
        inputs: As for :func:`input_rows`, at least float32.
        options: ``conv_input`` and ``bias`` are read.

    Returns:
        The rows of :func:`input_rows`; the patches of a convolution of stride 1 are not laid out.
    """
    rows: Rows
    if isinstance(module, nn.Conv2d) and inputs.ndim == 4 and _shifts_suffice(module, options):
        window = window_of(module)
        if window.padding_mode != "zeros":
            inputs, window = window.pad(inputs), replace(window, padding="valid")
        rows = PatchRows(inputs, window)
    else:
        rows = DenseRows(_plain_rows(module, inputs, options))
    return WithOne(rows) if appends_one(module, options) else rows


def _shifts_suffice(module: nn.Conv2d, options: AnalysisOptions) -> bool:
    """Return whether products of shifted images will do; they are quicker than laid-out patches."""
    several = module.kernel_size != (1, 1)
    patches = options.conv_input is ConvInput.PATCHES
    return several and patches and module.stride == (1, 1)


def window_of(module: nn.Conv2d) -> Window:
    """Return a convolution's geometry."""
    return Window(
        kernel_size=module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        padding_mode=module.padding_mode,
    )


def check_rows(name: str, num_rows: int, num_samples: int) -> None:
    """Refuse rows that do not belong to samples, such as those of a table of positions.

    Args:
        name: The layer's name.
        num_rows: Rows of one call.
        num_samples: Samples of the batch.

    Raises:
        InputError: If the rows are not a multiple of the samples.
    """
    if num_rows % num_samples:
        raise InputError(
            f"layer {name!r} got {num_rows} rows for {num_samples} samples (the first dimension of "
            "the model's input), so its rows do not belong to samples; leave it out with "
            f"exclude=[{name!r}]."
        )


def grad_output_rows(module: Layer, grad: Tensor) -> Tensor:
    """Lay out the gradient with respect to a layer's output as rows.

    Args:
        module: The layer.
        grad: Linear: ``[..., d_out]``; convolution: ``[N, C_out, H_out, W_out]``.

    Returns:
        ``[groups, num_rows, d_out / groups]``.
    """
    if isinstance(module, nn.Linear):
        return grad.reshape(1, -1, module.out_features)
    return pixel_rows(grad, module.groups)


def gradient_rows(module: Layer, grad: Tensor, factor: float) -> Rows:
    """Return the rows of :func:`grad_output_rows` as a second moment takes them.

    Args:
        module: The layer.
        grad: As for :func:`grad_output_rows`, at least float32.
        factor: Number by which all rows are multiplied.

    Returns:
        The rows; many pixels of few channels are not laid out.
    """
    if isinstance(module, nn.Conv2d) and grad[0, 0].numel() >= grad.shape[1] // module.groups:
        return PixelRows(grad, module.groups, factor)
    return DenseRows(grad_output_rows(module, grad), factor)


def weight_blocks(groups: int, tensor: Tensor) -> Tensor:
    """Lay out a weight, or its gradient, as one matrix a group.

    Args:
        groups: Blocks of the layer.
        tensor: A tensor of the weight's shape.

    Returns:
        ``[groups, d_out / groups, d_in]``, columns in the order of the patches' features.
    """
    return tensor.reshape(groups, tensor.shape[0] // groups, -1)


def unit_extremes(module: Layer, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value of each unit of a layer's input.

    Args:
        module: The layer, whose units are features or channels.
        inputs: As for :func:`input_rows`.

    Returns:
        ``[units]`` twice.
    """
    units = 1 if isinstance(module, nn.Conv2d) else inputs.ndim - 1
    rest = [axis for axis in range(inputs.ndim) if axis != units]
    return (inputs.amin(rest), inputs.amax(rest)) if rest else (inputs, inputs)


def _first_tensor(nested: object) -> Tensor | None:
    if isinstance(nested, Mapping):
        nested = tuple(nested.values())
    if isinstance(nested, tuple | list):
        found = (_first_tensor(part) for part in nested)
        return next((tensor for tensor in found if tensor is not None), None)
    return nested if isinstance(nested, Tensor) else None
