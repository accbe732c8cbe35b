"""Fashion-MNIST, in the format of MNIST."""

from condexp.data.dataset import Dataset
from condexp.data.mnist import NUM_CLASSES, read_files
from condexp.data.spec import StoredImageSpec
from condexp.data.transforms import image_dataset

Spec = StoredImageSpec


def load(spec: Spec) -> Dataset:
    """Load Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 images of 28×28 px, 10 classes.

    The four IDX files, gzipped or not, are looked for in ``<root>/FashionMNIST/raw`` (torchvision's
    folder) and in ``<root>`` itself; without a root in ``data``, then in the folder of Debian's
    package dataset-fashion-mnist.

    Args:
        spec: The keys.

    Returns:
        The data set; inputs uint8 [N, 1, 28, 28], targets int64 [N].
    """
    return image_dataset(spec, *read_files(spec), NUM_CLASSES)
