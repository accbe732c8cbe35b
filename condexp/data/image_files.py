"""Images that do not fit in memory: workers read, crop and vary the files as they are used."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data

from condexp.data.augment import seed_of
from condexp.data.choices import Augment
from condexp.data.dataset import Indices, Share, Split

PILLOW_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, eq=False)
class ImageFiles(Split):
    """Images in files of any size, read when a batch needs them.

    The ``inputs`` are the files' names, which is what is stored of an image: bytes of the path
    below ``folder``, padded with zeros, uint8 [N, longest]. One array, for a list of a million
    strings would be copied by every worker.

    Args:
        inputs: The files' names, as :func:`encode_names` writes them.
        targets: Classes, int64 [N].
        folder: What the names start from.
        crop: Side of the images that are read, in px.
        resize: What the shorter side is resized to before the crop at the centre, in px.
        channels: 3, grey images repeated, or 1, colours turned to grey (ITU-R 601-2 luma).
    """

    folder: Path
    crop: int
    resize: int
    channels: int = 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image as it is read, (channels, crop, crop)."""
        return (self.channels, self.crop, self.crop)

    def name(self, index: int) -> str:
        """Decode a file's name.

        Args:
            index: Which.

        Returns:
            Its path below the folder.
        """
        return os.fsdecode(self.inputs[index].numpy().tobytes().rstrip(b"\0"))

    def resident(self, device: torch.device) -> Self:  # noqa: ARG002
        """Stay on the disk.

        Args:
            device: Where batches are wanted; it makes no difference.

        Returns:
            The split itself.
        """
        return self

    def read(
        self,
        batches: Iterable[tuple[int, Indices]],
        augment: Augment,
        *stream: int,
        share: Share,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the images of each batch; the workers are as many as torch has threads.

        Args:
            batches: The number of each, which makes no difference, and its images.
            augment: How they are varied; none is the centre crop of the resized image.
            *stream: What the variation is a function of, with the image's index.
            share: The part of each batch that is read.

        Yields:
            Images, uint8 [B, channels, crop, crop], and classes, int64 [B].
        """
        everything = torch.arange(len(self))
        chosen = (everything[indices] for _, indices in batches)
        yield from data.DataLoader(
            _Crops(self, augment, stream),
            batch_sampler=(images[share.of(len(images))].tolist() for images in chosen),
            num_workers=torch.get_num_threads(),
            generator=torch.Generator(),  # or the global one would be drawn from
        )


def encode_names(names: Iterable[str]) -> Tensor:
    """Write files' names as one array.

    Args:
        names: Paths below one folder.

    Returns:
        Their bytes, padded with zeros, uint8 [N, longest].
    """
    padded = np.array([os.fsencode(name) for name in names])
    return torch.from_numpy(padded.view(np.uint8).reshape(len(padded), -1))


class _Crops(data.Dataset[tuple[Tensor, Tensor]]):
    """What a worker does: open, crop, and hand over the bytes of an image."""

    def __init__(self, files: ImageFiles, augment: Augment, stream: tuple[int, ...]) -> None:
        from torchvision import transforms  # takes a second, and only these data need it

        self._files, self._stream = files, stream
        self._mode = PILLOW_MODES[files.channels]
        self._varied = augment is Augment.CROP_FLIP
        fixed = [transforms.Resize(files.resize)]
        fixed += [transforms.CenterCrop(files.crop)]
        random = [transforms.RandomResizedCrop(files.crop), transforms.RandomHorizontalFlip()]
        self._transform = transforms.Compose([
            *(random if self._varied else fixed),
            transforms.PILToTensor(),
        ])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        # A seed of each image's own: which worker reads it, and what before, must not matter.
        # The generator is the worker's, so no one else's numbers change.
        if self._varied:
            torch.default_generator.manual_seed(seed_of(*self._stream, index))
        with Image.open(self._files.folder / self._files.name(index)) as image:
            return self._transform(image.convert(self._mode)), self._files.targets[index]
