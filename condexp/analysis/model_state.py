"""The state of a model and all random generators, which an analysis leaves exactly as found."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Restore a model and all random states on the way out, also after an exception.

    Restored bit for bit: training modes, buffers (values and identity), ``.grad`` (set aside
    meanwhile, so nothing accumulates into it) and the random states of torch (CPU, CUDA and MPS),
    Python and NumPy.

    Args:
        model: The network; its weights must not be changed inside.

    Yields:
        Nothing; the body may run passes in any mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    values = {id(b): (b, b.detach().clone()) for b in model.buffers()}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if on_cuda else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, registered in buffers:
            module._buffers.clear()
            module._buffers.update(registered)
        for buffer, value in values.values():
            _restore(buffer, value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
        if on_cuda:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def _restore(buffer: Tensor, value: Tensor) -> None:
    """Write a buffer back only where it changed: a graph of the user's may still hold it."""
    if not buffer.is_meta and not torch.equal(buffer, value):  # meta tensors hold no values
        with torch.no_grad():
            buffer.copy_(value)
