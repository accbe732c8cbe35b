"""A grid on Slurm: its jobs are submitted as an array, waited for, and told of as each ends."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from condexp.errors import InputError
from condexp.results.console import say
from condexp.runs.result import RunResult
from condexp.runs.sweep.job import JobTask, SweepFlags
from condexp.runs.sweep.job_process import Order
from condexp.runs.sweep.slurm.options import SlurmOptions
from condexp.runs.sweep.slurm.watch import OVER, JobWatcher, read_queue
from condexp.store.run_folder.status import State


def run_on_slurm(
    grid: JobTask, jobs: Sequence[tuple[Order, Mapping[str, Any]]], options: SlurmOptions
) -> list[RunResult]:
    """Submit what is not in the queue yet, and wait for all.

    Args:
        grid: The grid that was asked for; its board says when to wait no longer.
        jobs: What is known of each, and its description.
        options: What is asked of Slurm.

    Returns:
        How each ended, or stands when waiting ends.

    Raises:
        InputError: If Slurm is not there, or refuses the jobs; nothing was run.
    """
    if grid.board.stopped:  # while the jobs were composed
        return [RunResult(o.folder, State.PENDING, grid.reason_not_to_start(o)) for o, _ in jobs]
    folder = Path(options.submitit_folder).absolute()
    tickets = SubmittedJobs(folder / "queued")
    numbers = tickets.in_queue([order for order, _ in jobs])
    for order, _ in jobs:
        if order.folder in numbers:
            say(f"job {order.name}: in the queue already, as Slurm's job {numbers[order.folder]}")
    missing = [job for job in jobs if job[0].folder not in numbers]
    if missing:
        submitted = submit(grid, missing, options, folder)
        for (order, _), number in zip(missing, submitted, strict=True):
            tickets.write(order, number)
            numbers[order.folder] = number
    say(f"logs: {folder}/*_log.out; Ctrl-C ends the waiting, and leaves the jobs to Slurm")
    waiting = [(order, numbers[order.folder]) for order, _ in jobs]
    return JobWatcher(folder, waiting).wait(grid.board)


def submit(
    grid: JobTask,
    jobs: Sequence[tuple[Order, Mapping[str, Any]]],
    options: SlurmOptions,
    folder: Path,
) -> list[str]:
    """Submit jobs as one array.

    Args:
        grid: Their grid.
        jobs: What is known of each, and its description.
        options: What is asked of Slurm.
        folder: Where submitit keeps what it needs.

    Returns:
        Slurm's number of each.

    Raises:
        InputError: If Slurm or submitit is missing, or Slurm refuses the jobs.
    """
    try:
        import submitit

        from condexp.runs.sweep.slurm.job import SlurmTask
    except ImportError as error:
        raise InputError(
            "hydra/launcher=slurm needs submitit: pip install 'condexp[slurm]'."
        ) from error
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise InputError(
            "hydra/launcher=slurm needs Slurm's commands, sbatch and srun, on this machine: start "
            "the grid where jobs are submitted, or leave hydra/launcher out to run it here."
        )
    board = SweepFlags(folder / "boards" / uuid.uuid4().hex)
    try:
        board.folder.mkdir(parents=True)
        executor = submitit.SlurmExecutor(
            folder, max_num_timeout=options.max_num_timeout, python=options.python
        )
        executor.update_parameters(**options.requests())
        now = datetime.now(UTC).replace(microsecond=0)  # a run's own times are cut to seconds
        tasks = [
            SlurmTask(
                replace(grid, board=board, orders=(order,)), order, dict(job), options.patience, now
            )
            for order, job in jobs
        ]
        numbers = [str(job.job_id) for job in executor.submit_array(tasks)]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if "sbatch" in line] or [str(error)]
        raise InputError(f"Slurm refused the jobs: {lines[-1].strip()}") from error
    except OSError as error:
        raise InputError(
            f"hydra.launcher.submitit_folder: {folder} cannot be written to: {error.strerror}."
        ) from error
    several = len(jobs) > 1
    place = f"{numbers[0]} to {numbers[-1]}" if several else numbers[0]
    say(f"{len(jobs)} job{'s' * several} in Slurm's queue: {place}")
    return numbers


@dataclass(frozen=True)
class SubmittedJobs:
    """Slurm's number of each run's last job, so that a second call submits none twice.

    Args:
        folder: A file in it for each run.
    """

    folder: Path

    def write(self, order: Order, number: str) -> None:
        """Note a job's number.

        Args:
            order: The job.
            number: Slurm's.
        """
        with suppress(OSError):  # a job that is submitted twice finds the other's run
            self.folder.mkdir(parents=True, exist_ok=True)
            self._path(order).write_text(number)

    def in_queue(self, orders: Sequence[Order]) -> dict[Path, str]:
        """Find the jobs that are in the queue.

        Args:
            orders: The jobs.

        Returns:
            Slurm's numbers, by run folder.

        Raises:
            InputError: If Slurm does not say.
        """
        noted: dict[Path, str] = {}
        for order in orders:
            with suppress(OSError):
                noted[order.folder] = self._path(order).read_text()
        states = read_queue() if noted else {}
        if states is None:
            raise InputError(
                "squeue does not answer, so it is not known which jobs are in the queue already: "
                "give the same command again when it does."
            )
        return {
            folder: number
            for folder, number in noted.items()
            if states.get(number, "COMPLETED") not in OVER and not self._has_ended(number)
        }

    def _has_ended(self, number: str) -> bool:
        """Return whether a job left its result, and Slurm is but tidying up after it."""
        return (self.folder.parent / f"{number}_0_result.pkl").exists()

    def _path(self, order: Order) -> Path:
        place = hashlib.sha256(os.fsencode(order.folder)).hexdigest()[:8]
        return self.folder / f"{order.folder.name}-{place}"
