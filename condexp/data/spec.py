"""The bases of every data set's keys. The configuration reads this module too, so no torch here."""

from dataclasses import dataclass

from condexp.data.choices import Augment
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
    augment: str = one_of(Augment)


@dataclass(frozen=True, kw_only=True)
class StoredImageSpec(ImageSpec):
    """The keys of images in files that are fetched beforehand: ``condexp data fetch NAME``."""

    root: str | None
