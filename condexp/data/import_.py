"""The user's own data sets: a function of any module that returns a training and a test set."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from condexp.data.dataset import Dataset, Split
from condexp.data.own import own_dataset, split_of
from condexp.data.spec import OwnImageSpec
from condexp.errors import InputError
from condexp.models.user_code import call_target

EXAMPLE = "my_data:load for the function load in my_data.py"


@dataclass(frozen=True, kw_only=True)
class Spec(OwnImageSpec):
    """The keys of ``conf/dataset/import.yaml``."""

    target: str
    kwargs: dict[str, Any]


def load(spec: Spec) -> Dataset:
    """Call the user's function, and read its two data sets into memory, each sample once.

    A data set has a length and samples by number, as ``torch.utils.data.Dataset`` has; a sample is
    a pair, or a mapping of two, of an input and a target. Images (Pillow's, or uint8) are
    normalised by the training split's statistics; floating-point inputs are taken as they are.
    Numbers that the samples draw come from fixed seeds, and the global generators stay as found.

    Args:
        spec: The keys.

    Returns:
        The data set.

    Raises:
        InputError: If there is no such function, it does not take the arguments, or what it returns
            is not two data sets of equal samples.
    """
    with _own_random_numbers():
        made = call_target("dataset", spec.target, spec.kwargs, {}, EXAMPLE)
        if not (isinstance(made, (tuple, list)) and len(made) == 2 and all(map(_is_map, made))):
            raise InputError(
                f"dataset.target={spec.target!r} gives {_kind(made)}: return (train, test), two "
                "torch.utils.data.Dataset with a length and samples by number."
            )
        train, test = (
            _read(f"dataset.target={spec.target!r}, {name}", split)
            for name, split in zip(("train", "test"), made, strict=True)
        )
    return own_dataset(spec, train, test)


def _is_map(made: object) -> bool:
    return hasattr(made, "__len__") and hasattr(made, "__getitem__")


def _kind(made: object) -> str:
    if isinstance(made, (tuple, list)):
        return f"{type(made).__name__} of {', '.join(type(each).__name__ for each in made)}"
    return type(made).__name__


def _read(name: str, samples: Any) -> Split:
    if not len(samples):
        raise InputError(f"{name}: the data set is empty.")
    inputs, targets = zip(*(_pair(name, samples[i]) for i in range(len(samples))), strict=True)
    shapes = {array.shape for array in inputs}
    if len(shapes) > 1:
        raise InputError(
            f"{name}: inputs of different shapes, {' and '.join(map(str, sorted(shapes)[:2]))}: "
            "resize or crop them in the data set's transform."
        )
    return split_of(f"{name}: inputs", np.stack(inputs), f"{name}: targets", np.stack(targets))


def _pair(name: str, sample: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    values: Sequence[Any] = list(sample.values()) if isinstance(sample, Mapping) else sample
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        keys = f" with {', '.join(map(str, sample))}" if isinstance(sample, Mapping) else ""
        raise InputError(
            f"{name}: a sample is {_kind(sample)}{keys}; it must be a pair (input, target), or a "
            "mapping of just these two."
        )
    return _array(values[0]), _array(values[1])


def _array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, Image):
        return np.asarray(value if value.mode in {"L", "RGB"} else value.convert("RGB"))
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Seed the global generators, and put them back: a load draws the same whatever went before."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
