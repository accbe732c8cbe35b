"""MNIST and Fashion-MNIST: four IDX files each."""

from pathlib import Path
from typing import Unpack

from condexp.data.dataset import Dataset, Split
from condexp.data.idx import read_idx
from condexp.data.sources import source_of, stored
from condexp.data.transforms import ImageOptions, image_dataset
from condexp.errors import InputError

NUM_CLASSES = 10


def load_mnist(root: Path | str | None = None, **options: Unpack[ImageOptions]) -> Dataset:
    """Load MNIST (LeCun et al. 1998): 60,000 + 10,000 digits of 28×28 px.

    The four IDX files, gzipped or not, are looked for in ``<root>/MNIST/raw`` (torchvision's
    folder) and in ``<root>`` itself.

    Args:
        root: Folder of the data sets; None is ``data``.
        **options: Size and subsets, as for :func:`~condexp.data.transforms.image_dataset`.

    Returns:
        The data set; inputs uint8 [N, 1, 28, 28], targets int64 [N].
    """
    return image_dataset("mnist", *_read("mnist", root), NUM_CLASSES, **options)


def load_fashion_mnist(root: Path | str | None = None, **options: Unpack[ImageOptions]) -> Dataset:
    """Load Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 images of 28×28 px, 10 classes.

    The four IDX files, gzipped or not, are looked for in ``<root>/FashionMNIST/raw`` (torchvision's
    folder) and in ``<root>`` itself.

    Args:
        root: Folder of the data sets; None tries ``data``, then the folder of Debian's package
            dataset-fashion-mnist.
        **options: Size and subsets, as for :func:`~condexp.data.transforms.image_dataset`.

    Returns:
        The data set; inputs uint8 [N, 1, 28, 28], targets int64 [N].
    """
    return image_dataset("fashion_mnist", *_read("fashion_mnist", root), NUM_CLASSES, **options)


def _read(name: str, root: Path | str | None) -> tuple[Split, Split]:
    source = source_of(name)
    folder = source.locate(root)
    paths = [path for file in source.files if (path := stored(folder, file))]
    return _read_split(*paths[:2]), _read_split(*paths[2:])


def _read_split(images_path: Path, labels_path: Path) -> Split:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels) or not len(images):
        raise InputError(
            f"{images_path} holds an array {tuple(images.shape)}, {labels_path} one of "
            f"{tuple(labels.shape)}; they must be [N, H, W] and [N]: fetch them anew."
        )
    if labels.max() >= NUM_CLASSES:
        raise InputError(
            f"{labels_path} has a class {labels.max()}; allowed are 0 to {NUM_CLASSES - 1}."
        )
    return Split(images.unsqueeze(1), labels.long())
