"""Where a process stands among those of its run, and what has to hold for several of them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from condexp.training.distributed.process_group import ProcessGroupCommunicator

FIRST_PORT, NUM_PORTS = 20000, 20000  # of a Slurm step, by its job's number


@dataclass(frozen=True)
class DistributedEnv:
    """One process among those that train a network together.

    Attributes:
        rank: Which of them, from 0.
        size: How many they are.
        local_rank: Which of those on its machine.
        local_size: How many are on its machine.
        address: The machine of rank 0.
        port: Where rank 0 waits for the others.
        starter: Who started them: ``torchrun``, ``srun``, or rank 0 itself, ``condexp``.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    starter: str

    def device(self, device: torch.device) -> torch.device:
        """Return this process's device.

        Args:
            device: What the run was given.

        Returns:
            On a machine with GPUs, the one with the process's local number.
        """
        if device.type != "cuda":
            return device
        return torch.device("cuda", 0 if self.bound else self.local_rank)

    @property
    def bound(self) -> bool:
        """Whether each process sees one GPU, its own, as with Slurm's ``--gpus-per-task=1``."""
        return self.starter == "srun" and torch.cuda.device_count() == 1

    @property
    def sharing(self) -> int:
        """How many processes share the cores that torch sees: srun and torchrun divide them."""
        return self.local_size if self.starter == "condexp" else 1

    def join(self, given: torch.device, store: Store | None = None) -> ProcessGroupCommunicator:
        """Meet the others; returns when all are there.

        Args:
            given: What the run was given as its device.
            store: Rank 0's own, if it has opened one.

        Returns:
            All of them, as this process sees them.
        """
        device = self.device(given)
        # torchrun's agent has one, which torch finds by itself.
        if store is None and self.starter != "torchrun":
            store = TCPStore(self.address, self.port, self.size, self.rank == 0)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
        return ProcessGroupCommunicator(device, self.sharing)


def given_place(environment: Mapping[str, str] = os.environ) -> DistributedEnv | None:
    """Find out whether torchrun or srun started this process, with others.

    Args:
        environment: The process's.

    Returns:
        Its place among them; None where it was started by itself.

    >>> given_place({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    ...              "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}).rank
    1
    >>> given_place({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) is None
    True
    """
    torchrun = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    if all(name in environment for name in torchrun) and int(environment["WORLD_SIZE"]) > 1:
        rank, size, local_rank, local_size = (int(environment[name]) for name in torchrun[:4])
        port = int(environment["MASTER_PORT"])
        address = environment["MASTER_ADDR"]
        return DistributedEnv(rank, size, local_rank, local_size, address, port, "torchrun")
    # Of an srun step: in a batch script itself there is one task.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        on_node = re.match(r"\d+", environment["SLURM_STEP_TASKS_PER_NODE"])
        assert on_node is not None
        return DistributedEnv(
            rank=int(environment["SLURM_PROCID"]),
            size=int(environment["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            local_size=int(on_node.group()),
            address=first_host(environment["SLURM_STEP_NODELIST"]),
            port=FIRST_PORT + int(environment["SLURM_JOB_ID"]) % NUM_PORTS,
            starter="srun",
        )
    return None


def first_host(nodes: str) -> str:
    """Return the first name of a Slurm list of nodes.

    Args:
        nodes: Names, with ranges in brackets.

    Returns:
        The name.

    >>> first_host("gpu[007-009,12],login1"), first_host("r[1-2]n[3-4]"), first_host("a,b")
    ('gpu007', 'r1n3', 'a')
    """
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group())
