"""From the typed configuration to objects: a group's ``name`` picks its builder from one table."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from condexp.config import Config
from condexp.config.training import CosineConfig, MultistepConfig
from condexp.data.cifar import load_cifar10, load_cifar100
from condexp.data.dataset import Dataset, Split
from condexp.data.digits import load_digits
from condexp.data.gaussian import load_gaussian
from condexp.data.imagenet import load_imagenet
from condexp.data.loaders import Batches
from condexp.data.mnist import load_fashion_mnist, load_mnist
from condexp.data.svhn import load_svhn
from condexp.linalg.eigen import pin_threads
from condexp.models.imported import build_imported
from condexp.models.linear import build_linear
from condexp.models.mlp import build_mlp
from condexp.models.preresnet import build_preresnet
from condexp.models.resnet import build_resnet
from condexp.models.resnet_imagenet import build_resnet_imagenet
from condexp.models.torchvision_models import build_torchvision
from condexp.models.vgg import build_vgg
from condexp.training.evaluate import Evaluator, build_loss
from condexp.training.execution import Forward, ModelPrecision, compile_model, configure
from condexp.training.loop import Plan
from condexp.training.optimizers import (
    LearningRate,
    build_optimizer,
    constant,
    cosine,
    multistep,
    warmed_up,
)
from condexp.training.probe import Probe, ProbeMode, draw_probe
from condexp.training.seeding import deterministic, seed_everything

MODEL_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": build_mlp,
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
EVAL_BATCH = 1000
NUM_THREADS = torch.get_num_threads()  # torch's own choice, for a job after one that chose


@dataclass(frozen=True)
class Parts:
    """The objects of a run, seeded and on their device."""

    model: nn.Module
    loss_fn: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LearningRate
    batches: Batches
    probe: Probe | None
    evaluate: Evaluator
    compiled: Forward | None


def assemble(
    config: Config, dataset: Dataset, device: torch.device, plan: Plan, *, probed: bool
) -> Parts:
    """Build the objects of a run; the same configuration gives the same bits.

    Args:
        config: The validated configuration.
        dataset: The data set, as :func:`load_dataset` gave it.
        device: Where to train.
        plan: The length of the run.
        probed: Whether snapshots are taken from a probe.

    Returns:
        Model, optimizer, data and probe on the device.
    """
    pin_threads(config.trainer.num_threads or NUM_THREADS)
    deterministic(config.trainer.deterministic)
    seed_everything(config.seed)
    # Drawn on the CPU, so that a network starts the same on every device.
    model = build_model(config, dataset).to(device)
    configure(
        model,
        device,
        precision=ModelPrecision(config.trainer.precision),
        channels_last=config.trainer.channels_last,
    )
    loss_fn = build_loss(dataset.task)
    return Parts(
        model=model,
        loss_fn=loss_fn,
        optimizer=make_optimizer(config, model),
        schedule=make_schedule(config, plan.num_steps, plan.steps_per_epoch),
        batches=training_batches(config, dataset, device),
        probe=make_probe(config, dataset, device) if probed else None,
        evaluate=Evaluator(
            loss_fn,
            train=_in_order(dataset, dataset.train, device),
            test=_in_order(dataset, dataset.test, device),
        ),
        compiled=compile_model(model) if config.trainer.compile else None,
    )


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


def training_batches(config: Config, dataset: Dataset, device: torch.device) -> Batches:
    """Shuffled, augmented batches of the training split.

    Args:
        config: The validated configuration.
        dataset: The data set.
        device: Where batches are wanted.

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


def _in_order(dataset: Dataset, split: Split, device: torch.device) -> Batches:
    return Batches(split, mean=dataset.mean, std=dataset.std, batch_size=EVAL_BATCH, device=device)


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
