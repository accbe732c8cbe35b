"""ImageNet, or any folders of images of its layout."""

from dataclasses import dataclass
from pathlib import Path

from condexp.data.choices import Augment, ChecksumOf
from condexp.data.class_folders import ClassFolders, read_class_folders
from condexp.data.dataset import Dataset, Task
from condexp.data.sources import DEFAULT_ROOT
from condexp.data.spec import ImageFolderSpec, SubsetSpec
from condexp.errors import InputError

SPLITS = ("train", "val")
CROP = 224
RESIZE_OVER_CROP = 256 / 224  # Krizhevsky et al. 2012, §2
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


@dataclass(frozen=True, kw_only=True)
class Spec(ImageFolderSpec):
    """The keys of ``conf/dataset/imagenet.yaml``."""

    root: str | None


def load(spec: Spec) -> Dataset:
    """Load ImageNet (Russakovsky et al. 2015), or any images in ``train`` and ``val`` folders.

    A class is a folder, numbered in the order of the names. Nothing is read but the names and the
    sizes of the files; batches are read from the disk as they are used. Training images under
    ``augment=none`` and all test images: the shorter side to 256 px (for crops of 224, and in that
    ratio for others), then the centre crop.

    Args:
        spec: The keys. The size is that of the crops, 224 px if it is None.

    Returns:
        The data set; its checksum is of the classes, the relative paths and the sizes, or contents.
    """
    found = _list(spec, find_imagenet(spec.root))
    grey = found.train.channels == 1
    return Dataset(
        name=spec.name,
        task=Task.CLASSIFICATION,
        train=found.train,
        test=found.test,
        mean=(sum(MEAN) / 3,) if grey else MEAN,
        std=(sum(STD) / 3,) if grey else STD,
        num_outputs=len(found.classes),
        checksum=found.checksum(spec.checksum),
    )


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
    spec = Spec(
        name="imagenet",
        root=str(folder),
        subset=SubsetSpec(train=None, test=None),
        image_size=None,
        channels=None,
        augment=Augment.NONE,
        checksum=ChecksumOf.SIZES,
    )
    found = _list(spec, folder)
    counted = {
        "classes": (len(found.classes), NUM_CLASSES),
        "training images": (len(found.train), NUM_TRAIN),
        "validation images": (len(found.test), NUM_VAL),
    }
    return [
        f"{number} {what} in {folder}; ILSVRC 2012 has {published}"
        for what, (number, published) in counted.items()
        if number != published
    ]


def _list(spec: Spec, folder: Path) -> ClassFolders:
    crop = spec.image_size or CROP
    resize = round(RESIZE_OVER_CROP * crop)
    return read_class_folders(spec, folder, SPLITS, crop=crop, resize=resize)
