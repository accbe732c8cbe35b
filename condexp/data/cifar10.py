"""CIFAR-10, read by torchvision: batches of images in Python's pickle format."""

from typing import Any

import torch

from condexp.data.dataset import Dataset, Split
from condexp.data.sources import source_of
from condexp.data.spec import StoredImageSpec
from condexp.data.transforms import image_dataset

Spec = StoredImageSpec


def load(spec: Spec) -> Dataset:
    """Load CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 images of 32×32 px, 10 classes.

    The batches are looked for in ``<root>/cifar-10-batches-py``, torchvision's folder. To read a
    pickle is to run it, so all are compared with their published checksums before the first.

    The channels' statistics are those of the training images, as for every data set in memory;
    of all 50,000 that is a mean of (125.3, 123.0, 113.9) and a deviation of (63.0, 62.1, 66.7).

    Args:
        spec: The keys.

    Returns:
        The data set; inputs uint8 [N, 3, 32, 32], targets int64 [N].
    """
    from torchvision.datasets import CIFAR10  # takes a second or two

    return image_dataset(spec, *read_batches(spec, CIFAR10), 10)


def read_batches(spec: Spec, kind: Any) -> tuple[Split, Split]:
    """Read the images of CIFAR-10 or CIFAR-100.

    Args:
        spec: The keys.
        kind: torchvision's class of the data set.

    Returns:
        The training and the test images.
    """
    source = source_of(spec.name)
    folder = source.locate(spec.root)
    source.check(folder)
    train, test = (kind(folder.parent, train=train) for train in (True, False))
    return _split(train), _split(test)


def _split(images: Any) -> Split:
    # torchvision has turned the channels to the end, as pictures are drawn.
    inputs = torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous()
    return Split(inputs, torch.tensor(images.targets))
