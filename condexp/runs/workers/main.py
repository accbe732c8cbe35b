"""Entry point of a run's ranks from 1 on: they train with rank 0, which alone writes files."""

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
    """Run the worker whose :class:`WorkerSpec` is on standard input.

    Returns:
        The exit code, 0.
    """
    # Signals are ignored from the first moment on: rank 0 decides, and all stop at one update.
    # Not through sys.stdin, whose lock a waiting thread would hold as the interpreter ends.
    with open(0, "rb", closefd=False) as standard_input:
        spec: WorkerSpec = pickle.load(standard_input)
    threading.Thread(target=_exit_with_rank_0, daemon=True).start()
    prepared = prepare(spec.config)
    communicator = spec.env.init_process_group(prepared.device)
    train_as_worker(prepared, communicator, StopRequests())
    dist.destroy_process_group()
    return 0


def run_worker(prepared: PreparedRun, workers: WorkerGroup) -> RunResult:
    """Run a rank other than 0 that torchrun or srun has started.

    Args:
        prepared: The checked experiment.
        workers: The ranks of the run, which have met.

    Returns:
        The result as far as this process knows it.
    """
    assert workers.communicator is not None
    with stop_requests() as stop:
        state = train_as_worker(prepared, workers.communicator, stop)
    # Rank 0 returns the exit code of the run: at any other than 0 here, srun would kill rank 0
    # while it writes its checkpoint.
    return RunResult(prepared.folder, State.COMPLETE, stored=state is None)


def train_as_worker(
    prepared: PreparedRun, communicator: ProcessGroupCommunicator, stop: StopRequests
) -> RunState | None:
    """Train with rank 0, which decides when to save and when to stop.

    Args:
        prepared: The checked experiment.
        communicator: The communicator of all ranks.
        stop: The signals that asked this process to stop.

    Returns:
        The state that the training ended in; None where there was nothing to train.
    """
    message: StartMessage | None = communicator.broadcast_object(None)
    if message is None:
        return None
    trainer = build_trainer(prepared, communicator)
    start = 0
    if message.checkpoint is not None:
        message.checkpoint.restore(trainer.model, trainer.optimizer, communicator.rank)
        start = message.checkpoint.step

    def save() -> None:
        for _ in communicator.gather_objects(random_state(), dst=0):
            raise AssertionError("rank 0 alone receives")

    def pause(_step: int) -> bool:
        action = communicator.all_reduce_max(StepAction.STOP if stop else StepAction.CONTINUE)
        if action is StepAction.SAVE:
            save()
        return action is StepAction.STOP

    outcome = trainer.train([], start=start, pause=pause)
    save()
    return outcome.state


def _exit_with_rank_0() -> None:
    while os.read(0, 1):
        pass
    sys.stderr.flush()
    os._exit(1)
