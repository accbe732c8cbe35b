"""Second moments of a stride-1 convolution's patches without laying the patches out.

On the layers of ResNet-20 and VGG-16 (128 images of 32×32 px, 3 to 512 channels, float32) this
takes 0.10 to 0.47 of the time of laying the patches out: ``python -m benchmarks patches``, one
thread of an AMD EPYC (Zen 3), torch 2.14.1, the minimum of 7 (VGG-16) or 21 pairs in turn. In CPU
time, which other work on the machine hardly changes, the ratios are 0.11 to 0.30.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Self

import torch
from torch import Tensor

from condexp.analysis.linalg.products import column_sums, in_range, inner_products, scaled
from condexp.analysis.linalg.rows.dense import DenseRows, as_reference, version_of
from condexp.analysis.linalg.rows.patches import Window, pixel_rows, unfold_patches
from condexp.analysis.linalg.rows.shifted_products import ShiftedProducts

_PIXELS_A_POSITION = 2


@dataclass(frozen=True, eq=False)
class PatchRows:
    """The patches of images as rows; features are ordered by offset first, channel second.

    Block (i, i') of Σ r rᵀ, for offsets i and i' in the window, depends on i' − i alone, up to
    borders: (2k_h − 1)(2k_w − 1) products of the image with itself shifted, half of them by
    symmetry. What lies outside the true patches' positions is subtracted, a few rows and columns
    of the images.

    Args:
        images: ``[N, C, H, W]``, float32 or float64, padded already where it is not by a constant.
        window: A window of stride 1.
        subtracted: Number subtracted from each channel, ``[groups, C / groups]`` float64, in the
            padding too; None for nothing.
        working_dtype: Precision of the products of rows from which something was subtracted.
    """

    images: Tensor
    window: Window
    subtracted: Tensor | None = None
    working_dtype: torch.dtype = torch.float64

    @property
    def num_rows(self) -> int:
        """R = N·H_out·W_out."""
        height, width = self._output_size
        return len(self.images) * height * width

    @property
    def num_features(self) -> int:
        """The side of a block, d = (C / groups)·k_h·k_w."""
        return self._num_channels * len(self._offsets)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    @property
    def factor(self) -> float:
        """1: patches are not scaled."""
        return 1.0

    @property
    def dtype(self) -> torch.dtype:
        """Their precision."""
        return self.images.dtype

    @property
    def num_bytes(self) -> int:
        """Memory of the images."""
        return self.images.nbytes

    @property
    def version(self) -> int:
        """Number of in-place changes of the images."""
        return version_of(self.images)

    def dense(self) -> Tensor:
        """Return all patches, features in the order of this class."""
        return self._by_offset(unfold_patches(self.images, self.window))

    def approximate_mean(self) -> Tensor:
        """Return the mean of each channel, ``[groups, C / groups]``."""
        mean = self._sum_image.mean((-2, -1)) / len(self.images)
        return torch.unflatten(as_reference(mean, self.dtype), 0, (self.window.groups, -1))

    def reference_by_feature(self, reference: Tensor) -> Tensor:
        """Return a reference by feature: a channel's at every offset."""
        return reference.repeat(1, len(self._offsets))

    def minus(self, reference: Tensor, dtype: torch.dtype) -> Self:
        """Return the patches minus a reference."""
        return replace(self, subtracted=reference, working_dtype=dtype)

    def sums(self) -> Tensor:
        """Return Σ r."""
        if self._is_sparse:
            return self._laid_out.sums()
        sums = self._sum_patches.sum(1)
        if self.subtracted is not None:
            num_outside = self._outside.sum(0) * len(self.images)
            sums = sums - num_outside[:, None] * self.subtracted[:, None]
        return sums.flatten(1)

    def square_sum(self) -> float:
        """Return Σ ‖r‖² of patches from which nothing was subtracted."""
        norms = torch.linalg.vector_norm(self.images, dim=0, dtype=torch.float64)
        return float(unfold_patches(norms.square()[None], self.window).sum())

    def products(self, dtype: torch.dtype) -> Tensor:
        """Return Σ r rᵀ."""
        if self._is_sparse:
            return self._laid_out.products(dtype)
        return in_range(lambda factor: self._products(factor, dtype), self.images, dtype)

    def gram(self, dtype: torch.dtype) -> Tensor:
        """Return r_i·r_j: the images' pixel Gram matrix, summed over the window's offsets."""
        if self._is_sparse:
            return self._laid_out.gram(dtype)
        return in_range(lambda factor: self._gram(factor, dtype), self.images, dtype)

    def copy(self) -> Self:
        """Return a copy."""
        return replace(self, images=self.images.clone())

    @property
    def _is_sparse(self) -> bool:
        """Whether there are so few positions for the pixels that patches are better laid out.

        The error of a shifted product is relative to all pixels, its cost as well.
        """
        height, width = self._output_size
        return self.images.shape[-2] * self.images.shape[-1] > _PIXELS_A_POSITION * height * width

    @cached_property
    def _laid_out(self) -> DenseRows:
        """The patches, minus what is subtracted."""
        rows = DenseRows(self.dense())
        if self.subtracted is None:
            return rows
        return rows.minus(self.reference_by_feature(self.subtracted)[:, None], self.working_dtype)

    @property
    def _num_channels(self) -> int:
        return self.images.shape[1] // self.window.groups

    @property
    def _output_size(self) -> tuple[int, int]:
        return self.window.output_size(self.images.shape[-2:])

    @cached_property
    def _offsets(self) -> list[tuple[int, int]]:
        height, width = self.window.kernel_size
        return list(product(range(height), range(width)))

    @cached_property
    def _sum_image(self) -> Tensor:
        """Σ_n of the images, ``[C, H, W]`` float64."""
        if self.subtracted is None:
            return column_sums(self.images[None])[0]
        return self._shifts.sum_image()

    @cached_property
    def _shifts(self) -> ShiftedProducts:
        return ShiftedProducts(self.images, self.window, self.working_dtype, self.subtracted)

    @cached_property
    def _sum_patches(self) -> Tensor:
        """Σ_n of the patches, 0 outside of the images: ``[groups, T, offsets, C / groups]``."""
        rows = self._by_offset(unfold_patches(self._sum_image[None], self.window))
        return torch.unflatten(rows, 2, (len(self._offsets), -1))

    def _by_offset(self, rows: Tensor) -> Tensor:
        by_channel = torch.unflatten(rows, 2, (self._num_channels, len(self._offsets)))
        return by_channel.transpose(2, 3).flatten(2)

    @cached_property
    def _outside(self) -> Tensor:
        """1 where an offset of a position looks at the padding, else 0: ``[T, offsets]``."""
        inside = torch.ones(1, 1, *self.images.shape[-2:], dtype=torch.float64, device=self.device)
        return 1 - unfold_patches(inside, replace(self.window, groups=1))[0]

    def _products(self, factor: float, dtype: torch.dtype) -> Tensor:
        """Return Σ r rᵀ of the rows times a factor."""
        subtracted, shifts = self.subtracted, None
        if factor != 1 and subtracted is not None:
            subtracted = subtracted * factor
        if factor == 1 and subtracted is not None and dtype == self.working_dtype:
            shifts = self._shifts
        shifts = shifts or ShiftedProducts(
            scaled(self.images, factor), self.window, dtype, subtracted
        )
        blocks = shifts.blocks()
        if subtracted is not None and bool(self._outside.any()):
            self._add_padding(blocks, self._sum_patches * factor, subtracted)
        return blocks.flatten(3).flatten(1, 2)

    def _add_padding(self, blocks: Tensor, sum_patches: Tensor, subtracted: Tensor) -> None:
        """Add what the padding, no longer 0, contributes.

        A patch is x − q·s, where s was subtracted and q is 1 in the padding, 0 in the image.

        Args:
            blocks: Σ x xᵀ, ``[groups, offsets, C / groups, offsets, C / groups]``; changed.
            sum_patches: Σ x by position, ``[groups, T, offsets, C / groups]``.
            subtracted: s, ``[groups, C / groups]``.
        """
        cross = -torch.einsum("ti,gtjc->gijc", self._outside, sum_patches)
        both = len(self.images) * self._outside.T @ self._outside / 2
        half = cross + both[None, :, :, None] * subtracted[:, None, None]
        groups, num_offsets, channels = blocks.shape[:3]
        # By offset, the subtracted and nothing else: s ⊗ half and its transpose in one product.
        own = torch.eye(num_offsets, dtype=torch.float64, device=self.device)[:, None]
        left = (own * subtracted[:, None, :, None]).flatten(1, 2)
        right = half.flatten(2)
        matrix = blocks.view(groups, num_offsets * channels, -1)
        matrix.baddbmm_(torch.cat([left, right.mT], 2), torch.cat([right, left.mT], 1))

    def _gram(self, factor: float, dtype: torch.dtype) -> Tensor:
        images = scaled(self.images, factor)
        groups, (height, width) = self.window.groups, images.shape[-2:]
        pixels = inner_products(pixel_rows(images, groups), dtype)
        pixels = pixels.view(groups, *[len(images), height, width] * 2)
        total = torch.zeros(
            groups, *[len(images), *self._output_size] * 2, dtype=torch.float64, device=self.device
        )
        for offset in self._offsets:
            # The positions at which this offset looks at a pixel, and those pixels.
            spans = self.window.spans(offset, (height, width))
            y, x = (slice(low, high) for low, high in spans)
            v, u = (
                slice(low + shift, high + shift)
                for (low, high), shift in zip(spans, self.window.shift(offset), strict=True)
            )
            total[:, :, y, x, :, y, x] += pixels[:, :, v, u, :, v, u]
        return total.view(groups, self.num_rows, self.num_rows)
