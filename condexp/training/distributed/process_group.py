"""Several processes that train one network, and measure it, together.

Each takes its share of every batch; the gradients are averaged by torch's DistributedDataParallel,
what is measured goes through :class:`ProcessGroupCommunicator`, as :mod:`condexp.analysis` asks.
"""

import io
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from condexp.data.dataset import Share
from condexp.training.distributed.communicator import StepAction
from condexp.training.execution import Forward

T = TypeVar("T")


class ProcessGroupCommunicator:
    """The processes of torch's default group, once it is initialised.

    What is no gradient travels by groups of its own: DistributedDataParallel's calls come between.

    Args:
        device: Where this process trains.
        local_size: How many of them share the cores that torch sees here.
    """

    def __init__(self, device: torch.device, local_size: int) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device: torch.device | None = device
        self.local_size, self._device = local_size, device
        self._group, self._norms = _new_group("gloo"), _new_group()

    def to_all(self, value: T) -> list[T]:
        """Return the values of all ranks, in order, on every rank.

        Args:
            value: This rank's, of any kind that can be pickled.

        Returns:
            The values; tensors of others are on this rank's device.
        """
        return [self._from(rank, value) for rank in range(self.size)]

    def to_one(self, value: T, rank: int) -> Iterator[T]:
        """Yield the values of all ranks, in order, on one of them: one after the other.

        Args:
            value: This rank's.
            rank: Who gets them.

        Yields:
            The values; on the other ranks none.
        """
        if self.rank != rank:
            self._send(value, rank)
            return
        for other in range(self.size):
            yield value if other == rank else self._receive(other)

    def share(self) -> Share:
        """Return which part of each batch is this process's."""
        return Share(self.rank, self.size)

    def parallel(self, model: nn.Module) -> Forward:
        """Return the model in torch's DistributedDataParallel; all start from rank 0's weights.

        Args:
            model: On the device.

        Returns:
            What maps inputs to outputs, its gradients averaged by ``backward``.
        """
        devices = [self._device] if self._device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def mean(self, loss: float) -> float:
        """Return the mean loss over the samples of all, the same on every rank.

        Args:
            loss: The mean over this process's samples, which are as many as any other's.

        Returns:
            The mean.
        """
        total = torch.tensor(loss, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return float(total) / self.size

    def strongest(self, wish: StepAction) -> StepAction:
        """Return the strongest of all wishes, the same on every rank.

        Args:
            wish: This rank's.

        Returns:
            What all do.
        """
        strongest = torch.tensor(int(wish))
        dist.all_reduce(strongest, dist.ReduceOp.MAX, group=self._group)
        return StepAction(int(strongest))

    def agree_on_buffers(self, model: nn.Module) -> None:
        """Give all processes the buffers of rank 0, which are those that a checkpoint holds.

        Args:
            model: Changed in place.
        """
        for buffer in model.buffers():
            values = buffer.contiguous()  # a user's may be laid out in any way
            dist.broadcast(values, 0)
            buffer.copy_(values)

    def average(self, tensor: Tensor) -> Tensor:
        """Return the mean over all ranks, through which gradients pass: for batch statistics.

        Args:
            tensor: The same shape on every rank.

        Returns:
            The mean.
        """
        total: Tensor = _Total.apply(tensor, self._norms)
        return total / self.size

    def _from(self, rank: int, value: T) -> T:
        """Return one rank's value on every rank."""
        mine = self.rank == rank
        data = _packed(value) if mine else torch.empty(0, dtype=torch.uint8)
        size = torch.tensor(len(data))
        dist.broadcast(size, rank, group=self._group)
        data = data if mine else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, rank, group=self._group)
        return value if mine else self._unpacked(data)

    def _send(self, value: object, rank: int) -> None:
        data = _packed(value)
        dist.send(torch.tensor(len(data)), rank, group=self._group)
        dist.send(data, rank, group=self._group)

    def _receive(self, rank: int) -> Any:
        size = torch.tensor(0)
        dist.recv(size, rank, group=self._group)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(data, rank, group=self._group)
        return self._unpacked(data)

    def _unpacked(self, data: Tensor) -> Any:
        # What this program's own processes send each other may be any object.
        return torch.load(
            io.BytesIO(data.numpy().tobytes()), map_location=self._place, weights_only=False
        )

    def _place(self, storage: Any, location: str) -> Any:
        # What was on another's device comes to this one's; random states belong on the CPU.
        return storage if location == "cpu" else storage.to(device=self._device)


def _new_group(backend: str | None = None) -> dist.ProcessGroup:
    group = dist.new_group(backend=backend)
    assert isinstance(group, dist.ProcessGroup)  # this process is in it
    return group


def _packed(value: object) -> Tensor:
    stream = io.BytesIO()
    torch.save(value, stream)
    return torch.frombuffer(stream.getbuffer(), dtype=torch.uint8)


class _Total(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Total.apply(grad, ctx.group), None
