"""Products of images with themselves, shifted, of which a convolution's second moment is made."""

import torch
from torch import Tensor

from condexp.analysis.linalg.products import (
    added,
    ahead_products,
    chunk_rows,
    column_sums,
    cross_products,
    rows_to_reach,
)
from condexp.analysis.linalg.rows.patches import Window
from condexp.analysis.linalg.rows.shift_plan import BorderLine, ShiftRun, plan_shifts

_WIDE = 640  # numbers in a row of pixels beyond which a product gains nothing from more


class ShiftedProducts:
    """Products of images with themselves, shifted, each taken once.

    Args:
        images: ``[N, C, H, W]``.
        window: The window.
        dtype: Working precision.
        reference: Number subtracted from each channel, ``[groups, C / groups]``; None for nothing.
    """

    def __init__(
        self, images: Tensor, window: Window, dtype: torch.dtype, reference: Tensor | None
    ) -> None:
        num_samples, channels, height, width = images.shape
        self._size, groups = (height, width), window.groups
        most = 1 if groups > 1 else max(1, _WIDE // channels)
        self._plan = plan_shifts(window, self._size, most, images.device)
        # Enough zeros below and to the right that a shift of the flattened image meets them
        # wherever it would reach into another row or another sample, and after the last one.
        padded_size = (num_samples, height + self._plan.gaps[0], width + self._plan.gaps[1])
        self._num_pixels = num_samples * padded_size[1] * padded_size[2]
        reach = self._plan.farthest + max(
            rows_to_reach(self._num_pixels, run.num, channels // groups, dtype)
            for run in self._plan.runs
        )
        self._pixels = images.new_empty(groups, reach, channels // groups, dtype=dtype)
        self._pixels[:, self._num_pixels :] = 0
        self._padded = torch.unflatten(self._pixels[:, : self._num_pixels], 1, padded_size)
        self._padded[:, :, height:] = 0
        self._padded[:, :, :height, width:] = 0
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
        plan, groups, channels = self._plan, self._pixels.shape[0], self._pixels.shape[-1]
        num = len(plan.rows)
        full = torch.cat([self._full(run) for run in plan.runs], 1)
        parts = full.new_empty(groups, plan.num_parts, channels, channels)
        for line in plan.lines:
            self._along(parts, line)
        blocks = full.new_empty(groups, num, channels, num, channels)
        for i, row in enumerate(plan.rows):
            from_here = full[:, row.shifts]
            for sign, (places, which) in ((-1, row.minus), (1, row.plus)):
                if len(places):
                    from_here.index_add_(1, places, parts[:, which], alpha=sign)
            blocks[:, i, :, i:] = from_here.transpose(1, 2)
            blocks[:, i + 1 :, :, i] = from_here[:, 1:].mT
        return blocks

    def _full(self, run: ShiftRun) -> Tensor:
        """Return Σ of all pixels and those so far ahead, one product for each of the run."""
        pixels, num = self._pixels, self._num_pixels
        if len(pixels) == 1:
            return ahead_products(pixels[0], num, run.ahead, run.num, pixels.dtype)[None]
        other = pixels[:, run.ahead : run.ahead + num]
        return cross_products(pixels[:, :num], other, pixels.dtype)[:, None]

    def _along(self, parts: Tensor, line: BorderLine) -> None:
        """Take Σ over samples of a line's pixels and those ahead of each: of all, and of some.

        Args:
            parts: Tensor that the sums are written to.
            line: The line of pixels.
        """
        padded, (ahead, num) = self._padded, line.run
        groups, num_samples, channels = len(padded), padded.shape[1], padded.shape[-1]
        size = groups, line.num, num_samples
        by = padded.stride(0), line.step * channels, padded.stride(1), 1
        left = padded.as_strided((*size, channels), by, line.start * channels)
        right = padded.as_strided((*size, num * channels), by, (line.start + ahead) * channels)
        pieces = (torch.split(rows, chunk_rows(padded.dtype), 2) for rows in (left, right))
        products = added(
            torch.bmm(one.flatten(0, 1).mT, other.flatten(0, 1))
            for one, other in zip(*pieces, strict=True)
        ).view(groups, line.num, channels, num, channels)
        whole = products.sum(1, dtype=torch.float64)
        parts[:, line.first : line.first + num] = whole.transpose(1, 2)
        for place, j, number in line.corners:
            parts[:, number] = products[:, place, :, j]
