"""``hydra/launcher=slurm``: Hydra loads launchers only from this namespace."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from condexp.runs.sweep.job import JobTask


class SlurmLauncher(Launcher):
    """Has Slurm run the jobs of a sweep.

    Args:
        options: The keys of ``hydra.launcher``.
    """

    def __init__(self, **options: Any) -> None:
        self._given = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in options.items()
        }

    def setup(
        self,
        *,
        hydra_context: HydraContext,  # noqa: ARG002 - every job is composed already
        task_function: TaskFunction,
        config: DictConfig,  # noqa: ARG002 - the same
    ) -> None:
        """Take what Hydra gives.

        Args:
            hydra_context: Not used: every job is composed and validated already.
            task_function: The sweep's :class:`condexp.runs.sweep.job.JobTask`.
            config: Not used either.
        """
        self._sweep: JobTask = task_function  # type: ignore[assignment]

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit the jobs as one array, and wait for them.

        Args:
            job_overrides: Of each job.
            initial_job_idx: Of the first one in the sweep.

        Returns:
            How each ended, in their order.
        """
        # Hydra imports this file at every start.
        from condexp.runs.sweep.slurm.options import slurm_options
        from condexp.runs.sweep.slurm.submit import run_on_slurm

        jobs = self._sweep.jobs[initial_job_idx : initial_job_idx + len(job_overrides)]
        results = run_on_slurm(self._sweep, jobs, slurm_options(self._given))
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=result) for result in results]
