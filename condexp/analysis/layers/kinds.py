"""Kinds of layers: each is a linear map, or a two-dimensional convolution, of what it is given."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from condexp.analysis.layers.normalisations import as_column, normalisation_of
from condexp.analysis.layers.rows import Operation
from condexp.analysis.linalg.rows.patches import Window

Pads = tuple[int, int, int, int]


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight, and what is computed with it.

    Attributes:
        type: Class of its module.
        weight: The parameter.
        operation: What it computes of an input as it is laid out here.
        lay_out: Brings the weight, or its gradient, into the shape ``[d_out, d_in / groups]`` of a
            linear map or ``[C_out, C_in / groups, k_h, k_w]`` of a two-dimensional convolution.
        channels: Input channels of a block; of a linear map, its features.
        padded: Pixels (left, right, top, bottom) that the module itself adds around its input.
        also: The same weight as other functions use it, where it is tied.
    """

    type: str
    weight: Tensor
    operation: Operation
    lay_out: Callable[[Tensor], Tensor] = _as_it_is
    channels: int = 0
    padded: Pads = (0, 0, 0, 0)
    also: tuple["Layer", ...] = ()

    @property
    def function(self) -> str:
        """Name of the function in torch that uses it."""
        return self.operation.function

    @property
    def kinds(self) -> tuple["Layer", ...]:
        """The ways in which the weight is used, each by a function of its own."""
        return (self, *self.also)

    @property
    def has_factors(self) -> bool:
        """Whether ``kfac`` approximates its Fisher block: it multiplies rows, in one way alone."""
        return not (self.also or self.operation.is_scale)

    @cached_property
    def d_out(self) -> int:
        """Number of outputs, of all blocks together."""
        return len(self.lay_out(self.weight.detach()))

    @property
    def fan_in(self) -> int:
        """Number of inputs of one output."""
        return self.weight.numel() // self.d_out

    def without_padding(self, images: Tensor) -> Tensor:
        """Return images without what a ``padding_mode`` other than zeros has added around them."""
        left, right, top, bottom = self.padded
        if not any(self.padded) or images.ndim != 4:
            return images
        height, width = images.shape[2:]
        return images[..., top : height - bottom, left : width - right]


def layers_of(name: str, module: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Yield the layers whose weights are parameters of a module itself, not of its parts.

    Args:
        name: The module's name.
        module: The module.

    Yields:
        Each layer with its name: the module's, or for the projections of an attention one of its
        own.
    """
    if isinstance(module, nn.MultiheadAttention):
        operation = Operation(None, module.in_proj_bias is not None)
        for part in ("in_proj", "q_proj", "k_proj", "v_proj"):
            projection = module._parameters.get(f"{part}_weight")
            if projection is not None:
                yield f"{name}.{part}", Layer("MultiheadAttention", projection, operation)
        return
    weight = module._parameters.get("weight")
    if weight is None or is_quantised(module):
        return
    if (layer := _with_weight(module, weight)) is not None:
        yield name, layer


def _with_weight(module: nn.Module, weight: Tensor) -> Layer | None:
    """Return the layer of a module whose parameter a weight is; None where it is of no kind."""
    if isinstance(module, nn.Linear):
        return Layer("Linear", weight, Operation(None, module.bias is not None))
    if isinstance(module, _ConvNd) and len(module.kernel_size) <= 3:
        return _convolution(module)
    if isinstance(module, nn.Embedding) and not module.scale_grad_by_freq:
        operation = Operation(None, False, module.num_embeddings, "embedding")
        return Layer("Embedding", weight, operation, _of_table)
    if (scale := normalisation_of(module)) is not None:
        return Layer(kind_of(module), weight, scale, as_column)
    if _is_transposed_linear(module):
        return Layer("Conv1D", weight, Operation(None, True, function="addmm"), torch.t)
    return None


def is_quantised(module: nn.Module) -> bool:
    """Return whether a module's weight is kept in integers, as a parameter or packed elsewhere."""
    weight = module._parameters.get("weight")
    if weight is not None:
        return not (weight.is_floating_point() or weight.is_complex())
    path = type(module).__module__
    if not path.startswith("torch.ao.nn.") or "quantized" not in path or _is_packed(module):
        return False
    return any(hasattr(part, "_packed_params") or _is_packed(part) for part in module.modules())


def _is_packed(module: nn.Module) -> bool:
    return "Packed" in type(module).__name__


def layer_of(module: nn.Module) -> Layer:
    """Return the layer of a module that has one weight."""
    ((_, layer),) = layers_of("", module)
    return layer


def kind_of(module: nn.Module) -> str:
    """Return the name of the class of torch's that a module is of, else of its own."""
    classes = (of for of in type(module).__mro__ if of.__module__.startswith("torch.nn.modules."))
    found = next(classes, nn.Module)
    return (type(module) if found is nn.Module else found).__name__


def _is_transposed_linear(module: nn.Module) -> bool:
    # transformers' Conv1D, a linear map of a weight [d_in, d_out]; known without importing it.
    parameters = module._parameters
    is_named = type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    return is_named and set(parameters) == {"weight", "bias"} and None not in parameters.values()


def _of_table(weight: Tensor) -> Tensor:
    """Return a table, or its gradient, as the matrix by which unit vectors are multiplied."""
    return (weight.to_dense() if weight.is_sparse else weight).t()


def _convolution(module: _ConvNd) -> Layer:
    dims = len(module.kernel_size)
    transposed = isinstance(module, _ConvTransposeNd)
    groups, channels = module.groups, module.in_channels // module.groups
    has_bias = module.bias is not None
    function, lay_out = f"conv{dims}d", _planar
    if transposed:
        function, lay_out = f"conv_transpose{dims}d", partial(_planar_transposed, groups=groups)
        window = transposed_window(module.kernel_size, module.dilation, groups)
    else:
        # A padding other than with zeros is added before the convolution itself is called.
        padding = module.padding if module.padding_mode == "zeros" else "valid"
        window = planar_window(module.kernel_size, module.stride, padding, module.dilation, groups)
    padded: Pads = (0, 0, 0, 0)
    if module.padding_mode != "zeros":
        amounts = [*module._reversed_padding_repeated_twice, 0, 0, 0, 0]
        padded = (amounts[0], amounts[1], amounts[2], amounts[3])
    operation = Operation(window, has_bias, function=function)
    return Layer(kind_of(module), module.weight, operation, lay_out, channels, padded)


def _planar(weight: Tensor) -> Tensor:
    """Return ``[C_out, C, k]`` or ``[C_out, C, k_d, k_h, k_w]`` as a two-dimensional kernel."""
    if weight.ndim == 4:
        return weight
    return weight.unsqueeze(2) if weight.ndim == 3 else weight.flatten(1, 2)


def _planar_transposed(weight: Tensor, groups: int) -> Tensor:
    """Return ``[C_in, C_out / groups, ...]`` as the kernel of the convolution it amounts to."""
    kernel = weight.shape[2:]
    blocks = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    turned = blocks.reshape(-1, blocks.shape[2], *kernel).flip(tuple(range(2, weight.ndim)))
    return _planar(turned)


def several(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """Return one number for each dimension, as torch's convolutions take their arguments."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * dims if len(numbers) == 1 else numbers


def planar_window(
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> Window:
    """Return the window of a convolution of 1, 2 or 3 dimensions in the plane.

    Of one dimension it is a row; of three, the depth is laid out as channels.

    Args:
        kernel: Kernel size in each dimension.
        stride: As torch takes it.
        padding: Likewise.
        dilation: Likewise.
        groups: Likewise.

    Returns:
        The window.
    """
    dims = len(kernel)

    def pair(numbers: Sequence[int], missing: int) -> tuple[int, int]:
        row, column = (missing, *numbers)[-2:]
        return row, column

    pads = padding if isinstance(padding, str) else pair(several(padding, dims), 0)
    return Window(
        kernel_size=pair(kernel, 1),
        stride=pair(several(stride, dims), 1),
        padding=pads,
        dilation=pair(several(dilation, dims), 1),
        groups=groups,
    )


def transposed_window(kernel: Sequence[int], dilation: int | Sequence[int], groups: int) -> Window:
    """Return the window of the convolution that a transposed one amounts to; see :func:`spread`."""
    return planar_window(kernel, 1, "valid", dilation, groups)


def spread(
    inputs: Tensor,
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> Tensor:
    """Return what a convolution of stride 1 takes to compute a transposed one.

    Zeros are put between the inputs, and around them so that each output has a window.

    Args:
        inputs: ``[N, C, ...]``.
        kernel: Kernel size in each dimension.
        stride: As torch takes it.
        padding: Likewise.
        output_padding: Likewise.
        dilation: Likewise.

    Returns:
        ``[N, C, ...]``, a copy.
    """
    dims = len(kernel)
    steps, reaches = several(stride, dims), several(dilation, dims)
    sizes = [(size - 1) * step + 1 for size, step in zip(inputs.shape[2:], steps, strict=True)]
    found = inputs.new_zeros((*inputs.shape[:2], *sizes))
    places: tuple[slice, ...] = tuple(slice(None, None, step) for step in steps)
    found[(slice(None), slice(None), *places)] = inputs
    around: list[int] = []
    for size, reach, pad, more in zip(
        kernel, reaches, several(padding, dims), several(output_padding, dims), strict=True
    ):
        amount = reach * (size - 1) - pad
        around = [amount, amount + more, *around]  # torch wants the last axis first
    return F.pad(found, around)


def in_plane(
    inputs: Tensor,
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
) -> Tensor:
    """Return the images of which a window of :func:`planar_window` takes the same patches.

    Args:
        inputs: ``[N, C, L]``, ``[N, C, H, W]`` or ``[N, C, D, H, W]``.
        kernel: Kernel size in each dimension.
        stride: As torch takes it.
        padding: Likewise.
        dilation: Likewise.

    Returns:
        ``[N, C, 1, L]``, the images themselves, or ``[N·D_out, C·k_d, H, W]``.
    """
    dims = len(kernel)
    if dims < 3:
        return inputs if dims == 2 else inputs.unsqueeze(2)
    depth, step, reach = kernel[0], several(stride, 3)[0], several(dilation, 3)[0]
    pads = padding if isinstance(padding, str) else (several(padding, 3)[0], 0)
    (before, after), _ = Window((depth, 1), padding=pads, dilation=(reach, 1)).pads
    deep = F.pad(inputs, (0, 0, 0, 0, before, after))
    num_windows = (deep.shape[2] - reach * (depth - 1) - 1) // step + 1
    last = step * (num_windows - 1) + 1
    layers = [deep[:, :, i * reach : i * reach + last : step] for i in range(depth)]
    return torch.stack(layers, 2).movedim(3, 1).flatten(0, 1).flatten(1, 2)


def pixels(inputs: Tensor) -> Tensor:
    """Return ``[N, C, ...]`` as images ``[N, C, ., .]`` with the same channels and positions."""
    if inputs.ndim == 3:
        return inputs.unsqueeze(2)
    return inputs if inputs.ndim == 4 else inputs.flatten(2, 3)
