"""Communicator protocol of data-parallel training, and the actions its ranks agree on."""

from enum import IntEnum
from typing import Protocol

import torch
from torch import nn

from condexp.analysis.communicator import Communicator
from condexp.training.execution import Forward


class StepAction(IntEnum):
    """What is to be done between two updates; the largest that any rank asks for is done by all."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2


class TrainingCommunicator(Communicator, Protocol):
    """The processes that train one network together, each on its share of every batch."""

    @property
    def device(self) -> torch.device | None:
        """The device of this rank; None where it is the one that the run was given."""

    @property
    def num_sharing_cores(self) -> int:
        """The number of ranks that share the cores torch sees here."""

    def all_reduce_mean(self, value: float) -> float:
        """Return the mean of all ranks' values, the same on every rank."""

    def all_reduce_max(self, action: StepAction) -> StepAction:
        """Return the largest of all ranks' actions."""

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy rank 0's buffers, such as running statistics, to all ranks."""

    def wrap_ddp(self, model: nn.Module) -> Forward:
        """Return the model wrapped so that ``backward`` averages the gradients of all ranks."""
