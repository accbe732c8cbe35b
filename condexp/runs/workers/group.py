"""The worker processes of one run, which rank 0 starts, instructs and watches."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from condexp.analysis.communicator import SINGLE_PROCESS
from condexp.config import Config
from condexp.runs.prepare import PreparedRun
from condexp.runs.stop_signals import SIGNALS
from condexp.runs.workers.interpreter import START
from condexp.training.checkpoint import Checkpoint
from condexp.training.distributed.communicator import TrainingCommunicator
from condexp.training.distributed.environment import DistributedEnv
from condexp.training.distributed.process_group import ProcessGroupCommunicator

NUMBERS = [int(number) for number in SIGNALS]
# A process is started with these signals blocked, so that none ends it before it ignores them.
IGNORING = (
    f"import signal; [signal.signal(number, signal.SIG_IGN) for number in {NUMBERS}]; "
    f"signal.pthread_sigmask(signal.SIG_UNBLOCK, {NUMBERS}); "
)
COMMAND = (sys.executable, "-P", "-c", IGNORING + START.format("condexp.runs.workers.main"))
POLL_SECONDS = 0.2
GRACE_SECONDS = 20.0  # for this process to notice by itself that a worker has died
END_SECONDS = 60.0  # for the workers to end once training is finished


@dataclass(frozen=True)
class StartMessage:
    """The message by which rank 0 lets the other ranks begin to train.

    Attributes:
        checkpoint: The checkpoint to resume from; None: train from the start.
    """

    checkpoint: Checkpoint | None


@dataclass(frozen=True)
class WorkerSpec:
    """The description of a worker, which it reads from its standard input.

    Attributes:
        config: The validated configuration of the run.
        env: The rank of the worker, and where to meet the others.
    """

    config: Config
    env: DistributedEnv


class WorkerGroup:
    """The other ranks of a run; leaving its ``with`` block ends those that it started.

    Attributes:
        env: This process's environment where torchrun or srun started it; else None.
        communicator: The communicator of all ranks; None before they have met, and in a run of one.

    Args:
        prepared: The checked experiment.
    """

    def __init__(self, prepared: PreparedRun) -> None:
        self._prepared = prepared
        self.env = DistributedEnv.from_environ()
        self.communicator: ProcessGroupCommunicator | None = None
        self._start_sent = False
        self._workers: list[subprocess.Popen[bytes]] = []
        self._finished = threading.Event()
        self._worker_died = threading.Event()
        self._death = ""
        self._patience = END_SECONDS

    def __enter__(self) -> Self:
        # Whether there is anything to train or not: the ranks that torchrun started wait for it.
        if self.env is not None:
            self.communicator = self.env.init_process_group(self._prepared.device)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        communicator = self.communicator
        if communicator is not None and communicator.rank == 0 and not self._start_sent:
            self._broadcast_start(None)
        self.mark_finished()
        for worker in self._workers:
            assert worker.stdin is not None
            with suppress(subprocess.TimeoutExpired):
                worker.wait(self._patience if kind is None else 0)
            worker.kill()
            with suppress(OSError):
                worker.stdin.close()
            worker.wait()
        if dist.is_initialized():
            dist.destroy_process_group()

    def start(
        self, checkpoint: Checkpoint | None, on_death: Callable[[str], None]
    ) -> TrainingCommunicator:
        """Start the workers, unless torchrun or srun has, and let all ranks begin to train.

        Args:
            checkpoint: The checkpoint that the run resumes from.
            on_death: Called with a message before this process is ended, because a worker died and
                this process waits for it in a collective that never returns.

        Returns:
            The communicator of all ranks.
        """
        world_size = self._prepared.config.trainer.num_processes
        if world_size == 1:
            return SINGLE_PROCESS
        communicator = self.communicator or self._spawn(world_size, on_death)
        self.communicator = communicator
        self._broadcast_start(StartMessage(checkpoint))
        return communicator

    def mark_finished(self) -> None:
        """Mark training as finished, so that a worker that exits is no longer a failure."""
        self._finished.set()

    def give_up(self) -> None:
        """End the workers without waiting: this process has failed, and they wait for it."""
        self._patience = 0.0

    def dead_worker(self, error: BaseException) -> str | None:
        """Return which worker has died, if that is why a collective failed here.

        Args:
            error: The exception of this process.

        Returns:
            The worker and how it ended; None where the error is this process's own.
        """
        of_collective = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        if self._workers and of_collective and self._worker_died.wait(timeout=5):
            return self._death
        return None

    def _broadcast_start(self, message: StartMessage | None) -> None:
        assert self.communicator is not None
        self.communicator.broadcast_object(message)
        self._start_sent = True

    def _spawn(self, world_size: int, on_death: Callable[[str], None]) -> ProcessGroupCommunicator:
        address = "127.0.0.1"
        store = TCPStore(address, 0, world_size, is_master=True, wait_for_workers=False)
        env = DistributedEnv(0, world_size, 0, world_size, address, store.port, "condexp")
        for rank in range(1, world_size):
            with _blocked_signals():
                worker = subprocess.Popen([*COMMAND, json.dumps(sys.path)], stdin=subprocess.PIPE)
            self._workers.append(worker)
            spec = WorkerSpec(self._prepared.config, replace(env, rank=rank, local_rank=rank))
            assert worker.stdin is not None
            with suppress(BrokenPipeError):  # it has died already, which the watch will report
                # The pipe stays open: at its end a worker knows that this process is gone.
                pickle.dump(spec, worker.stdin)
                worker.stdin.flush()
        threading.Thread(target=self._watch, args=(on_death,), daemon=True).start()
        return env.init_process_group(self._prepared.device, store)

    def _watch(self, on_death: Callable[[str], None]) -> None:
        while not self._finished.wait(POLL_SECONDS):
            for rank, worker in enumerate(self._workers, start=1):
                code = worker.poll()
                # None: it runs. 0: it has finished, and so has this process, nearly.
                if not code or self._finished.is_set():
                    continue
                killed = code < 0 and f"killed by {signal.Signals(-code).name}"
                how = killed or "its traceback is on standard error"
                self._death = f"process {rank} of the run's {len(self._workers) + 1} ended: {how}"
                self._worker_died.set()
                if not self._finished.wait(GRACE_SECONDS):
                    # This process is blocked in a collective, where no exception reaches it.
                    on_death(self._death)
                    os._exit(1)
                return


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Let requests to stop wait; a process that is started meanwhile inherits that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
