"""Norms whose squares may leave the range of the numbers themselves."""

import math

import torch
from torch import Tensor

_TINY = {
    dtype: torch.finfo(dtype).tiny / torch.finfo(dtype).eps
    for dtype in (torch.float32, torch.float64)
}
_FEW = 4096  # numbers whose norm takes no longer in float64


def frobenius_norm(tensor: Tensor) -> Tensor:
    """Return ‖T‖_F as a float64 scalar where T is, right for all that T's type can hold.

    Squares of float32 overflow above 10¹⁹ and lose digits below 10⁻¹⁶. On the CPU a norm in float64
    takes 2 to 20 times as long, so rows are summed in their own precision, and once more, scaled,
    where that was out of its range. A GPU sums in float64 at once: a look at the result would wait.

    Args:
        tensor: Tensor of any shape, at least float32.
    """
    if tensor.is_cuda:
        return _wide_norm(tensor)
    rows = tensor
    if tensor.ndim > 1 and tensor.numel() > _FEW:
        rows = torch.linalg.vector_norm(tensor if tensor.ndim == 2 else tensor.flatten(1), dim=1)
    return norm_of_rows(rows, tensor)


def norm_of_rows(norms: Tensor, tensor: Tensor) -> Tensor:
    """Return ‖T‖_F of a tensor the norms of whose rows are known.

    Args:
        norms: ‖T_i‖ of each row, or all entries.
        tensor: The tensor, for when they were out of range.
    """
    norm = _double_norm(norms)
    value, smallest = float(norm), _smallest_square(tensor.dtype, tensor.numel())
    return norm if value * value > smallest and math.isfinite(value) else _wide_norm(tensor)


def row_norms(tensor: Tensor) -> Tensor:
    """Return ‖T_i‖ of each row, ``[rows]`` in float64, right for all that T's type can hold.

    Args:
        tensor: Tensor ``[rows, ...]``, at least float32.
    """
    rows = tensor.flatten(1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1).double()
    inside = norms.square() > _smallest_square(tensor.dtype, rows.shape[1])
    inside &= norms.isfinite()
    if not inside.all():
        norms[~inside] = _wide_norm(rows[~inside], dim=1)
    return norms


def _smallest_square(dtype: torch.dtype, numel: int) -> float:
    """Return the square of a norm below which squares that are flushed to 0 would count."""
    return numel * _TINY[dtype]


def _double_norm(tensor: Tensor, dim: int | None = None) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dim, dtype=torch.float64)
    return norm


def _wide_norm(tensor: Tensor, dim: int | None = None) -> Tensor:
    """Return norms in float64, of float64 itself with the largest entry divided out."""
    if tensor.dtype != torch.float64 or tensor.numel() == 0:
        return _double_norm(tensor, dim)
    scale: Tensor = torch.linalg.vector_norm(tensor, torch.inf, dim=dim, keepdim=True)
    usable = (scale > 0) & scale.isfinite()  # a norm of NaN or infinities stays what it is
    scale = torch.where(usable, scale, 1.0)
    return _double_norm(tensor / scale, dim) * scale.reshape(() if dim is None else -1)
