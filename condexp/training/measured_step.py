"""A training step that is measured: the very pass that computes the update."""

import torch
from torch import Tensor, nn

from condexp.analysis.loss.denominator import loss_denominator
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.errors import InputError
from condexp.training.distributed.communicator import TrainingCommunicator
from condexp.training.evaluate import LossFunction
from condexp.training.optimizers import steady_learning_rate


def measurement_hooks(
    model: nn.Module,
    loss_fn: LossFunction,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    options: AnalysisOptions,
    communicator: TrainingCommunicator,
) -> MeasurementHooks:
    """Make the hooks that measure the pass of a training step.

    Args:
        model: The network.
        loss_fn: Its loss.
        optimizer: Read for the step length.
        inputs: This process's share of the batch.
        targets: Theirs.
        options: What to measure.
        communicator: The processes that train together.

    Returns:
        The hooks, which measure inside a ``with``.
    """
    return MeasurementHooks(
        model,
        options,
        denominator=loss_denominator(loss_fn, targets, len(inputs)),
        learning_rate=steady_learning_rate(optimizer),
        loss_fn=loss_fn,
        # The other ranks' sums are added before the spectra are computed.
        streaming=communicator.world_size > 1,
        single=communicator.world_size == 1,  # layers that are used again are known by name
        keeps_weights=False,  # a run stores what it measures
    )


def snapshot_of(hooks: MeasurementHooks, communicator: TrainingCommunicator) -> Snapshot:
    """Return what was measured of a training step, by all processes.

    Args:
        hooks: As :func:`measurement_hooks` made them.
        communicator: The processes.

    Returns:
        The snapshot; rank 0 has it.

    Raises:
        InputError: If a layer was used more often than the model's trace showed.
    """
    if again := hooks.tapes.came_again:
        raise InputError(
            f"{', '.join(again)}: used more often in training than in the pass that was traced "
            "before; leave it out with analysis.layers.exclude"
        )
    return hooks.snapshot(communicator)
