"""The Street View House Numbers, read by torchvision from MATLAB's format."""

from typing import Any

import torch

from condexp.data.dataset import Dataset, Split
from condexp.data.sources import source_of
from condexp.data.spec import StoredImageSpec
from condexp.data.transforms import image_dataset

Spec = StoredImageSpec


def load(spec: Spec) -> Dataset:
    """Load SVHN (Netzer et al. 2011): 73,257 + 26,032 images of 32×32 px, 10 classes.

    ``train_32x32.mat`` and ``test_32x32.mat`` are looked for in ``<root>``, as by torchvision, and
    compared with their published checksums. The label 10 of the digit 0 becomes 0; the ``extra``
    images are left out.

    Args:
        spec: The keys.

    Returns:
        The data set; inputs uint8 [N, 3, 32, 32], targets int64 [N].
    """
    from torchvision.datasets import SVHN  # takes a second or two

    source = source_of(spec.name)
    folder = source.locate(spec.root)
    source.check(folder)
    train, test = (SVHN(folder, split=split) for split in ("train", "test"))
    return image_dataset(spec, _split(train), _split(test), 10)


def _split(images: Any) -> Split:
    inputs = torch.from_numpy(images.data).contiguous()  # stored with the images last
    return Split(inputs, torch.from_numpy(images.labels))
