"""Uses of weights that multiply no rows of numbers: of tables, which are looked up by index."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from condexp.analysis.layers.rows import Operation
from condexp.analysis.layers.use import Listeners, WeightUse, gradient_source


def watched_embedding(
    listeners: Listeners, original: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """Return ``torch.embedding``, through which ``F.embedding`` goes too, with listeners.

    Args:
        listeners: Those who are to be told of a weight's use by a function.
        original: The function.

    Returns:
        The same function.
    """

    def embedding(
        weight: Tensor,
        indices: Tensor,
        padding_idx: int = -1,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor:
        output = original(weight, indices, padding_idx, scale_grad_by_freq, sparse)
        for tell in listeners(weight, "embedding"):
            rows = index_rows(indices.detach(), padding_idx)
            operation = Operation(None, False, len(weight), "embedding")
            lay_out = partial(torch.reshape, shape=output.shape)
            use = WeightUse(operation, indices, rows, rows, output.shape, output.dtype, lay_out)
            tell(use, gradient_source(output))
        return output

    return embedding


def index_rows(indices: Tensor, padding: int) -> Tensor:
    """Return indices as rows of one number each, ``[..., 1]``, in float64, which holds them all.

    Args:
        indices: The indices.
        padding: The one whose entry is not trained: it becomes −1, a row of zeros.

    Returns:
        A copy.
    """
    found = (indices.cpu() if indices.device.type == "mps" else indices).double()
    found = found.masked_fill(indices.to(found.device) == padding, -1.0) if padding >= 0 else found
    return found.unsqueeze(-1)
