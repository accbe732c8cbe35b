"""A grid as a whole: every job is validated before the first one starts, and all are reported."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from omegaconf import DictConfig

from condexp.errors import InputError
from condexp.experiment import JobResult, stored_result
from condexp.launch import experiment_name
from condexp.prepare import prepare
from condexp.validation import validate


def check_grid(jobs: Sequence[Sequence[str]], composed: Sequence[DictConfig]) -> None:
    """Validate every job as if it were to start now.

    Args:
        jobs: The overrides of each job.
        composed: The configuration of each job.

    Raises:
        InputError: At the first job that could not run; no job has started.
    """
    if not jobs:
        raise InputError("the grid is empty: a swept key has no values.")
    for number, (overrides, config) in enumerate(zip(jobs, composed, strict=True), start=1):
        try:
            stored_result(prepare(validate(config, experiment_name(config.hydra))))
        except InputError as error:
            settings = " ".join(filter_overrides(overrides))
            raise InputError(
                f"job {number} of {len(jobs)} ({settings}): {error} Nothing was run."
            ) from error


def finish_grid(jobs: Sequence[Sequence[str]], returns: Sequence[JobReturn]) -> int:
    """Print the table of all jobs.

    Args:
        jobs: The overrides of each job.
        returns: What the launcher brought back of each.

    Returns:
        The grid's exit code: 1 if a job failed.
    """
    from condexp.console import show_grid

    results = [_result(record) for record in returns]
    show_grid([filter_overrides(job) for job in jobs], results)
    return int(any(result.exit_code for result in results))


def _result(record: JobReturn) -> JobResult:
    value: Any = record._return_value  # return_value would raise and print
    if record.status == JobStatus.COMPLETED and isinstance(value, JobResult):
        return value
    return JobResult.lost(str(value))
