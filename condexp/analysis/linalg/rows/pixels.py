"""Pixels of images as rows, which sums and products do not lay out."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from condexp.analysis.linalg.products import column_sums, in_range, sample_products, scaled
from condexp.analysis.linalg.rows.dense import DenseRows, version_of
from condexp.analysis.linalg.rows.patches import pixel_rows


@dataclass(frozen=True, eq=False)
class PixelRows:
    """The pixels of images as rows, times a factor: :class:`DenseRows` of ``pixel_rows``.

    Their sums and products are taken of the images as they lie; there should be at least as many
    pixels in an image as channels in a group.

    Args:
        images: ``[N, C, H, W]``, float32 or float64.
        groups: Number of blocks of channels.
        factor: Number by which all values are multiplied.
    """

    images: Tensor
    groups: int = 1
    factor: float = 1.0

    @property
    def num_rows(self) -> int:
        """R = N·H·W."""
        return self.images.numel() // self.images.shape[1]

    @property
    def num_features(self) -> int:
        """The side d = C / groups."""
        return self.images.shape[1] // self.groups

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

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
        """Return the rows."""
        return self._laid_out.dense()

    def approximate_mean(self) -> Tensor:
        """Return the mean row, ``[groups, 1, d]``."""
        return self._laid_out.approximate_mean()

    def reference_by_feature(self, reference: Tensor) -> Tensor:
        """Return the reference itself, in float64."""
        return self._laid_out.reference_by_feature(reference)

    def minus(self, reference: Tensor, dtype: torch.dtype) -> DenseRows:
        """Return the rows minus a reference."""
        return self._laid_out.minus(reference, dtype)

    def sums(self) -> Tensor:
        """Return Σ r."""
        by_pixel = column_sums(self.images[None])[0]
        return by_pixel.sum((1, 2)).view(self.groups, -1) * self.factor

    def square_sum(self) -> float:
        """Return Σ ‖r‖²."""
        return self._laid_out.square_sum()

    def products(self, dtype: torch.dtype) -> Tensor:
        """Return Σ r rᵀ."""
        samples = torch.unflatten(self.images, 1, (self.groups, -1)).flatten(3)

        def of(factor: float) -> Tensor:
            return sample_products(scaled(samples, factor).to(dtype))

        return in_range(of, self.images, dtype).mul_(self.factor**2)

    def gram(self, dtype: torch.dtype) -> Tensor:
        """Return r_i·r_j of the values."""
        return self._laid_out.gram(dtype)

    def copy(self) -> Self:
        """Return a copy."""
        return replace(self, images=self.images.clone())

    @cached_property
    def _laid_out(self) -> DenseRows:
        return DenseRows(pixel_rows(self.images, self.groups), self.factor)
