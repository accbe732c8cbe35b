"""``hydra/launcher=slurm``: Hydra loads launchers only from this namespace."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from condexp.runs.sweep.job import JobTask


class SlurmLauncher(Launcher):
    """Has Slurm run the jobs of a grid.

    Args:
        options: The keys of ``hydra.launcher``.
    """

    def __init__(self, **options: Any) -> None:
        self._given = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in options.items()
        }

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra gives.

        Args:
            hydra_context: Loads configurations.
            task_function: The grid's :class:`condexp.runs.sweep.job.JobTask`.
            config: The composed configuration of the grid.
        """
        self._loader, self._config = hydra_context.config_loader, config
        self._grid: JobTask = task_function  # type: ignore[assignment]

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit the jobs as one array, and wait for them.

        Args:
            job_overrides: Of each job.
            initial_job_idx: Of the first one in the grid.

        Returns:
            How each ended, in their order.
        """
        # Hydra imports this file at every start.
        from condexp.runs.sweep.slurm.options import slurm_options
        from condexp.runs.sweep.slurm.submit import run_on_slurm

        orders = self._grid.orders[initial_job_idx:]
        jobs = []
        for order, overrides in zip(orders, job_overrides, strict=False):
            composed = self._loader.load_sweep_config(self._config, list(overrides))
            hydra_config = composed.hydra
            with open_dict(composed):
                del composed["hydra"]
            jobs.append((order, self._grid.job(composed, hydra_config, order, alone=False)))
        results = run_on_slurm(self._grid, jobs, slurm_options(self._given))
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=result) for result in results]
