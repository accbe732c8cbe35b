"""Plans of the pixels that are multiplied with each other for a convolution's second moment."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from condexp.analysis.linalg.rows.patches import Span, Window

Offset = tuple[int, int]
_Part = tuple[int, tuple[int, ...], Offset]


class ShiftRun(NamedTuple):
    """Shifts that follow one another, along the flattened image: pixels ahead, and how many."""

    ahead: int
    num: int


class BorderLine(NamedTuple):
    """Pixels along a border, whose products with those of a run are parts.

    Attributes:
        start: The first pixel of the flattened image.
        step: From one pixel to the next.
        num: Their number.
        run: The pixels ahead of each.
        first: Number of the first part, Σ over all; the run's others follow it.
        corners: Parts of one pixel alone: its place in the line, that in the run, and the number.
    """

    start: int
    step: int
    num: int
    run: ShiftRun
    first: int
    corners: list[tuple[int, int, int]]


class BlockRow(NamedTuple):
    """The blocks of one offset and of those that are not before it.

    ``shifts`` numbers the whole products; ``minus`` and ``plus`` hold blocks' places from the
    diagonal on, and the numbers of parts that are to be taken away or added.
    """

    shifts: Tensor
    minus: Tensor
    plus: Tensor


@dataclass(frozen=True)
class ShiftPlan:
    """The products of which a window's blocks are made, for images of one size.

    Attributes:
        gaps: Lines of zeros below an image, and to the right of it.
        runs: The products of all pixels.
        farthest: Pixels that the last of them looks ahead.
        rows: The blocks by offset.
        lines: Border lines, of which the parts are made.
        num_parts: Number of all parts.
    """

    gaps: Offset
    runs: list[ShiftRun]
    farthest: int
    rows: list[BlockRow]
    lines: list[BorderLine]
    num_parts: int


def plan_shifts(window: Window, size: Offset, most: int, device: torch.device) -> ShiftPlan:
    """Plan what is subtracted from all pixels' products at each pair of offsets.

    Args:
        window: The window.
        size: (H, W) of the images.
        most: Largest number of shifts in a run.
        device: Device on which the plan's numbers will be needed.

    Returns:
        The plan.
    """
    return _plan(_hashable(window), size, most, device)


@lru_cache(maxsize=256)
def _plan(window: Window, size: Offset, most: int, device: torch.device) -> ShiftPlan:
    height, width = window.kernel_size
    offsets = list(product(range(height), range(width)))
    spans = [window.spans(offset, size) for offset in offsets]
    gaps = window.dilation[0] * (height - 1), window.dilation[1] * (width - 1)
    pitch = size[1] + gaps[1]
    blocks: list[list[_Block]] = []
    for i, one in enumerate(offsets):
        blocks.append([])
        for j, other in enumerate(offsets[i:], start=i):
            dy, dx = (e * (b - a) for e, a, b in zip(window.dilation, one, other, strict=True))
            every = [_overlap(n, by) for n, by in zip(size, (dy, dx), strict=True)]
            # The pixels that positions look at; what is left of every pixel are lines.
            seen = [
                (max(a, c) + start, min(b, d) + start)
                for (a, b), (c, d), start in zip(spans[i], spans[j], window.shift(one), strict=True)
            ]
            rows, columns = (_without(*both) for both in zip(every, seen, strict=True))
            blocks[-1].append(_Block((dy, dx), rows, columns))
    flat = [block for by_offset in blocks for block in by_offset]
    ahead = sorted({dy * pitch + dx for (dy, dx), _, _ in flat})
    numbers, lines = _lines(flat, size, pitch, most)
    numbered = []
    for by_offset in blocks:
        shifts = [ahead.index(dy * pitch + dx) for (dy, dx), _, _ in by_offset]
        corrections = (
            [
                (place, numbers[part])
                for place, block in enumerate(by_offset)
                for part in parts_of(block)
            ]
            for parts_of in (_Block.strips, _Block.corners)
        )
        minus, plus = (torch.tensor(pairs, device=device).view(-1, 2).T for pairs in corrections)
        numbered.append(BlockRow(torch.tensor(shifts, device=device), minus.long(), plus.long()))
    runs = _runs(ahead, most)
    return ShiftPlan(gaps, runs, ahead[-1], numbered, lines, len(numbers))


class _Block(NamedTuple):
    """Two offsets' shift, and the lines and columns of pixels that no position looks at."""

    shift: Offset
    rows: list[int]
    columns: list[int]

    def strips(self) -> list[_Part]:
        """Return what is to be taken away: kind, line or column, shift."""
        rows: list[_Part] = [(0, (row,), self.shift) for row in self.rows]
        return rows + [(1, (column,), self.shift) for column in self.columns]

    def corners(self) -> list[_Part]:
        """Return what was taken away twice."""
        return [(2, where, self.shift) for where in product(self.rows, self.columns)]


def _lines(
    blocks: list[_Block], size: Offset, pitch: int, most: int
) -> tuple[dict[_Part, int], list[BorderLine]]:
    """Number the parts, those of a run one after the other, and say what they are made of.

    Args:
        blocks: All that need parts.
        size: (H, W) of the images.
        pitch: From a pixel of the flattened image to the one below.
        most: Largest number of shifts in a run.

    Returns:
        From a part to its number, and the lines.
    """
    strips = dict.fromkeys(strip for block in blocks for strip in block.strips())
    corners = dict.fromkeys(corner for block in blocks for corner in block.corners())
    numbers = {corner: number for number, corner in enumerate(corners)}
    alike: dict[tuple[int, int, int], list[Offset]] = {}
    for axis, (line,), shift in strips:
        alike.setdefault((axis, line, shift[axis]), []).append(shift)
    lines = []
    for (axis, line, _), shifts in alike.items():
        by_ahead = {dy * pitch + dx: (dy, dx) for dy, dx in sorted(shifts)}
        for run in _runs(list(by_ahead), most):
            first = len(numbers)
            own = [by_ahead[run.ahead + j] for j in range(run.num)]
            numbers |= {(axis, (line,), shift): first + j for j, shift in enumerate(own)}
            alone = [
                (where[1], own.index(shift), numbers[2, where, shift])
                for _, where, shift in corners
                if axis == 0 and where[0] == line and shift in own
            ]
            start, step = (line * pitch, 1) if axis == 0 else (line, pitch)
            lines.append(BorderLine(start, step, size[1 - axis], run, first, alone))
    return numbers, lines


def _runs(ahead: Sequence[int], most: int) -> list[ShiftRun]:
    """Return ascending numbers as runs of those that follow one another."""
    runs: list[ShiftRun] = []
    for number in ahead:
        if runs and runs[-1].num < most and sum(runs[-1]) == number:
            runs[-1] = ShiftRun(runs[-1].ahead, runs[-1].num + 1)
        else:
            runs.append(ShiftRun(number, 1))
    return runs


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


def _without(whole: Span, part: Span) -> list[int]:
    """Return what is left of a range without a part of it."""
    return [n for n in range(*whole) if not part[0] <= n < part[1]]
