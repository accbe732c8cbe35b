"""The objects of a run, from its configuration: seeded, and on their device."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from condexp.assemble import (
    build_model,
    make_optimizer,
    make_probe,
    make_schedule,
    training_batches,
)
from condexp.config import Config
from condexp.data.dataset import Dataset, Split
from condexp.data.loaders import Batches
from condexp.linalg.eigen import pin_threads
from condexp.training.evaluate import Evaluator, build_loss
from condexp.training.execution import Forward, ModelPrecision, compile_model, configure
from condexp.training.loop import Plan
from condexp.training.optimizers import LearningRate
from condexp.training.probe import Probe
from condexp.training.rescale import Release, rescale
from condexp.training.seeding import deterministic, seed_everything

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
    before_step: Callable[[int], None]


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
    rescaling = config.trainer.rescale
    rescale(model, rescaling.factor)
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
        before_step=Release(
            model,
            rescaling.factor,
            rescaling.release_epoch and rescaling.release_epoch * plan.steps_per_epoch,
        ),
    )


def _in_order(dataset: Dataset, split: Split, device: torch.device) -> Batches:
    return Batches(split, mean=dataset.mean, std=dataset.std, batch_size=EVAL_BATCH, device=device)
