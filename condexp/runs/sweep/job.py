"""The jobs of a sweep, as its launcher starts them: each in a process of its own.

This runs in the sweep's own process or in a worker of the launcher, and imports nothing heavy.
"""

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from condexp.errors import InputError
from condexp.runs.result import RunResult
from condexp.runs.stop_signals import heeded_signals
from condexp.runs.sweep.job_process import run_in_process
from condexp.runs.sweep.job_spec import JobSpec
from condexp.runs.workers.interpreter import without_safe_path
from condexp.store.disk import ResultsError, locked
from condexp.store.run_folder.liveness import (
    UNFINISHED,
    Liveness,
    describe_process,
    liveness_of,
    lock_held,
)
from condexp.store.run_folder.status import State, read_status, write_status
from condexp.store.schema.layout import FILE_NAME


@dataclass(frozen=True)
class SweepFlags:
    """Flags shared by a sweep's processes, as files in one folder."""

    folder: Path

    def stop(self) -> None:
        """Ask every job to stop, and let none start."""
        self._raise("stop")

    @property
    def stopped(self) -> bool:
        """Whether the sweep was asked to stop."""
        return (self.folder / "stop").exists()

    def fail(self) -> None:
        """Note that a job failed."""
        self._raise("failed")

    @property
    def failed(self) -> bool:
        """Whether a job failed."""
        return (self.folder / "failed").exists()

    def _raise(self, name: str) -> None:
        with suppress(OSError):  # called by a signal
            # A cleaner of temporary folders may have removed it.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.folder / name).touch()


@dataclass(frozen=True)
class JobTask:
    """Hydra's task function for the jobs of a sweep; a launcher may carry it to other processes.

    Args:
        flags: Shared by the sweep's processes.
        jobs: The jobs that are launched, in the launcher's order.
        folder: Where the command was given: a launcher may keep its workers from one sweep to the
            next.
        sweep_pid: The sweep's own process.
    """

    flags: SweepFlags
    jobs: tuple[JobSpec, ...]
    folder: Path = field(default_factory=Path.cwd)
    sweep_pid: int = field(default_factory=os.getpid)

    def __call__(self, _composed: DictConfig) -> RunResult:
        """Run one job, unless no more are to be started.

        Args:
            _composed: Its configuration as the launcher composed it again; the one that was
                validated is in its :class:`JobSpec`.

        Returns:
            How it ended.
        """
        hydra_config = HydraConfig.get()
        job = self.jobs[hydra_config.job.num]
        of_sweep = os.getppid() == self.sweep_pid  # a launcher's worker on the same machine
        if of_sweep:
            _leave_signals_to_the_sweep()
        not_run = self.not_run(job)
        if not_run is not None:
            return not_run

        def is_orphan() -> bool:
            # A worker outlives a killed sweep: it looks for its end only between its tasks.
            return of_sweep and os.getppid() != self.sweep_pid

        def reason_to_stop() -> str | None:
            if is_orphan():
                return "the sweep's process is gone"
            return "the sweep was stopped" if self.flags.stopped else None

        num_parallel = _num_parallel(hydra_config, len(self.jobs))
        job = replace(job, draws_bar=num_parallel == 1)
        share = num_cores() // num_parallel if num_parallel > 1 else None
        result = run_in_process(job, reason_to_stop, environment(share), self.folder)
        if result.exit_code == 1:
            self.flags.fail()
        if is_orphan():
            os._exit(1)  # nobody takes the result
        return result

    def not_run(self, job: JobSpec, *, again: bool = False) -> RunResult | None:
        """Say how a job stands that is not to be run now.

        Args:
            job: The job.
            again: Whether it was started before, and its scheduler starts it again.

        Returns:
            How it stands; None: it is to be run.
        """
        why_not = None if again else self.reason_not_to_start(job)
        if why_not is not None:
            return RunResult(job.folder, State.PENDING, why_not)
        with suppress(InputError):  # the plan may be hours old
            status = read_status(job.folder)
            # On another machine its own last process seems to live on: the lock knows better.
            alive = (
                lock_held(job.folder)
                if again
                else liveness_of(job.folder, status) is Liveness.ALIVE
            )
            if alive:
                there = f"{describe_process(status)} is at it: left alone"
                return RunResult(job.folder, State.RUNNING, there)
            if again and status.state in UNFINISHED:  # which no lock might tell its next process
                with suppress(OSError, ResultsError), locked(job.folder / FILE_NAME) as owner:
                    write_status(job.folder, replace(status, state=State.INTERRUPTED), owner)
        return None

    def reason_not_to_start(self, job: JobSpec) -> str | None:
        """Say why a job is not to be started.

        Args:
            job: The job.

        Returns:
            The reason; None: it is.
        """
        if self.flags.stopped:
            return "not started: the sweep was stopped"
        if job.fail_fast and self.flags.failed:
            return "not started: another job failed, and run.fail_fast=true"
        return None


def _leave_signals_to_the_sweep() -> None:
    """Make Ctrl-C, which reaches every process of a terminal, no end of a launcher's worker."""
    if threading.current_thread() is threading.main_thread():
        for number in heeded_signals():
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
    variables = without_safe_path(dict(os.environ))
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
