"""Groups of processes in which every rank runs every scenario: ``ranks.py folder size…``.

The import of torch takes longer than the scenarios: it is done once, and the ranks are forked from
a process that has computed nothing yet, and so has no threads.
"""

import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401 - as the first optimizer does
import torch.distributed as dist

from condexp.training.distributed.process_group import ProcessGroupCommunicator
from tests.training.distributed.scenarios import SCENARIOS
from tests.waiting import GUARD_SECONDS


def run_rank(rank: int, world_size: int, folder: Path) -> None:
    """Save what a rank finds as ``<size>-<rank>.pt``."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / f'meeting-{world_size}'}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=GUARD_SECONDS),
    )
    communicator = ProcessGroupCommunicator(torch.device("cpu"), world_size)
    found = {name: scenario(communicator) for name, scenario in SCENARIOS.items()}
    torch.save(found, folder / f"{world_size}-{rank}.pt")
    dist.destroy_process_group()


def start(rank: int, world_size: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run_rank(rank, world_size, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(folder: Path, sizes: list[int]) -> int:
    """Run one group after the other; the number of ranks that failed."""
    failed = 0
    for size in sizes:
        children = [start(rank, size, folder) for rank in range(size)]
        failed += sum(os.waitpid(child, 0)[1] != 0 for child in children)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]]))
