"""Batch normalisation with statistics over the batch of all processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condexp.errors import InputError
from condexp.models.norm import Average, BatchStatistics


class BatchBoth(BatchStatistics):
    """BatchNorm, ``y = γ·(x − μ)/√(σ² + eps) + β``, whose statistics may be those of all processes.

    torch's own SyncBatchNorm runs on GPUs only, and cannot centre or scale alone.

    Args:
        num_features: Channels C of inputs [N, C] or [N, C, H, W].
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics.
    """

    def normalise(self, inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation.

        Args:
            inputs: Activations [N, C, ...].
            mean: Means, shaped to broadcast.
            variance: Variances, shaped to broadcast.

        Returns:
            Normalised activations, the shape of the inputs.
        """
        return (inputs - mean) * torch.rsqrt(variance + self.eps)


def convert_sync_batchnorm(model: nn.Module, average: Average, num_processes: int) -> None:
    """Make batch normalisations take their statistics over the batch of all processes.

    Args:
        model: The network, changed in place; parameters, buffers and their names stay as they are.
        average: The differentiable mean over the processes.
        num_processes: The number of processes.

    Raises:
        InputError: If a BatchNorm has no affine map or keeps no running averages.
    """
    for name, parent in list(model.named_modules()):
        for child, module in list(parent.named_children()):
            if type(module) in {nn.BatchNorm1d, nn.BatchNorm2d}:
                parent.register_module(child, _converted(f"{name}.{child}".lstrip("."), module))
    for module in model.modules():
        if isinstance(module, BatchStatistics):
            module.average, module.num_processes = average, num_processes
        elif isinstance(module, _BatchNorm):
            raise InputError(
                f"trainer.sync_batchnorm: {type(module).__name__} cannot be synchronised; use "
                "BatchNorm1d or BatchNorm2d, or trainer.sync_batchnorm=false."
            )


def _converted(name: str, module: nn.Module) -> BatchBoth:
    assert isinstance(module, _BatchNorm)
    if not module.affine or not module.track_running_stats or module.momentum is None:
        raise InputError(
            f"trainer.sync_batchnorm: {name} has no affine map, no running statistics or no "
            "momentum, and cannot be synchronised; use trainer.sync_batchnorm=false."
        )
    both = BatchBoth(module.num_features, module.eps, module.momentum)
    both._parameters, both._buffers = module._parameters, module._buffers
    return both


@contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """Let each process take its own batch statistics, for batches that are not divided.

    Args:
        model: The network, synchronised again afterwards.

    Yields:
        Nothing.
    """
    shared = [(m, m.average) for m in model.modules() if isinstance(m, BatchStatistics)]
    for module, _ in shared:
        module.average = None
    try:
        yield
    finally:
        for module, average in shared:
            module.average = average
