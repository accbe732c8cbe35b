"""Records of a data set, and its checksum."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor

from condexp.data.augment import augment_batch, generator_of
from condexp.data.choices import Augment

RESIDENT_SHARE = 0.25
Indices = Tensor | slice
"""Which samples: int64 [K], or a range."""


@dataclass(frozen=True)
class Share:
    """Which part of each batch one of several processes takes.

    Args:
        rank: Which process, from 0.
        size: How many they are; the batches divide among them.

    >>> Share(1, 2).of(6)
    slice(3, 6, None)
    """

    rank: int = 0
    size: int = 1

    def of(self, num_samples: int) -> slice:
        """Return the samples of a batch that are this process's.

        Args:
            num_samples: Size of the batch.

        Returns:
            Their places.
        """
        part = num_samples // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


class Task(StrEnum):
    """What is learned."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their targets, on the CPU.

    Args:
        inputs: Images, uint8 [N, C, H, W], or vectors, floating point [N, d].
        targets: Classes, int64 [N], or values, floating point [N, num_outputs].

    Raises:
        ValueError: If the two differ in length.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs, but {len(self.targets)} targets.")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample as a network sees it, (C, H, W) or (d,)."""
        return tuple(self.inputs.shape[1:])

    def select(self, indices: Tensor) -> Self:
        """Take some of the samples.

        Args:
            indices: Which, int64 [K].

        Returns:
            A split of K samples of the same kind, in the order of the indices.
        """
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices])

    def resident(self, device: torch.device) -> Self:
        """Move to a device for good, if the samples fill no more than a quarter of what is free.

        Args:
            device: Where batches are wanted.

        Returns:
            The samples there, or where they are.
        """
        if not _fits(self, device):
            return self
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def read(
        self,
        batches: Iterable[tuple[int, Indices]],
        augment: Augment,
        *stream: int,
        share: Share,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the samples of each batch, varied.

        Args:
            batches: The number of each, and its samples.
            augment: How images are varied.
            *stream: What the variation is a function of, with the batch's number.
            share: The part of each batch that is wanted; it looks the same as in the whole.

        Yields:
            Inputs as stored, [B, ...], and targets, [B, ...].
        """
        for number, indices in batches:
            inputs = _rows(self.inputs, indices)
            if augment is Augment.CROP_FLIP:
                inputs = augment_batch(inputs, generator_of(*stream, number + 1))
            part = share.of(len(inputs))
            yield inputs[part], _rows(self.targets, indices)[part]


def _rows(samples: Tensor, indices: Indices) -> Tensor:
    # index_select copies whole rows: many times quicker on images than indexing by a tensor.
    return samples[indices] if isinstance(indices, slice) else samples.index_select(0, indices)


def _fits(split: Split, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return split.inputs.nbytes + split.targets.nbytes <= RESIDENT_SHARE * free


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, in memory or read from files as it is used.

    Args:
        name: Its name.
        task: What is learned.
        train: The training samples.
        test: The test samples.
        mean: What to subtract from each channel, in the unit of the inputs (uint8: 0 to 255).
        std: What to divide each channel by, in the same unit.
        num_outputs: Number of classes, or of regression targets.
        checksum: sha256 of the arrays.
    """

    name: str
    task: Task
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_outputs: int
    checksum: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, (C, H, W) or (d,)."""
        return self.train.shape


def checksum_of(*splits: Split) -> str:
    """Compute sha256 over shape, dtype and bytes of the arrays, inputs before targets.

    Args:
        *splits: The splits, in order.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for split in splits:
        for array in (split.inputs, split.targets):
            digest.update(f"{tuple(array.shape)} {array.dtype};".encode())
            digest.update(array.contiguous().numpy().data)
    return digest.hexdigest()
