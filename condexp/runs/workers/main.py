"""One of a run's other processes: it trains along with rank 0, which keeps the run's folder."""

import os
import pickle
import sys
import threading

import torch.distributed as dist

from condexp.runs.prepare import PreparedRun, prepare
from condexp.runs.result import RunResult
from condexp.runs.stop_signals import StopRequests, stop_requests
from condexp.runs.trainer import build_trainer
from condexp.runs.workers.group import StartMessage, WorkerGroup, WorkerSpec
from condexp.store.run_folder.status import State
from condexp.training.choices import RunState
from condexp.training.distributed.communicator import StepAction
from condexp.training.distributed.process_group import ProcessGroupCommunicator
from condexp.training.seeding import random_state


def main() -> int:
    """Be the rank that standard input describes.

    Returns:
        0.
    """
    # Signals are ignored from the first moment on: rank 0 decides, and all stop at one update.
    # Not through sys.stdin, whose lock a waiting thread would hold as the interpreter ends.
    with open(0, "rb", closefd=False) as orders:
        enrolment: WorkerSpec = pickle.load(orders)
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    prepared = prepare(enrolment.config)
    train_as_worker(prepared, enrolment.place.join(prepared.device), StopRequests())
    dist.destroy_process_group()
    return 0


def run_worker(prepared: PreparedRun, processes: WorkerGroup) -> RunResult:
    """Be a rank that torchrun or srun has started.

    Args:
        prepared: The checked experiment.
        processes: Joined.

    Returns:
        How it ended, as far as this process knows.
    """
    assert processes.team is not None
    with stop_requests() as stop:
        state = train_as_worker(prepared, processes.team, stop)
    # The run's exit code is rank 0's: at another that is not 0 srun kills it over its checkpoint.
    return RunResult(prepared.folder, State.COMPLETE, stored=state is None)


def train_as_worker(
    prepared: PreparedRun, team: ProcessGroupCommunicator, stop: StopRequests
) -> RunState | None:
    """Train as rank 0 says.

    Args:
        prepared: The checked experiment.
        team: All processes.
        stop: What this one was asked to stop for.

    Returns:
        How far the training came; None where there was nothing to train.
    """
    orders: StartMessage | None = team.to_all(None)[0]
    if orders is None:
        return None
    trainer = build_trainer(prepared, team)
    start = 0
    if orders.checkpoint is not None:
        orders.checkpoint.restore(trainer.model, trainer.optimizer, team.rank)
        start = orders.checkpoint.step

    def save() -> None:
        for _ in team.to_one(random_state(), 0):
            raise AssertionError("it is rank 0 that saves")

    def pause(_step: int) -> bool:
        wish = team.strongest(StepAction.STOP if stop else StepAction.GO_ON)
        if wish is StepAction.SAVE:
            save()
        return wish is StepAction.STOP

    outcome = trainer.train([], start=start, pause=pause)
    save()
    return outcome.state


def _end_with_rank_0() -> None:
    while os.read(0, 1):
        pass
    sys.stderr.flush()
    os._exit(1)
