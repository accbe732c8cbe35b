"""MNIST: four IDX files."""

from pathlib import Path

from condexp.data.dataset import Dataset, Split
from condexp.data.idx import read_idx
from condexp.data.sources import source_of, stored
from condexp.data.spec import StoredImageSpec
from condexp.data.transforms import image_dataset
from condexp.errors import InputError

NUM_CLASSES = 10
Spec = StoredImageSpec


def load(spec: Spec) -> Dataset:
    """Load MNIST (LeCun et al. 1998): 60,000 + 10,000 digits of 28×28 px.

    The four IDX files, gzipped or not, are looked for in ``<root>/MNIST/raw`` (torchvision's
    folder) and in ``<root>`` itself.

    Args:
        spec: The keys.

    Returns:
        The data set; inputs uint8 [N, 1, 28, 28], targets int64 [N].
    """
    return image_dataset(spec, *read_files(spec), NUM_CLASSES)


def read_files(spec: Spec) -> tuple[Split, Split]:
    """Read the images of MNIST or Fashion-MNIST.

    Args:
        spec: The keys.

    Returns:
        The training and the test images.
    """
    source = source_of(spec.name)
    folder = source.locate(spec.root)
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
