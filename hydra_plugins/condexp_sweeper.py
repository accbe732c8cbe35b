"""The one place that sees all jobs of a grid: Hydra loads sweepers only from this namespace."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


@dataclass
class CondexpSweeperConf(BasicSweeperConf):
    """``hydra/sweeper=condexp``: the basic sweeper's grammar."""

    _target_: str = "hydra_plugins.condexp_sweeper.CondexpSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="condexp", node=CondexpSweeperConf, provider="condexp"
)


class CondexpSweeper(BasicSweeper):
    """Compose every job, have all of them validated, then launch."""

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        """Run the grid.

        Args:
            arguments: The command line's overrides; they win over ``hydra.sweeper.params``.

        Returns:
            Hydra's record of each job, in the grid's order.

        Raises:
            SystemExit: With code 1 if a job failed.
        """
        from condexp.grid import check_grid, finish_grid  # only a grid needs torch at this point

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        batches = self.split_arguments(overrides, self.max_batch_size)
        jobs = [job for batch in batches for job in batch]
        check_grid(jobs, [loader.load_sweep_config(self.config, list(job)) for job in jobs])
        returns: list[Any] = []
        for batch in batches:
            returns += self.launcher.launch(batch, initial_job_idx=len(returns))
        code = finish_grid(jobs, returns)
        if code:  # hydra.main returns nothing under -m
            raise SystemExit(code)
        return returns
