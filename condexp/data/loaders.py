"""Batches of a split: normalised, augmented, in an order that (seed, epoch) determine."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from condexp.data.augment import CROP_PADDING, generator_of
from condexp.data.choices import Augment
from condexp.data.dataset import Indices, Share, Split
from condexp.errors import InputError, choose

WHOLE = Share()


class Batches:
    """The batches of a split, epoch by epoch.

    With ``shuffle`` (training) an epoch's order is a function of (seed, epoch), and the
    augmentation one of (seed, epoch, batch) in memory and (seed, epoch, image) from files, both
    from own generators; the last partial batch is dropped unless it is the only one. Without
    (evaluation), samples come in order and all are kept. A full batch is the whole split in its
    own order.

    Args:
        split: The samples.
        mean: What to subtract from each channel, [C] or one number for all.
        std: What to divide each channel by, likewise.
        batch_size: Samples a batch; None is the full batch.
        shuffle: Whether to draw a new order each epoch.
        seed: Seed of the order and the augmentation.
        augment: How images are varied.
        device: Where batches are wanted. The whole split moves there if it fits.
        dtype: Floating-point type of the batches.
        share: The part of each batch that is yielded.

    Raises:
        InputError: If the batch size is below one, the seed negative, the split empty or not one
            that can be augmented.
    """

    def __init__(
        self,
        split: Split,
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        batch_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        augment: Augment | str = Augment.NONE,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        share: Share = WHOLE,
    ) -> None:
        if not len(split):
            raise InputError("a split without samples has no batches.")
        if batch_size is not None and batch_size < 1:
            raise InputError(
                f"batch_size is {batch_size}; it must be a whole number from 1 on, or full."
            )
        if seed < 0:
            raise InputError(f"seed is {seed}; it must be a whole number from 0 on.")
        self.augment = Augment(choose("augment", augment, [str(each) for each in Augment]))
        if self.augment is not Augment.NONE:
            _check_augmentable(split)
        self.num_samples = len(split)
        self.batch_size = min(batch_size or self.num_samples, self.num_samples)
        self.shuffle = shuffle
        self.seed = seed
        self.device = torch.device(device)
        self.dtype = dtype
        self._share = share
        shape = (-1, *[1] * (len(split.shape) - 1))
        self._mean = torch.tensor(mean, dtype=dtype, device=self.device).view(shape)
        self._std = torch.tensor(std, dtype=dtype, device=self.device).view(shape)
        self._split = split.resident(self.device)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches an epoch."""
        if self.shuffle:
            return self.num_samples // self.batch_size
        return -(-self.num_samples // self.batch_size)

    def epoch(
        self, epoch: int = 0, *, first: int = 0, stride: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch.

        Args:
            epoch: Which, from 0 on.
            first: The batch to begin with; those before it are not read.
            stride: k: from there on each k-th batch.

        Yields:
            Normalised inputs [B, ...] and targets [B, ...], on the device.
        """
        chosen, varied = self._chosen(epoch, first, stride), (self.augment, self.seed, epoch)
        for inputs, targets in self._split.read(chosen, *varied, share=self._share):
            normalised = (self._move(inputs).to(self.dtype) - self._mean).div_(self._std)
            there = self._move(targets)
            yield normalised, there.to(self.dtype) if there.is_floating_point() else there

    def _chosen(self, epoch: int, first: int, stride: int) -> Iterator[tuple[int, Indices]]:
        order = None
        if self.shuffle and self.batch_size < self.num_samples:
            order = torch.randperm(self.num_samples, generator=generator_of(self.seed, epoch, 0))
            order = order.to(self._split.inputs.device)
        for batch in range(first, self.steps_per_epoch, stride):
            span = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield batch, span if order is None else order[span]

    def _move(self, batch: Tensor) -> Tensor:
        if batch.device == self.device:
            return batch
        # Only from pinned memory does a copy run beside the computation.
        return (batch.pin_memory() if self.device.type == "cuda" else batch).to(
            self.device, non_blocking=True
        )


def _check_augmentable(split: Split) -> None:
    if len(split.shape) != 3 or min(split.shape[1:]) <= CROP_PADDING:
        raise InputError(
            f"augment crop_flip needs images of more than {CROP_PADDING} px, but the inputs have "
            f"shape {split.shape}; use augment=none."
        )
