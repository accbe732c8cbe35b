"""The user's own arrays: an .npz file with x_train, y_train, x_test and y_test."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from condexp.data.dataset import Dataset
from condexp.data.own import own_dataset, split_of
from condexp.data.spec import OwnImageSpec
from condexp.errors import InputError, suggestion

NAMES = ("x_train", "y_train", "x_test", "y_test")
# What NumPy, its zip file and its decompression raise at a damaged file or one of Python objects.
UNREADABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True, kw_only=True)
class Spec(OwnImageSpec):
    """The keys of ``conf/dataset/arrays.yaml``."""

    root: str


def load(spec: Spec) -> Dataset:
    """Load an .npz file, as ``numpy.savez`` writes it; nothing in it is unpickled.

    Inputs are images, uint8 [N, H, W], [N, C, H, W] or [N, H, W, C] with C = 1 or 3, which are
    normalised by the training split's statistics as those of every data set are; or floating-point
    numbers [N, ...], which are taken as they are. Targets are classes from 0 on, whole numbers [N],
    or values, floating point [N] or [N, k].

    Args:
        spec: The keys; ``root`` is the file.

    Returns:
        The data set.

    Raises:
        InputError: If there is no such file, an array is missing, or the arrays are no data set.
    """
    arrays = _read(Path(spec.root).expanduser())
    train = split_of("x_train", arrays["x_train"], "y_train", arrays["y_train"])
    test = split_of("x_test", arrays["x_test"], "y_test", arrays["y_test"])
    return own_dataset(spec, train, test)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"dataset.root={path}: no such file; give an .npz with {_listed(NAMES)}.")
    try:
        # Not by its path: NumPy would leave the file open where it is no archive.
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise InputError(f"{path} is one array; give an .npz with {_listed(NAMES)}.")
            there = stored.files
            if missing := [name for name in NAMES if name not in there]:
                raise InputError(
                    f"{path} has no {_listed(missing)}: it holds {_listed(there)}; it needs "
                    f"{_listed(NAMES)}.{suggestion(missing[0], there)}"
                )
            return {name: stored[name] for name in NAMES}
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(
            f"{path} cannot be read as arrays of numbers: {error} (Python objects in it are never "
            "unpickled)"
        ) from error


def _listed(names: Any) -> str:
    return ", ".join(names) or "nothing"
