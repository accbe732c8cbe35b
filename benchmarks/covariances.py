"""Eigenvalues of centred covariances by hooks, as Taiyi has them: a competitor, in code of our own.

Taiyi (github.com/DLCV-BUAA/Taiyi, source of November 2023) takes ``torch.cov`` of what a module is
given, of a convolution over channels, and its eigenvalues, by a solver for matrices that need not
be symmetric. Here they are ``eigvalsh``'s, which is quicker, and those of the gradients of outputs
too, so that both factors' are there. A convolution's matrix is smaller than that of its patches.
"""

import torch
from torch import Tensor, nn

from benchmarks.networks import Training
from benchmarks.snapshot import eigenvalues


def covariance_eigenvalues(training: Training) -> None:
    """Take a forward and a backward pass, and the eigenvalues of every layer, in float32.

    Args:
        training: The network.
    """
    found: list[Tensor] = []

    def add(values: Tensor) -> None:
        values = values.detach()
        rows = values.transpose(0, 1).flatten(1) if values.ndim == 4 else values.mT
        if len(rows) > 1:  # of one channel there is a number and no matrix
            found.append(eigenvalues(torch.cov(rows)))

    def watch(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        add(inputs[0])
        output.register_hook(add)  # type: ignore[no-untyped-call]

    layers = [m for m in training.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(watch) for layer in layers]
    try:
        training.forward_backward()
    finally:
        for handle in handles:
            handle.remove()
    for values in found:
        _ = values[-1] / values[len(values) // 2]
