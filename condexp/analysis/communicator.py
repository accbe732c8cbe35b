"""Communicator protocol of a measurement by several processes, and its single-process form."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from torch import nn

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=nn.Module)


class Communicator(Protocol):
    """The processes that measure one network together, each on samples of its own.

    As with every collective of torch, all ranks make the same calls in the same order.
    """

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def world_size(self) -> int:
        """The number of processes."""

    def all_gather_object(self, value: T) -> list[T]:
        """Return the values of all ranks, in order, on every rank; they hold no GPU tensors."""

    def gather_objects(self, value: T, dst: int) -> Iterator[T]:
        """Yield the values of all ranks, in order, on rank ``dst``; on the others nothing.

        They arrive one at a time, so that ``dst`` need not hold all of them at once, with their
        tensors on its device. Nothing is sent before the iterator is read, on every rank.
        """

    def all_to_all_objects(self, values: Sequence[T]) -> Iterator[T]:
        """Yield what every rank has for this one, in the ranks' order and one at a time.

        ``values[r]`` is for rank r. Nothing is sent before the iterator is read, on every rank.
        """


class SingleProcess:
    """A world of one process, in which every collective returns what it is given.

    It is the default wherever a :class:`Communicator` is taken, in measuring and in training.
    """

    rank, world_size, num_sharing_cores = 0, 1, 1
    device: torch.device | None = None

    def all_gather_object(self, value: T) -> list[T]:
        """Return the only value in a list."""
        return [value]

    def gather_objects(self, value: T, dst: int) -> Iterator[T]:  # noqa: ARG002 - the only rank
        """Yield the only value."""
        yield value

    def all_to_all_objects(self, values: Sequence[T]) -> Iterator[T]:
        """Yield the only value."""
        yield from values

    def all_reduce_mean(self, value: float) -> float:
        """Return the value."""
        return value

    def all_reduce_max(self, action: T) -> T:
        """Return the action."""
        return action

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Leave the model as it is: there is no other rank."""

    def wrap_ddp(self, model: ModelT) -> ModelT:
        """Return the model itself: there are no gradients to average."""
        return model


SINGLE_PROCESS = SingleProcess()
