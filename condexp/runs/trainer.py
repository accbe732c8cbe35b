"""The objects of a run, from its configuration: seeded, and on their device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from condexp.analysis.linalg.eigen import pin_threads
from condexp.data.dataset import Dataset, Split
from condexp.data.loaders import Batches
from condexp.models.sync_batchnorm import convert_sync_batchnorm
from condexp.runs.build import (
    build_model,
    make_optimizer,
    make_probe,
    make_schedule,
    training_batches,
)
from condexp.runs.prepare import PreparedRun
from condexp.training.choices import ModelPrecision
from condexp.training.distributed.communicator import TrainingCommunicator
from condexp.training.distributed.process_group import ProcessGroupCommunicator
from condexp.training.evaluate import Evaluator, build_loss
from condexp.training.events import Sink
from condexp.training.execution import Forward, compile_model, configure
from condexp.training.loop import Outcome, train
from condexp.training.optimizers import LearningRate
from condexp.training.probe import Probe
from condexp.training.rescale import Release, rescale
from condexp.training.seeding import deterministic, make_generator, seed_everything

EVAL_BATCH = 1000
NUM_THREADS = torch.get_num_threads()  # torch's own choice, for a job after one that chose


@dataclass(frozen=True)
class Trainer:
    """The objects of a run, seeded and on their device, in one of its processes."""

    prepared: PreparedRun
    model: nn.Module
    loss_fn: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LearningRate
    batches: Batches
    probe: Probe | None
    evaluate: Evaluator
    compiled: Forward | None
    before_step: Callable[[int], None]
    crew: TrainingCommunicator

    def train(self, sinks: Sequence[Sink], *, start: int, pause: Callable[[int], bool]) -> Outcome:
        """Train, as :func:`condexp.training.loop.train` does.

        Args:
            sinks: Told of what happens.
            start: Updates that are behind already.
            pause: Says between updates whether to stop.

        Returns:
            How it ended.
        """
        return train(
            self.model,
            self.loss_fn,
            self.optimizer,
            self.schedule,
            self.batches,
            self.prepared.plan,
            sinks,
            options=self.prepared.options,
            source=self.prepared.source,
            probe=self.probe,
            evaluate=self.evaluate,
            compiled=self.compiled,
            start=start,
            pause=pause,
            before_step=self.before_step,
            crew=self.crew,
        )


def build_trainer(prepared: PreparedRun, crew: TrainingCommunicator) -> Trainer:
    """Build the objects of a run; the same configuration gives the same bits.

    Args:
        prepared: The checked experiment.
        crew: The processes that train it together.

    Returns:
        Model, optimizer, data and probe on the device.
    """
    config, dataset, plan = prepared.config, prepared.dataset, prepared.plan
    device = prepared.device if crew.device is None else crew.device
    pin_threads(config.trainer.num_threads or max(1, NUM_THREADS // crew.local_size))
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
    if config.trainer.sync_batchnorm and isinstance(crew, ProcessGroupCommunicator):
        convert_sync_batchnorm(model, crew.average, crew.size)
    loss_fn = build_loss(dataset.task)
    parts = Trainer(
        prepared=prepared,
        model=model,
        loss_fn=loss_fn,
        optimizer=make_optimizer(config, model),
        schedule=make_schedule(config, plan.num_steps, plan.steps_per_epoch),
        batches=training_batches(config, dataset, device, crew.share()),
        probe=make_probe(config, dataset, device) if prepared.probes else None,
        evaluate=Evaluator(
            loss_fn,
            train=_in_order(dataset, dataset.train, device),
            test=_in_order(dataset, dataset.test, device),
            ranks=crew,
        ),
        compiled=compile_model(model) if config.trainer.compile else None,
        before_step=Release(
            model,
            rescaling.factor,
            rescaling.release_epoch and rescaling.release_epoch * plan.steps_per_epoch,
        ),
        crew=crew,
    )
    if crew.rank:  # rank 0 draws what one process would; the others' dropout is to be their own
        seed_everything(make_generator(config.seed, "rank", crew.rank).initial_seed() % 2**31)
    return parts


def _in_order(dataset: Dataset, split: Split, device: torch.device) -> Batches:
    return Batches(split, mean=dataset.mean, std=dataset.std, batch_size=EVAL_BATCH, device=device)
