"""ImageNet, or any folders of images of its layout."""

import hashlib
import os
from pathlib import Path

import torch

from condexp.data.dataset import Dataset, Task
from condexp.data.image_files import ImageFiles, encode_names
from condexp.data.sources import DEFAULT_ROOT
from condexp.data.spec import StoredImageSpec
from condexp.data.transforms import class_balanced_subset
from condexp.errors import InputError

Spec = StoredImageSpec
SPLITS = ("train", "val")
CROP = 224
NUM_CLASSES, NUM_TRAIN, NUM_VAL = 1000, 1_281_167, 50_000
# The channels' statistics that all published ImageNet models share (torchvision's, times 255).
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
BY_HAND = (
    "ImageNet may not be passed on, so it has to be obtained by hand: register at image-net.org, "
    "get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, and unpack them to "
    "<folder>/train/<class>/*.JPEG and <folder>/val/<class>/*.JPEG, the same class folders in both "
    "(torchvision.datasets.ImageNet(<folder>, split) does that, with the devkit's archive beside)"
)


def load(spec: Spec) -> Dataset:
    """Load ImageNet (Russakovsky et al. 2015), or any images in ``train`` and ``val`` folders.

    A class is a folder, numbered in the order of the names. Nothing is read but the names and the
    sizes of the files; batches are read from the disk as they are used. Training images under
    ``augment=none`` and all test images: the shorter side to 256 px (for crops of 224, and in that
    ratio for others), then the centre crop.

    Args:
        spec: The keys. The size is that of the crops, 224 px if it is None.

    Returns:
        The data set; its checksum is of the sorted relative paths and sizes.
    """
    train, test, classes = _read_names(find_imagenet(spec.root), spec.image_size or CROP)
    train, test = _subset(train, spec.subset.train), _subset(test, spec.subset.test)
    return Dataset(
        name=spec.name,
        task=Task.CLASSIFICATION,
        train=train,
        test=test,
        mean=MEAN,
        std=STD,
        num_outputs=len(classes),
        checksum=_checksum(train, test),
    )


def _read_names(folder: Path, crop: int = CROP) -> tuple[ImageFiles, ImageFiles, list[str]]:
    (train, classes), (test, test_classes) = (_scan(folder, split, crop) for split in SPLITS)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise InputError(
            f"dataset imagenet: {folder} has {len(classes)} classes in train and "
            f"{len(test_classes)} in val; they differ in {', '.join(odd[:3])}"
            f"{', …' if len(odd) > 3 else ''}. Both need the same class folders."
        )
    return train, test, classes


def find_imagenet(root: Path | str | None) -> Path:
    """Find the folder that holds ``train`` and ``val``.

    Args:
        root: Folder of ``imagenet/train`` and ``imagenet/val``, or of the two themselves; None is
            ``data``.

    Returns:
        The folder.

    Raises:
        InputError: If there is none; says where it was looked for, and how to get the images.
    """
    home = Path(DEFAULT_ROOT if root is None else root).expanduser()
    places = (home / "imagenet", home)
    for place in places:
        if all((place / split).is_dir() for split in SPLITS):
            return place
    raise InputError(
        f"dataset imagenet: the folders train and val are not in {' or '.join(map(str, places))}. "
        f"{BY_HAND}; then set dataset.root. (condexp data fetch imagenet says the same.)"
    )


def verify_imagenet(root: Path | str | None) -> list[str]:
    """Compare the numbers of classes and images with those of ILSVRC 2012.

    Args:
        root: As for :func:`find_imagenet`.

    Returns:
        What differs; nothing if the data set is complete.
    """
    folder = find_imagenet(root)
    train, test, classes = _read_names(folder)
    counted = {
        "classes": (len(classes), NUM_CLASSES),
        "training images": (len(train), NUM_TRAIN),
        "validation images": (len(test), NUM_VAL),
    }
    return [
        f"{number} {what} in {folder}; ILSVRC 2012 has {published}"
        for what, (number, published) in counted.items()
        if number != published
    ]


def _scan(folder: Path, split: str, crop: int) -> tuple[ImageFiles, list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(folder / split)
    except FileNotFoundError as error:
        raise InputError(
            f"dataset imagenet: {folder / split} must hold one folder a class, each with images: "
            f"{error}"
        ) from error
    paths, targets = zip(*found.samples, strict=True)
    names = encode_names(path.removeprefix(f"{folder}{os.sep}") for path in paths)
    return ImageFiles(names, torch.tensor(targets), folder=folder, crop=crop), found.classes


def _subset(split: ImageFiles, size: int | None) -> ImageFiles:
    return split if size is None else class_balanced_subset(split, size)


def _checksum(*splits: ImageFiles) -> str:
    digest = hashlib.sha256()
    for split in splits:
        for name in sorted(split.name(index) for index in range(len(split))):
            size = (split.folder / name).stat().st_size
            digest.update(f"{name} {size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
