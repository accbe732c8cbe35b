"""Image data sets read from files that are already there; nothing is downloaded."""

from pathlib import Path

from condexp.data.dataset import Dataset, Split
from condexp.data.idx import read_idx
from condexp.data.transforms import image_dataset
from condexp.errors import InputError

DEFAULT_ROOT = Path("data")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def load_fashion_mnist(
    root: Path | str | None = None,
    *,
    image_size: int | None = None,
    subset_train: int | None = None,
    subset_test: int | None = None,
) -> Dataset:
    """Load Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 images of 28×28 px, 10 classes.

    The four IDX files, gzipped or not, are looked for in ``<root>/FashionMNIST/raw`` (torchvision's
    folder) and in ``<root>`` itself.

    Args:
        root: Folder of the data sets; None tries ``data``, then the folder of Debian's package
            dataset-fashion-mnist.
        image_size: Side to resize to in px; None keeps 28.
        subset_train: Size of a class-balanced subset of the training images; None takes all.
        subset_test: The same of the test images.

    Returns:
        The data set; inputs uint8 [N, 1, 28, 28], targets int64 [N].

    Raises:
        InputError: If the files are missing or broken.
    """
    home = Path(DEFAULT_ROOT if root is None else root).expanduser()
    folders = [home / "FashionMNIST" / "raw", home]
    folders += [DEBIAN_FASHION_MNIST] if root is None else []
    found = next((files for files in map(_idx_files, folders) if len(files) == 4), None)
    if found is None:
        raise InputError(
            f"dataset fashion_mnist: the four files {', '.join(IDX_STEMS)} (plain or .gz) are not "
            f"in {', '.join(_describe(folder) for folder in folders)}. Set dataset.root, install "
            "Debian's package dataset-fashion-mnist, or fetch them: python -c 'import torchvision; "
            f'torchvision.datasets.FashionMNIST("{home}", download=True)\'.'
        )
    return image_dataset(
        "fashion_mnist",
        _read_split(found[0], found[1], num_classes=10),
        _read_split(found[2], found[3], num_classes=10),
        num_classes=10,
        image_size=image_size,
        subset_train=subset_train,
        subset_test=subset_test,
    )


def _idx_files(folder: Path) -> list[Path]:
    """Return those of the four files which the folder has, unpacked ones first."""
    choices = [(folder / stem, folder / f"{stem}.gz") for stem in IDX_STEMS]
    present = [[path for path in pair if path.is_file()] for pair in choices]
    return [paths[0] for paths in present if paths]


def _describe(folder: Path) -> str:
    found = f"{len(_idx_files(folder))} of 4 there" if folder.is_dir() else "no such folder"
    return f"{folder} ({found})"


def _read_split(images_path: Path, labels_path: Path, num_classes: int) -> Split:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels) or not len(images):
        raise InputError(
            f"{images_path} holds an array {tuple(images.shape)}, {labels_path} one of "
            f"{tuple(labels.shape)}; they must be [N, H, W] and [N]: fetch them anew."
        )
    if labels.max() >= num_classes:
        raise InputError(
            f"{labels_path} has a class {labels.max()}; allowed are 0 to {num_classes - 1}."
        )
    return Split(images.unsqueeze(1), labels.long())
