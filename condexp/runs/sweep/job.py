"""The jobs of a grid, as its launcher starts them: each in a process of its own.

This runs in the grid's own process or in a worker of the launcher, and imports nothing heavy.
"""

import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from condexp.config.presets import chosen_presets
from condexp.errors import InputError
from condexp.runs.result import RunResult
from condexp.runs.stop_signals import SIGNALS
from condexp.runs.sweep.job_process import Order, run_in_process
from condexp.store.run_folder.liveness import Liveness, describe_process, liveness_of, lock_held
from condexp.store.run_folder.status import State, read_status


@dataclass(frozen=True)
class SweepFlags:
    """What all processes of a grid can see: a folder with a file for each thing that happened."""

    folder: Path

    def stop(self) -> None:
        """Ask every job to stop, and let none start."""
        with suppress(OSError):  # called by a signal
            (self.folder / "stop").touch()

    @property
    def stopped(self) -> bool:
        """Whether the grid was asked to stop."""
        return (self.folder / "stop").exists()

    def fail(self) -> None:
        """Take note that a job failed."""
        with suppress(OSError):
            (self.folder / "failed").touch()

    @property
    def failed(self) -> bool:
        """Whether a job failed."""
        return (self.folder / "failed").exists()


@dataclass(frozen=True)
class JobTask:
    """Hydra's task function for the jobs of a grid; a launcher may carry it to other processes.

    Args:
        board: Shared by the grid's processes.
        orders: Of each job that is launched.
        argv: The grid's command line.
        folder: Where it was given: a launcher may keep its workers from one grid to the next.
        grid_pid: The grid's own process.
    """

    board: SweepFlags
    orders: tuple[Order, ...]
    argv: tuple[str, ...] = field(default_factory=lambda: tuple(sys.argv))
    folder: Path = field(default_factory=Path.cwd)
    grid_pid: int = field(default_factory=os.getpid)

    def __call__(self, composed: DictConfig) -> RunResult:
        """Run one job, unless no more are to be started.

        Args:
            composed: Its configuration.

        Returns:
            How it ended.
        """
        hydra_config = HydraConfig.get()
        order = self.orders[hydra_config.job.num]
        of_grid = os.getppid() == self.grid_pid  # a launcher's worker on the same machine
        if of_grid:
            _leave_signals_to_the_grid()
        not_run = self.not_run(order)
        if not_run is not None:
            return not_run

        def is_orphan() -> bool:
            # A worker outlives a killed grid: it looks for the end of that only between its tasks.
            return of_grid and os.getppid() != self.grid_pid

        def reason_to_stop() -> str | None:
            if is_orphan():
                return "the grid's process is gone"
            return "the grid was stopped" if self.board.stopped else None

        num_parallel = _num_parallel(hydra_config, len(self.orders))
        job = self.job(composed, hydra_config, order, alone=num_parallel == 1)
        share = num_cores() // num_parallel if num_parallel > 1 else None
        result = run_in_process(job, order, reason_to_stop, environment(share), self.folder)
        if result.exit_code == 1:
            self.board.fail()
        if is_orphan():
            os._exit(1)  # nobody takes the result
        return result

    def job(
        self, composed: DictConfig, hydra_config: HydraConf, order: Order, *, alone: bool
    ) -> dict[str, Any]:
        """Describe a job to the process that runs it.

        Args:
            composed: Its configuration.
            hydra_config: Hydra's part of that.
            order: What else is known of it.
            alone: Whether it may draw on the terminal.

        Returns:
            What :mod:`condexp.runs.sweep.job_main` reads: plain values.
        """
        return {
            "config": OmegaConf.to_yaml(composed, resolve=True),
            "presets": chosen_presets(hydra_config),
            "name": order.name,
            "alone": alone,
            "argv": self.argv,
        }

    def not_run(self, order: Order, *, again: bool = False) -> RunResult | None:
        """Say how a job stands that is not to be run now.

        Args:
            order: The job.
            again: Whether it was started before, and a scheduler that ended its process goes on.

        Returns:
            How it stands; None: it is to be run.
        """
        why_not = None if again else self.reason_not_to_start(order)
        if why_not is not None:
            return RunResult(order.folder, State.PENDING, why_not)
        with suppress(InputError):  # the plan may be hours old
            status = read_status(order.folder)
            # On another machine its own last process seems to live on: the lock knows better.
            alive = (
                lock_held(order.folder)
                if again
                else liveness_of(order.folder, status) is Liveness.ALIVE
            )
            if alive:
                there = f"{describe_process(status)} is at it: left alone"
                return RunResult(order.folder, State.RUNNING, there)
        return None

    def reason_not_to_start(self, order: Order) -> str | None:
        """Say why a job is not to be started.

        Args:
            order: The job.

        Returns:
            The reason; None: it is.
        """
        if self.board.stopped:
            return "not started: the grid was stopped"
        if order.fail_fast and self.board.failed:
            return "not started: another job failed, and run.fail_fast=true"
        return None


def _leave_signals_to_the_grid() -> None:
    """Make Ctrl-C, which reaches every process of a terminal, no end of a launcher's worker."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            # No SIG_IGN, which a new process would inherit.
            signal.signal(number, lambda *_: None)


def _num_parallel(hydra_config: HydraConf, num_jobs: int) -> int:
    """Return how many jobs this machine runs at a time."""
    wanted = int(hydra_config.launcher.get("n_jobs") or 1)
    return min(num_jobs, wanted if wanted > 0 else num_cores())


def environment(num_threads: int | None) -> dict[str, str]:
    """Return this process's environment for a job.

    Args:
        num_threads: Threads it may have at most; None: as many as it likes.

    Returns:
        The environment.
    """
    variables = dict(os.environ)
    if num_threads is not None:
        share = max(1, num_threads)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            given = variables.get(name, "")
            variables[name] = str(min(share, int(given)) if given.isdecimal() else share)
    return variables


def num_cores() -> int:
    """Count the cores that this process may use: of a cluster's node often a part.

    Returns:
        Their number.
    """
    allowed = getattr(os, "sched_getaffinity", None)  # Linux
    return len(allowed(0)) if allowed else os.cpu_count() or 1
