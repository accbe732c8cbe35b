"""What training asks of the processes that share it; one alone is a crew as well."""

from enum import IntEnum
from typing import Protocol

import torch
from torch import nn

from condexp.analysis.communicator import Communicator, SingleProcess
from condexp.data.dataset import Share
from condexp.training.execution import Forward


class StepAction(IntEnum):
    """What a process wants between two updates; all do the strongest wish."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class TrainingCommunicator(Communicator, Protocol):
    """What training needs of the processes that share it; one alone is a crew as well."""

    @property
    def device(self) -> torch.device | None:
        """Where this process trains, if that is not where the run was told to."""

    @property
    def local_size(self) -> int:
        """How many of them share the cores that torch sees here."""

    def share(self) -> Share:
        """Return which part of each batch is this process's."""

    def parallel(self, model: nn.Module) -> Forward:
        """Return the model as it is to be trained: backward averages the gradients of all."""

    def mean(self, loss: float) -> float:
        """Return the mean loss over the samples of all, whose shares are equal."""

    def strongest(self, wish: StepAction) -> StepAction:
        """Return the strongest of all wishes."""

    def agree_on_buffers(self, model: nn.Module) -> None:
        """Give all processes the running statistics of rank 0."""


class SingleTrainingProcess(SingleProcess):
    """A crew of one: nothing is shared, no bit is changed."""

    device: torch.device | None = None
    local_size = 1

    def share(self) -> Share:
        """Return all of each batch."""
        return Share()

    def parallel(self, model: nn.Module) -> Forward:
        """Return the model itself."""
        return model

    def mean(self, loss: float) -> float:
        """Return the loss itself."""
        return loss

    def strongest(self, wish: StepAction) -> StepAction:
        """Return the one wish."""
        return wish

    def agree_on_buffers(self, model: nn.Module) -> None:
        """There is nobody else."""


SINGLE_TRAINING_PROCESS = SingleTrainingProcess()
