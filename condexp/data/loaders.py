"""Batches from memory: normalised, augmented, in an order that (seed, epoch) determine."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from condexp.data.dataset import Split
from condexp.data.transforms import CROP_PADDING, Augment, augment_batch
from condexp.errors import InputError, choose

RESIDENT_SHARE = 0.25


class Batches:
    """The batches of a split, epoch by epoch.

    With ``shuffle`` (training) an epoch's order is a function of (seed, epoch), and the
    augmentation one of (seed, epoch, batch), both from own generators; the last partial batch is
    dropped unless it is the only one. Without (evaluation), samples come in order and all are kept.
    A full batch is the whole split in its own order.

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
        shape = (-1, *[1] * (split.inputs.dim() - 2))
        self._mean = torch.tensor(mean, dtype=dtype, device=self.device).view(shape)
        self._std = torch.tensor(std, dtype=dtype, device=self.device).view(shape)
        home = self.device if _fits(split, self.device) else torch.device("cpu")
        self._inputs, self._targets = split.inputs.to(home), split.targets.to(home)
        if self._targets.is_floating_point():
            self._targets = self._targets.to(dtype)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches an epoch."""
        if self.shuffle:
            return self.num_samples // self.batch_size
        return -(-self.num_samples // self.batch_size)

    def epoch(self, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch.

        Args:
            epoch: Which, from 0 on.

        Yields:
            Normalised inputs [B, ...] and targets [B, ...], on the device.
        """
        order = self._order(epoch)
        for batch in range(self.steps_per_epoch):
            chosen: Tensor | slice = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            if order is not None:
                chosen = order[chosen]
            inputs = self._move(self._inputs[chosen])
            if self.augment is Augment.CROP_FLIP:
                inputs = augment_batch(inputs, _generator(self.seed, epoch, 1 + batch))
            yield (
                (inputs.to(self.dtype) - self._mean) / self._std,
                self._move(self._targets[chosen]),
            )

    def _order(self, epoch: int) -> Tensor | None:
        if not self.shuffle or self.batch_size == self.num_samples:
            return None
        order = torch.randperm(self.num_samples, generator=_generator(self.seed, epoch, 0))
        return order.to(self._inputs.device)

    def _move(self, batch: Tensor) -> Tensor:
        if batch.device == self.device:
            return batch
        # Only from pinned memory does a copy run beside the computation.
        return (batch.pin_memory() if self.device.type == "cuda" else batch).to(
            self.device, non_blocking=True
        )


def _generator(*stream: int) -> torch.Generator:
    # Neighbouring tuples give unrelated streams, which seed + epoch would not.
    state = np.random.SeedSequence(stream).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _check_augmentable(split: Split) -> None:
    if split.inputs.dim() != 4 or min(split.inputs.shape[2:]) <= CROP_PADDING:
        raise InputError(
            f"augment crop_flip needs images of more than {CROP_PADDING} px, but the inputs have "
            f"shape {tuple(split.inputs.shape[1:])}; use augment=none."
        )


def _fits(split: Split, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return split.inputs.nbytes + split.targets.nbytes <= RESIDENT_SHARE * free
