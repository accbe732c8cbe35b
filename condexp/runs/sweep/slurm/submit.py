"""A sweep on Slurm: its jobs are submitted as an array, waited for, and told of as each ends."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from condexp.errors import InputError
from condexp.results.console import say
from condexp.runs.result import RunResult
from condexp.runs.sweep.job import JobTask, SweepFlags
from condexp.runs.sweep.job_spec import JobSpec
from condexp.runs.sweep.slurm.options import SlurmOptions
from condexp.runs.sweep.slurm.watch import OVER, JobWatcher, read_queue
from condexp.store.run_folder.status import State


def run_on_slurm(sweep: JobTask, jobs: Sequence[JobSpec], options: SlurmOptions) -> list[RunResult]:
    """Submit what is not in the queue yet, and wait for all.

    Args:
        sweep: The sweep that was asked for; its flags say when to wait no longer.
        jobs: The jobs of it that are to run.
        options: What is asked of Slurm.

    Returns:
        How each ended, or stands when waiting ends.

    Raises:
        InputError: If Slurm is not there, or refuses the jobs; nothing was run.
    """
    if sweep.flags.stopped:  # while the jobs were composed
        return [RunResult(j.folder, State.PENDING, sweep.reason_not_to_start(j)) for j in jobs]
    folder = Path(options.submitit_folder).absolute()
    _refuse_jobs_of_before(folder, jobs)
    submitted = SubmittedJobs(folder / "submitted")
    numbers = submitted.in_queue(jobs)
    for job in jobs:
        if job.folder in numbers:
            say(f"job {job.name}: in the queue already, as Slurm's job {numbers[job.folder]}")
    missing = [job for job in jobs if job.folder not in numbers]
    if missing:
        for job, number in zip(missing, submit(sweep, missing, options, folder), strict=True):
            submitted.write(job, number)
            numbers[job.folder] = number
    say(f"logs: {folder}/*_log.out; Ctrl-C ends the waiting, and leaves the jobs to Slurm")
    waiting = [(job, numbers[job.folder]) for job in jobs]
    return JobWatcher(folder, waiting).wait(sweep.flags)


def _refuse_jobs_of_before(folder: Path, jobs: Sequence[JobSpec]) -> None:
    """Refuse jobs that condexp 0.1 has in the queue: this version cannot read what they hold.

    Raises:
        InputError: If there are any.
    """
    waiting = SubmittedJobs(folder / "queued").in_queue(jobs)
    if waiting:
        raise InputError(
            f"Slurm's queue holds jobs of these runs that an earlier condexp submitted "
            f"({', '.join(sorted(waiting.values()))}): they name modules that have moved, and "
            "cannot start any more. End them with scancel, then give the same command again."
        )


def submit(
    sweep: JobTask,
    jobs: Sequence[JobSpec],
    options: SlurmOptions,
    folder: Path,
) -> list[str]:
    """Submit jobs as one array.

    Args:
        sweep: Their sweep.
        jobs: The jobs.
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
            "the sweep where jobs are submitted, or leave hydra/launcher out to run it here."
        )
    flags = SweepFlags(folder / "flags" / uuid.uuid4().hex)
    try:
        flags.folder.mkdir(parents=True)
        executor = submitit.SlurmExecutor(
            folder, max_num_timeout=options.max_num_timeout, python=options.python
        )
        executor.update_parameters(**options.requests())
        now = datetime.now(UTC).replace(microsecond=0)  # a run's own times are cut to seconds
        tasks = [
            SlurmTask(replace(sweep, flags=flags, jobs=(job,)), job, options.grace_seconds, now)
            for job in jobs
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

    def write(self, job: JobSpec, number: str) -> None:
        """Note a job's number.

        Args:
            job: The job.
            number: Slurm's.
        """
        with suppress(OSError):  # a job that is submitted twice finds the other's run
            self.folder.mkdir(parents=True, exist_ok=True)
            self._path(job).write_text(number)

    def in_queue(self, jobs: Sequence[JobSpec]) -> dict[Path, str]:
        """Find the jobs that are in the queue.

        Args:
            jobs: The jobs.

        Returns:
            Slurm's numbers, by run folder.

        Raises:
            InputError: If Slurm does not say.
        """
        noted: dict[Path, str] = {}
        for job in jobs:
            with suppress(OSError):
                noted[job.folder] = self._path(job).read_text()
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

    def _path(self, job: JobSpec) -> Path:
        key = hashlib.sha256(os.fsencode(job.folder)).hexdigest()[:8]
        return self.folder / f"{job.folder.name}-{key}"
