"""Measurement of a training step: in the very pass that computes the update, or in float64."""

import torch
from torch import Tensor, nn

from condexp.analysis.analyze import analyze_batches
from condexp.analysis.curvature.measure import Curvature, Vectors
from condexp.analysis.curvature.sharpness import Sharpness
from condexp.analysis.layers.calls import PassMode
from condexp.analysis.loss.denominator import loss_denominator
from condexp.analysis.measurement import Measurement
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
    """Return hooks that measure the pass of a training step.

    Args:
        model: The network.
        loss_fn: Loss of the training.
        optimizer: The optimizer, whose step length is read.
        inputs: This process's part of the batch.
        targets: Targets of these inputs.
        options: What to measure.
        communicator: The processes that train together.

    Returns:
        The hooks, which are active inside a ``with``.
    """
    return MeasurementHooks(
        model,
        options,
        denominator=loss_denominator(loss_fn, targets, len(inputs)),
        learning_rate=steady_learning_rate(optimizer),
        # Of several processes, each has rows that are merged before a spectrum is computed.
        pass_mode=PassMode.ONE_PASS if communicator.world_size == 1 else PassMode.SEVERAL_PASSES,
        keep_weights=False,  # a run stores what it measures
    )


def snapshot_of(hooks: MeasurementHooks, communicator: TrainingCommunicator) -> Snapshot:
    """Return the snapshot of a training step, merged over all processes.

    Args:
        hooks: The hooks of :func:`measurement_hooks`, after the step.
        communicator: The processes.

    Returns:
        The snapshot; rank 0 has it.

    Raises:
        InputError: If a layer was used more often than the model's trace showed.
    """
    if reused := hooks.statistics.reused_layers:
        raise InputError(
            f"{', '.join(reused)}: used more often in training than in the pass that was traced "
            "before; leave it out with analysis.layers.exclude"
        )
    return hooks.snapshot(communicator)


def snapshot_in_float64(
    model: nn.Module,
    loss_fn: LossFunction,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    options: AnalysisOptions,
    communicator: TrainingCommunicator,
    start: Vectors,
) -> Snapshot:
    """Measure a training batch in a pass of its own, through a float64 copy of the network.

    Before the training's own pass, it runs from the buffers and random states which that one starts
    from, and leaves them as found.

    Args:
        model: The network.
        loss_fn: Loss of the training.
        optimizer: The optimizer, whose step length is read.
        inputs: This process's part of the batch.
        targets: Targets of these inputs.
        options: What to measure, with ``network_precision=float64``.
        communicator: The processes that train together.
        start: Eigenvectors of the last snapshot.

    Returns:
        The snapshot, merged over all processes; rank 0 has it.
    """
    return analyze_batches(
        model,
        loss_fn,
        [(inputs, targets)] * communicator.world_size,  # each process takes one: its own part
        options,
        learning_rate=steady_learning_rate(optimizer),
        communicator=communicator,
        start=start,
    )


def curvature_of_step(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    options: AnalysisOptions,
    start: Vectors,
) -> Curvature:
    """Measure the Hessian and the Gauss–Newton matrix of a training batch, before its own pass.

    They are of the very function that the step differentiates: of its batch, of the random states
    that its pass starts from, and in training mode.

    Args:
        model: The network.
        loss_fn: Loss of the training.
        inputs: The batch.
        targets: Targets of these inputs.
        options: What to measure.
        start: Eigenvectors of the last snapshot.

    Returns:
        The spectra; nothing where they are not asked for.
    """
    if not options.wants_curvature:
        return Curvature()
    return Measurement(model, loss_fn, [(inputs, targets)], options, start=start).curvature()


def sharpness_of_step(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    options: AnalysisOptions,
    start: Vectors,
) -> Sharpness:
    """Measure λ_max of the Hessian of a training batch, before its own pass.

    Args:
        model: The network.
        loss_fn: Loss of the training.
        inputs: The batch.
        targets: Targets of these inputs.
        options: ``network_precision`` and the limit of memory are read.
        start: Vectors of the last time.

    Returns:
        λ_max and its error.
    """
    return Measurement(model, loss_fn, [(inputs, targets)], options, start=start).sharpness()
