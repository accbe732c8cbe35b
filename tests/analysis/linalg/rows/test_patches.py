"""Patches against pixel-by-pixel loops, and against the convolution they stand for."""

from itertools import product
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from condexp.analysis.linalg.rows.patches import Window, unfold_patches
from tests.reference import conv_patches

Mode = Literal["zeros", "reflect", "replicate", "circular"]
Pair = tuple[int, int]
MODES: tuple[Mode, ...] = ("zeros", "reflect", "replicate", "circular")
KERNELS: tuple[Pair, ...] = ((1, 1), (2, 2), (3, 3), (2, 3))
STRIDES: tuple[Pair, ...] = ((1, 1), (2, 2), (1, 2))
PADDINGS: tuple[Pair | str, ...] = ((0, 0), (1, 1), (2, 1), "same", "valid")
DILATIONS: tuple[Pair, ...] = ((1, 1), (2, 1))


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
def test_patches_equal_loops_over_pixels(kernel_size: Pair, groups: int, mode: Mode) -> None:
    inputs = images(2, 2, 4, 5)
    for stride, padding, dilation in product(STRIDES, PADDINGS, DILATIONS):
        arguments = (kernel_size, stride, padding, dilation, groups, mode)
        expected = conv_patches(inputs, *arguments).flatten(1, 2)
        # Patches are copies: not a bit may differ.
        assert torch.equal(unfold_patches(inputs, Window(*arguments)), expected), arguments


# An even kernel's asymmetric padding makes torch itself warn that it copies the input.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((3, 3), (2, 2), (1, 1), (1, 1)),
        ((1, 1), (2, 2), (0, 0), (1, 1)),
        ((2, 4), (1, 3), (1, 2), (2, 1)),
        ((4, 2), (1, 1), "same", (1, 3)),
        ((3, 5), (1, 1), "same", (2, 1)),
        ((3, 2), (2, 1), "valid", (1, 2)),
    ],
)
def test_patches_times_the_weight_are_the_convolution(
    kernel_size: Pair,
    stride: Pair,
    padding: Pair | Literal["same", "valid"],
    dilation: Pair,
    groups: int,
    mode: Mode,
) -> None:
    conv = nn.Conv2d(
        6,
        9,
        kernel_size,
        stride,
        padding,
        dilation,
        groups,
        bias=False,
        padding_mode=mode,
        dtype=torch.float64,
    )
    inputs = images(3, 6, 8, 7)
    patches = unfold_patches(inputs, Window(kernel_size, stride, padding, dilation, groups, mode))
    weight = conv.weight.flatten(1).reshape(groups, 9 // groups, -1)
    outputs: Tensor = conv(inputs)
    expected = outputs.flatten(2).mT.flatten(0, 1)  # [N·T, d_out]
    # At most 48 products of size 1, in another order.
    assert torch.allclose((patches @ weight.mT).transpose(0, 1).flatten(1), expected, atol=1e-13)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_patches_of_any_memory_layout_and_of_views(layout: torch.memory_format) -> None:
    inputs = images(4, 4, 6, 6)
    window = Window((3, 3), groups=2)
    expected = unfold_patches(inputs, window)
    assert torch.equal(unfold_patches(inputs.to(memory_format=layout), window), expected)
    # A view that starts inside its storage, without a padded copy.
    view = unfold_patches(inputs[1:, :, 1:, :], window)
    assert torch.equal(view, unfold_patches(inputs[1:, :, 1:, :].clone(), window))


def test_a_kernel_larger_than_the_image_is_an_error() -> None:
    with pytest.raises(RuntimeError):
        unfold_patches(images(1, 1, 2, 2), Window((4, 4)))
