"""Augments training images, from generators of its own that nothing else can disturb."""

import numpy as np
import torch
from torch import Tensor

CROP_PADDING = 4


def seed_of(*stream: int) -> int:
    """Mix numbers to a seed; neighbouring tuples give unrelated ones, which a sum would not.

    Args:
        *stream: What the random numbers are for, such as (seed, epoch, batch), from 0 on.

    Returns:
        64 bits.
    """
    return int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0])


def generator_of(*stream: int) -> torch.Generator:
    """Return a generator on the CPU whose numbers are a function of the stream alone.

    Args:
        *stream: As for :func:`seed_of`.

    Returns:
        A fresh generator.
    """
    return torch.Generator().manual_seed(seed_of(*stream))


def augment_batch(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad by reflection, crop at random and flip at random; each image for itself.

    Args:
        images: Images [B, C, H, W] of any dtype on any device, at least 5 px high and wide.
        generator: Where the offsets and flips come from, on the CPU.

    Returns:
        Images of the same shape, dtype and device.
    """
    num_images, num_channels, height, width = images.shape
    offsets = torch.randint(-CROP_PADDING, CROP_PADDING + 1, (2, num_images), generator=generator)
    flips = torch.randint(0, 2, (num_images, 1), generator=generator).bool()
    rows = _reflect(torch.arange(height) + offsets[0, :, None], height)
    cols = _reflect(torch.arange(width) + offsets[1, :, None], width)
    cols = torch.where(flips, cols.flip(1), cols)
    # One gather of whole pixels: padding for itself would copy the batch, and knows no uint8.
    source = (rows[:, :, None] * width + cols[:, None, :]).to(images.device)
    source = source.view(num_images, 1, -1).expand(-1, num_channels, -1)
    return images.flatten(2).gather(2, source).view(images.shape)


def _reflect(positions: Tensor, size: int) -> Tensor:
    # At 0 and at size − 1, without repeating the border.
    positions = positions.abs()
    return torch.where(positions < size, positions, 2 * (size - 1) - positions)
