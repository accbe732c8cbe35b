"""CIFAR-100, in the format of CIFAR-10."""

from condexp.data.cifar10 import read_batches
from condexp.data.dataset import Dataset
from condexp.data.spec import StoredImageSpec
from condexp.data.transforms import image_dataset

Spec = StoredImageSpec


def load(spec: Spec) -> Dataset:
    """Load CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 images of 32×32 px, 100 fine classes.

    The files are looked for in ``<root>/cifar-100-python``; checksums and statistics as for
    :func:`condexp.data.cifar10.load`.

    Args:
        spec: The keys.

    Returns:
        The data set; inputs uint8 [N, 3, 32, 32], targets int64 [N].
    """
    from torchvision.datasets import CIFAR100  # takes a second or two

    return image_dataset(spec, *read_batches(spec, CIFAR100), 100)
