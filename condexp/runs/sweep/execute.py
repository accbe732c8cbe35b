"""A grid as a whole: its jobs are launched, stopped together, and reported."""

import signal
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
from condexp.runs.stop_signals import SIGNALS, Stopped, StopRequests, stop_requests
from condexp.runs.sweep.job import JobTask, SweepFlags
from condexp.runs.sweep.job_process import Order
from condexp.runs.sweep.plan import JobAction, PlannedJob, own_settings
from condexp.runs.sweep.report import result_table
from condexp.store.run_folder.status import State, read_status

Launch = Callable[[JobTask, Sequence[Sequence[str]]], Sequence[JobReturn]]
"""Has Hydra's launcher run jobs, given by their overrides; what it brings back may be short of the
last ones where the grid was stopped."""


def run_sweep(jobs: Sequence[PlannedJob], launch: Launch) -> int:
    """Run the jobs that are to be run, and print the table of all.

    Args:
        jobs: The plan.
        launch: Runs jobs.

    Returns:
        The grid's exit code: 75 or 130 where it was stopped, else 1 if a job failed or was
        cancelled, else 75 if one is not finished.
    """
    results = {place: job.result for place, job in enumerate(jobs) if job.result is not None}
    places = [place for place, job in enumerate(jobs) if job.cost is not None]
    with tempfile.TemporaryDirectory(prefix="condexp-grid-") as folder:
        board = SweepFlags(Path(folder))
        with _stopping(board) as requests:
            orders = _orders(jobs)
            task = JobTask(board, tuple(orders[place] for place in places))
            results |= dict(zip(places, _launched(jobs, places, task, launch), strict=True))
    for place, job in enumerate(jobs):
        if job.original is not None:
            results[place] = results[job.original]
        elif job.todo is JobAction.LEAVE:
            results[place] = _stored_meanwhile(job.folder) or results[place]
    ended = [results[place] for place in range(len(jobs))]
    show(result_table(jobs, ended))
    codes = {result.exit_code for result in ended} - {0}
    if codes and requests.signal is not None:
        return Stopped(requests.signal).exit_code
    return min(codes, default=0)


def _launched(
    jobs: Sequence[PlannedJob], places: Sequence[int], task: JobTask, launch: Launch
) -> list[RunResult]:
    """Return how launched jobs ended, even where the launcher itself is lost.

    Raises:
        InputError: If the launcher could not begin.
    """
    returns: Sequence[JobReturn] = []
    failure: str | None = None
    try:
        returns = launch(task, [jobs[place].overrides for place in places]) if places else []
    except InputError:  # it never began
        raise
    except Exception as error:  # of a launcher's worker that was killed, say
        reason = next(iter(str(error).splitlines()), "")
        failure = f"the launcher failed: {type(error).__name__}: {reason}"
    missing = task.orders[len(returns) :]
    return [
        *(_result(record) for record in returns),
        *(_as_left(order.folder, task.reason_not_to_start(order), failure) for order in missing),
    ]


def _stored_meanwhile(folder: Path) -> RunResult | None:
    """Return the result of a job that another process was at, if it is there by now."""
    with suppress(InputError):
        return stored_result(folder, "resume")
    return None


def _orders(jobs: Sequence[PlannedJob]) -> list[Order]:
    names = [f"{n}/{len(jobs)} ({own})" for n, own in enumerate(own_settings(jobs), start=1)]
    runs = [job.config.run for job in jobs]
    return [
        Order(name, job.folder.absolute(), run.fail_fast, run.timeout)
        for name, job, run in zip(names, jobs, runs, strict=True)
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
def _stopping(board: SweepFlags) -> Iterator[StopRequests]:
    """Tell all processes of the grid when a signal asks it to stop.

    Yields:
        What was asked for.
    """
    with stop_requests() as requests:

        def note(number: int, frame: FrameType | None) -> None:
            board.stop()
            requests.note(number, frame)

        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, note)
        yield requests
