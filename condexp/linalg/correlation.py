"""Products of images with themselves, shifted: what a convolution's moment is made of."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

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
        self._size = (images.shape[2], images.shape[3])
        self._plan = _plan(_hashable(window), self._size)
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

    def sum_image(self) -> Tensor:
        """Return the sum over samples, ``[C, H, W]`` float64."""
        sums = column_sums(self._padded)[:, : self._size[0], : self._size[1]]
        return sums.permute(0, 3, 1, 2).flatten(0, 1)

    def blocks(self) -> Tensor:
        """Return, for two offsets, Σ over samples and positions of the pixels at the one and other.

        Returns:
            ``[groups, offsets, C / groups, offsets, C / groups]`` float64.
        """
        plan, groups, channels = self._plan, self._padded.shape[0], self._padded.shape[-1]
        num = len(plan.rows)
        full = self._padded.new_empty(
            groups, len(plan.shifts), channels, channels, dtype=torch.float64
        )
        for number, shift in enumerate(plan.shifts):
            full[:, number] = self._full(shift)
        parts = self._parts()
        blocks = full.new_empty(groups, num, channels, num, channels)
        for i, row in enumerate(plan.rows):
            from_here = full[:, row.shifts]
            for sign, corrections in ((-1, row.minus), (1, row.plus)):
                if corrections:
                    places, which = (
                        torch.tensor(numbers, device=full.device)
                        for numbers in zip(*corrections, strict=True)
                    )
                    from_here.index_add_(1, places, parts[:, which], alpha=sign)
            blocks[:, i, :, i:] = from_here.transpose(1, 2)
            blocks[:, i + 1 :, :, i] = from_here[:, 1:].mT
        return blocks

    def _full(self, shift: Offset) -> Tensor:
        """Return Σ of all pixels and those that lie so far from them."""
        flat = self._padded.flatten(1, 3)
        by = shift[0] * self._padded.shape[3] + shift[1]
        return cross_products(flat[:, : flat.shape[1] - by], flat[:, by:], flat.dtype)

    def _parts(self) -> Tensor:
        """Return the plan's parts, ``[groups, parts, C / groups, C / groups]``."""
        plan, padded = self._plan, self._padded
        groups, channels = padded.shape[0], padded.shape[-1]
        parts = padded.new_empty(groups, plan.num_parts, channels, channels, dtype=torch.float64)
        # Of the strips along one border, which differ in their shift along it, at once.
        for axis, strips in enumerate(plan.strips):
            # Images with the axis that the strips run along last.
            images = padded if axis == 0 else padded.transpose(2, 3)
            for (across, span), members in strips.items():
                one = images[:, :, span[0] : span[1]].flatten(1, 3)
                other = images[:, :, span[0] + across : span[1] + across].flatten(1, 3)
                for sign in (1, -1):
                    along = {n: sign * by for n, by in members if by * sign >= (sign < 0)}
                    if along:
                        ordered = (one, other) if sign > 0 else (other, one)
                        self._along(parts, ordered, along, transposed=sign < 0)
        for (shift, rows, columns), number in plan.corners:
            (top, bottom), (left, right), (dy, dx) = rows, columns, shift
            one = padded[:, :, top:bottom, left:right].flatten(1, 3)
            other = padded[:, :, top + dy : bottom + dy, left + dx : right + dx].flatten(1, 3)
            parts[:, number] = cross_products(one, other, one.dtype)
        return parts

    @staticmethod
    def _along(
        parts: Tensor, strips: tuple[Tensor, Tensor], along: dict[int, int], *, transposed: bool
    ) -> None:
        """Take Σ of one strip's pixels and those of the other so far ahead, for several ways.

        Args:
            parts: Where to put them.
            strips: Both flattened, zeros between the lines.
            along: From the number of a part to how far ahead, from 0 on.
            transposed: The parts are of the other strip's pixels and the one's.
        """
        one, other = strips
        num = one.shape[1] - max(along.values())  # what falls away at the end is 0
        ahead = torch.cat([other[:, by : by + num] for by in along.values()], 2)
        products = cross_products(one[:, :num], ahead, one.dtype)
        by_part = torch.unflatten(products, 2, (len(along), -1)).transpose(1, 2)
        parts[:, list(along)] = by_part.mT if transposed else by_part


class _Row(NamedTuple):
    """The blocks of one offset and of those that are not before it.

    ``shifts`` numbers the whole products; ``minus`` and ``plus`` are pairs of a block's place from
    the diagonal on, and the number of the part that is to be taken away or added.
    """

    shifts: list[int]
    minus: list[tuple[int, int]]
    plus: list[tuple[int, int]]


@dataclass(frozen=True)
class _Plan:
    """What a window's blocks are made of, for images of one size.

    Attributes:
        shifts: (dy, dx) of the products of all pixels.
        rows: The blocks by offset.
        strips: Parts along a border, horizontal ones and vertical ones: from the shift across and
            the first and last + 1 line to the numbers of parts and their shifts along.
        corners: Shift, rows and columns of other parts, and their numbers.
        num_parts: Number of all parts.
    """

    shifts: list[Offset]
    rows: list[_Row]
    strips: tuple[dict[tuple[int, Span], list[tuple[int, int]]], ...]
    corners: list[tuple[tuple[Offset, Span, Span], int]]
    num_parts: int


@lru_cache(maxsize=256)
def _plan(window: Window, size: Offset) -> _Plan:
    """Say what is to be taken away from all pixels' products at each pair of offsets.

    Args:
        window: The window; its groups play no part.
        size: (H, W) of the images.

    Returns:
        The plan.
    """
    height, width = window.kernel_size
    offsets = list(product(range(height), range(width)))
    spans = [window.spans(offset, size) for offset in offsets]
    shifts: dict[Offset, int] = {}
    parts: dict[tuple[int, Offset, tuple[Span, ...]], int] = {}
    rows = []
    for i, one in enumerate(offsets):
        row = _Row([], [], [])
        for j, other in enumerate(offsets[i:], start=i):
            between = [e * (b - a) for e, a, b in zip(window.dilation, one, other, strict=True)]
            shift = between[0], between[1]
            row.shifts.append(shifts.setdefault(shift, len(shifts)))
            every = [_overlap(n, by) for n, by in zip(size, shift, strict=True)]
            # The pixels that positions look at; what is left of every pixel are strips.
            seen = [
                (max(a, c) + start, min(b, d) + start)
                for (a, b), (c, d), start in zip(spans[i], spans[j], window.shift(one), strict=True)
            ]
            across = [list(_without(*both)) for both in zip(every, seen, strict=True)]
            strips = [(axis, (span,)) for axis in (0, 1) for span in across[axis]]
            corners = [(2, both) for both in product(*across)]
            for corrections, found in ((row.minus, strips), (row.plus, corners)):
                for kind, where in found:
                    number = parts.setdefault((kind, shift, where), len(parts))
                    corrections.append((j - i, number))
        rows.append(row)
    plan = _Plan(list(shifts), rows, ({}, {}), [], len(parts))
    for (kind, shift, where), number in parts.items():
        if kind == 2:
            plan.corners.append(((shift, where[0], where[1]), number))
        else:
            members = plan.strips[kind].setdefault((shift[kind], where[0]), [])
            members.append((number, shift[1 - kind]))
    return plan


def _hashable(window: Window) -> Window:
    """Return a window whose pairs are tuples, of one group."""
    kernel_size, dilation = tuple(window.kernel_size), tuple(window.dilation)
    padding = window.padding if isinstance(window.padding, str) else tuple(window.padding)
    return replace(
        window, kernel_size=kernel_size, stride=(1, 1), padding=padding, dilation=dilation, groups=1
    )


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
