"""Matrix products in the precision that was asked for, whatever the process has set."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

# PyTorch's names for it: "none" is the default where nothing was set.
_FULL_PRECISION = {"ieee", "none", None}
_CPU_PRODUCTS: Any = getattr(torch.backends.mkldnn, "matmul", None)


_NOTHING_TO_DO = nullcontext()


def exact_products(device: torch.device) -> AbstractContextManager[None]:
    """Keep TF32, bfloat16 and autocast out of the matrix products inside.

    PyTorch's settings for that are process-wide; they are touched only where they ask for less than
    full precision, and put back afterwards.

    Args:
        device: Device on which the products run.

    Returns:
        A context.
    """
    backend = torch.backends.cuda.matmul if device.type == "cuda" else _CPU_PRODUCTS
    if (
        _legacy_precision() is None
        and _precision(backend) in _FULL_PRECISION
        and not torch.is_autocast_enabled(device.type)
    ):
        return _NOTHING_TO_DO
    return _made_exact(device)


@contextmanager
def _made_exact(device: torch.device) -> Iterator[None]:
    legacy = _legacy_precision()
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, _CPU_PRODUCTS
    saved = [(backend, _precision(backend)) for backend in backends]
    reduced = [(backend, setting) for backend, setting in saved if setting not in _FULL_PRECISION]
    try:
        if legacy is not None:
            torch.set_float32_matmul_precision("highest")
        for backend, _ in reduced:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
            # The old setting overwrites the new ones of both backends.
            reduced = [(backend, setting) for backend, setting in saved if setting is not None]
        for backend, setting in reduced:
            backend.fp32_precision = setting


def coarser(*dtypes: torch.dtype) -> torch.dtype:
    """Return the one of some floating dtypes that rounds most."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def computed_in(dtype: torch.dtype, device: torch.device, *, convolves: bool) -> torch.dtype:
    """Return the precision in which a network's own products of a type are computed now.

    Args:
        dtype: Type of the tensors.
        device: Where they are.
        convolves: Whether the network has convolutions: on a GPU, those of float32 round their
            factors to TF32 unless PyTorch is told otherwise.

    Returns:
        For float32, bfloat16 where PyTorch is allowed to round the factors to it, and float16,
        which has as many digits, where it may round them to TF32; else the type itself.
    """
    if dtype != torch.float32:
        return dtype
    legacy = _legacy_precision()
    if device.type != "cuda":
        return dtype if legacy is None else torch.bfloat16
    if legacy == "medium":
        return torch.bfloat16
    of_products = legacy == "high" or _precision(torch.backends.cuda.matmul) == "tf32"
    of_convolutions = (
        convolves and _precision(getattr(torch.backends.cudnn, "conv", None)) == "tf32"
    )
    return torch.float16 if of_products or of_convolutions else dtype


def summable(tensor: Tensor) -> Tensor:
    """Return a tensor's values in a type and on a device in which they can be summed.

    Args:
        tensor: Tensor of any floating dtype, on any device.

    Returns:
        The same values: in float32 where they had half precision, whose sums would be rounded to
        two digits; on the CPU where they were on Apple's MPS, which has no float64.
    """
    promoted = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return promoted.cpu() if promoted.device.type == "mps" else promoted


def _precision(backend: Any) -> str | None:
    return getattr(backend, "fp32_precision", None)  # PyTorch ≥ 2.9


def _legacy_precision() -> str | None:
    """Return PyTorch's older, single setting where it is below the highest."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # refused where only the new settings are in use
        return None
    return None if precision == "highest" else precision
