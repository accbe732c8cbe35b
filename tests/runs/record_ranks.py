"""A recorded loop of two ranks: ``record_ranks.py folder``; forked, for torch is slow to import."""

import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401 - as the first optimizer does
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import condexp
from tests.waiting import GUARD_SECONDS

SIZE, T, N = 2, 4, 12


def loop(folder: Path, rank: int, size: int) -> nn.Module:
    """Train on this rank's share of every batch, and record."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator, loss_fn = torch.Generator().manual_seed(1), nn.CrossEntropyLoss()
    schedule = condexp.Schedule(at_steps=(1, 3))
    with condexp.record_run(
        folder, wrapped, num_steps=T, schedule=schedule, optimizer=optimizer
    ) as run:
        for step in range(T):
            inputs = torch.randn(N, 3, dtype=torch.float64, generator=generator)
            targets = torch.randint(2, (N,), generator=generator)
            optimizer.zero_grad()
            with run.step(step):
                loss = loss_fn(wrapped(inputs[rank::size]), targets[rank::size])
                loss.backward()
            optimizer.step()
            run.log(loss=loss.item())
    return model


def run_rank(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=SIZE,
        timeout=timedelta(seconds=GUARD_SECONDS),
    )
    model = loop(folder / "together", rank, SIZE)
    torch.save(model.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def start(rank: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run_rank(rank, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    children = [start(rank, Path(sys.argv[1])) for rank in range(SIZE)]
    sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
