"""A sweep's job on a cluster's node: it runs, and goes back to the queue when its time is up.

submitit calls this inside Slurm's job; the run itself is a process of its own, as everywhere.
"""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from types import FrameType

from submitit.core.utils import DelayedSubmission

from condexp.errors import InputError
from condexp.runs.result import RunResult
from condexp.runs.sweep.job import JobTask, environment, num_cores
from condexp.runs.sweep.job_process import run_in_process
from condexp.runs.sweep.job_spec import JobSpec
from condexp.store.run_folder.status import State, read_status

# Slurm sends both where a job is preempted, SIGUSR2 before a time limit, SIGTERM for scancel.
SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
# SIGTERM alone: scancel, or a preemption on a cluster that says nothing else. Slurm ends the job
# soon after, and knows whether to requeue it; a job that ends by itself is never requeued.
TERM_SECONDS = 120.0
POLL_SECONDS = 0.5
TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")  # they make logs look like one


@dataclass(frozen=True)
class SlurmTask:
    """One job, as submitit takes it to its node, and back to the queue.

    Args:
        sweep: Its sweep, with flags that the nodes can see.
        job: The job.
        grace_seconds: Seconds from a signal to a checkpoint, before it goes back without one.
        submitted: When it went to the queue for the first time.
    """

    sweep: JobTask
    job: JobSpec
    grace_seconds: float
    submitted: datetime

    def __call__(self) -> RunResult:
        """Run the job.

        Returns:
            How it ended; a job that goes back to the queue does not return.
        """
        for name in TERMINAL:
            os.environ.pop(name, None)
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's
        noted: set[signal.Signals] = set()

        def note(number: int, _frame: FrameType | None) -> None:
            noted.add(signal.Signals(number))

        for number in SIGNALS:
            signal.signal(number, note)
        again = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
        not_run = self.sweep.not_run(self.job, again=again)
        if not_run is not None:
            return not_run

        def reason_to_stop() -> str | None:
            return f"stopped by {min(noted).name}" if noted else None

        share = int(os.environ.get("SLURM_CPUS_ON_NODE") or num_cores())
        result = run_in_process(
            self._resumed() if again else self.job,
            reason_to_stop,
            environment(share),
            self.sweep.folder,
            self.grace_seconds,
        )
        if result.exit_code == 1:
            self.sweep.flags.fail()
        if result.state is not State.INTERRUPTED or not noted:
            return result
        give_up = time.monotonic() + TERM_SECONDS
        while signal.SIGUSR2 not in noted and time.monotonic() < give_up:
            time.sleep(POLL_SECONDS)
        if signal.SIGUSR2 not in noted or not callable(requeue):
            return result
        try:
            requeue(signal.SIGUSR2, None)
        except Exception as error:  # submitit's own, scontrol's
            why = f"{result.message}; not requeued: {error}"
            return replace(result, message=f"{why} The same command resumes it.")
        return result

    def checkpoint(self) -> DelayedSubmission:
        """Say what is to be run when the job starts again; submitit asks for it.

        Returns:
            This.
        """
        return DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint  # the name that newer versions of submitit look for

    def _resumed(self) -> JobSpec:
        """Return the job as it starts again: what it began, it resumes."""
        with suppress(InputError, ValueError):  # it had not begun
            began = datetime.fromisoformat(read_status(self.job.folder).started)
            if began >= self.submitted:  # not the run that run.on_existing speaks of
                return self.job.resumed()
        return self.job
