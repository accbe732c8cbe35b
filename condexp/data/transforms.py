"""From raw images to a data set: subset, size, statistics."""

from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from condexp.data.dataset import Dataset, Split, Task, checksum_of
from condexp.data.spec import ImageSpec
from condexp.errors import InputError

RESIZE_CHUNK = 1024
S = TypeVar("S", bound=Split)


def class_balanced_subset(split: S, size: int, seed: int = 0) -> S:
    """Draw a random subset in which the classes are as equal in number as they can be.

    Numbers differ by at most one unless a class runs out; the others then make up for it. Samples
    whose targets are values are drawn as if of one class.

    Args:
        split: The samples.
        size: Number of samples to draw.
        seed: Seed of the draw.

    Returns:
        The subset, in the order of the split.

    Raises:
        InputError: If the split has not that many samples, or the size is below one.
    """
    if not 1 <= size <= len(split):
        raise InputError(
            f"a subset of {size} samples was asked for; allowed are 1 to {len(split)}."
        )
    shuffled = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    values = split.targets.is_floating_point()
    classes = torch.zeros_like(shuffled) if values else split.targets[shuffled]
    by_class = torch.argsort(classes, stable=True)
    starts = torch.bincount(classes).cumsum(0) - torch.bincount(classes)
    # The first of every class, then the second of every class, …: any prefix is balanced.
    place = torch.empty_like(by_class)
    place[by_class] = torch.arange(len(split)) - starts[classes[by_class]]
    chosen = shuffled[torch.argsort(place, stable=True)[:size]]
    return split.select(chosen.sort().values)


def resize(split: Split, image_size: int) -> Split:
    """Resize images to squares, bilinear and antialiased.

    Args:
        split: Images, uint8 [N, C, H, W].
        image_size: Side of the result in px.

    Returns:
        Images, uint8 [N, C, image_size, image_size], rounded to the nearest level.

    Raises:
        InputError: If the size is below one.
    """
    if image_size < 1:
        raise InputError(f"image_size is {image_size}; it must be a whole number of px from 1 on.")
    images = split.inputs
    if images.shape[2:] == (image_size, image_size):
        return split
    resized = images.new_empty((*images.shape[:2], image_size, image_size))
    # In chunks: the whole set in floating point may be many times the size of the result.
    for start in range(0, len(images), RESIZE_CHUNK):
        part = images[start : start + RESIZE_CHUNK].float()
        smooth = F.interpolate(part, (image_size, image_size), mode="bilinear", antialias=True)
        resized[start : start + RESIZE_CHUNK] = smooth.round_().clamp_(0, 255)
    return Split(resized, split.targets)


def with_channels(split: S, channels: int | None) -> S:
    """Repeat grey images in three channels.

    Args:
        split: Images [N, C, H, W].
        channels: 3, 1 or None, which is as stored.

    Returns:
        Images [N, channels, H, W]; the repeated ones take no memory.

    Raises:
        InputError: If the images have another number of channels that is not one.
    """
    if channels is None:
        return split
    if len(split.shape) != 3 or split.shape[0] not in {1, channels}:
        raise InputError(
            f"dataset.channels={channels}: it repeats grey images [N, 1, H, W], and these inputs "
            f"have shape {split.shape}; leave it out."
        )
    return replace(split, inputs=split.inputs.expand(-1, channels, -1, -1))


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute each channel's mean and standard deviation over all images and positions.

    Args:
        images: Images, uint8 [N, C, H, W].

    Returns:
        Means and (biased) standard deviations on 0 to 255; 1 in place of a deviation of zero.
    """
    levels = torch.arange(256, dtype=torch.float64)
    means, deviations = [], []
    for channel in images.unbind(1):
        # Counts of the 256 levels are exact whatever the number of pixels.
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * levels).sum()
        deviation = (share * (levels - mean).square()).sum().sqrt()
        means.append(mean.item())
        deviations.append(deviation.item() or 1.0)
    return tuple(means), tuple(deviations)


def image_dataset(spec: ImageSpec, train: Split, test: Split, num_outputs: int) -> Dataset:
    """Build a data set of images: subset, resize, the training split's statistics, channels.

    Args:
        spec: The keys. Subsets are class-balanced; the size is that of squares in px.
        train: Training images, uint8 [N, C, H, W], with classes or values.
        test: Test images.
        num_outputs: Number of classes, or of values.

    Returns:
        The data set.
    """
    if spec.subset.train is not None:
        train = class_balanced_subset(train, spec.subset.train)
    if spec.subset.test is not None:
        test = class_balanced_subset(test, spec.subset.test)
    if spec.image_size is not None:
        train, test = resize(train, spec.image_size), resize(test, spec.image_size)
    checksum = checksum_of(train, test)
    train, test = with_channels(train, spec.channels), with_channels(test, spec.channels)
    mean, std = pixel_statistics(train.inputs)
    return Dataset(
        name=spec.name,
        task=Task.REGRESSION if train.targets.is_floating_point() else Task.CLASSIFICATION,
        train=train,
        test=test,
        mean=mean,
        std=std,
        num_outputs=num_outputs,
        checksum=checksum,
    )
