"""Builds the trainer of a run from its configuration: seeded, and on its device."""

import torch
from torch import nn

from condexp.analysis.linalg.eigen import pin_threads
from condexp.data.dataset import Dataset, Share, Split
from condexp.data.loaders import Batches
from condexp.models.sync_batchnorm import convert_sync_batchnorm
from condexp.runs.build import (
    build_model,
    make_learning_rate,
    make_loss,
    make_optimizer,
    make_probe,
    training_batches,
)
from condexp.runs.prepare import PreparedRun
from condexp.training.choices import ModelPrecision
from condexp.training.distributed.communicator import TrainingCommunicator
from condexp.training.distributed.process_group import ProcessGroupCommunicator
from condexp.training.evaluate import Evaluator
from condexp.training.execution import compile_model, configure
from condexp.training.loop import Trainer
from condexp.training.rescale import Release, rescale
from condexp.training.seeding import deterministic, make_generator, seed_everything

EVAL_BATCH = 1000
NUM_THREADS = torch.get_num_threads()  # torch's own choice, for a job after one that chose


def build_trainer(prepared: PreparedRun, communicator: TrainingCommunicator) -> Trainer:
    """Build the objects of a run; the same configuration gives the same bits.

    Args:
        prepared: The checked experiment.
        communicator: The processes that train it together.

    Returns:
        The trainer: model, optimizer, data and probe on the device.
    """
    config, dataset, plan = prepared.config, prepared.dataset, prepared.plan
    device = communicator.device or prepared.device
    pin_threads(config.trainer.num_threads or max(1, NUM_THREADS // communicator.num_sharing_cores))
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
    if config.trainer.sync_batchnorm and isinstance(communicator, ProcessGroupCommunicator):
        convert_sync_batchnorm(
            model, communicator.all_reduce_mean_with_grad, communicator.world_size
        )
    loss_fn = make_loss(config, dataset)
    if isinstance(loss_fn, nn.Module):
        loss_fn.to(device)
    share = Share(communicator.rank, communicator.world_size)
    trainer = Trainer(
        model=model,
        loss_fn=loss_fn,
        optimizer=make_optimizer(config, model),
        learning_rate=make_learning_rate(config, plan.num_steps, plan.steps_per_epoch),
        plan=plan,
        options=prepared.options,
        source=prepared.source,
        batches=training_batches(config, dataset, device, share),
        probe=make_probe(config, dataset, device) if prepared.probes else None,
        evaluate=Evaluator(
            loss_fn,
            train=_in_order(dataset, dataset.train, device),
            test=_in_order(dataset, dataset.test, device),
            communicator=communicator,
        ),
        compiled=compile_model(model) if config.trainer.compile else None,
        before_step=None
        if rescaling.release_epoch is None
        else Release(model, rescaling.factor, rescaling.release_epoch * plan.steps_per_epoch),
        communicator=communicator,
    )
    if (
        communicator.rank
    ):  # rank 0 draws what one process would; the others' dropout is to be their own
        seed_everything(
            make_generator(config.seed, "rank", communicator.rank).initial_seed() % 2**31
        )
    return trainer


def _in_order(dataset: Dataset, split: Split, device: torch.device) -> Batches:
    return Batches(split, mean=dataset.mean, std=dataset.std, batch_size=EVAL_BATCH, device=device)
