"""The typed configuration: every key of ``conf/`` and what it may hold.

Values live in ``conf/``, types, limits and choices here; :mod:`.validation` checks them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from condexp.config.analysis import AnalysisConfig
from condexp.config.constraints import one_of, within
from condexp.config.datasets import DATASETS, DatasetConfig
from condexp.config.models import MODELS, ModelConfig
from condexp.config.training import (
    OPTIMIZERS,
    SCHEDULERS,
    OptimizerConfig,
    SchedulerConfig,
    TrainerConfig,
)


@dataclass(kw_only=True)
class StoreConfig:
    """How a commit reaches the disk."""

    durability: str = one_of(("kill", "power"))


@dataclass(kw_only=True)
class RunConfig:
    """Where runs live, what happens to one that exists, and how a grid treats its jobs."""

    root: str
    on_existing: str = one_of(("resume", "restart", "fail"))
    max_attempts: int = within(1)
    fail_fast: bool
    timeout: float | None = within(0, open_low=True)
    dry_run: bool


@dataclass(kw_only=True)
class Config:
    """One experiment, typed and checked; ``plain`` is the same as nested dicts, for files."""

    experiment: str
    profile: str | None
    seed: int
    model: ModelConfig
    dataset: DatasetConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    trainer: TrainerConfig
    analysis: AnalysisConfig
    store: StoreConfig
    run: RunConfig
    plain: dict[str, Any]


GROUPS: Mapping[str, type | Mapping[str, type]] = {
    "model": MODELS,
    "dataset": DATASETS,
    "optimizer": OPTIMIZERS,
    "scheduler": SCHEDULERS,
    "trainer": TrainerConfig,
    "analysis": AnalysisConfig,
    "store": StoreConfig,
    "run": RunConfig,
}
