"""The user's own images: ``train`` and ``test``, each with a folder for each class."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from condexp.data.choices import Augment
from condexp.data.class_folders import read_class_folders
from condexp.data.dataset import Dataset, Share, Task
from condexp.data.image_files import ImageFiles
from condexp.data.spec import ImageFolderSpec
from condexp.data.transforms import class_balanced_subset, pixel_statistics
from condexp.errors import InputError, suggestion

SPLITS = ("train", "test")
NUM_FOR_STATISTICS = 1000


@dataclass(frozen=True, kw_only=True)
class Spec(ImageFolderSpec):
    """The keys of ``conf/dataset/folder.yaml``."""

    root: str


def load(spec: Spec) -> Dataset:
    """Load images from ``<root>/train/<class>/`` and ``<root>/test/<class>/``.

    A class is a folder, numbered in the order of the names. Batches are read from the disk as they
    are used: the shorter side is resized to the size, then the centre is cropped, so that square
    images of that size come as stored. The channels' statistics are those of 1000 training images,
    drawn with a fixed seed and as many of each class, or of all where there are fewer.

    Args:
        spec: The keys. A size of None is the shorter side of the first training image.

    Returns:
        The data set; its checksum is of the classes, the relative paths and the sizes, or contents.

    Raises:
        InputError: If the two folders are not there, or do not hold the same classes.
    """
    folder = Path(spec.root).expanduser()
    if missing := [name for name in SPLITS if not (folder / name).is_dir()]:
        there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        what = f"has no folder {' and no folder '.join(missing)}" if there else "is no such folder"
        raise InputError(
            f"dataset.root={spec.root}: {folder.absolute()} {what}; it must hold train/<class>/ "
            f"and test/<class>/ with images.{suggestion(missing[0], there)}"
        )
    side = spec.image_size or 1
    found = read_class_folders(spec, folder, SPLITS, crop=side, resize=side)
    if spec.image_size is None:
        side = _shorter_side(found.train)
        found = read_class_folders(spec, folder, SPLITS, crop=side, resize=side)
    mean, std = pixel_statistics(_some(found.train))
    return Dataset(
        name=spec.name,
        task=Task.CLASSIFICATION,
        train=found.train,
        test=found.test,
        mean=mean,
        std=std,
        num_outputs=len(found.classes),
        checksum=found.checksum(spec.checksum),
    )


def _shorter_side(images: ImageFiles) -> int:
    path = images.folder / images.name(0)
    try:
        with Image.open(path) as image:
            return min(image.size)
    except OSError as error:
        raise InputError(f"dataset folder: {path} is no image that can be read: {error}") from error


def _some(images: ImageFiles) -> torch.Tensor:
    some = class_balanced_subset(images, min(len(images), NUM_FOR_STATISTICS))
    everything = [(0, slice(0, len(some)))]
    try:
        ((pixels, _),) = some.read(everything, Augment.NONE, share=Share())
    except OSError as error:
        raise InputError(f"dataset folder: an image cannot be read: {error}") from error
    return pixels
