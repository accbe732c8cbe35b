"""The typed configuration: every key of ``conf/`` and what it may hold.

Values live in ``conf/``, types, limits and choices here, but for those of models and data sets,
which stand in a file each (:mod:`.by_name`); :mod:`.validation` checks them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from condexp.config.analysis import AnalysisConfig
from condexp.config.loggers import LoggerConfig
from condexp.config.training import (
    LOSSES,
    OPTIMIZERS,
    SCHEDULERS,
    LossConfig,
    OptimizerConfig,
    SchedulerConfig,
    TrainerConfig,
)
from condexp.data.spec import DatasetSpec
from condexp.errors import one_of, within
from condexp.models.spec import ModelSpec


@dataclass(kw_only=True)
class StoreConfig:
    """How a commit reaches the disk."""

    durability: str = one_of(("kill", "power"))


@dataclass(kw_only=True)
class RunConfig:
    """Where runs live, what happens to one that exists, and how a sweep treats its jobs."""

    root: str
    on_existing: str = one_of(("resume", "restart", "fail"))
    max_attempts: int = within(1)
    fail_fast: bool
    timeout: float | None = within(0, open_low=True)
    dry_run: bool
    objective: str | None
    extend_from: str | None
    index: int | None = within(1)
    max_disk: float = within(0, open_low=True)


@dataclass(kw_only=True)
class Config:
    """One experiment, typed and checked; ``plain`` is the same as nested dicts, for files."""

    experiment: str
    profile: str | None
    seed: int
    model: ModelSpec
    dataset: DatasetSpec
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    loss: LossConfig
    trainer: TrainerConfig
    analysis: AnalysisConfig
    store: StoreConfig
    run: RunConfig
    logger: LoggerConfig
    plain: dict[str, Any]


GROUPS: Mapping[str, type | Mapping[str, type]] = {
    "model": ModelSpec,  # its subclass in the file of the name
    "dataset": DatasetSpec,  # likewise
    "optimizer": OPTIMIZERS,
    "scheduler": SCHEDULERS,
    "loss": LOSSES,
    "trainer": TrainerConfig,
    "analysis": AnalysisConfig,
    "store": StoreConfig,
    "run": RunConfig,
    "logger": LoggerConfig,
}
