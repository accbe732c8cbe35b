"""Builds what a configuration names: model, data set, optimizer, learning rate, probe."""

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import nn

from condexp.analysis.options import AnalysisOptions
from condexp.config import Config
from condexp.config.by_name import find
from condexp.config.training import (
    CosineConfig,
    ImportLossConfig,
    ImportOptimizerConfig,
    ImportSchedulerConfig,
    MultistepConfig,
)
from condexp.data.choices import Augment
from condexp.data.dataset import Dataset, Share
from condexp.data.loaders import WHOLE, Batches
from condexp.data.spec import ImageSpec
from condexp.runs.extension import MARK, extended_run
from condexp.runs.user_training import build_own_loss, build_own_optimizer, own_learning_rate
from condexp.training.choices import ProbeMode
from condexp.training.evaluate import LossFunction, build_loss
from condexp.training.learning_rate import LearningRate, constant, cosine, multistep, warmed_up
from condexp.training.optimizers import build_optimizer
from condexp.training.probe import Probe, draw_probe

KEPT_DATASETS = 2  # of a sweep over data sets; they may be large
_loaded: dict[str, Dataset] = {}


def build_model(config: Config, dataset: Dataset) -> nn.Module:
    """Build the model for the data set's inputs and outputs.

    Args:
        config: The validated configuration.
        dataset: Its shapes decide the first and the last layer.

    Returns:
        The model, drawn from torch's global generator.
    """
    build: Callable[..., nn.Module] = find("model", config.model.name).build
    return build(config.model, dataset.input_shape, dataset.num_outputs)


def load_dataset(config: Config) -> Dataset:
    """Load the data set, or return the one that an earlier job of the sweep loaded.

    Args:
        config: The validated configuration.

    Returns:
        The data set; it is shared, so read-only.
    """
    spec = config.dataset
    if isinstance(spec, ImageSpec):
        spec = replace(spec, augment=Augment.NONE)  # drawn batch by batch, not loaded
    key = repr(spec)
    if key not in _loaded:
        while len(_loaded) >= KEPT_DATASETS:
            del _loaded[next(iter(_loaded))]
        _loaded[key] = find("dataset", spec.name).load(spec)
    return _loaded[key]


def identified(config: Config) -> Config:
    """Let a configuration tell its data, where the data set's name does not, and what it extends.

    Args:
        config: The validated configuration.

    Returns:
        The same, whose ``plain`` has the checksum of the user's own data as ``data_sha256``: other
        data are another run. So is a longer run that ``run.extend_from`` begins with.
    """
    plain = dict(config.plain)
    if not config.dataset.published:
        plain["data_sha256"] = load_dataset(config).checksum
    if (extended := extended_run(config.run.extend_from)) is not None:
        plain[MARK] = extended.mark
    return replace(config, plain=plain)


def training_batches(
    config: Config, dataset: Dataset, device: torch.device, share: Share = WHOLE
) -> Batches:
    """Shuffled, augmented batches of the training split.

    Args:
        config: The validated configuration.
        dataset: The data set.
        device: Where batches are wanted.
        share: The part of each that is wanted.

    Returns:
        The batches.
    """
    size = config.trainer.batch_size
    return Batches(
        dataset.train,
        mean=dataset.mean,
        std=dataset.std,
        batch_size=None if isinstance(size, str) else size,
        shuffle=True,
        seed=config.seed,
        augment=getattr(config.dataset, "augment", "none"),
        device=device,
        share=share,
    )


def file_attributes(
    title: str, options: AnalysisOptions, *, source: str, bn_mode: str
) -> dict[str, str | bool]:
    """Say in a results file what it is of, and how that was measured.

    Args:
        title: What is trained, in words.
        options: What is measured.
        source: ``train_batch`` or ``probe``.
        bn_mode: Whose statistics the normalisations use.

    Returns:
        The file's attributes.
    """
    return {
        "title": title,
        "fisher_type": str(options.fisher_type),
        "source": source,
        "bn_mode": bn_mode,
        "conv_input": str(options.conv_input),
        **({"weight_sharing": str(options.weight_sharing)} if options.reduces else {}),
        "center": options.center,
        "bias": options.bias,
    }


def make_probe(config: Config, dataset: Dataset, device: torch.device) -> Probe:
    """The fixed training samples of ``analysis.source=probe``, as stored: not augmented.

    Args:
        config: The validated configuration.
        dataset: The data set.
        device: Where to measure.

    Returns:
        The probe.
    """
    setting = config.analysis.probe
    return draw_probe(
        dataset,
        size=setting.size,
        batch_size=setting.batch_size,
        mode=ProbeMode(setting.mode),
        seed=config.seed,
        device=device,
    )


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of all the model's parameters.

    Args:
        config: The validated configuration.
        model: The model.

    Returns:
        The optimizer.
    """
    if isinstance(config.optimizer, ImportOptimizerConfig):
        return build_own_optimizer(config.optimizer, model)
    arguments = asdict(config.optimizer)
    return build_optimizer(arguments.pop("name"), model.parameters(), **arguments)


def make_loss(config: Config, dataset: Dataset) -> LossFunction:
    """Build the training loss.

    Args:
        config: The validated configuration.
        dataset: Its task decides what a loss can be.

    Returns:
        A function of outputs and targets.
    """
    if isinstance(config.loss, ImportLossConfig):
        return build_own_loss(config.loss, dataset)
    return build_loss(dataset.task, config.loss.name)


def make_learning_rate(config: Config, num_steps: int, steps_per_epoch: int) -> LearningRate:
    """Build the learning rate of each step.

    Args:
        config: The validated configuration.
        num_steps: Updates of the run.
        steps_per_epoch: Updates in an epoch.

    Returns:
        A function from the step to the learning rate.
    """
    scheduler, lr = config.scheduler, config.optimizer.lr
    rate = constant(lr)
    if isinstance(scheduler, CosineConfig):
        rate = cosine(lr, num_steps=num_steps)
    elif isinstance(scheduler, ImportSchedulerConfig):
        rate = own_learning_rate(scheduler, lr, num_steps, steps_per_epoch)
    elif isinstance(scheduler, MultistepConfig):
        rate = multistep(
            lr,
            milestones=scheduler.milestones,
            gamma=scheduler.gamma,
            steps_per_epoch=steps_per_epoch,
        )
    return warmed_up(rate, scheduler.warmup_steps)
