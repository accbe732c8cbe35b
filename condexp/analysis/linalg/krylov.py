"""Eigenvalues of a symmetric matrix that is known by its products alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""From columns ``[n, s]``, float64, to the matrix times these, ``[n, s]``, float64."""
MOST_PRODUCTS = 200
"""Products after which eigenvalues are given as they are, with the error that is left."""
ROOM = 24
"""Basis vectors kept beside the wanted ones, before the basis is cut to its best directions."""
NEGLIGIBLE = 1e-13
"""A remainder shorter than this share of what it was is rounding."""


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Eigenvalues at the upper end of a spectrum, and the lowest.

    Attributes:
        values: θ, descending, ``[m]``, at least those that were asked for. The first are lower
            bounds of the eigenvalues of their rank, the last one is an upper bound of the lowest.
        vectors: Orthonormal columns x, ``[n, m]``.
        residuals: ‖Ax − θx‖, ``[m]``: an eigenvalue lies within this of θ.
        largest: The largest modulus on that space.
        asymmetry: ‖VᵀAV − (VᵀAV)ᵀ‖₂ / 2 on that space: rounding, for the matrix is symmetric.
        num_products: Number of columns that the matrix was multiplied with.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    largest: float
    asymmetry: float
    num_products: int


def top_eigenpairs(
    product: Product,
    start: Tensor,
    count: int,
    *,
    tolerance: float,
    most_products: int = MOST_PRODUCTS,
    generator: torch.Generator,
) -> Eigenpairs:
    """Compute the largest eigenvalues and the lowest by Rayleigh–Ritz on a space that grows.

    It grows by residuals: from one starting vector that is Lanczos' method with full
    orthogonalisation, from several a block method, which finds eigenvalues of as high a
    multiplicity as there are vectors (Parlett 1998, §13; Saad 2011, §7-8). Products are kept, so
    that residuals are computed, not recurred.

    Args:
        product: The matrix A, n × n, symmetric.
        start: Columns to start from ``[n, b]``: near the eigenvectors, or random.
        count: Number k of eigenvalues, at most n.
        tolerance: Residual at which an eigenvalue is done, relative to the largest modulus.
        most_products: Number of products after which no more are made.
        generator: Draws a direction where the space would not grow.

    Returns:
        The eigenpairs: the largest, others that are done as well, and the lowest; NaN where a
        product is not finite.
    """
    basis = start.new_empty(len(start), 0)
    images, made = basis, 0
    waiting = orthonormal(basis, start, generator)
    while True:
        images = torch.cat([images, product(waiting)], 1)
        basis = torch.cat([basis, waiting], 1)
        made += waiting.shape[1]
        small = basis.T @ images
        if not bool(small.isfinite().all()):
            return _nonfinite(start, count, made)
        values, mixing = ritz_pairs(small)
        largest, size = float(values.abs().max()), len(values)
        wanted = [*range(min(count, size)), size - 1]
        remainders = images @ mixing[:, wanted] - basis @ mixing[:, wanted] * values[wanted]
        missing = torch.linalg.vector_norm(remainders, dim=0) > tolerance * largest
        if size == len(start) or (size > count and not missing.any()) or made >= most_products:
            break
        direction = remainders[:, int(missing.int().argmax())][:, None]  # the first
        if size >= 2 * count + ROOM:
            kept = torch.cat([mixing[:, : 2 * count], mixing[:, -1:]], 1)
            basis, images = basis @ kept, images @ kept
        waiting = orthonormal(basis, direction, generator)
    residuals = torch.linalg.vector_norm(images @ mixing - basis @ mixing * values, dim=0)
    done = residuals <= tolerance * largest
    done[wanted] = True
    return Eigenpairs(
        values=values[done].cpu(),
        vectors=basis @ mixing[:, done],
        residuals=residuals[done].cpu(),
        largest=largest,
        asymmetry=asymmetry_of(small),
        num_products=made,
    )


def random_columns(num: int, count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw random signs.

    Args:
        num: Number n of rows.
        count: Number of columns.
        like: Has the device.
        generator: On the CPU, so that every device has the same.

    Returns:
        ±1, ``[n, count]``, float64.
    """
    drawn = torch.randint(0, 2, (num, count), generator=generator, dtype=torch.int8)
    return drawn.to(like.device).double() * 2 - 1


def ritz_pairs(small: Tensor) -> tuple[Tensor, Tensor]:
    """Solve a matrix on a small space, symmetric up to rounding.

    Args:
        small: VᵀAV, ``[m, m]``.

    Returns:
        Its eigenvalues ``[m]``, descending, and its eigenvectors ``[m, m]``, a column each.
    """
    values, mixing = torch.linalg.eigh((small + small.T) / 2)
    return values.flip(0), mixing.flip(1)


def asymmetry_of(small: Tensor) -> float:
    """Return ‖S − Sᵀ‖₂ / 2, the rounding of a matrix S that is symmetric in theory.

    Args:
        small: S, ``[m, m]``.
    """
    return float(torch.linalg.matrix_norm(small - small.T, 2)) / 2


def orthonormal(basis: Tensor, columns: Tensor, generator: torch.Generator) -> Tensor:
    """Return orthonormal columns that span, with a basis, what it and the columns span.

    Args:
        basis: Orthonormal columns ``[n, m]``.
        columns: Others ``[n, s]``; one that adds nothing is replaced by a random one.
        generator: Draws it.

    Returns:
        ``[n, s]``, or as many as there are dimensions left.
    """
    found: list[Tensor] = []
    for column in columns.T[: len(basis) - basis.shape[1]]:
        before = torch.cat([basis, *(each[:, None] for each in found)], 1)
        rest = _remainder(before, column)
        while rest is None:
            drawn = random_columns(len(basis), 1, basis, generator)[:, 0]
            rest = _remainder(before, drawn)
        found.append(rest)
    return torch.stack(found, 1)


def _remainder(basis: Tensor, column: Tensor) -> Tensor | None:
    """Return the direction of a column's part outside a basis; None where that is rounding."""
    length = float(torch.linalg.vector_norm(column))
    if not 0 < length < math.inf:
        return None
    column = column / length
    for _ in range(2):  # twice is enough (Parlett 1998, §6.9)
        column = column - basis @ (basis.T @ column)
        length = float(torch.linalg.vector_norm(column))
        if length < NEGLIGIBLE:
            return None
        column = column / length
    return column


def _nonfinite(start: Tensor, count: int, made: int) -> Eigenpairs:
    missing = torch.full((count,), math.nan, dtype=torch.float64)
    vectors = start.new_full((len(start), count), math.nan)
    return Eigenpairs(missing, vectors, missing, math.nan, math.nan, made)


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Gauss quadrature of a matrix's spectral measure, from several random vectors.

    Attributes:
        nodes: Ritz values of each vector's Krylov space, ``[s, m]``; NaN where it ended before.
        weights: Their weights, ``[s, m]``, 0 there; each row sums to 1.
        norms: ‖z‖² of the random vectors outside the directions that are left out, ``[s]``.
        second: ‖A q‖² of the normalised vectors q, ``[s]``.
        num_products: Number of columns that the matrix was multiplied with.
    """

    nodes: Tensor
    weights: Tensor
    norms: Tensor
    second: Tensor
    num_products: int


def lanczos_quadrature(
    product: Product, vectors: Tensor, num_steps: int, without: Tensor
) -> Quadrature:
    """Compute stochastic Lanczos quadrature on the complement of some directions.

    For f of degree below 2m, Σ_j w_j f(θ_j) is qᵀ f(PAP) q exactly (Golub & Meurant 1994; Ubaru,
    Chen & Saad 2017), with P the projection off ``without``.

    Args:
        product: The matrix A, n × n, symmetric.
        vectors: Random vectors z, ``[n, s]``.
        num_steps: Number m of steps, at least 1; a step multiplies every vector once.
        without: Orthonormal columns ``[n, k]``, eigenvectors that are accounted for.

    Returns:
        The quadrature of each vector.
    """

    def outside(columns: Tensor) -> Tensor:
        for _ in range(2):
            columns = columns - without @ (without.T @ columns)
        return columns

    now = outside(vectors)
    norms = now.square().sum(0)
    now, before = now / norms.sqrt(), torch.zeros_like(now)
    alphas: list[Tensor] = []
    betas: list[Tensor] = [torch.zeros_like(norms)]
    alive = torch.ones_like(norms, dtype=torch.bool)
    scale, second = torch.zeros_like(norms), norms
    lengths = torch.zeros_like(norms, dtype=torch.long)
    for step in range(num_steps):
        image = outside(product(now))
        alphas.append((now * image).sum(0))
        rest = outside(image - alphas[-1] * now - betas[-1] * before)
        beta = torch.linalg.vector_norm(rest, dim=0)
        scale = torch.maximum(scale, torch.linalg.vector_norm(image, dim=0))
        if step == 0:
            second = image.square().sum(0)
        lengths = lengths + alive
        alive = alive & (beta > 1e-10 * scale)
        betas.append(torch.where(alive, beta, torch.zeros_like(beta)))
        before = now
        now = torch.where(alive, rest / beta.clamp(min=torch.finfo(beta.dtype).tiny), 0.0)
    rows = [
        _gauss([float(a[i]) for a in alphas], [float(b[i]) for b in betas[1:]], int(lengths[i]))
        for i in range(len(norms))
    ]
    return Quadrature(
        nodes=torch.stack([nodes for nodes, _ in rows]),
        weights=torch.stack([weights for _, weights in rows]),
        norms=norms.cpu(),
        second=second.cpu(),
        num_products=num_steps * len(norms),
    )


def _gauss(alphas: list[float], betas: list[float], length: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of one tridiagonal matrix, padded to the number of steps."""
    steps = len(alphas)
    nodes = torch.full((steps,), math.nan, dtype=torch.float64)
    weights = torch.zeros(steps, dtype=torch.float64)
    diagonal = torch.tensor(alphas[:length], dtype=torch.float64)
    beside = torch.tensor(betas[: length - 1], dtype=torch.float64)
    matrix = diagonal.diag() + beside.diag(1) + beside.diag(-1)
    if bool(matrix.isfinite().all()):
        values, vectors = torch.linalg.eigh(matrix)
        nodes[:length], weights[:length] = values, vectors[0].square()
    return nodes, weights
