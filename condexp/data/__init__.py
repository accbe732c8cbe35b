"""Data sets, transforms and batches."""

from condexp.data.dataset import Dataset, Split, Task
from condexp.data.digits import load_digits
from condexp.data.gaussian import Shape, load_gaussian, prescribed_spectrum
from condexp.data.loaders import Batches
from condexp.data.transforms import Augment, class_balanced_subset, resize
from condexp.data.vision import load_fashion_mnist

__all__ = [
    "Augment",
    "Batches",
    "Dataset",
    "Shape",
    "Split",
    "Task",
    "class_balanced_subset",
    "load_digits",
    "load_fashion_mnist",
    "load_gaussian",
    "prescribed_spectrum",
    "resize",
]
