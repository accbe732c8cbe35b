"""Eigenvalues, moments and densities of matrices that are known by products, against eigh."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from condexp.analysis.linalg.curvature_spectrum import (
    CONFIDENCE,
    SearchEffort,
    search,
)
from condexp.analysis.linalg.krylov import lanczos_quadrature, top_eigenpairs
from condexp.analysis.vocabulary import DENSITY_POINTS, SpectrumStatus
from tests import cases

DOUBLE = torch.float64


def with_eigenvalues(values: Tensor, seed: int = 0) -> Tensor:
    q = torch.linalg.qr(cases.normal(len(values), len(values), seed=seed)).Q
    found: Tensor = q @ values.diag() @ q.T
    return found


def like_a_hessian(num: int = 300) -> Tensor:
    """Outliers, a bulk of both signs, and many zeros."""
    bulk = 0.3 * cases.normal(num // 2, seed=8)
    outliers = torch.tensor([30.0, 21.0, 17.0, 9.0, -4.0], dtype=DOUBLE)
    zeros = torch.zeros(num - len(bulk) - len(outliers), dtype=DOUBLE)
    return with_eigenvalues(torch.cat([outliers, bulk, zeros]))


def eigenvalues(matrix: Tensor) -> Tensor:
    found: Tensor = torch.linalg.eigvalsh(matrix).flip(0)
    return found


@pytest.mark.parametrize("count", [1, 4])
def test_residuals_bound_the_error_and_ritz_values_bound_from_below(count: int) -> None:
    matrix = like_a_hessian()
    for tolerance in (1e-1, 1e-3, 1e-9):
        pairs = top_eigenpairs(
            lambda v: matrix @ v,
            cases.normal(300, count + 1, seed=3),
            count,
            tolerance=tolerance,
            generator=cases.seeded(),
        )
        exact = eigenvalues(matrix)
        assert (pairs.values[:count] <= exact[:count] + 1e-12).all()
        for value, residual in zip(pairs.values, pairs.residuals, strict=True):
            assert (exact - value).abs().min() <= residual + 1e-12
            assert residual <= tolerance * 30
        assert pairs.values[-1] >= exact[-1] - 1e-12
        found = matrix @ pairs.vectors - pairs.vectors * pairs.values
        torch.testing.assert_close(found.norm(dim=0), pairs.residuals, rtol=1e-6, atol=1e-10)
        assert pairs.asymmetry < 1e-12


def test_a_multiple_eigenvalue_is_found_as_often_as_it_is_there() -> None:
    values = torch.cat([
        torch.full((3,), 5.0, dtype=DOUBLE),
        torch.linspace(0, 1, 97, dtype=DOUBLE),
    ])
    matrix = with_eigenvalues(values)
    pairs = top_eigenpairs(
        lambda v: matrix @ v,
        cases.normal(100, 5, seed=3),
        4,
        tolerance=1e-8,
        generator=cases.seeded(),
    )
    expected = torch.tensor([5.0, 5.0, 5.0, 1.0], dtype=DOUBLE)
    torch.testing.assert_close(pairs.values[:4], expected, rtol=1e-9, atol=0)


def test_a_basis_that_was_cut_goes_on_converging() -> None:
    """Eigenvalues so close that 28 vectors do not suffice."""
    matrix = with_eigenvalues(torch.linspace(1, 2, 120, dtype=DOUBLE).square())
    pairs = top_eigenpairs(
        lambda v: matrix @ v,
        cases.normal(120, 3, seed=3),
        2,
        tolerance=1e-7,
        generator=cases.seeded(),
    )
    assert 28 < pairs.num_products < 200
    exact = eigenvalues(matrix)
    torch.testing.assert_close(pairs.values[[0, 1, -1]], exact[[0, 1, -1]], rtol=1e-9, atol=1e-9)


def test_an_invariant_start_and_a_zero_matrix() -> None:
    """Directions that add nothing are drawn anew; there is nothing to divide by."""
    matrix = with_eigenvalues(torch.arange(40, dtype=DOUBLE))
    _, vectors = torch.linalg.eigh(matrix)
    start = torch.cat([vectors[:, -2:], vectors[:, -2:]], 1)
    pairs = top_eigenpairs(lambda v: matrix @ v, start, 3, tolerance=1e-9, generator=cases.seeded())
    expected = torch.tensor([39.0, 38.0, 37.0], dtype=DOUBLE)
    torch.testing.assert_close(pairs.values[:3], expected, rtol=1e-9, atol=0)
    searched = search(
        torch.zeros_like, 50, SearchEffort(3, 1e-3, 2, 3), DOUBLE, generator=cases.seeded()
    ).spectrum
    assert searched.status is SpectrumStatus.ZERO
    assert searched.trace == searched.frobenius_norm == searched.lambda_max == 0
    assert math.isnan(searched.negative_share)
    assert searched.density[DENSITY_POINTS.index(0.0)] == pytest.approx(1.0)


def test_quadrature_is_exact_for_polynomials_outside_what_is_left_out() -> None:
    """Degree 2m − 1 (Golub & Meurant 1994)."""
    matrix, steps = like_a_hessian(60), 4
    _, vectors = torch.linalg.eigh(matrix)
    without = vectors[:, -3:]
    signs = cases.normal(60, 2, seed=5).sign()
    rest = lanczos_quadrature(lambda v: matrix @ v, signs, steps, without)
    projection = torch.eye(60, dtype=DOUBLE) - without @ without.T
    inner = projection @ matrix @ projection
    for column in range(2):
        z = projection @ signs[:, column]
        for power in range(2 * steps):
            expected = float(z @ torch.linalg.matrix_power(inner, power) @ z)
            found = float(
                rest.norms[column] * (rest.weights[column] * rest.nodes[column] ** power).sum()
            )
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(
        rest.norms * rest.second, (inner @ signs).square().sum(0), rtol=1e-10, atol=0
    )


def test_quadrature_ends_where_the_space_does() -> None:
    """Rank 2: after three steps nothing is left."""
    matrix = with_eigenvalues(torch.tensor([3.0, 1.0, *[0.0] * 38], dtype=DOUBLE))
    signs = cases.normal(40, 3, seed=5).sign()
    rest = lanczos_quadrature(lambda v: matrix @ v, signs, 8, torch.empty(40, 0, dtype=DOUBLE))
    assert rest.nodes.isfinite().sum(1).tolist() == [3, 3, 3]
    torch.testing.assert_close(rest.weights.sum(1), torch.ones(3, dtype=DOUBLE))


def trials(effort: SearchEffort, matrix: Tensor, num: int) -> Tensor:
    """Whether trace, norm and negative share lie within what is said, in each trial."""
    exact = eigenvalues(matrix)
    share = float(exact.clamp(max=0).abs().sum() / exact.abs().sum())
    hits = []
    for seed in range(num):
        found = search(
            lambda v: matrix @ v, len(matrix), effort, DOUBLE, generator=cases.seeded(seed)
        ).spectrum
        hits.append([
            abs(found.trace - float(exact.sum())) <= found.trace_error,
            abs(found.frobenius_norm - float(exact.norm())) <= found.frobenius_norm_error,
            abs(found.negative_share - share) <= found.negative_share_error,
        ])
    return torch.tensor(hits, dtype=DOUBLE)


def test_estimates_are_within_their_errors_in_95_of_100_trials() -> None:
    """The intervals are meant for 99: 190 of 200 allows what eight vectors are short of normal.

    The quadrature's own error of the negative share is not in its interval: 16 steps make it small
    beside the statistical one.
    """
    assert CONFIDENCE == 0.99
    share = trials(SearchEffort(4, 1e-3, 8, 16), like_a_hessian(), 200).mean(0)
    assert share[0] >= 0.95, share
    assert share[1] >= 0.95, share
    assert share[2] >= 0.95, share


@pytest.mark.parametrize("exact", [True, False])
def test_moments_of_the_density(exact: bool) -> None:
    """Whole: to 1e-3, the points' distance. Estimated: to a few per cent, by 64 vectors."""
    matrix = like_a_hessian()
    effort = SearchEffort(4, 1e-6, 300, 300) if exact else SearchEffort(4, 1e-6, 12, 24)
    found = search(lambda v: matrix @ v, 300, effort, DOUBLE, generator=cases.seeded()).spectrum
    values = eigenvalues(matrix)
    assert (found.num_products == 300) == exact
    points = torch.tensor(DENSITY_POINTS, dtype=torch.float64) * found.density_scale
    for power in (1, 2, 3, 4):
        moment = float((found.density * points**power).sum())
        expected = float((values**power).mean())
        scale = float((values.abs() ** power).mean())
        tolerance = (1e-3 if power < 3 else 5e-3) if exact else 0.05
        assert moment == pytest.approx(expected, abs=tolerance * scale)
    assert float(found.density.sum()) == pytest.approx(1.0, abs=1e-12)


def test_points_of_the_density_rise_and_are_symmetric() -> None:
    points = np.asarray(DENSITY_POINTS)
    assert (np.diff(points) > 0).all()
    assert (points == -points[::-1]).all()
    assert (points[-1], points[0], points[len(points) // 2]) == (1.0, -1.0, 0.0)
    upper = points[points > 0]
    assert (upper[1:] / upper[:-1]).max() < 1.07  # hence the second moment: 0.06²/4 < 1e-3
