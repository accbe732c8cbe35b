"""Records of a data set in memory, and its checksum."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor


class Task(StrEnum):
    """What is learned."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their targets, on the CPU.

    Args:
        inputs: Images, uint8 [N, C, H, W], or vectors, floating point [N, d].
        targets: Classes, int64 [N], or values, floating point [N, num_outputs].

    Raises:
        ValueError: If the two differ in length.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs, but {len(self.targets)} targets.")

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, indices: Tensor) -> "Split":
        """Take some of the samples.

        Args:
            indices: Which, int64 [K].

        Returns:
            A split of K samples, in the order of the indices.
        """
        return Split(self.inputs[indices], self.targets[indices])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Args:
        name: Its name.
        task: What is learned.
        train: The training samples.
        test: The test samples.
        mean: What to subtract from each channel, in the unit of the inputs (uint8: 0 to 255).
        std: What to divide each channel by, in the same unit.
        num_outputs: Number of classes, or of regression targets.
        checksum: sha256 of the arrays.
    """

    name: str
    task: Task
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_outputs: int
    checksum: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, (C, H, W) or (d,)."""
        return tuple(self.train.inputs.shape[1:])


def checksum_of(*splits: Split) -> str:
    """Compute sha256 over shape, dtype and bytes of the arrays, inputs before targets.

    Args:
        *splits: The splits, in order.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for split in splits:
        for array in (split.inputs, split.targets):
            digest.update(f"{tuple(array.shape)} {array.dtype};".encode())
            digest.update(array.contiguous().numpy().data)
    return digest.hexdigest()
