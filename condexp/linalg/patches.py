"""Convolution patches: a convolution as a linear layer on the windows it looks at."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def unfold_patches(
    inputs: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
) -> Tensor:
    """Return every window of a two-dimensional convolution as a row (im2col).

    Row (n, t) of block g, times ``weight.flatten(1)`` of that block's filters, is the convolution's
    output without its bias (Grosse & Martens 2016, section 2.2).

    Args:
        inputs: ``[N, C, H, W]``.
        kernel_size: (k_h, k_w).
        stride: Step between windows, (vertical, horizontal).
        padding: Pixels added on both sides, (vertical, horizontal), or ``"same"`` (an odd total
            puts the extra pixel at the bottom and right), or ``"valid"`` (none).
        dilation: Spacing of a window's pixels, (vertical, horizontal).
        groups: Number of blocks of channels, each with its own filters.
        padding_mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``.

    Returns:
        ``[groups, N·T, (C/groups)·k_h·k_w]``: samples outermost, positions t row by row; features
        in the order of ``weight.flatten(1)``.

    >>> import torch
    >>> image = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> unfold_patches(image, (2, 2), (1, 1), (0, 0), (1, 1), 1, "zeros").tolist()
    [[[0.0, 1.0, 2.0, 3.0]]]
    """
    padded = _pad(inputs, kernel_size, padding, dilation, padding_mode)
    num_samples, channels, *size = padded.shape
    num_windows = [
        (size[axis] - dilation[axis] * (kernel_size[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    ]
    by_sample, by_channel, by_row, by_column = padded.stride()
    # A view of the padded input, [groups, N, T_h, T_w, C/groups, k_h, k_w]; one copy below.
    windows = padded.as_strided(
        (groups, num_samples, *num_windows, channels // groups, *kernel_size),
        (
            channels // groups * by_channel,
            by_sample,
            stride[0] * by_row,
            stride[1] * by_column,
            by_channel,
            dilation[0] * by_row,
            dilation[1] * by_column,
        ),
    )
    return windows.flatten(1, 3).flatten(2)


def _pad(
    inputs: Tensor,
    kernel_size: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    padding_mode: str,
) -> Tensor:
    if padding == "valid":
        return inputs
    if padding == "same":
        totals = [dilation[axis] * (kernel_size[axis] - 1) for axis in (0, 1)]
        before = [total // 2 for total in totals]
        after = [total - total // 2 for total in totals]
    else:
        before = after = [int(amount) for amount in padding]
    # torch wants the last axis first.
    amounts = (before[1], after[1], before[0], after[0])
    return F.pad(inputs, amounts, mode="constant" if padding_mode == "zeros" else padding_mode)
