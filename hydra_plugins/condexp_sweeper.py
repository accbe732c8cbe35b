"""The one place that sees all jobs of a sweep: Hydra loads sweepers only from this namespace."""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from condexp.config.sweep_jobs import JobComposer

if TYPE_CHECKING:
    from condexp.runs.sweep.job import JobTask

MAX_JOBS = 5_000  # all are checked before one starts
PRESETS = {"experiment", "profile"}


def _num_values(override: Override) -> int:
    """Return how many values an override sweeps over, or fewer."""
    value = override.value()
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
        return max(0, math.ceil((value.stop - value.start) / value.step))
    return len(value.list) if isinstance(value, ChoiceSweep) else 1


def _refuse_many(num_jobs: int) -> None:
    """Refuse a sweep that would take too long to plan.

    Raises:
        InputError: If it is one.
    """
    from condexp.errors import InputError

    if num_jobs > MAX_JOBS:
        raise InputError(
            f"the sweep has {num_jobs} jobs, and {MAX_JOBS} are the most: all are composed and "
            "checked before the first starts, which would take long. Give several sweeps one after "
            "the other, with a part of the seeds each, such as seed=range(1,1001); they share "
            "their folder, and 'condexp table' reads the runs of all."
        )


def _chosen(jobs: list[list[str]], index: object) -> list[list[str]]:
    """Return the jobs, or the one that ``run.index`` chooses.

    Raises:
        InputError: If there is no job of that number.
    """
    from condexp.errors import InputError

    if index is None:
        if any(job.startswith("run.index=") for overrides in jobs for job in overrides):
            raise InputError("run.index chooses one job of a sweep: give one number.")
        return jobs
    if not isinstance(index, int) or not 1 <= index <= len(jobs):
        raise InputError(
            f"run.index={index}: the sweep has the jobs 1 to {len(jobs)}, which run.dry_run=true "
            "lists."
        )
    return jobs[index - 1 : index]


@dataclass
class CondexpSweeperConf(BasicSweeperConf):
    """``hydra/sweeper=condexp``: the basic sweeper's grammar."""

    _target_: str = "hydra_plugins.condexp_sweeper.CondexpSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="condexp", node=CondexpSweeperConf, provider="condexp"
)


class CondexpSweeper(BasicSweeper):
    """Compose and plan every job, then launch what is to be run, each job in its own process."""

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,  # noqa: ARG002 - that of a single run
        config: DictConfig,
    ) -> None:
        """Take what Hydra gives; the launcher is made when the plan is known.

        Args:
            hydra_context: Loads configurations.
            task_function: Not used: a sweep's jobs have their own.
            config: The composed configuration of the sweep.
        """
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        """Run the sweep.

        Args:
            arguments: The command line's overrides; they win over ``hydra.sweeper.params``.

        Returns:
            Nothing: what became of each job is printed.

        Raises:
            SystemExit: With the sweep's exit code, if that is not 0.
        """
        # Only a sweep needs torch at this point.
        from condexp.results.console import show
        from condexp.runs.checks import check_parallel, refuse_several_sweeps
        from condexp.runs.progress import planning
        from condexp.runs.sweep.execute import run_sweep
        from condexp.runs.sweep.plan import plan_sweep
        from condexp.runs.sweep.report import plan_table

        refuse_several_sweeps()
        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        check_parallel(self.config.hydra.launcher.get("n_jobs"))
        jobs = _chosen(self._jobs(arguments), self.config.run.get("index"))
        compose = JobComposer(
            partial(loader.load_sweep_config, self.config),
            OverridesParser.create(config_loader=loader).parse_overrides,
        )
        composed = map(compose, jobs)
        with closing(planning(composed, len(jobs))) as followed:
            plan = plan_sweep(jobs, followed)
        if any(job.config.run.dry_run for job in plan):
            show(plan_table(plan))
            return []
        code = run_sweep(plan, self._launch)
        if code:  # hydra.main returns nothing under -m
            raise SystemExit(code)
        return []

    def _jobs(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of every job.

        Hydra composes a sweep without the choices that are swept. So where presets are, each one's
        own ``hydra.sweeper.params`` are read here, and the sweep has the jobs of all of them.

        Raises:
            InputError: If they are too many.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        given = parser.parse_overrides(arguments)
        swept = [o for o in given if o.is_sweep_override() and o.get_key_element() in PRESETS]
        fixed = [
            argument
            for o, argument in zip(given, arguments, strict=True)
            if not o.is_sweep_override()
        ]
        jobs: list[list[str]] = []
        (choices,) = self.split_arguments(swept, None)
        for choice in choices:
            params = self.params
            if choice:
                composed = loader.load_sweep_config(self.config, [*fixed, *choice])
                params = composed.hydra.sweeper.params or {}
            values = [f"{key}={value}" for key, value in params.items()]
            overrides = parser.parse_overrides([*values, *arguments, *choice])
            # Counted before they are listed: a slip of the pen makes millions.
            counts = {each.get_key_element(): _num_values(each) for each in overrides}
            _refuse_many(len(jobs) + math.prod(counts.values()))
            (own,) = self.split_arguments(overrides, None)
            jobs += own
        return jobs

    def _launch(self, task: "JobTask", jobs: Sequence[Sequence[str]]) -> Sequence[Any]:
        assert self.config is not None
        assert self.hydra_context is not None
        from condexp.runs.workers.interpreter import python_started_safely

        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=task, config=self.config
        )
        # One after another where the launcher does so anyway: a stopped sweep composes no more.
        size = 1 if isinstance(launcher, BasicLauncher) else self.max_batch_size
        returns: list[Any] = []
        for batch in self.split_overrides_to_chunks([list(job) for job in jobs], size):
            next_job = task.jobs[len(returns)]
            if task.flags.stopped or (size == 1 and task.reason_not_to_start(next_job)):
                break
            with python_started_safely():
                returns += launcher.launch(batch, initial_job_idx=len(returns))
        return returns
