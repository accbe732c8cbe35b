"""The user's own batches in the format of CIFAR's: pickles, of which nothing but arrays is made."""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from condexp.data.dataset import Dataset, Split
from condexp.data.own import own_dataset, split_of
from condexp.data.spec import OwnImageSpec
from condexp.errors import InputError

PUBLISHED_FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
CIFAR10_BATCH = re.compile(r"data_batch_(\d+)")
IMAGE = (3, 32, 32)
LABELS = ("labels", "fine_labels")
# What NumPy pickles arrays, and numbers of an array, by: in its versions 1 and 2, protocols 0 to 5.
ALLOWED = {
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in (
            "_reconstruct",
            "scalar",
        )
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True, kw_only=True)
class Spec(OwnImageSpec):
    """The keys of ``conf/dataset/cifar_batches.yaml``."""

    root: str


def load(spec: Spec) -> Dataset:
    """Load batches of 32×32 px images in the format of CIFAR-10 or CIFAR-100, whatever they hold.

    Files are ``data_batch_1``, ``data_batch_2``, … and ``test_batch``, or ``train`` and ``test``: a
    pickled dictionary each, of ``data``, uint8 [N, 3072], rows of red, then green, then blue, and
    of ``labels`` or ``fine_labels``, N whole numbers. They are not compared with CIFAR's checksums;
    of their pickles only dictionaries, lists, texts, numbers and NumPy's arrays are made, so that
    no file runs code. Statistics are those of the training images; there are as many classes as the
    largest label says.

    Args:
        spec: The keys; ``root`` is the folder, or the one above ``cifar-10-batches-py`` or
            ``cifar-100-python``.

    Returns:
        The data set; inputs uint8 [N, 3, 32, 32], targets int64 [N].

    Raises:
        InputError: If the files are not there, or are no such batches.
    """
    train, test = _find(Path(spec.root).expanduser())
    return own_dataset(spec, _read(train), _read([test]))


def _find(root: Path) -> tuple[list[Path], Path]:
    """Find the batches.

    Returns:
        The files of training images, in the order of their numbers, and the file of test images.

    Raises:
        InputError: If there are none, or of both forms.
    """
    found = []
    for folder in (root, *(root / name for name in PUBLISHED_FOLDERS)):
        numbers = {
            int(match[1]): path
            for path in (folder.iterdir() if folder.is_dir() else ())
            if (match := CIFAR10_BATCH.fullmatch(path.name))
        }
        for train, test in (
            ([numbers[number] for number in sorted(numbers)], folder / "test_batch"),
            ([folder / "train"], folder / "test"),
        ):
            if train and all(path.is_file() for path in (*train, test)):
                found.append((train, test))
    if len(found) == 1:
        return found[0]
    what = (
        f"has batches in more than one form: {', '.join(str(test) for _, test in found)}; give the "
        "folder of one"
        if found
        else "has no data_batch_1, … with test_batch, and no train with test, nor has "
        f"{' or '.join(PUBLISHED_FOLDERS)} in it"
    )
    raise InputError(f"dataset.root={root} {what}.")


def _read(paths: list[Path]) -> Split:
    batches = [_read_batch(path) for path in paths]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return split_of("data", images, "labels", labels)


def _read_batch(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read a file.

    Returns:
        The images, uint8 [N, 3, 32, 32], and the labels, int64 [N].

    Raises:
        InputError: If it holds anything else.
    """
    batch = _unpickle(path)
    if not isinstance(batch, Mapping):
        raise InputError(f"{path} holds a {type(batch).__name__}, not a dictionary.")
    # Keys are bytes where CIFAR's own were read with encoding="bytes" and written again.
    named = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in batch.items()}
    label_key = next((key for key in LABELS if key in named), None)
    if "data" not in named or label_key is None:
        there = ", ".join(map(str, named)) or "nothing"
        raise InputError(f"{path} holds {there}: it needs data, and labels or fine_labels.")
    data, labels = named["data"], np.asarray(named[label_key])
    size = int(np.prod(IMAGE))
    rows = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2
    if not (rows and data.shape[1] == size and len(data)):
        is_array = isinstance(data, np.ndarray)
        said = f"{data.dtype} {list(data.shape)}" if is_array else f"a {type(data).__name__}"
        raise InputError(
            f"{path}: data is {said}; it must be uint8 [N, {size}]: the red, the green, then the "
            "blue channel of 32×32 px."
        )
    whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    if not whole or len(labels) != len(data) or labels.min() < 0:
        raise InputError(
            f"{path}: {label_key} must be {len(data)} whole numbers from 0 on, one for each image; "
            f"it is {labels.dtype} {list(labels.shape)}."
        )
    return data.reshape(-1, *IMAGE), labels.astype(np.int64)


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _Arrays(file, encoding="latin1").load()
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # a damaged pickle may raise whatever its opcodes come upon
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is no pickle of arrays that can be read: {reason}") from error


class _Arrays(pickle.Unpickler):
    """Makes arrays and Python's own plain values, and refuses any other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise InputError(
                f"asks for {module}.{name}, which no batch of CIFAR's needs; it was not called."
            )
        return super().find_class(module, name)
