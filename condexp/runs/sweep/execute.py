"""A sweep as a whole: its jobs are launched, stopped together, and reported."""

import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from condexp.errors import InputError
from condexp.results.console import show
from condexp.runs.execute import stored_result
from condexp.runs.result import RunResult
from condexp.runs.stop_signals import Stopped, StopRequests, heeded_signals, stop_requests
from condexp.runs.sweep.job import JobTask, SweepFlags
from condexp.runs.sweep.job_spec import JobSpec, dump_config
from condexp.runs.sweep.plan import JobAction, PlannedJob, own_settings
from condexp.runs.sweep.report import result_table
from condexp.store.run_folder.status import State, read_status

Launch = Callable[[JobTask, Sequence[Sequence[str]]], Sequence[JobReturn]]
"""Has Hydra's launcher run jobs, given by their overrides; what it brings back may be short of the
last ones where the sweep was stopped."""


def run_sweep(jobs: Sequence[PlannedJob], launch: Launch) -> int:
    """Run the jobs that are to be run, and print the table of all.

    Args:
        jobs: The plan.
        launch: Runs jobs.

    Returns:
        The sweep's exit code: 75 or 130 where it was stopped, else 1 if a job failed or was
        cancelled, else 75 if one is not finished.
    """
    results = {index: job.result for index, job in enumerate(jobs) if job.result is not None}
    to_run = [index for index, job in enumerate(jobs) if job.cost is not None]
    with tempfile.TemporaryDirectory(prefix="condexp-sweep-") as folder:
        flags = SweepFlags(Path(folder))
        with _stopping(flags) as requests:
            specs = _specs(jobs)
            task = JobTask(flags, tuple(specs[index] for index in to_run))
            results |= dict(zip(to_run, _launched(jobs, to_run, task, launch), strict=True))
    for index, job in enumerate(jobs):
        if job.original is not None:
            results[index] = results[job.original]
        elif job.todo is JobAction.LEAVE:
            results[index] = _stored_meanwhile(job.folder) or results[index]
    ended = [results[index] for index in range(len(jobs))]
    show(result_table(jobs, ended))
    codes = {result.exit_code for result in ended} - {0}
    if codes and requests.signal is not None:
        return Stopped(requests.signal).exit_code
    return min(codes, default=0)


def _launched(
    jobs: Sequence[PlannedJob], to_run: Sequence[int], task: JobTask, launch: Launch
) -> list[RunResult]:
    """Return how launched jobs ended, even where the launcher itself is lost.

    Raises:
        InputError: If the launcher could not begin.
    """
    returns: Sequence[JobReturn] = []
    failure: str | None = None
    try:
        returns = launch(task, [jobs[index].overrides for index in to_run]) if to_run else []
    except InputError:  # it never began
        raise
    except Exception as error:  # of a launcher's worker that was killed, say
        reason = next(iter(str(error).splitlines()), "")
        failure = f"the launcher failed: {type(error).__name__}: {reason}"
    missing = task.jobs[len(returns) :]
    return [
        *(_result(record) for record in returns),
        *(_as_left(job.folder, task.reason_not_to_start(job), failure) for job in missing),
    ]


def _stored_meanwhile(folder: Path) -> RunResult | None:
    """Return the result of a job that another process was at, if it is there by now."""
    with suppress(InputError):
        return stored_result(folder, "resume")
    return None


def _specs(jobs: Sequence[PlannedJob]) -> list[JobSpec]:
    return [
        JobSpec(
            name=f"{job.number}{'' if job.config.run.index else f'/{len(jobs)}'} ({own})",
            folder=job.folder.absolute(),
            config=dump_config(job.config.plain),
            argv=tuple(sys.argv),
            fail_fast=job.config.run.fail_fast,
            timeout=job.config.run.timeout,
        )
        for job, own in zip(jobs, own_settings(jobs), strict=True)
    ]


def _result(record: JobReturn) -> RunResult:
    value: Any = record._return_value  # return_value would raise and print
    if record.status == JobStatus.COMPLETED and isinstance(value, RunResult):
        return value
    return RunResult.lost(str(value))


def _as_left(folder: Path, why_not: str | None, failure: str | None) -> RunResult:
    """Return how a job stands of which the launcher brought nothing back."""
    state = State.PENDING
    with suppress(InputError):
        status = read_status(folder)
        if status.state in {State.COMPLETE, State.DIVERGED}:
            return RunResult(folder, status.state)
        state = State.INTERRUPTED
    if why_not is None and failure is not None:
        return RunResult(folder, State.FAILED, failure)
    return RunResult(folder, state, why_not)


@contextmanager
def _stopping(flags: SweepFlags) -> Iterator[StopRequests]:
    """Tell all processes of the sweep when a signal asks it to stop.

    Yields:
        What was asked for.
    """
    with stop_requests() as requests:

        def note(number: int, frame: FrameType | None) -> None:
            flags.stop()
            requests.note(number, frame)

        if threading.current_thread() is threading.main_thread():
            for number in heeded_signals():
                signal.signal(number, note)
        yield requests
