"""Weights that are scaled where batch statistics cancel it: the net is the same, its training not.

``W → α·W`` of a layer with a normalisation behind it leaves the function as it is and divides the
gradient by α: *weight domination*, Huang et al. 2020 (claim 3).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condexp.analysis.linalg.norms import frobenius_norm

NUM_SAMPLES = 32
TRIAL = 16.0  # a power of two: the weights themselves are scaled without rounding
TOLERANCE = 0.2  # eps grows to 0.1 over 50 layers; one layer that does not cancel is 0.7 and more


@torch.no_grad()
def rescale(model: nn.Module, factor: float) -> None:
    """Multiply the weights and biases of all linear and convolutional layers but the last.

    The running statistics of a BatchNorm behind a layer go with them, so that the function is left
    as it is in evaluation too. Layers and normalisations are taken in the order of
    ``model.modules()``.

    Args:
        model: The network, changed in place.
        factor: α > 0; 1 leaves every bit.
    """
    modules = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | _BatchNorm)]
    hidden = [m for m in modules if not isinstance(m, _BatchNorm)][:-1]
    for layer in hidden:
        for parameter in layer.parameters(recurse=False):
            parameter.mul_(factor)
    for before, norm in pairwise(modules):
        if before in hidden and isinstance(norm, _BatchNorm) and norm.running_var is not None:
            assert norm.running_mean is not None
            norm.running_mean.mul_(factor)
            norm.running_var.mul_(factor**2)


@dataclass(frozen=True)
class Release:
    """Takes a rescaling back before one step; the training loop's ``before_step``.

    Args:
        model: The network that was rescaled.
        factor: α.
        step: Number of finished updates at which the weights are divided by α; None: never.
    """

    model: nn.Module
    factor: float
    step: int | None

    def __call__(self, step: int) -> None:
        """Divide the weights by α if it is time.

        Args:
            step: Number of finished updates.
        """
        if step == self.step:
            rescale(self.model, 1 / self.factor)


def cancels_rescaling(build: Callable[[], nn.Module], input_shape: Sequence[int]) -> bool:
    """Try out whether a network computes the same with its hidden layers rescaled.

    Args:
        build: Builds the network, on the CPU.
        input_shape: Shape of one sample.

    Returns:
        Whether its outputs are the same in training and in evaluation, up to BatchNorm's eps.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model, inputs = build(), torch.randn(NUM_SAMPLES, *input_shape)
        # Training moves the running statistics, so the two evaluations stand side by side.
        before = _outputs(model.train(), inputs), _outputs(model.eval(), inputs)
        rescale(model, TRIAL)
        after = _outputs(model, inputs), _outputs(model.train(), inputs)
    return all(
        bool(frobenius_norm(new - old) < TOLERANCE * frobenius_norm(old))
        for old, new in zip(before, reversed(after), strict=True)
    )


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    torch.manual_seed(1)  # the same dropout masks
    outputs: Tensor = model(inputs)
    return outputs
