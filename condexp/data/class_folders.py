"""Images in a folder for each class, the layout of ImageNet: read as they are used."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from condexp.data.choices import ChecksumOf
from condexp.data.image_files import ImageFiles, encode_names
from condexp.data.spec import ImageFolderSpec
from condexp.data.transforms import class_balanced_subset
from condexp.errors import InputError


@dataclass(frozen=True)
class ClassFolders:
    """The images of both splits.

    Attributes:
        train: The training images.
        test: The test images.
        classes: The names of the classes, in their order.
    """

    train: ImageFiles
    test: ImageFiles
    classes: tuple[str, ...]

    def checksum(self, of: str) -> str:
        """Compute a SHA-256 that tells these images from others.

        Args:
            of: The names and sizes of the files, or their names and contents.

        Returns:
            64 hexadecimal digits, of the classes' names and the files in the order of their names.
        """
        digest = hashlib.sha256("".join(f"{name}/\n" for name in self.classes).encode())
        for split in (self.train, self.test):
            for name in sorted(split.name(index) for index in range(len(split))):
                path = split.folder / name
                told = _sha256(path) if of == ChecksumOf.CONTENTS else path.stat().st_size
                digest.update(f"{name} {told}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def read_class_folders(
    spec: ImageFolderSpec, folder: Path, names: Sequence[str], *, crop: int, resize: int
) -> ClassFolders:
    """List the images of two folders of class folders; nothing is opened.

    A class is a folder, numbered in the order of the names.

    Args:
        spec: The keys. Subsets are class-balanced; grey is ``channels=1``, else images are colour.
        folder: What holds the two.
        names: The names of the training and of the test folder.
        crop: Side of the images, in px.
        resize: What the shorter side is resized to before, in px.

    Returns:
        The images.

    Raises:
        InputError: If the folders do not hold one folder with images for each class, the same ones.
    """
    (train, classes), (test, test_classes) = (
        _scan(spec, folder, name, crop, resize) for name in names
    )
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise InputError(
            f"dataset {spec.name}: {folder} has {len(classes)} classes in {names[0]} and "
            f"{len(test_classes)} in {names[1]}; they differ in {', '.join(odd[:3])}"
            f"{', …' if len(odd) > 3 else ''}. Both need the same class folders."
        )
    train, test = _subset(train, spec.subset.train), _subset(test, spec.subset.test)
    return ClassFolders(train, test, tuple(classes))


def _scan(
    spec: ImageFolderSpec, folder: Path, name: str, crop: int, resize: int
) -> tuple[ImageFiles, list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(folder / name)
    except FileNotFoundError as error:
        raise InputError(
            f"dataset {spec.name}: {folder / name} must hold one folder a class, each with images: "
            f"{error}"
        ) from error
    paths, targets = zip(*found.samples, strict=True)
    names = encode_names(path.removeprefix(f"{folder}{os.sep}") for path in paths)
    files = ImageFiles(
        names,
        torch.tensor(targets),
        folder=folder,
        crop=crop,
        resize=resize,
        channels=spec.channels or 3,
    )
    return files, found.classes


def _subset(split: ImageFiles, size: int | None) -> ImageFiles:
    return split if size is None else class_balanced_subset(split, size)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
