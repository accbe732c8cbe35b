"""The typed configuration: every key of ``conf/`` and what it may hold.

Values live in ``conf/``, types, limits and choices here, checks in :mod:`condexp.validation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from condexp.config.analysis import AnalysisConfig
from condexp.config.datasets import DATASETS, DatasetConfig
from condexp.config.models import MODELS, ModelConfig
from condexp.config.training import (
    OPTIMIZERS,
    SCHEDULERS,
    OptimizerConfig,
    SchedulerConfig,
    TrainerConfig,
)
from condexp.limits import one_of


@dataclass(kw_only=True)
class StoreConfig:
    """How a commit reaches the disk."""

    durability: str = one_of(("kill", "power"))


@dataclass(kw_only=True)
class RunConfig:
    """Where runs live and what happens to one that exists."""

    root: str
    on_existing: str = one_of(("resume", "restart", "fail"))


@dataclass(kw_only=True)
class Config:
    """One experiment, typed and checked; ``plain`` is the same as nested dicts, for files."""

    experiment: str
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
