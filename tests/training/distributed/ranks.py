"""One rank of a group that runs every scenario, started with the arguments of ``main``."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from condexp.training.distributed.process_group import ProcessGroupCommunicator
from tests.training.distributed.scenarios import SCENARIOS
from tests.waiting import GUARD_SECONDS


def main(rank: int, world_size: int, meeting_point: Path, results: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_point}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=GUARD_SECONDS),
    )
    communicator = ProcessGroupCommunicator(torch.device("cpu"), world_size)
    torch.save({name: scenario(communicator) for name, scenario in SCENARIOS.items()}, results)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
