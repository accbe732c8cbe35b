"""The keys of ``conf/dataset``; a new data set adds its record here."""

from dataclasses import dataclass

from condexp.config.constraints import one_of, within
from condexp.data.choices import Augment, Shape


@dataclass(kw_only=True)
class SubsetConfig:
    """Number of samples to keep of each split; null keeps all."""

    train: int | None = within(1)
    test: int | None = within(1)


@dataclass(kw_only=True)
class DatasetConfig:
    """What every data set has: the name that picks its loader."""

    name: str


@dataclass(kw_only=True)
class DigitsConfig(DatasetConfig):
    """``dataset=digits``, and what all images have."""

    subset: SubsetConfig
    image_size: int | None = within(1, 1024)
    augment: str = one_of(Augment)


@dataclass(kw_only=True)
class StoredImagesConfig(DigitsConfig):
    """Images in files that are fetched beforehand: ``condexp data fetch NAME``."""

    root: str | None


@dataclass(kw_only=True)
class GaussianConfig(DatasetConfig):
    """``dataset=gaussian``: linear regression whose covariance spectrum is prescribed."""

    dim: int = within(1)
    num_outputs: int = within(1)
    num_train: int = within(1)
    num_test: int = within(1)
    condition_number: float = within(1)
    spectrum: str = one_of(Shape)
    eigenvalues: list[float] = within(0)
    noise: float = within(0)


DATASETS: dict[str, type[DatasetConfig]] = {
    "digits": DigitsConfig,
    "mnist": StoredImagesConfig,
    "fashion_mnist": StoredImagesConfig,
    "cifar10": StoredImagesConfig,
    "cifar100": StoredImagesConfig,
    "svhn": StoredImagesConfig,
    "imagenet": StoredImagesConfig,
    "gaussian": GaussianConfig,
}
