"""What bounds the error of eigenvalues, what is 0 exactly, and the interval of a ratio."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condexp.analysis.linalg.pair_products import Numbers

PRODUCT_ERROR = 8.0
"""Bound on a product's error in units of eps·√n·max_i M_ii, n the side.

Measured: 6.6 where float32 sums the same number over and over (one-hot rows less their mean), 3.4
at a mean of 1000 σ, below 1 elsewhere."""


def largest_ranks(
    square: Tensor, diagonals: Numbers, counted: NDArray[np.int64], dtype: torch.dtype
) -> Iterator[int]:
    """Yield the side of each block without its dead and duplicated units, which leave exact zeros.

    A unit is dead if its row and column are 0. Of two that are alike, all products are the same
    bits; float32 products of units that differ may be, too, and are not looked at.

    Args:
        square: Matrices ``[groups, n, n]``.
        diagonals: Their diagonals.
        counted: Number of eigenvalues of each that are above the noise.
        dtype: Precision of their products.

    Yields:
        The largest rank of each.
    """
    for block, diagonal, rank in zip(square, diagonals, counted, strict=True):
        side = len(diagonal)
        if rank == side:
            yield side
            continue
        alive = np.flatnonzero(diagonal)
        if dtype != torch.float64 or rank >= len(alive):
            yield len(alive)
            continue
        rows = block if len(alive) == side else block[alive][:, alive]
        mixed = rows @ torch.linspace(1, 2, len(rows), dtype=torch.float64)
        order = mixed.argsort()
        first, second = order[:-1], order[1:]
        near = (mixed[first] - mixed[second]).abs() <= 1e-12 * mixed.abs().max()
        same = sum(
            bool(torch.equal(rows[i], rows[j]))
            for i, j in zip(first[near].tolist(), second[near].tolist(), strict=True)
        )
        yield len(alive) - same
