"""The processes of one run, as rank 0 sees them: it starts them, tells them what to do, watches."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from condexp.config import Config
from condexp.runs.prepare import PreparedRun
from condexp.runs.stop_signals import SIGNALS
from condexp.runs.workers.interpreter import START
from condexp.training.checkpoint import Checkpoint
from condexp.training.distributed.communicator import SINGLE_TRAINING_PROCESS, TrainingCommunicator
from condexp.training.distributed.environment import DistributedEnv, given_place
from condexp.training.distributed.process_group import ProcessGroupCommunicator

NUMBERS = [int(number) for number in SIGNALS]
IGNORING = f"import signal; [signal.signal(number, signal.SIG_IGN) for number in {NUMBERS}]; "
COMMAND = (sys.executable, "-c", IGNORING + START.format("condexp.runs.workers.main"))
POLL_SECONDS = 0.2
GRACE_SECONDS = 20.0  # for this process to notice by itself that another is gone
END_SECONDS = 60.0  # for the others to end once all is done


@dataclass(frozen=True)
class StartMessage:
    """What rank 0 tells the others before they train.

    Attributes:
        checkpoint: What to go on from; None: from nothing.
    """

    checkpoint: Checkpoint | None


@dataclass(frozen=True)
class WorkerSpec:
    """What a process that rank 0 has started needs to become a rank."""

    config: Config
    place: DistributedEnv


class WorkerGroup:
    """The processes of a run; used in a ``with``, at whose end the others are gone.

    Args:
        prepared: The checked experiment.
    """

    def __init__(self, prepared: PreparedRun) -> None:
        self._prepared = prepared
        self.place = given_place()
        self.team: ProcessGroupCommunicator | None = None
        self._told = False
        self._children: list[subprocess.Popen[bytes]] = []
        self._ended = threading.Event()
        self._lost_one = threading.Event()
        self._lost = ""
        self._patience = END_SECONDS

    def __enter__(self) -> Self:
        if self.place is not None:  # others wait for this process, whatever it finds to do
            self.team = self.place.join(self._prepared.device)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.team is not None and self.team.rank == 0 and not self._told:
            self._broadcast_start(None)
        self.done()
        for child in self._children:
            assert child.stdin is not None
            with suppress(subprocess.TimeoutExpired):
                child.wait(self._patience if kind is None else 0)
            child.kill()
            with suppress(OSError):
                child.stdin.close()
            child.wait()
        if dist.is_initialized():
            dist.destroy_process_group()

    def start(
        self, checkpoint: Checkpoint | None, on_loss: Callable[[str], None]
    ) -> TrainingCommunicator:
        """Have all processes ready to train.

        Args:
            checkpoint: What the run goes on from.
            on_loss: Told where one died and this process does not come to notice; it is ended then.

        Returns:
            The crew; one process alone is a crew as well.
        """
        size = self._prepared.config.trainer.num_processes
        if size == 1:
            return SINGLE_TRAINING_PROCESS
        if self.team is None:
            self._spawn(size, on_loss)
        self._broadcast_start(StartMessage(checkpoint))
        assert self.team is not None
        return self.team

    def done(self) -> None:
        """Take note that all have trained: their ends are no loss any more."""
        self._ended.set()

    def give_up(self) -> None:
        """Do not wait for the others: they wait for this process, which has failed."""
        self._patience = 0.0

    def loss(self, error: BaseException) -> str | None:
        """Say which process is gone, if that is why an exchange failed; waits for its end.

        Args:
            error: What failed here.

        Returns:
            Which one, and how it ended; None where the error is this process's own.
        """
        exchange = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        if self._children and exchange and self._lost_one.wait(timeout=5):
            return self._lost
        return None

    def _broadcast_start(self, orders: StartMessage | None) -> None:
        assert self.team is not None
        self.team.to_all(orders)
        self._told = True

    def _spawn(self, size: int, on_loss: Callable[[str], None]) -> None:
        address = "127.0.0.1"
        store = TCPStore(address, 0, size, is_master=True, wait_for_workers=False)
        place = DistributedEnv(0, size, 0, size, address, store.port, "condexp")
        for rank in range(1, size):
            child = subprocess.Popen([*COMMAND, json.dumps(sys.path)], stdin=subprocess.PIPE)
            self._children.append(child)
            mine = replace(place, rank=rank, local_rank=rank)
            assert child.stdin is not None
            with suppress(BrokenPipeError):  # it is dead already, and will be missed
                # The pipe stays open: where it ends, the other knows that this process is gone.
                pickle.dump(WorkerSpec(self._prepared.config, mine), child.stdin)
                child.stdin.flush()
        threading.Thread(target=self._watch, args=(on_loss,), daemon=True).start()
        self.team = place.join(self._prepared.device, store)

    def _watch(self, on_loss: Callable[[str], None]) -> None:
        while not self._ended.wait(POLL_SECONDS):
            for rank, child in enumerate(self._children, start=1):
                code = child.poll()
                # None: it lives. 0: its work is done, and this one's nearly.
                if not code or self._ended.is_set():
                    continue
                killed = code < 0 and f"killed by {signal.Signals(-code).name}"
                how = killed or "its traceback is on standard error"
                self._lost = f"process {rank} of the run's {len(self._children) + 1} ended: {how}"
                self._lost_one.set()
                if not self._ended.wait(GRACE_SECONDS):
                    # Blocked in an exchange that nobody answers, where no exception reaches it.
                    on_loss(self._lost)
                    os._exit(1)
                return
