"""What is known of a symmetric matrix by its products: eigenvalues, moments, and its density."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from condexp.analysis.linalg.krylov import (
    ROOM,
    Eigenpairs,
    Product,
    Quadrature,
    asymmetry_of,
    lanczos_quadrature,
    random_columns,
    top_eigenpairs,
)
from condexp.analysis.vocabulary import DENSITY_POINTS, SpectrumStatus

CONFIDENCE = 0.99
"""Of the intervals in which a trace and what else is estimated at random lies."""
ASYMMETRIC = 1e-2
"""Asymmetry, relative to the largest modulus, that is no rounding: a derivative is wrong."""
ROUNDING = 4
"""Rounding of a product, in eps of the largest eigenvalue, beside what its asymmetry shows."""


@dataclass(frozen=True)
class SearchEffort:
    """How much is computed of a matrix.

    Attributes:
        top_k: Number of eigenvalues.
        tolerance: Residual of these, relative to the largest modulus.
        num_random_vectors: Random vectors for the trace, the norm and the density; at least 2.
        num_lanczos_steps: Products of each; at least 2.
    """

    top_k: int
    tolerance: float
    num_random_vectors: int
    num_lanczos_steps: int

    def is_exact(self, num_weights: int) -> bool:
        """Return whether the whole matrix takes no more products than the estimates would."""
        return num_weights <= self.num_random_vectors * self.num_lanczos_steps

    def num_bytes(self, num_weights: int) -> int:
        """Return the bytes that vectors take: the basis and its products, then the random ones."""
        if self.is_exact(num_weights):
            return 3 * 8 * num_weights**2
        basis = 2 * self.top_k + ROOM
        return 8 * num_weights * (4 * basis + 5 * self.num_random_vectors)


@dataclass(frozen=True, eq=False)
class CurvatureSpectrum:
    """The upper eigenvalues of a Hessian or Gauss–Newton matrix, and its moments, with errors.

    ``eigenvalue_errors`` are residuals ‖Ax − θx‖ and the rounding of the products: within that of θ
    there is an eigenvalue, and the eigenvalue of its rank is no smaller than θ less the rounding.
    That none above was overlooked is no certainty where a start is nearly orthogonal to its vector.
    The errors of trace, norm and negative share are half-widths of 99 % Student intervals over the
    random vectors; all are rounding alone where the matrix was computed whole.

    Args:
        eigenvalues: The top-k, descending, ``[k]``, float64, on the CPU.
        eigenvalue_errors: ``[k]``.
        lambda_min: The lowest, computed to the same tolerance.
        lambda_min_error: Within that of it there is an eigenvalue; the lowest is no larger.
        trace: Σλ.
        trace_error: Error of it.
        frobenius_norm: √Σλ².
        frobenius_norm_error: Error of it.
        negative_share: Σ|λ| over the negative eigenvalues / Σ|λ|; NaN where all are 0.
        negative_share_error: Its statistical error; the quadrature's own, of a function with a
            kink, is not in it and falls with the number of steps.
        density_scale: Largest modulus s of an eigenvalue met.
        density: Share of the eigenvalues at each point s·``DENSITY_POINTS``, ``[points]``; between
            two points an eigenvalue is shared so that its mean stays.
        num_weights: Side n.
        num_products: Number of products with a vector.
        dtype: Precision of the products.
        status: ``ok``, ``zero``, ``nonfinite``, or ``unreliable`` where the products are not those
            of a symmetric matrix: all is NaN then.
    """

    eigenvalues: Tensor
    eigenvalue_errors: Tensor
    lambda_min: float
    lambda_min_error: float
    trace: float
    trace_error: float
    frobenius_norm: float
    frobenius_norm_error: float
    negative_share: float
    negative_share_error: float
    density_scale: float
    density: Tensor
    num_weights: int
    num_products: int
    dtype: torch.dtype
    status: SpectrumStatus

    @cached_property
    def lambda_max(self) -> float:
        """The largest eigenvalue."""
        return float(self.eigenvalues[0])

    @cached_property
    def lambda_max_error(self) -> float:
        """Error of the largest eigenvalue."""
        return float(self.eigenvalue_errors[0])

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def __repr__(self) -> str:
        return (
            f"CurvatureSpectrum({self.num_weights} weights, λ_max={self.lambda_max:.6g} "
            f"± {self.lambda_max_error:.1g}, trace={self.trace:.6g} ± {self.trace_error:.1g}, "
            f"status={self.status})"
        )


@dataclass(frozen=True, eq=False)
class Searched:
    """A matrix's spectrum, and vectors to start the next search from.

    Attributes:
        spectrum: The spectrum.
        vectors: Those of its top-k eigenvalues and of the lowest ``[n, k + 1]``; None where it was
            computed whole.
    """

    spectrum: CurvatureSpectrum
    vectors: Tensor | None


def search(
    product: Product,
    num_weights: int,
    effort: SearchEffort,
    dtype: torch.dtype,
    *,
    generator: torch.Generator,
    start: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Searched:
    """Measure a symmetric matrix by its products.

    A matrix of no more weights than the estimates' products is computed whole. Else the upper
    eigenvalues come first (:func:`.top_eigenpairs`), and random vectors give the moments of what is
    left outside their eigenvectors: Hutch++ (Meyer et al. 2021) with these in the place of a random
    sketch. The same vectors' Lanczos quadrature gives the density (Ghorbani et al. 2019).

    Args:
        product: The matrix, n × n.
        num_weights: n.
        effort: How much to compute.
        dtype: Precision in which products are computed.
        generator: Draws the vectors.
        start: The vectors of an earlier, similar matrix ``[n, k + 1]``.
        device: Where the vectors are wanted.

    Returns:
        The spectrum.
    """
    like = torch.empty(0, device=device)
    if effort.is_exact(num_weights):
        whole = product(torch.eye(num_weights, dtype=torch.float64, device=like.device)).cpu()
        return Searched(_exact(whole, effort, dtype), None)
    count = min(effort.top_k, num_weights)
    # Eigenvalues of multiplicity count take as many columns; one more makes the last of them quick.
    missing = count + 1 - (0 if start is None else start.shape[1])
    columns = random_columns(num_weights, max(0, missing), like, generator)
    if start is not None:
        columns = torch.cat([start.to(columns), columns], 1)
    pairs = top_eigenpairs(product, columns, count, tolerance=effort.tolerance, generator=generator)
    if not bool(pairs.values.isfinite().all()):
        return Searched(_of_status(SpectrumStatus.NONFINITE, count, num_weights, dtype), None)
    if pairs.asymmetry > ASYMMETRIC * pairs.largest:
        return Searched(_of_status(SpectrumStatus.UNRELIABLE, count, num_weights, dtype), None)
    signs = random_columns(num_weights, effort.num_random_vectors, like, generator)
    rest = lanczos_quadrature(product, signs, effort.num_lanczos_steps, pairs.vectors)
    ends = [*range(count), pairs.vectors.shape[1] - 1]
    return Searched(_estimated(pairs, rest, effort, num_weights, dtype), pairs.vectors[:, ends])


def _exact(whole: Tensor, effort: SearchEffort, dtype: torch.dtype) -> CurvatureSpectrum:
    """Return the spectrum of a matrix that is there, ``[n, n]``."""
    num = len(whole)
    if not bool(whole.isfinite().all()):
        return _of_status(SpectrumStatus.NONFINITE, min(effort.top_k, num), num, dtype)
    values = torch.linalg.eigvalsh((whole + whole.T) / 2).flip(0)
    largest = float(values.abs().max())
    asymmetry = asymmetry_of(whole)
    if asymmetry > ASYMMETRIC * largest:
        return _of_status(SpectrumStatus.UNRELIABLE, min(effort.top_k, num), num, dtype)
    error = rounding(largest, asymmetry, dtype)
    norm = float(torch.linalg.vector_norm(values))
    total = float(values.abs().sum())
    negative = float(values.clamp(max=0).abs().sum())
    return CurvatureSpectrum(
        eigenvalues=values[: effort.top_k],
        eigenvalue_errors=torch.full((min(effort.top_k, num),), error, dtype=torch.float64),
        lambda_min=float(values[-1]),
        lambda_min_error=error,
        trace=float(values.sum()),
        trace_error=error * num,
        frobenius_norm=norm,
        frobenius_norm_error=error * math.sqrt(num),
        negative_share=negative / total if total else math.nan,
        negative_share_error=min(1.0, error * num / total) if total else math.nan,
        density_scale=largest,
        density=_density(values, torch.full_like(values, 1 / num), largest),
        num_weights=num,
        num_products=num,
        dtype=dtype,
        status=SpectrumStatus.OK if largest else SpectrumStatus.ZERO,
    )


def _estimated(
    pairs: Eigenpairs, rest: Quadrature, effort: SearchEffort, num: int, dtype: torch.dtype
) -> CurvatureSpectrum:
    """Return the spectrum of which some eigenvalues are known, and the others estimated."""
    known, error = pairs.values, rounding(pairs.largest, pairs.asymmetry, dtype)
    nodes = rest.nodes.nan_to_num(0.0)
    trace = rest.norms * (rest.weights * nodes).sum(1)
    squares = rest.norms * rest.second
    total = rest.norms * (rest.weights * nodes.abs()).sum(1)
    negative = rest.norms * (rest.weights * nodes.clamp(max=0).abs()).sum(1)
    all_total = float(known.abs().sum() + total.mean())
    share = float(known.clamp(max=0).abs().sum() + negative.mean()) / (all_total or math.nan)
    square = float(known.square().sum() + 2 * pairs.residuals.square().sum() + squares.mean())
    norm = math.sqrt(square)
    spread = _half_width(squares) / (2 * norm) if norm else 0.0
    relative = error / (pairs.largest or 1.0)
    scale = max(pairs.largest, float(nodes.abs().max()))
    outside = (1 - len(known) / num) / len(nodes)
    points = torch.cat([known, nodes.flatten()])
    masses = torch.cat([torch.full_like(known, 1 / num), outside * rest.weights.flatten()])
    return CurvatureSpectrum(
        eigenvalues=known[: effort.top_k],
        eigenvalue_errors=pairs.residuals[: effort.top_k] + error,
        lambda_min=float(known[-1]),
        lambda_min_error=float(pairs.residuals[-1]) + error,
        trace=float(known.sum() + trace.mean()),
        trace_error=_half_width(trace) + relative * all_total,
        frobenius_norm=norm,
        frobenius_norm_error=spread + relative * norm,
        negative_share=share,
        negative_share_error=_half_width(negative - share * total) / (all_total or math.nan),
        density_scale=scale,
        density=_density(points, masses, scale),
        num_weights=num,
        num_products=pairs.num_products + rest.num_products,
        dtype=dtype,
        status=SpectrumStatus.OK if scale else SpectrumStatus.ZERO,
    )


def _of_status(
    status: SpectrumStatus, count: int, num: int, dtype: torch.dtype
) -> CurvatureSpectrum:
    nan = math.nan
    missing = torch.full((count,), nan, dtype=torch.float64)
    density = torch.full((len(DENSITY_POINTS),), nan, dtype=torch.float64)
    return CurvatureSpectrum(
        eigenvalues=missing,
        eigenvalue_errors=missing,
        lambda_min=nan,
        lambda_min_error=nan,
        trace=nan,
        trace_error=nan,
        frobenius_norm=nan,
        frobenius_norm_error=nan,
        negative_share=nan,
        negative_share_error=nan,
        density_scale=nan,
        density=density,
        num_weights=num,
        num_products=0,
        dtype=dtype,
        status=status,
    )


def rounding(largest: float, asymmetry: float, dtype: torch.dtype) -> float:
    """Return what the rounding of products makes an eigenvalue wrong by.

    Args:
        largest: The largest modulus of an eigenvalue.
        asymmetry: Of the matrix on the space that was searched.
        dtype: Precision of the products.
    """
    return asymmetry + ROUNDING * torch.finfo(dtype).eps * largest


def _half_width(samples: Tensor) -> float:
    """Return half the width of the Student interval of a mean."""
    from scipy.special import stdtrit  # takes a third of a second, which others need not wait

    quantile = float(stdtrit(len(samples) - 1, (1 + CONFIDENCE) / 2))
    return quantile * float(samples.std()) / math.sqrt(len(samples))


def _density(values: Tensor, masses: Tensor, scale: float) -> Tensor:
    """Return masses at some values, each shared among the two points beside its value."""
    points = np.asarray(DENSITY_POINTS)
    found = np.zeros(len(points))
    relative = np.clip(values.numpy() / (scale or 1.0), -1.0, 1.0)
    right = np.clip(np.searchsorted(points, relative), 1, len(points) - 1)
    left = right - 1
    share = (relative - points[left]) / (points[right] - points[left])
    np.add.at(found, left, masses.numpy() * (1 - share))
    np.add.at(found, right, masses.numpy() * share)
    return torch.from_numpy(found)
