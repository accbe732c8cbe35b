"""What the labels and the exact Fisher matrix ask for, and what cannot be, before a run."""

from collections.abc import Sequence

from torch import nn

from condexp.analysis.costs import LayerCost
from condexp.analysis.fisher.memory import check_fits
from condexp.analysis.loss.cotangents import refuse_batch_statistics
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import FisherType, Matrix
from condexp.config.analysis import AnalysisConfig
from condexp.data.dataset import Dataset, Task
from condexp.errors import InputError
from condexp.training.loop import Source
from condexp.training.probe import ProbeMode


def num_signals(options: AnalysisOptions, dataset: Dataset) -> int:
    """Count the back-propagations of each sample.

    Args:
        options: ``fisher_type`` and ``mc_samples`` are read.
        dataset: Its task decides the loss.

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
            return dataset.num_outputs - (dataset.task is Task.CLASSIFICATION)


def check_labels(analysis: AnalysisConfig, options: AnalysisOptions, model: nn.Module) -> None:
    """Refuse labels other than the data's where they cannot be back-propagated.

    Args:
        analysis: ``source`` and ``probe.mode`` are read.
        options: What is to be measured.
        model: The network, or one like it; its mode is changed.

    Raises:
        InputError: If the training makes no such backward passes, or batch statistics would mix
            the samples in them.
    """
    if options.fisher_type is FisherType.EMPIRICAL:
        return
    if Source(analysis.source) is Source.TRAIN_BATCH:
        raise InputError(
            f"analysis.fisher_type={options.fisher_type} needs backward passes of its own, and "
            "analysis.source=train_batch has the training loss's alone: set analysis.source=probe, "
            "or analysis.fisher_type=empirical."
        )
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
            streaming=costs[0].in_batches,
        )
