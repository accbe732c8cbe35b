"""The weights on disk: written whole or not at all, read without executing anything."""

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condexp.errors import InputError


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; the file is a dictionary with these keys.

    Attributes:
        model: The model's state dict, parameters and buffers.
        optimizer: The optimizer's state dict.
        step: Number of finished updates.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    step: int


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, step: int
) -> None:
    """Write a checkpoint atomically: a kill leaves the old file or the new one, complete.

    The same state gives the same bytes.

    Args:
        path: The file; its folder exists. ``<name>.partial`` beside it is used on the way.
        model: Its state dict is stored under ``model``.
        optimizer: Its state dict is stored under ``optimizer``.
        step: Number of finished updates.

    Raises:
        OSError: If it cannot be written; nothing is left beside the older file.
        RuntimeError: The same in the words of torch's archive writer.
    """
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    partial = path.with_name(path.name + ".partial")
    # Through a file object: given a path, torch writes the file's name into the archive.
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError):
        partial.unlink(missing_ok=True)
        raise
    # The new name is durable only once the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint; nothing in the file is executed (``weights_only=True``).

    Args:
        path: The file.
        device: Where its tensors are put.

    Returns:
        The checkpoint.

    Raises:
        InputError: If there is no such file, or it is damaged or not a checkpoint of condexp.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        return Checkpoint(content["model"], content["optimizer"], content["step"])
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged or not a checkpoint of condexp: {error}") from error
