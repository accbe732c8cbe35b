"""Convolution patches, on which a convolution is a linear layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch.nn.functional as F
from torch import Tensor

Span = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The geometry of a two-dimensional convolution; pairs are (vertical, horizontal).

    Args:
        kernel_size: (k_h, k_w).
        stride: Step between windows.
        padding: Pixels added on both sides, or ``"same"`` (an odd total puts the extra pixel at
            the bottom and right), or ``"valid"`` (none).
        dilation: Spacing of a window's pixels.
        groups: Number of blocks of channels, each with its own filters.
        padding_mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
    """

    kernel_size: Sequence[int]
    stride: Sequence[int] = (1, 1)
    padding: Sequence[int] | str = (0, 0)
    dilation: Sequence[int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"

    @cached_property
    def pads(self) -> tuple[Span, Span]:
        """Pixels added before and after, of each axis."""
        if self.padding == "valid":
            return (0, 0), (0, 0)
        if self.padding == "same":
            totals = [e * (k - 1) for e, k in zip(self.dilation, self.kernel_size, strict=True)]
            vertical, horizontal = ((total // 2, total - total // 2) for total in totals)
            return vertical, horizontal
        vertical, horizontal = ((int(amount), int(amount)) for amount in self.padding)
        return vertical, horizontal

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the number of windows along each axis.

        Args:
            size: (H, W) of the images, without padding.
        """
        height, width = (
            (size[axis] + sum(self.pads[axis]) - self._reach(axis)) // self.stride[axis] + 1
            for axis in (0, 1)
        )
        return height, width

    def shift(self, offset: Sequence[int]) -> tuple[int, int]:
        """Return the pixel that an offset of the first window looks at, along each axis."""
        vertical, horizontal = (
            self.dilation[axis] * offset[axis] - self.pads[axis][0] for axis in (0, 1)
        )
        return vertical, horizontal

    def spans(self, offset: Sequence[int], size: Sequence[int]) -> tuple[Span, Span]:
        """Return the windows, of stride 1, whose offset looks at a pixel and not at the padding.

        Args:
            offset: (vertical, horizontal) index in the window.
            size: (H, W) of the images, without padding.

        Returns:
            First and last + 1 along each axis.
        """
        vertical, horizontal = (
            (max(0, -shift), max(0, -shift, min(windows, pixels - shift)))
            for shift, windows, pixels in zip(
                self.shift(offset), self.output_size(size), size, strict=True
            )
        )
        return vertical, horizontal

    def pad(self, images: Tensor) -> Tensor:
        """Return images with the padding that the convolution adds to them."""
        # torch wants the last axis first.
        amounts = (*self.pads[1], *self.pads[0])
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(images, amounts, mode=mode) if any(amounts) else images

    def _reach(self, axis: int) -> int:
        return self.dilation[axis] * (self.kernel_size[axis] - 1) + 1


def pixel_rows(images: Tensor, groups: int) -> Tensor:
    """Return ``[N, C, H, W]`` as ``[groups, N·H·W, C / groups]``."""
    num_samples, _, height, width = images.shape
    per_group = images.reshape(num_samples, groups, -1, height, width)
    return per_group.permute(1, 0, 3, 4, 2).flatten(1, 3)


def unfold_patches(images: Tensor, window: Window) -> Tensor:
    """Return every window of a two-dimensional convolution as a row (im2col).

    Row (n, t) of block g, times ``weight.flatten(1)`` of that block's filters, is the convolution's
    output without its bias (Grosse & Martens 2016, section 2.2).

    Args:
        images: ``[N, C, H, W]``.
        window: The convolution's geometry.

    Returns:
        ``[groups, N·T, (C/groups)·k_h·k_w]``: samples outermost, positions t row by row; features
        in the order of ``weight.flatten(1)``.

    >>> import torch
    >>> image = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> unfold_patches(image, Window((2, 2))).tolist()
    [[[0.0, 1.0, 2.0, 3.0]]]
    """
    num_windows = window.output_size(images.shape[-2:])
    padded = window.pad(images)
    num_samples, channels = padded.shape[:2]
    by_sample, by_channel, by_row, by_column = padded.stride()
    # A view of the padded input, [groups, N, T_h, T_w, C/groups, k_h, k_w]; one copy below.
    windows = padded.as_strided(
        (window.groups, num_samples, *num_windows, channels // window.groups, *window.kernel_size),
        (
            channels // window.groups * by_channel,
            by_sample,
            window.stride[0] * by_row,
            window.stride[1] * by_column,
            by_channel,
            window.dilation[0] * by_row,
            window.dilation[1] * by_column,
        ),
    )
    return windows.flatten(1, 3).flatten(2)
