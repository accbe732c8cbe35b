"""Checks of an experiment that need its model, its data or its processes."""

from collections.abc import Sequence

import torch
from torch import nn

from condexp.analysis.costs import LayerCost
from condexp.analysis.fisher.memory import check_fits
from condexp.analysis.loss.cotangents import FisherLabels, refuse_batch_statistics
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import FisherType, Matrix
from condexp.config import Config
from condexp.config.analysis import AnalysisConfig
from condexp.data.dataset import Dataset
from condexp.errors import InputError
from condexp.training.choices import ProbeMode, Source
from condexp.training.distributed.environment import DistributedEnv

LEAST_SHARE = 2  # samples: batch statistics of one are void


def refuse_several_sweeps() -> None:
    """Refuse a sweep that every process of torchrun or srun would run.

    Raises:
        InputError: If this process was started with others.
    """
    env = DistributedEnv.from_environ()
    if env is not None:
        raise InputError(
            f"{env.starter} started {env.world_size} processes, and each would run the sweep: "
            f"start it once, without {env.starter}, or leave out -m."
        )


def check_processes(
    config: Config, device: torch.device, num_train: int, env: DistributedEnv | None
) -> None:
    """Refuse what several processes cannot do together, before anything is trained.

    Args:
        config: The validated configuration.
        device: Where it trains.
        num_train: Training samples.
        env: As :meth:`DistributedEnv.from_environ` found it.

    Raises:
        InputError: If the processes that were started are not those of the configuration, or the
            batches do not divide, or the devices do not suffice.
    """
    trainer, size = config.trainer, config.trainer.num_processes
    if env is not None and env.world_size != size:
        raise InputError(
            f"{env.starter} started {env.world_size} processes, and trainer.num_processes is "
            f"{size}: give trainer.num_processes={env.world_size}, or start one process."
        )
    if size == 1:
        return
    batch_size = num_train if isinstance(trainer.batch_size, str) else trainer.batch_size
    batch_size = min(batch_size, num_train)
    if batch_size % size or batch_size // size < LEAST_SHARE:
        down, up = batch_size // size * size, -(-batch_size // size) * size
        nearest = [n for n in (down, up) if n >= LEAST_SHARE * size] or [LEAST_SHARE * size]
        raise InputError(
            f"a batch of {batch_size} samples does not divide among trainer.num_processes={size} "
            f"with {LEAST_SHARE} samples each at least: use trainer.batch_size="
            f"{' or '.join(map(str, nearest))}."
        )
    if trainer.compile:
        raise InputError(
            f"trainer.compile=true does not work with trainer.num_processes={size}: leave one out."
        )
    local = size if env is None else 1 if env.bound else env.local_world_size
    if device.type == "mps" or device.index is not None:
        raise InputError(
            f"trainer.device={device} is one device, and trainer.num_processes={size} take one "
            "each: use trainer.device=cuda or cpu."
        )
    if device.type == "cuda" and torch.cuda.device_count() < local:
        raise InputError(
            f"trainer.num_processes={size} puts {local} on this machine, which has "
            f"{torch.cuda.device_count()} CUDA devices: use fewer, or trainer.device=cpu."
        )


def num_signals(options: AnalysisOptions, dataset: Dataset, loss_fn: object) -> int:
    """Count the back-propagations of each sample.

    Args:
        options: ``fisher_type`` and ``mc_samples`` are read.
        dataset: Its outputs are counted.
        loss_fn: The training loss.

    Returns:
        One for the data's labels, ``mc_samples`` for drawn ones; for all labels one fewer than the
        classes, or one for each output of a squared error.
    """
    match options.fisher_type:
        case FisherType.EMPIRICAL:
            return 1
        case FisherType.MC:
            return options.mc_samples
        case FisherType.EXACT:
            return dataset.num_outputs - isinstance(loss_fn, nn.CrossEntropyLoss)


def check_labels(
    analysis: AnalysisConfig, options: AnalysisOptions, model: nn.Module, loss_fn: object
) -> None:
    """Refuse labels other than the data's where they cannot be back-propagated.

    Args:
        analysis: ``source`` and ``probe.mode`` are read.
        options: What is to be measured.
        model: The network, or one like it; its mode is changed.
        loss_fn: The training loss.

    Raises:
        InputError: If the training makes no such backward passes, the loss has no such labels, or
            batch statistics would mix the samples in them.
    """
    if options.fisher_type is FisherType.EMPIRICAL:
        return
    if Source(analysis.source) is Source.TRAIN_BATCH:
        raise InputError(
            f"analysis.fisher_type={options.fisher_type} needs backward passes of its own, and "
            "analysis.source=train_batch has the training loss's alone: set analysis.source=probe, "
            "or analysis.fisher_type=empirical."
        )
    FisherLabels(loss_fn, options)  # raises where it has none
    try:
        refuse_batch_statistics(
            model.train(ProbeMode(analysis.probe.mode) is ProbeMode.TRAIN), options
        )
    except InputError as error:
        raise InputError(f"{error} In a configuration: analysis.probe.mode=eval.") from error


def check_memory(options: AnalysisOptions, costs: Sequence[LayerCost]) -> None:
    """Refuse an exact Fisher matrix that does not fit ``analysis.memory_limit``.

    Args:
        options: What is to be measured.
        costs: The layers.

    Raises:
        InputError: If it does not fit.
    """
    if options.wants(Matrix.FISHER):
        check_fits(
            options.memory_limit,
            [cost.fisher_bytes for cost in costs],
            costs[0].num_samples,
            costs[0].num_signals,
            in_batches=costs[0].in_batches,
        )
