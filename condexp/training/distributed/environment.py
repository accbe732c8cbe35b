"""Environment of one process of a distributed run, as torchrun, srun or rank 0 sets it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from condexp.training.distributed.process_group import ProcessGroupCommunicator

TORCHRUN_NAMES = frozenset((
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
))
FIRST_PORT, NUM_PORTS = 20000, 20000  # a Slurm step takes one of these, by its job's number


@dataclass(frozen=True)
class DistributedEnv:
    """The rank of a process among those that train a network together, and how they meet.

    Attributes:
        rank: The number of the process, from 0.
        world_size: The number of processes.
        local_rank: Its number among the processes on its machine.
        local_world_size: The number of processes on its machine.
        address: The machine of rank 0.
        port: The port on which rank 0 waits for the others.
        starter: What started the processes: ``torchrun``, ``srun``, or ``condexp``, rank 0 itself.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int
    starter: str

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Self | None:
        """Read the variables that torchrun or srun has set.

        Args:
            environ: The environment variables.

        Returns:
            The environment of this process; None where it was started by itself.

        >>> DistributedEnv.from_environ({
        ...     "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        ...     "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}).rank
        1
        >>> DistributedEnv.from_environ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) is None
        True
        """
        if environ.keys() >= TORCHRUN_NAMES and int(environ["WORLD_SIZE"]) > 1:
            return cls(
                rank=int(environ["RANK"]),
                world_size=int(environ["WORLD_SIZE"]),
                local_rank=int(environ["LOCAL_RANK"]),
                local_world_size=int(environ["LOCAL_WORLD_SIZE"]),
                address=environ["MASTER_ADDR"],
                port=int(environ["MASTER_PORT"]),
                starter="torchrun",
            )
        # The batch script is a step of one task, and no srun has started it.
        if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            on_node = re.match(r"\d+", environ["SLURM_STEP_TASKS_PER_NODE"])
            assert on_node is not None
            return cls(
                rank=int(environ["SLURM_PROCID"]),
                world_size=int(environ["SLURM_STEP_NUM_TASKS"]),
                local_rank=int(environ["SLURM_LOCALID"]),
                local_world_size=int(on_node.group()),
                address=first_host(environ["SLURM_STEP_NODELIST"]),
                port=FIRST_PORT + int(environ["SLURM_JOB_ID"]) % NUM_PORTS,
                starter="srun",
            )
        return None

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this process.

        Args:
            device: The device that the run was given.

        Returns:
            The GPU with the process's local rank where that is ``cuda``, else the device itself.
        """
        if device.type != "cuda":
            return device
        return torch.device("cuda", 0 if self.bound else self.local_rank)

    @property
    def bound(self) -> bool:
        """Whether each process sees one GPU, its own, as with Slurm's ``--gpus-per-task=1``."""
        return self.starter == "srun" and torch.cuda.device_count() == 1

    @property
    def num_sharing_cores(self) -> int:
        """The number of processes that share the cores torch sees here.

        One under torchrun and srun, which divide the cores among the processes that they start.
        """
        return self.local_world_size if self.starter == "condexp" else 1

    def init_process_group(
        self, given: torch.device, store: Store | None = None
    ) -> ProcessGroupCommunicator:
        """Initialise torch's default process group; return once all processes have joined.

        Args:
            given: The device that the run was given.
            store: The store that rank 0 has opened already, if any.

        Returns:
            The communicator of this rank.
        """
        device = self.device(given)
        # torchrun's agent has opened one, which torch finds by itself.
        if store is None and self.starter != "torchrun":
            store = TCPStore(self.address, self.port, self.world_size, self.rank == 0)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size)
        return ProcessGroupCommunicator(device, self.num_sharing_cores)


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list.

    Args:
        nodes: Host names, with ranges in brackets.

    Returns:
        The name of the first one.

    >>> first_host("gpu[007-009,12],login1"), first_host("r[1-2]n[3-4]"), first_host("a,b")
    ('gpu007', 'r1n3', 'a')
    """
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group())
