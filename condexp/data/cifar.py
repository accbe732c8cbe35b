"""CIFAR-10 and CIFAR-100, read by torchvision: batches of images in Python's pickle format."""

from pathlib import Path
from typing import Any, Unpack

import torch

from condexp.data.dataset import Dataset, Split
from condexp.data.sources import source_of
from condexp.data.transforms import ImageOptions, image_dataset


def load_cifar10(root: Path | str | None = None, **options: Unpack[ImageOptions]) -> Dataset:
    """Load CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 images of 32×32 px, 10 classes.

    The batches are looked for in ``<root>/cifar-10-batches-py``, torchvision's folder. To read a
    pickle is to run it, so all are compared with their published checksums before the first.

    The channels' statistics are those of the training images, as for every data set in memory;
    of all 50,000 that is a mean of (125.3, 123.0, 113.9) and a deviation of (63.0, 62.1, 66.7).

    Args:
        root: Folder of the data sets; None is ``data``.
        **options: Size and subsets, as for :func:`~condexp.data.transforms.image_dataset`.

    Returns:
        The data set; inputs uint8 [N, 3, 32, 32], targets int64 [N].
    """
    from torchvision.datasets import CIFAR10  # takes a second or two

    return image_dataset("cifar10", *_read("cifar10", CIFAR10, root), 10, **options)


def load_cifar100(root: Path | str | None = None, **options: Unpack[ImageOptions]) -> Dataset:
    """Load CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 images of 32×32 px, 100 fine classes.

    The files are looked for in ``<root>/cifar-100-python``; checksums and statistics as for
    :func:`load_cifar10`.

    Args:
        root: Folder of the data sets; None is ``data``.
        **options: Size and subsets, as for :func:`~condexp.data.transforms.image_dataset`.

    Returns:
        The data set; inputs uint8 [N, 3, 32, 32], targets int64 [N].
    """
    from torchvision.datasets import CIFAR100

    return image_dataset("cifar100", *_read("cifar100", CIFAR100, root), 100, **options)


def _read(name: str, kind: Any, root: Path | str | None) -> tuple[Split, Split]:
    source = source_of(name)
    folder = source.locate(root)
    source.check(folder)
    train, test = (kind(folder.parent, train=train) for train in (True, False))
    return _split(train), _split(test)


def _split(images: Any) -> Split:
    # torchvision has turned the channels to the end, as pictures are drawn.
    inputs = torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous()
    return Split(inputs, torch.tensor(images.targets))
