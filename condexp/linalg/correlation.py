"""Products of images with themselves, shifted: what a convolution's moment is made of."""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from condexp.linalg.patches import Span, Window
from condexp.linalg.products import column_sums, cross_products

Offset = tuple[int, int]


class ShiftedProducts:
    """Products of images with themselves, shifted, each taken once.

    Args:
        images: ``[N, C, H, W]``.
        window: The window.
        dtype: Working precision.
        reference: What is subtracted from each channel, ``[groups, C / groups]``; None: nothing.
    """

    def __init__(
        self, images: Tensor, window: Window, dtype: torch.dtype, reference: Tensor | None
    ) -> None:
        self._window, self._size = window, tuple(images.shape[-2:])
        # Enough zeros below and to the right that a shift of the flattened image meets them
        # wherever it would reach into another row or another sample.
        gaps = [e * (k - 1) for e, k in zip(window.dilation, window.kernel_size, strict=True)]
        num_samples, channels, height, width = images.shape
        groups = window.groups
        self._padded = images.new_zeros(
            (groups, num_samples, height + gaps[0], width + gaps[1], channels // groups),
            dtype=dtype,
        )
        per_group = torch.unflatten(images, 1, (groups, -1)).permute(1, 0, 3, 4, 2)
        inside = self._padded[:, :, :height, :width]
        if reference is None:
            inside.copy_(per_group)
        else:
            wide = torch.promote_types(images.dtype, dtype)
            torch.sub(per_group, reference.to(wide)[:, None, None, None], out=inside)
        self._sums: dict[tuple[Span, ...], Tensor] = {}
        self._known_spans: dict[Offset, tuple[Span, Span]] = {}

    def sum_image(self) -> Tensor:
        """Return the sum over samples, ``[C, H, W]`` float64."""
        sums = column_sums(self._padded)[:, : self._size[0], : self._size[1]]
        return sums.permute(0, 3, 1, 2).flatten(0, 1)

    def block(self, one: Offset, other: Offset) -> Tensor:
        """Return Σ over samples and positions of the pixels at two offsets, one ≤ other.

        Returns:
            ``[groups, C / groups, C / groups]`` float64.
        """
        size = self._size
        (dy, dx), start = self._between(one, other), self._window.shift(one)
        every = _overlap(size[0], dy), _overlap(size[1], dx)
        # The pixels that positions look at; what is left of every pixel are strips.
        spans = zip(self._spans(one), self._spans(other), start, strict=True)
        seen = [(max(a, c) + s, min(b, d) + s) for (a, b), (c, d), s in spans]
        rows, columns = (tuple(_without(*both)) for both in zip(every, seen, strict=True))
        block = self._full((dy, dx)).clone()
        for strip in rows:
            block -= self._part((dy, dx), strip, every[1])
        for strip in columns:
            block -= self._part((dy, dx), every[0], strip)
        for corner in product(rows, columns):
            block += self._part((dy, dx), *corner)
        return block

    def _between(self, one: Offset, other: Offset) -> Offset:
        """Return how far the pixel at one offset is from that at the other."""
        (e, f), (i, k), (j, m) = self._window.dilation, one, other
        return e * (j - i), f * (m - k)

    def _spans(self, offset: Offset) -> tuple[Span, Span]:
        if offset not in self._known_spans:
            self._known_spans[offset] = self._window.spans(offset, self._size)
        return self._known_spans[offset]

    def _full(self, shift: Offset) -> Tensor:
        key = (shift,)
        if key not in self._sums:
            flat = self._padded.flatten(1, 3)
            by = shift[0] * self._padded.shape[3] + shift[1]
            num = flat.shape[1] - by
            self._sums[key] = cross_products(flat[:, :num], flat[:, by:], flat.dtype)
        return self._sums[key]

    def _part(self, shift: Offset, rows: Span, columns: Span) -> Tensor:
        key = (shift, rows, columns)
        if key not in self._sums:
            (top, bottom), (left, right), (dy, dx) = rows, columns, shift
            one = self._padded[:, :, top:bottom, left:right]
            other = self._padded[:, :, top + dy : bottom + dy, left + dx : right + dx]
            flat = one.flatten(1, 3), other.flatten(1, 3)
            self._sums[key] = cross_products(*flat, one.dtype)
        return self._sums[key]


def _overlap(size: int, shift: int) -> Span:
    """Return the pixels whose shifted partners are pixels too."""
    return max(0, -shift), max(0, -shift, min(size, size - shift))


def _without(whole: Span, part: Span) -> Iterator[Span]:
    """Yield what is left of a range without a part of it."""
    if part[0] >= part[1]:
        if whole[0] < whole[1]:
            yield whole
        return
    if whole[0] < part[0]:
        yield whole[0], part[0]
    if part[1] < whole[1]:
        yield part[1], whole[1]
