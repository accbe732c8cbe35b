"""Data-parallel training over torch's default process group.

Each process trains on its share of every batch. DistributedDataParallel averages the gradients;
everything else, what :mod:`condexp.analysis` measures included, goes through
:class:`ProcessGroupCommunicator`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from condexp.training.distributed.communicator import StepAction
from condexp.training.distributed.messages import receive, send
from condexp.training.execution import Forward

T = TypeVar("T")


class ProcessGroupCommunicator:
    """The ranks of torch's default process group, which is initialised before.

    DistributedDataParallel reduces in the default group at times of its own during ``backward``,
    so that whatever may be exchanged meanwhile needs other groups.

    Args:
        device: The device of this rank.
        num_sharing_cores: The number of ranks that share the cores torch sees here.
    """

    def __init__(self, device: torch.device, num_sharing_cores: int) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device: torch.device | None = device
        self.num_sharing_cores, self._device = num_sharing_cores, device
        self._cpu_group, self._batch_norm_group = _new_group("gloo"), _new_group()

    def all_gather_object(self, value: T) -> list[T]:
        """Return the values of all ranks, in order, on every rank.

        Args:
            value: A small object that can be pickled, without GPU tensors: torch would restore
                those on the sender's device.

        Returns:
            Copies of the values.
        """
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._cpu_group)
        return values

    def broadcast_object(self, value: T) -> T:
        """Return rank 0's value on every rank.

        Args:
            value: An object that can be pickled, without GPU tensors; ignored on other ranks.

        Returns:
            The value of rank 0.
        """
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._cpu_group)
        return values[0]

    def gather_objects(self, value: T, dst: int) -> Iterator[T]:
        """Yield the values of all ranks, in order and one at a time, on one of them.

        Args:
            value: Any object that can be pickled; its tensors may be large and on a GPU.
            dst: The rank that receives.

        Yields:
            The values on rank ``dst``, their tensors on its device; on the other ranks nothing.
        """
        if self.rank != dst:
            send(value, dst, self._cpu_group)()
            return
        for src in range(self.world_size):
            yield value if src == dst else receive(src, self._cpu_group, self._device)

    def all_to_all_objects(self, values: Sequence[T]) -> Iterator[T]:
        """Yield what every rank has for this one, in the ranks' order and one at a time.

        Args:
            values: An object for each rank, as for :meth:`gather_objects`.

        Yields:
            The objects for this rank, their tensors on its device.
        """
        others = [(self.rank + step) % self.world_size for step in range(1, self.world_size)]
        under_way = [send(values[dst], dst, self._cpu_group) for dst in others]
        for src in range(self.world_size):
            own = src == self.rank
            yield values[src] if own else receive(src, self._cpu_group, self._device)
        for wait in under_way:
            wait()

    def wrap_ddp(self, model: nn.Module) -> Forward:
        """Return the model in DistributedDataParallel; every rank starts from rank 0's weights.

        Args:
            model: The network, on this rank's device.

        Returns:
            The wrapped model, whose gradients ``backward`` averages over all ranks.
        """
        devices = [self._device] if self._device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def all_reduce_mean(self, value: float) -> float:
        """Return the mean of all ranks' values, the same on every rank.

        Args:
            value: The value of this rank, such as the mean loss over its share of a batch; the
                mean over the batch follows, because all shares are of one size.

        Returns:
            The mean.
        """
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total, group=self._cpu_group)
        return float(total) / self.world_size

    def all_reduce_max(self, action: StepAction) -> StepAction:
        """Return the largest of all ranks' actions, the same on every rank.

        Args:
            action: The action that this rank asks for.

        Returns:
            The action that all ranks take.
        """
        largest = torch.tensor(int(action))
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._cpu_group)
        return StepAction(int(largest))

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy rank 0's buffers, which are those that a checkpoint holds, to all ranks.

        Args:
            model: The network, changed in place.
        """
        for buffer in model.buffers():
            values = buffer.contiguous()  # a user's may be laid out in any way
            dist.broadcast(values, 0)
            buffer.copy_(values)

    def all_reduce_mean_with_grad(self, tensor: Tensor) -> Tensor:
        """Return the mean over all ranks, differentiably, for batch statistics.

        Args:
            tensor: A tensor of the same shape on every rank.

        Returns:
            The mean; its gradient is averaged over the ranks as well.
        """
        total: Tensor = _AllReduceSum.apply(tensor, self._batch_norm_group)
        return total / self.world_size


def _new_group(backend: str | None = None) -> dist.ProcessGroup:
    group = dist.new_group(backend=backend)
    assert isinstance(group, dist.ProcessGroup)  # this process is in it
    return group


class _AllReduceSum(torch.autograd.Function):
    """The sum over all ranks, whose gradient is the sum of the ranks' gradients.

    ``torch.distributed.nn.functional.all_reduce`` is the same, but deprecated in torch 2.14; what
    it names in its stead is private.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduceSum.apply(grad, ctx.group), None
