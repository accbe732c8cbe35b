"""The largest eigenvalue of a symmetric matrix that changes little from one time to the next."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from condexp.analysis.linalg.krylov import (
    Product,
    asymmetry_of,
    orthonormal,
    random_columns,
    ritz_pairs,
)

TOLERANCES = (0.05, 0.1)
"""Residuals at which the largest and the second eigenvalue are done, relative to the largest. A
Rayleigh quotient's own error is quadratic in it. The second is watched because it may overtake."""
NUM_VECTORS = len(TOLERANCES)
MOST_PRODUCTS = 60
"""Products after which it is given as it is, with the error that is left."""
WIDTH = 12
"""Basis vectors at which the basis is cut to its best directions."""


@dataclass(frozen=True, eq=False)
class Tracked:
    """The largest eigenvalue, and vectors to start from the next time.

    Attributes:
        value: θ, a Rayleigh quotient: the largest eigenvalue is no smaller.
        residual: ‖Ax − θx‖: an eigenvalue lies within this of θ.
        largest: The largest modulus that was met.
        asymmetry: ‖VᵀAV − (VᵀAV)ᵀ‖₂ / 2 on the space V of the search: rounding.
        vectors: Orthonormal columns ``[n, 2]``, those of the two largest.
        num_products: Number of columns that the matrix was multiplied with.
    """

    value: float
    residual: float
    largest: float
    asymmetry: float
    vectors: Tensor
    num_products: int


def num_bytes(num: int) -> int:
    """Return the bytes that the vectors take: the basis, its products, and copies of both.

    Args:
        num: Their length.
    """
    return 8 * num * 4 * WIDTH


def track_largest(
    product: Product,
    num: int,
    start: Tensor | None,
    *,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tracked:
    """Follow the largest eigenvalue from where it was the last time.

    Rayleigh–Ritz on the last time's vectors of the two largest, and on a space that grows by their
    residuals until both are within their tolerance: where the second overtakes, it is seen.

    Args:
        product: The matrix A, n × n, symmetric.
        num: n.
        start: The vectors of the last time; None: random ones.
        generator: Draws what is random.
        device: Where the vectors are wanted.

    Returns:
        The eigenvalue; NaN where a product is not finite.
    """
    like = torch.empty(0, dtype=torch.float64, device=device)
    if start is None:
        start = random_columns(num, min(NUM_VECTORS, num), like, generator)
    start = start.to(like)
    basis = images = start[:, :0]
    waiting, made = orthonormal(basis, start, generator), 0
    while True:
        images = torch.cat([images, product(waiting)], 1)
        basis = torch.cat([basis, waiting], 1)
        made += waiting.shape[1]
        small = basis.T @ images
        if not bool(small.isfinite().all()):
            return Tracked(math.nan, math.nan, math.nan, math.nan, start, made)
        values, mixing = ritz_pairs(small)
        largest, size = float(values.abs().max()), len(values)
        top = mixing[:, :NUM_VECTORS]
        rest = images @ top - basis @ top * values[:NUM_VECTORS]
        residuals = torch.linalg.vector_norm(rest, dim=0)
        missing = residuals > values.new_tensor(TOLERANCES[: top.shape[1]]) * largest
        if size == num or not missing.any() or made >= MOST_PRODUCTS:
            break
        worst = rest[:, int(missing.int().argmax())][:, None]  # the first of them
        if size >= WIDTH:
            kept = torch.cat([mixing[:, : WIDTH // 2], mixing[:, -1:]], 1)
            basis, images = basis @ kept, images @ kept
        waiting = orthonormal(basis, worst, generator)
    return Tracked(
        value=float(values[0]),
        residual=float(residuals[0]),
        largest=largest,
        asymmetry=asymmetry_of(small),
        vectors=basis @ top,
        num_products=made,
    )
