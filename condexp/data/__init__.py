"""Data sets, transforms and batches."""

from condexp.data.augment import Augment
from condexp.data.cifar import load_cifar10, load_cifar100
from condexp.data.dataset import Dataset, Split, Task
from condexp.data.digits import load_digits
from condexp.data.gaussian import Shape, load_gaussian, prescribed_spectrum
from condexp.data.imagenet import load_imagenet
from condexp.data.loaders import Batches
from condexp.data.mnist import load_fashion_mnist, load_mnist
from condexp.data.svhn import load_svhn
from condexp.data.transforms import class_balanced_subset, resize

__all__ = [
    "Augment",
    "Batches",
    "Dataset",
    "Shape",
    "Split",
    "Task",
    "class_balanced_subset",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_gaussian",
    "load_imagenet",
    "load_mnist",
    "load_svhn",
    "prescribed_spectrum",
    "resize",
]
