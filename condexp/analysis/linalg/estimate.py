"""Eigenvalues of a matrix too wide to be solved, each in an interval that holds.

Quadratures of random vectors bound the number of eigenvalues above any value, and so every
eigenvalue from both sides, but for a chance of :data:`RISK` (``docs/theory.md`` §4).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from condexp.analysis.linalg.eigen import descending_eigenvalues
from condexp.analysis.linalg.lanczos import Quadratures, lanczos, random_vectors
from condexp.analysis.linalg.pair_products import Numbers
from condexp.analysis.linalg.ratios import is_wide

RISK = 1e-6
"""Probability that an end of an interval does not hold."""
NUM_VECTORS = 8
NUM_STEPS = 128
NUM_TOP = 32  # largest eigenvalues that are looked for one by one
_SAME = 1e-9  # of λ_1: distance and residual of Ritz values that are one eigenvalue
_INDEPENDENT = 1e-3  # singular value of unit vectors that do not depend on the others
_ROUNDING = 1e-12  # of sums of weights
_CHUNK = 1 << 24  # numbers of a matrix that are widened at once


@dataclass(frozen=True, eq=False)
class Estimate:
    """What is known of the eigenvalues λ_1 ≥ … ≥ λ_n of a positive semi-definite matrix.

    Attributes:
        top: The largest ones, as far as all vectors agree on them, ``[k]`` descending, k ≥ 1; the
            first is the largest Ritz value.
        low: ``[n]``, the least that each can be.
        high: ``[n]``, the most.
        middle: ``[n]`` descending, a value between the two; the last is the smallest Ritz value
            where that is negative.
        trace: Σλ, exactly.
        frobenius_norm: √Σλ², exactly.
    """

    top: Tensor
    low: Tensor
    high: Tensor
    middle: Tensor
    trace: float
    frobenius_norm: float

    def scaled(self, scale: float, length: int) -> "Estimate":
        """Return what is known of the matrix times a number, with zeros up to a length."""
        more = (0, length - len(self.low))
        low, high, middle = (pad(e * scale, more) for e in (self.low, self.high, self.middle))
        numbers = self.trace * scale, self.frobenius_norm * scale
        return Estimate(self.top * scale, low, high, middle, *numbers)


def solve_or_estimate(matrices: Tensor) -> tuple[Tensor, tuple[Estimate, ...] | None]:
    """Return the eigenvalues of matrices, or where these are too wide what is known of them.

    Args:
        matrices: Symmetric, ``[groups, n, n]``, on the CPU.

    Returns:
        The eigenvalues ``[groups, n]``, descending, and None; or values between the ends of
        estimates, and these.
    """
    if not is_wide(matrices.shape[-1]) or not bool(matrices.isfinite().all()):
        return descending_eigenvalues(matrices), None
    estimates = tuple(estimate(block) for block in matrices)
    return torch.stack([each.middle for each in estimates]), estimates


def estimate(matrix: Tensor) -> Estimate:
    """Bound the eigenvalues of one matrix by Lanczos' method (Ubaru, Chen & Saad 2017).

    For normal vectors g, Σ over vectors of the squared length of g in the space of r eigenvectors,
    over all of it, is Beta(q·r/2, q·(n − r)/2) distributed: it tells r. A quadrature bounds that
    length from both sides by Chebyshev, Markov and Stieltjes' inequality. That λ_1 is not far above
    the largest Ritz value is Kuczyński & Woźniakowski's (1992, theorem 4.1).

    Args:
        matrix: Symmetric positive semi-definite M up to rounding, ``[n, n]``, finite.

    Returns:
        The estimate; its ends hold for M but for a chance of ``RISK`` each.
    """
    side = len(matrix)
    vectors = random_vectors(side, NUM_VECTORS).to(matrix.device)
    found = lanczos(lambda block: _times(matrix, block), vectors, NUM_STEPS)
    trace = float(matrix.diagonal().sum(dtype=torch.float64))
    norm = float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
    return _from_quadratures(found, side, trace, norm)


def _times(matrix: Tensor, block: Tensor) -> Tensor:
    if matrix.dtype == torch.float64:
        return matrix @ block
    at_once = max(1, _CHUNK // len(matrix))
    return torch.cat([part.double() @ block for part in torch.split(matrix, at_once)])


def _from_quadratures(found: Quadratures, side: int, trace: float, norm: float) -> Estimate:
    nodes, weights = found.nodes.numpy(), found.weights.numpy()
    first, most = _largest(nodes, side, min(trace, norm))
    low, high = _ends(nodes, weights, side)
    high = np.minimum(high, most)
    low[0] = max(low[0], first)
    # λ_k is the k-th part of the trace at most.
    high = np.minimum(high, np.maximum(trace, first) / np.arange(1, side + 1))
    low = np.minimum(low, high)
    top = _converged(found)[:side]
    places = slice(0, len(top))
    middle = np.clip(_quantiles(nodes, weights, side), low, high)
    middle[places] = np.clip(top, low[places], high[places])
    middle = np.minimum.accumulate(middle)
    middle[-1] = min(middle[-1], nodes.min())
    tensors = [torch.from_numpy(values) for values in (top, low, high, middle)]
    return Estimate(tensors[0], tensors[1], tensors[2], tensors[3], trace, norm)


def _largest(nodes: Numbers, side: int, bound: float) -> tuple[float, float]:
    """Return the largest node, and the most that λ_1 can be."""
    num_vectors, num_steps = nodes.shape
    first = max(float(nodes.max()), 0.0)
    # Each vector fails with a probability of its own, and one that does not is enough.
    each = RISK ** (1 / num_vectors)
    root = max(0.0, math.log(1.648 * math.sqrt(side) / each)) / (2 * num_steps - 1)
    if num_steps >= side:
        return first, first
    return first, max(first, min(bound, first / (1 - root**2) if root < 1 else math.inf))


def _ends(nodes: Numbers, weights: Numbers, side: int) -> tuple[Numbers, Numbers]:
    """Return the least and the most that each eigenvalue can be."""
    from scipy.special import betaincinv  # takes a third of a second, and few matrices are wide

    num_vectors, total = len(nodes), weights.sum()
    values = np.sort(nodes, axis=None)
    at_least, at_most = np.zeros_like(values), np.zeros_like(values)
    for own, weight in zip(nodes, weights, strict=True):
        above = np.append(np.cumsum(weight[::-1])[::-1], [0.0, 0.0])  # of this node and on
        at_least += above[np.searchsorted(own, values) + 1]  # without the first that reaches it
        at_most += above[np.maximum(np.searchsorted(own, values, side="right") - 1, 0)]
    index = np.arange(1, side + 1)
    half = num_vectors / 2
    with np.errstate(invalid="ignore"):
        # Were λ_k below a value, k − 1 eigenvalues at most would reach it; above it, k at least.
        needed = betaincinv(half * (index - 1), half * (side - index + 1), 1 - RISK)
        allowed = betaincinv(half * index, half * (side - index), RISK)
    needed[0], allowed[-1] = 0.0, 1.0
    needed, allowed = needed + _ROUNDING, allowed - _ROUNDING
    # Shares fall as values grow: the largest value whose share is more than needed.
    reach = np.searchsorted(-at_least / total, -needed)
    fail = np.searchsorted(-at_most / total, -allowed, side="right")
    padded = np.append(np.maximum(values, 0.0), np.inf)
    low = np.where(reach > 0, padded[np.maximum(reach - 1, 0)], 0.0)
    return np.minimum.accumulate(low), np.minimum.accumulate(padded[fail])


def _converged(found: Quadratures) -> Numbers:
    """Return the largest eigenvalues that all vectors find alike, as often as they occur.

    Several vectors have projections of their own on the space of an eigenvalue: as many of them as
    it is repeated are independent.
    """
    count = min(NUM_TOP, found.nodes.shape[1])
    nodes, residuals = (each[:, -count:].flip(1) for each in (found.nodes, found.residuals))
    vectors = found.ritz_vectors(count).cpu()
    tolerance = _SAME * float(nodes.max())
    top: list[float] = []
    place = 0
    while place < count:
        value = float(nodes[:, place].max())
        known = (nodes[:, place:] >= value - tolerance) & (residuals[:, place:] <= tolerance)
        if not known[:, 0].all():
            break
        # Rounding may show the same vector more than one of its copies.
        width = int(known.all(0).cumprod(0).sum())
        lengths = torch.linalg.svdvals(vectors[:, place : place + width].flatten(0, 1))
        times = int((lengths > _INDEPENDENT).sum())
        top += [value] * times
        place += width
        if times >= len(vectors):  # or more often
            break
    top = top or [float(nodes.max())]
    return np.minimum.accumulate(np.maximum(np.array(top), 0.0))


def _quantiles(nodes: Numbers, weights: Numbers, side: int) -> Numbers:
    """Return the eigenvalues that the quadratures have by their weights."""
    order = np.argsort(-nodes, axis=None)
    shares = np.cumsum(weights.ravel()[order]) - weights.ravel()[order] / 2
    wanted = (np.arange(side) + 0.5) / side * weights.sum()
    found: Numbers = np.interp(wanted, shares, np.maximum(nodes.ravel()[order], 0.0))
    return found
