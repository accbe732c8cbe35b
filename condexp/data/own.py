"""From the user's own arrays to a data set: what they are is read off their types and shapes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from condexp.data.dataset import Dataset, Split, Task, checksum_of
from condexp.data.spec import OwnImageSpec
from condexp.data.transforms import class_balanced_subset, image_dataset, with_channels
from condexp.errors import InputError

CHANNELS = (1, 3)


def split_of(x_name: str, x: Any, y_name: str, y: Any) -> Split:
    """Check inputs and targets, and put them in the layout of a split.

    Args:
        x_name: What the inputs are called, for the messages.
        x: Images, uint8 [N, H, W], [N, C, H, W] or [N, H, W, C], or floating point [N, ...].
        y_name: What the targets are called.
        y: Classes, whole numbers [N], or values, floating point [N] or [N, k].

    Returns:
        Images uint8 [N, C, H, W] or inputs as given, classes int64 [N] or values [N, k].

    Raises:
        InputError: If they are anything else, not finite, none, or not as many.
    """
    x, y = np.asarray(x), np.asarray(y)
    if not (len(x.shape) and len(y.shape)) or len(x) != len(y) or not len(x):
        raise InputError(
            f"{x_name} is {_described(x)} and {y_name} {_described(y)}: they must be of the same "
            "length N, from 1 on."
        )
    return Split(_inputs(x_name, x), _targets(y_name, y))


def _inputs(name: str, x: np.ndarray[Any, Any]) -> Tensor:
    if x.dtype == np.uint8 and x.ndim == 3:
        return _tensor(x)[:, None]
    if x.dtype == np.uint8 and x.ndim == 4:
        first, last = x.shape[1] in CHANNELS, x.shape[3] in CHANNELS
        if first != last:
            images = _tensor(x)
            return images if first else images.permute(0, 3, 1, 2).contiguous()
    if np.issubdtype(x.dtype, np.floating) and x.ndim > 1:
        return _finite(name, _tensor(x))
    raise InputError(
        f"{name} is {_described(x)}: give images, uint8 [N, H, W], [N, C, H, W] or [N, H, W, C] "
        "with C = 1 or 3 channels, or floating-point numbers [N, ...], taken as they are."
    )


def _targets(name: str, y: np.ndarray[Any, Any]) -> Tensor:
    if np.issubdtype(y.dtype, np.integer) and y.ndim == 1:
        if y.min() < 0:
            raise InputError(f"{name} holds {y.min()}: classes are numbered from 0 on.")
        return _tensor(y).long()
    if np.issubdtype(y.dtype, np.floating) and y.ndim in {1, 2}:
        values = _finite(name, _tensor(y))
        return values[:, None] if y.ndim == 1 else values
    raise InputError(
        f"{name} is {_described(y)}: give classes, whole numbers [N], or values, floating point "
        "[N] or [N, k]."
    )


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    # Files may hold the other byte order, which torch has not.
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    widened = native.astype(np.int64) if np.issubdtype(array.dtype, np.unsignedinteger) else native
    return torch.from_numpy(native.copy() if array.dtype == np.uint8 else widened.copy())


def _finite(name: str, values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise InputError(f"{name} holds NaN or infinite numbers: leave those samples out.")
    return values


def _described(array: np.ndarray[Any, Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"


def own_dataset(spec: OwnImageSpec, train: Split, test: Split) -> Dataset:
    """Build a data set of the user's own samples.

    Args:
        spec: The keys.
        train: The training samples.
        test: The test samples, of the same kind.

    Returns:
        The data set: images normalised by the training split's statistics, other inputs as given.

    Raises:
        InputError: If the splits are of different kinds, or a key needs images and there are none.
    """
    kinds = [(s.shape, s.inputs.dtype, s.targets.dtype, s.targets.shape[1:]) for s in (train, test)]
    if kinds[0] != kinds[1]:
        said = [f"inputs {list(k[0])} {k[1]}, targets {list(k[3])} {k[2]}" for k in kinds]
        raise InputError(
            f"dataset {spec.name}: the training samples are {said[0]}; the test samples {said[1]}: "
            "both must be of the same shape and type."
        )
    classes = not train.targets.is_floating_point()
    if train.inputs.dtype == torch.uint8:
        return image_dataset(spec, train, test, _num_outputs(train, test))
    if spec.image_size is not None:
        raise InputError(
            f"dataset.image_size={spec.image_size} is for images in uint8; these inputs are "
            f"{train.inputs.dtype}, taken as they are: leave it out."
        )
    if spec.subset.train is not None:
        train = class_balanced_subset(train, spec.subset.train)
    if spec.subset.test is not None:
        test = class_balanced_subset(test, spec.subset.test)
    checksum = checksum_of(train, test)
    return Dataset(
        name=spec.name,
        task=Task.CLASSIFICATION if classes else Task.REGRESSION,
        train=with_channels(train, spec.channels),
        test=with_channels(test, spec.channels),
        mean=(0.0,),
        std=(1.0,),
        num_outputs=_num_outputs(train, test),
        checksum=checksum,
    )


def _num_outputs(train: Split, test: Split) -> int:
    # The largest number tells how many classes there are.
    if train.targets.is_floating_point():
        return train.targets.shape[1]
    return int(max(train.targets.max(), test.targets.max())) + 1
