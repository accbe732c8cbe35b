"""The processes that measure one network together: what they need of each other."""

from collections.abc import Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Communicator(Protocol):
    """Processes that hold the same network, each with samples of its own.

    All of them make the same calls in the same order.
    """

    @property
    def rank(self) -> int:
        """Which of them this one is, from 0."""

    @property
    def size(self) -> int:
        """How many they are."""

    def to_all(self, value: T) -> list[T]:
        """Return the values of all ranks, in order, on every rank."""

    def to_one(self, value: T, rank: int) -> Iterator[T]:
        """Yield the values of all ranks, in order, on one of them; on the others nothing."""


class SingleProcess:
    """One process that measures by itself."""

    rank, size = 0, 1

    def to_all(self, value: T) -> list[T]:
        """Return the one value there is.

        Args:
            value: It.
        """
        return [value]

    def to_one(self, value: T, rank: int) -> Iterator[T]:  # noqa: ARG002 - there is but one
        """Yield the one value there is.

        Args:
            value: It.
            rank: 0.

        Yields:
            The value.
        """
        yield value


SINGLE_PROCESS = SingleProcess()
