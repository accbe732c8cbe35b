"""Normalisations, and batch normalisation's two halves as modules of their own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condexp.errors import InputError
from condexp.models.choices import Norm

Average = Callable[[Tensor], Tensor]
"""The mean over processes that have equal shares of a batch, through which gradients pass."""
LARGEST_NUM_GROUPS = 32
SMALLEST_GROUP = 4


class BatchStatistics(_BatchNorm):
    """Statistics, running averages and affine map of BatchNorm; a subclass uses one or both.

    A subclass of torch's own class: whoever looks for batch statistics finds these modules too.
    Where ``average`` is set, the statistics are of the batch of ``num_processes`` processes.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    average: Average | None = None
    num_processes = 1

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps, momentum)

    def normalise(self, inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Use the statistics, before the affine map; see the subclasses."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the base class' name for it)
        """Normalise a batch, with its own statistics in training and the running ones else.

        Args:
            input: Activations [N, C, ...].

        Returns:
            The same shape.
        """
        shape = (1, self.num_features, *[1] * (input.dim() - 2))
        # Sums over a batch need float32 even where activations have less.
        inputs = input.to(torch.promote_types(input.dtype, torch.float32))
        mean, variance = self._batch_statistics(inputs) if self.training else self._running()
        normalised = self.normalise(inputs, mean.view(shape), variance.view(shape))
        return (normalised * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)

    def _running(self) -> tuple[Tensor, Tensor]:
        return self.running_mean, self.running_var

    def _batch_statistics(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        num_values = inputs.numel() // self.num_features
        if num_values < 2:
            raise InputError(
                f"batch statistics of one value a channel (input {tuple(inputs.shape)}) are void; "
                "use a batch of two samples or more, or model.eval()."
            )
        dims = [dim for dim in range(inputs.dim()) if dim != 1]
        variance, mean = torch.var_mean(inputs, dim=dims, correction=0)
        if self.average is not None:
            of_process, mean = mean, self.average(mean)
            variance = self.average(variance + (of_process - mean).square())
            num_values *= self.num_processes
        with torch.no_grad():
            unbiased = variance * (num_values / (num_values - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        return mean, variance


class BatchCenter(BatchStatistics):
    """Subtract the batch mean: ``y = γ·(x − μ) + β``, the first half of BatchNorm.

    μ is each channel's mean over the batch (and positions); in evaluation the running mean. Running
    statistics, their momentum and γ, β are BatchNorm's; the running variance is kept, but not used.
    Ioffe & Szegedy 2015, algorithm 1 without its variance; Salimans & Kingma 2016, §4.

    Args:
        num_features: Channels C of inputs [N, C] or [N, C, H, W].
        eps: Not used; BatchNorm's argument.
        momentum: Weight of a batch in the running statistics.
    """

    def normalise(self, inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:  # noqa: ARG002
        """Subtract the mean.

        Args:
            inputs: Activations [N, C, ...].
            mean: Means, shaped to broadcast.
            variance: Not used.

        Returns:
            Centred activations, the shape of the inputs.
        """
        return inputs - mean


class BatchScale(BatchStatistics):
    """Divide by the batch standard deviation: ``y = γ·x/√(σ² + eps) + β``.

    The second half of BatchNorm: ``BatchScale(BatchCenter(x))`` is BatchNorm. σ² is each channel's
    (biased, centred) variance over the batch (and positions); in evaluation the running variance,
    which is unbiased, as BatchNorm's.
    Ioffe & Szegedy 2015, algorithm 1 without the subtraction of the mean.

    Args:
        num_features: Channels C of inputs [N, C] or [N, C, H, W].
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics.
    """

    def normalise(self, inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:  # noqa: ARG002
        """Divide by the standard deviation.

        Args:
            inputs: Activations [N, C, ...].
            mean: Not used.
            variance: Variances, shaped to broadcast.

        Returns:
            Scaled activations, the shape of the inputs.
        """
        return inputs * torch.rsqrt(variance + self.eps)


def num_groups(channels: int) -> int:
    """Choose the groups of GroupNorm: the most that divide the channels, ≤ 32, ≥ 4 channels each.

    Wu & He 2018 use 32 groups for 64 channels and more. A group of one feature would be normalised
    to zero on [N, C], hence the smallest group.

    Args:
        channels: Number of channels.

    Returns:
        Number of groups, at least 1.

    >>> [num_groups(channels) for channels in (3, 16, 64, 100, 256)]
    [1, 4, 16, 25, 32]
    """
    most = min(LARGEST_NUM_GROUPS, channels // SMALLEST_GROUP)
    return next((groups for groups in range(most, 0, -1) if channels % groups == 0), 1)


def make_norm(norm: Norm | str, channels: int, spatial: bool) -> nn.Module:
    """Build one normalisation.

    ``layer`` normalises each sample over all its channels and positions, with one γ and β a channel
    (Ba et al. 2016; on images GroupNorm with one group).

    Args:
        norm: Which one; ``none`` is the identity.
        channels: Channels C.
        spatial: Whether inputs are [N, C, H, W] rather than [N, C].

    Returns:
        The module; it keeps the shape of its input.

    Raises:
        InputError: If ``layer`` or ``group`` gets a single feature.
    """
    norm = Norm(norm)
    if norm in {Norm.LAYER, Norm.GROUP} and channels == 1 and not spatial:
        raise InputError(
            f"norm {norm} turns a single feature into a constant; use a width from 2 on."
        )
    match norm:
        case Norm.NONE:
            return nn.Identity()
        case Norm.BATCH:
            return nn.BatchNorm2d(channels) if spatial else nn.BatchNorm1d(channels)
        case Norm.LAYER:
            return nn.GroupNorm(1, channels) if spatial else nn.LayerNorm(channels)
        case Norm.GROUP:
            return nn.GroupNorm(num_groups(channels), channels)
        case Norm.CENTER:
            return BatchCenter(channels)
        case Norm.SCALE:
            return BatchScale(channels)
