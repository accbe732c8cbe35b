"""The bases of every data set's keys. The configuration reads this module too, so no torch here."""

from dataclasses import dataclass
from typing import ClassVar

from condexp.data.choices import Augment, ChecksumOf
from condexp.errors import check_limits, one_of, within


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """The keys of a data set, checked when they are put together.

    A data set is two files. ``condexp/data/NAME.py`` defines ``Spec``, a subclass with the type and
    the limits of each key, and ``load(spec)``. ``conf/dataset/NAME.yaml`` says what each key means,
    and gives it its value.

    Raises:
        InputError: At the first key outside its choices or its interval.
    """

    published: ClassVar[bool] = True
    """Whether the name tells the data; of others a run's identity holds the checksum."""
    name: str

    def __post_init__(self) -> None:
        check_limits(self, "dataset")


@dataclass(kw_only=True)  # OmegaConf can't fill a frozen record inside another
class SubsetSpec:
    """Number of samples to keep of each split; None keeps all."""

    train: int | None = within(1)
    test: int | None = within(1)


@dataclass(frozen=True, kw_only=True)
class ImageSpec(DatasetSpec):
    """The keys of images."""

    subset: SubsetSpec
    image_size: int | None = within(1, 1024)
    channels: int | None = one_of((1, 3))
    augment: str = one_of(Augment)


@dataclass(frozen=True, kw_only=True)
class StoredImageSpec(ImageSpec):
    """The keys of images in files that are fetched beforehand: ``condexp data fetch NAME``."""

    root: str | None


@dataclass(frozen=True, kw_only=True)
class OwnImageSpec(ImageSpec):
    """The keys of the user's own data."""

    published: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class ImageFolderSpec(ImageSpec):
    """The keys of images that are read as they are used, whichever they are."""

    published: ClassVar[bool] = False
    checksum: str = one_of(ChecksumOf)
