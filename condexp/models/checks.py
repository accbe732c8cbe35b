"""Checks that every network shares: inputs it can take, and at least one output."""

import math
from collections.abc import Sequence

from condexp.errors import InputError

SMALLEST_IMAGE = 8


def count_features(model: str, input_shape: Sequence[int], num_outputs: int) -> int:
    """Count the features of a flattened input.

    Args:
        model: The model's name, for the message.
        input_shape: Shape of one sample, (d,) or (C, H, W).
        num_outputs: Outputs of the last layer.

    Returns:
        The product of the shape.

    Raises:
        InputError: If the shape holds no feature, or there is no output.
    """
    _check_outputs(model, num_outputs)
    if not input_shape or min(input_shape) < 1:
        raise InputError(
            f"{model}: an input of shape {tuple(input_shape)} has no features; "
            "give (d,) or (C, H, W) with every size from 1 on."
        )
    return math.prod(input_shape)


def check_image(model: str, input_shape: Sequence[int], num_outputs: int) -> int:
    """Refuse inputs which a convolutional network can't take.

    Args:
        model: The model's name, for the message.
        input_shape: Shape of one sample, to be (C, H, W).
        num_outputs: Outputs of the last layer.

    Returns:
        The number of channels C.

    Raises:
        InputError: If the input is no image, or one smaller than 8 px, or there is no output.
    """
    _check_outputs(model, num_outputs)
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise InputError(
            f"{model} needs images of shape (C, H, W), but the inputs have shape "
            f"{tuple(input_shape)}; use model=mlp or model=linear for them."
        )
    channels, height, width = input_shape
    if min(height, width) < SMALLEST_IMAGE:
        raise InputError(
            f"{model}: images of {height}x{width} px are too small; it needs "
            f"{SMALLEST_IMAGE}x{SMALLEST_IMAGE} px at least: raise dataset.image_size."
        )
    return channels


def _check_outputs(model: str, num_outputs: int) -> None:
    if num_outputs < 1:
        raise InputError(f"{model}: num_outputs is {num_outputs}; it must be 1 at least.")
