"""Small archives in the formats of the real data sets."""

import gzip
from pathlib import Path

import torch
from torch import Tensor

from condexp.data.vision import IDX_STEMS


def idx_bytes(array: Tensor) -> bytes:
    header = bytes([0, 0, 8, array.dim()])
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + sizes + array.numpy().tobytes()


def write_mnist_like(
    folder: Path, num_train: int = 40, num_test: int = 20, *, compressed: bool = True
) -> list[Tensor]:
    """Write the four files; return the arrays in the files' order."""
    generator = torch.Generator().manual_seed(0)
    arrays = []
    for size in (num_train, num_test):
        images = torch.randint(0, 256, (size, 28, 28), generator=generator, dtype=torch.uint8)
        arrays += [images, (torch.arange(size) % 10).to(torch.uint8)]
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in zip(IDX_STEMS, arrays, strict=True):
        content = idx_bytes(array)
        if compressed:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / stem).write_bytes(content)
    return arrays
