"""The execution of a network: its precision, its memory layout, and whether it is compiled."""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from condexp.errors import InputError
from condexp.training.choices import ModelPrecision

Forward = Callable[[Tensor], Tensor]
"""From a batch of inputs to the model's outputs."""


def configure(
    model: nn.Module,
    device: torch.device,
    *,
    precision: ModelPrecision = ModelPrecision.FP32,
    channels_last: bool = False,
) -> None:
    """Make every pass of a model run in this precision and memory layout.

    ``forward`` is replaced on the instance, so that steps, analysed steps, probes and evaluations
    cannot differ. Names, weights, hooks and checkpoints are what they were: the weights stay
    float32, as are the outputs and with them the loss. Under ``bf16`` a layer sees its input as
    autocast left it and its output's gradient arrives in bfloat16, both of which the moments take
    in exactly; bfloat16 has float32's range, so there is no loss scale.

    Args:
        model: On the device; changed in place. It maps one tensor to one tensor.
        device: Where it runs.
        precision: ``bf16``: autocast for the forward pass.
        channels_last: Whether convolutions' weights and 4-D inputs are laid out [N, H, W, C].
            Dropout draws its masks in the order of the memory, so they are others then.
    """
    if channels_last:
        model.to(memory_format=torch.channels_last)
    elif precision is ModelPrecision.FP32:
        return
    plain: Forward = model.forward

    def forward(inputs: Tensor) -> Tensor:
        if channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        # A snapshot's pass through float64 weights stays in float64.
        if precision is ModelPrecision.FP32 or inputs.dtype == torch.float64:
            return plain(inputs)
        with torch.autocast(device.type, torch.bfloat16):
            return plain(inputs).float()

    model.forward = forward


def compile_model(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> Forward:
    """Compile a model with ``torch.compile``, as a second way to call it.

    The weights are shared, and random numbers are drawn as the model itself draws them, so that the
    two differ by rounding alone. The model is not changed: hooks belong on it, not on what is
    returned, where they would not be seen.

    Args:
        model: The model.
        backend: Of ``torch.compile``.

    Returns:
        The compiled model; the first call takes the time.
    """
    # A process may run many jobs, and past eight models dynamo silently compiles no more.
    torch.compiler.reset()
    options: dict[str, Any] | None = {"fallback_random": True} if backend == "inductor" else None
    compiled: Forward = torch.compile(model, backend=backend, options=options)
    return compiled


def find_device(name: str) -> torch.device:
    """Find the device of a name.

    Args:
        name: ``auto``, a CUDA device if there is one, or a device of torch's.

    Returns:
        The device.

    Raises:
        InputError: If there is no such name, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_cuda, has_mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"trainer.device={name!r}: give auto, cpu, mps, cuda or cuda:N.") from None
    present = {"cpu": True, "cuda": (device.index or 0) < num_cuda, "mps": has_mps}
    if not present.get(device.type, False):
        raise InputError(
            f"trainer.device={name}: this machine has {num_cuda} CUDA devices and "
            f"{'an' if has_mps else 'no'} MPS device; use trainer.device=auto or cpu."
        )
    return device


def check_execution(device: torch.device, *, precision: ModelPrecision, compiled: bool) -> None:
    """Refuse what this machine cannot do, before anything is trained.

    Args:
        device: Where to train.
        precision: The precision wanted.
        compiled: Whether to compile; a small function is compiled to find out, once a process.

    Raises:
        InputError: If the device has no bfloat16, or ``torch.compile`` does not work.
    """
    obstacle = _no_bfloat16(device) if precision is ModelPrecision.BF16 else None
    if obstacle:
        raise InputError(
            f"trainer.precision=bf16 does not work on {device}: {obstacle} Use trainer.precision="
            "fp32."
        )
    obstacle = _no_compiler(device.type) if compiled else None
    if obstacle:
        raise InputError(
            f"trainer.compile=true does not work here: {obstacle} On a CPU torch.compile needs a "
            "C++ compiler (g++ on the PATH, or CXX) and Python's headers; or use "
            "trainer.compile=false."
        )


def _no_bfloat16(device: torch.device) -> str | None:
    """Return why autocast refuses bfloat16, or switches itself off with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            torch.autocast(device.type, torch.bfloat16)
        except (RuntimeError, UserWarning) as reason:
            return _first_line(reason)
    return None


@lru_cache
def _no_compiler(device_type: str) -> str | None:
    """Return why nothing can be compiled: which part is missing only a trial tells."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device_type))
    except Exception as reason:
        return _first_line(reason)
    return None


def _first_line(reason: Exception) -> str:
    text = str(reason).strip() or type(reason).__name__
    return f"{text.splitlines()[0].rstrip('.')}."
