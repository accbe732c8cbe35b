"""The keys of ``conf/optimizer``, ``conf/scheduler``, ``conf/loss`` and ``conf/trainer``."""

from dataclasses import dataclass
from typing import Any, ClassVar

from condexp.errors import one_of, within
from condexp.training.choices import ModelPrecision


@dataclass(kw_only=True)
class OptimizerConfig:
    """What every optimizer has."""

    num_slots: ClassVar[int] = 2  # values it keeps of each weight, for the size of a checkpoint
    name: str
    lr: float = within(0, open_low=True)


@dataclass(kw_only=True)
class SgdConfig(OptimizerConfig):
    """``optimizer=sgd``."""

    num_slots: ClassVar[int] = 1
    weight_decay: float = within(0)
    momentum: float = within(0, 1)
    nesterov: bool


@dataclass(kw_only=True)
class AdamConfig(OptimizerConfig):
    """``optimizer=adam`` and ``optimizer=adamw``."""

    weight_decay: float = within(0)
    betas: tuple[float, float] = within(0, 1)
    eps: float = within(0)


@dataclass(kw_only=True)
class ImportOptimizerConfig(OptimizerConfig):
    """``optimizer=import``: the user's own."""

    target: str
    kwargs: dict[str, Any]


@dataclass(kw_only=True)
class SchedulerConfig:
    """``scheduler=constant``, and what all schedulers have."""

    name: str
    warmup_steps: int = within(0)


@dataclass(kw_only=True)
class MultistepConfig(SchedulerConfig):
    """``scheduler=multistep``."""

    milestones: list[int] = within(1)
    gamma: float = within(0, open_low=True)


@dataclass(kw_only=True)
class CosineConfig(SchedulerConfig):
    """``scheduler=cosine``: to 0 over the whole run."""


@dataclass(kw_only=True)
class ImportSchedulerConfig(SchedulerConfig):
    """``scheduler=import``: the user's own."""

    target: str
    kwargs: dict[str, Any]


@dataclass(kw_only=True)
class LossConfig:
    """``loss=task``, ``loss=cross_entropy`` and ``loss=mse``."""

    name: str


@dataclass(kw_only=True)
class ImportLossConfig(LossConfig):
    """``loss=import``: the user's own."""

    target: str
    kwargs: dict[str, Any]


@dataclass(kw_only=True)
class EvalConfig:
    """When the training and test sets are evaluated; always at the end."""

    every_epochs: int | None = within(1)


@dataclass(kw_only=True)
class CheckpointConfig:
    """When a run saves a checkpoint; it always does when it is stopped, and at its end."""

    every_steps: int | None = within(1)
    every_epochs: int | None = within(1)
    keep: int | str = within(0)


@dataclass(kw_only=True)
class RescaleConfig:
    """Hidden weights times ``factor`` before the first step, and divided by it at an epoch."""

    factor: float = within(0, open_low=True)
    release_epoch: int | None = within(1)


@dataclass(kw_only=True)
class TrainerConfig:
    """Length, batches and hardware of a run."""

    epochs: int | None = within(1)
    steps: int | None = within(1)
    batch_size: int | str = within(1)
    device: str
    precision: str = one_of(ModelPrecision)
    compile: bool
    channels_last: bool
    deterministic: bool
    num_threads: int | None = within(1)
    num_processes: int = within(1)
    sync_batchnorm: bool
    rescale: RescaleConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "sgd": SgdConfig,
    "adam": AdamConfig,
    "adamw": AdamConfig,
    "import": ImportOptimizerConfig,
}
SCHEDULERS: dict[str, type[SchedulerConfig]] = {
    "constant": SchedulerConfig,
    "multistep": MultistepConfig,
    "cosine": CosineConfig,
    "import": ImportSchedulerConfig,
}
LOSSES: dict[str, type[LossConfig]] = {
    "task": LossConfig,
    "cross_entropy": LossConfig,
    "mse": LossConfig,
    "import": ImportLossConfig,
}
