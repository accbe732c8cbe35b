"""Norms that survive the range of float32."""

import torch
from torch import Tensor


def frobenius_norm(tensor: Tensor) -> Tensor:
    """Return ‖T‖_F as a scalar where T is: of rows in their own precision, of all in float64."""
    if tensor.ndim > 1:
        tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1)
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm
