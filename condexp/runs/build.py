"""From the typed configuration to objects: a group's ``name`` picks its builder from one table."""

from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from condexp.config import Config
from condexp.config.training import CosineConfig, MultistepConfig
from condexp.data.cifar import load_cifar10, load_cifar100
from condexp.data.dataset import Dataset, Share
from condexp.data.digits import load_digits
from condexp.data.gaussian import load_gaussian
from condexp.data.imagenet import load_imagenet
from condexp.data.loaders import WHOLE, Batches
from condexp.data.mnist import load_fashion_mnist, load_mnist
from condexp.data.svhn import load_svhn
from condexp.models.cnn import build_cnn
from condexp.models.imported import build_imported
from condexp.models.linear import build_linear
from condexp.models.mlp import build_mlp
from condexp.models.preresnet import build_preresnet
from condexp.models.resnet import build_resnet
from condexp.models.resnet_imagenet import build_resnet_imagenet
from condexp.models.torchvision_models import build_torchvision
from condexp.models.vgg import build_vgg
from condexp.training.choices import ProbeMode
from condexp.training.optimizers import (
    LearningRate,
    build_optimizer,
    constant,
    cosine,
    multistep,
    warmed_up,
)
from condexp.training.probe import Probe, draw_probe

MODEL_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": build_mlp,
    "cnn": build_cnn,
    "resnet": build_resnet,
    "linear": build_linear,
    "vgg": build_vgg,
    "preresnet": build_preresnet,
    "resnet_imagenet": build_resnet_imagenet,
    "torchvision": build_torchvision,
    "import": build_imported,
}
DATASET_LOADERS: dict[str, Callable[..., Dataset]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "svhn": load_svhn,
    "imagenet": load_imagenet,
    "gaussian": load_gaussian,
}


def build_model(config: Config, dataset: Dataset) -> nn.Module:
    """Build the model for the data set's inputs and outputs.

    Args:
        config: The validated configuration.
        dataset: Its shapes decide the first and the last layer.

    Returns:
        The model, drawn from torch's global generator.
    """
    arguments = asdict(config.model)
    build = MODEL_BUILDERS[arguments.pop("name")]
    return build(dataset.input_shape, dataset.num_outputs, **arguments)


def load_dataset(config: Config) -> Dataset:
    """Load the data set, or return the one that an earlier job of the grid loaded.

    Args:
        config: The validated configuration.

    Returns:
        The data set; it is shared, so read-only.
    """
    arguments = asdict(config.dataset)
    arguments.pop("augment", None)  # drawn batch by batch, not loaded
    for split, size in arguments.pop("subset", {}).items():
        arguments[f"subset_{split}"] = size
    hashable = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
    return _load(hashable.pop("name"), tuple(sorted(hashable.items())))


@lru_cache(maxsize=2)
def _load(name: str, arguments: tuple[tuple[str, Any], ...]) -> Dataset:
    return DATASET_LOADERS[name](**dict(arguments))


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
    arguments = asdict(config.optimizer)
    return build_optimizer(arguments.pop("name"), model.parameters(), **arguments)


def make_schedule(config: Config, num_steps: int, steps_per_epoch: int) -> LearningRate:
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
    elif isinstance(scheduler, MultistepConfig):
        rate = multistep(
            lr,
            milestones=scheduler.milestones,
            gamma=scheduler.gamma,
            steps_per_epoch=steps_per_epoch,
        )
    return warmed_up(rate, scheduler.warmup_steps)
