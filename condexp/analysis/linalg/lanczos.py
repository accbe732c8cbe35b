"""Lanczos' method on random vectors: what a matrix too large to be solved tells of its spectrum."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Multiply = Callable[[Tensor], Tensor]
"""From ``[n, q]`` float64 to M times it."""


@dataclass(frozen=True, eq=False)
class Quadratures:
    """Gauss quadratures of the spectral measures Σ_i (gᵀu_i)²·δ(λ_i) of some vectors g.

    Attributes:
        nodes: ``[q, m]`` float64, each row ascending: the Ritz values of one vector.
        weights: ``[q, m]``, the squared lengths of g along them; a row's sum is ‖g‖².
        residuals: ``[q, m]``: an eigenvalue of the matrix is as near to each node.
        basis: ``[q, m, n]``: the vectors of which each Krylov space is spanned.
        combinations: ``[q, m, m]``: its columns make the Ritz vectors of these.
    """

    nodes: Tensor
    weights: Tensor
    residuals: Tensor
    basis: Tensor
    combinations: Tensor

    def ritz_vectors(self, count: int) -> Tensor:
        """Return the vectors of the largest nodes, ``[q, count, n]`` of length 1, largest first."""
        chosen = self.combinations[:, :, -count:].flip(2).to(self.basis.device)
        return chosen.mT @ self.basis


def random_vectors(num_features: int, count: int, seed: int = 0) -> Tensor:
    """Return vectors of independent standard normal numbers, ``[n, count]`` float64 on the CPU.

    Args:
        num_features: Their length n.
        count: Number of vectors.
        seed: Seed of a generator of their own: nobody else's random numbers change.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_features, count, dtype=torch.float64, generator=generator)


def lanczos(multiply: Multiply, start: Tensor, num_steps: int) -> Quadratures:
    """Run Lanczos' method on several vectors side by side, each with a basis of its own.

    Every new vector is orthogonalised twice against all before it, so that rounding leaves neither
    copies of eigenvalues nor nodes of wrong weight (Golub & Meurant 2010, chapters 4 and 6).

    Args:
        multiply: The symmetric matrix M, as a function.
        start: Vectors g, ``[n, q]`` float64.
        num_steps: Steps m of each, at most n.

    Returns:
        The quadratures, on the CPU. Where a vector's Krylov space has fewer than m dimensions, its
        further nodes are 0 and have no weight.
    """
    num_steps = min(num_steps, len(start))
    lengths = start.norm(dim=0)
    basis = start.new_zeros(start.shape[1], num_steps, len(start))
    vector = start / lengths
    diagonal, beside = [], []
    scale = torch.zeros_like(lengths)
    for step in range(num_steps):
        basis[:, step] = vector.T
        product = multiply(vector)
        diagonal.append((vector * product).sum(0))
        known = basis[:, : step + 1]
        rest = product.T[:, :, None]
        for _ in range(2):
            rest = rest - known.mT @ (known @ rest)
        norms = rest[:, :, 0].norm(dim=1)
        scale = torch.maximum(scale, product.norm(dim=0))
        # What is left of a space that is complete is rounding.
        norms = torch.where(norms > 1e-13 * scale, norms, 0.0)
        beside.append(norms)
        vector = torch.where(norms > 0, rest[:, :, 0].T / norms.clamp(min=1e-300), 0.0)
    return _quadratures(torch.stack(diagonal, 1), torch.stack(beside, 1), lengths, basis)


def _quadratures(diagonal: Tensor, beside: Tensor, lengths: Tensor, basis: Tensor) -> Quadratures:
    """Return nodes and weights of the tridiagonal matrices with these diagonals, ``[q, m]``."""
    diagonal, beside, lengths = diagonal.cpu(), beside.cpu(), lengths.cpu()
    last, inner = beside[:, -1:], beside[:, :-1]
    tridiagonal = torch.diag_embed(diagonal)
    tridiagonal = tridiagonal + torch.diag_embed(inner, 1) + torch.diag_embed(inner, -1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    weights = vectors[:, 0].square() * lengths[:, None] ** 2
    return Quadratures(nodes, weights, (last * vectors[:, -1]).abs(), basis, vectors)
