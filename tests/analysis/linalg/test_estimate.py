"""Matrices too wide to be solved for: what is said of their eigenvalues, against the eigenvalues.

The random vectors differ from trial to trial, so the intervals are tested as intervals: each end
may fail once in a million, so that none may fail here.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from condexp.analysis.linalg import estimate as estimating
from condexp.analysis.linalg import ratios
from condexp.analysis.linalg.estimate import estimate
from condexp.analysis.linalg.kronecker import KroneckerSpectrum
from condexp.analysis.linalg.lanczos import lanczos, random_vectors
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.vocabulary import SpectrumStatus

ByVectors = Callable[[Tensor, int], estimating.Estimate]
FRACTIONS = (0.05, 0.3, 0.5, 0.8, 1.0)


def matrix_of(eigenvalues: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(
        len(eigenvalues), len(eigenvalues), dtype=torch.float64, generator=generator
    )
    vectors = torch.linalg.qr(square).Q
    product: Tensor = (vectors * eigenvalues) @ vectors.T
    return (product + product.T) / 2


def spectra(side: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(1, side + 1, dtype=torch.float64)
    steps = torch.zeros(side, dtype=torch.float64)
    steps[: side // 3], steps[side // 3 : side // 2] = 1.0, 1e-3
    return {
        "flat": torch.rand(side, dtype=torch.float64, generator=generator).sort(descending=True)[0],
        "geometric": 10 ** -torch.linspace(0, 5, side, dtype=torch.float64),
        "power": places**-1.5,
        "steps": steps,
        "one": torch.cat([torch.tensor([50.0], dtype=torch.float64), torch.ones(side - 1)]),
    }


@pytest.fixture
def all_vectors(monkeypatch: pytest.MonkeyPatch) -> ByVectors:
    """Return a function that gives the estimate of a matrix by vectors of a seed of its own."""

    def by(matrix: Tensor, seed: int) -> estimating.Estimate:
        monkeypatch.setattr(
            estimating, "random_vectors", lambda n, count: random_vectors(n, count, seed)
        )
        return estimate(matrix)

    return by


@pytest.mark.parametrize("kind", ["flat", "geometric", "power", "steps", "one"])
def test_every_interval_holds_in_every_trial(
    all_vectors: ByVectors, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(estimating, "NUM_STEPS", 40)
    for trial in range(12):
        truth = spectra(150 + 17 * trial, trial)[kind]
        found = all_vectors(matrix_of(truth, trial), 1000 + trial)
        rounding = 1e-12  # of the matrix that is made, whose λ_1 is 50 at most
        assert (found.low - rounding <= truth).all()
        assert (truth <= found.high + rounding).all()
        middle = found.middle.clamp(min=0)  # the last may be rounding's
        assert ((found.low <= middle) & (middle <= found.high)).all()


def test_intervals_are_narrow_enough_to_be_of_use(all_vectors: ByVectors) -> None:
    truth = spectra(400, 0)["geometric"]
    found = all_vectors(matrix_of(truth, 0), 0)
    # Eight vectors of 400 numbers tell a share to √(2·¼/400/8)·4.8 = 6 %: 5 decades times that is a
    # factor of 2 to each side, and the nodes between which it lies are another apart.
    for index in (40, 100, 200):
        assert found.high[index] / found.low[index] < 10
    assert found.middle[200] == pytest.approx(float(truth[200]), rel=0.3)


def test_what_is_said_to_be_exact_is(all_vectors: ByVectors) -> None:
    truth = spectra(300, 3)["power"]
    found = all_vectors(matrix_of(truth, 3), 4)
    # Residuals of 1e-9·λ_1 leave an error of their square over the gap.
    assert len(found.top) >= 10
    torch.testing.assert_close(found.top, truth[: len(found.top)], rtol=1e-12, atol=1e-14)
    assert found.trace == pytest.approx(float(truth.sum()), rel=1e-13)
    assert found.frobenius_norm == pytest.approx(float(truth.norm()), rel=1e-13)


def test_repeated_eigenvalues_are_counted(all_vectors: ByVectors) -> None:
    values = torch.tensor([5.0, 5, 3, 2, 2, 2], dtype=torch.float64)
    truth = torch.cat([values, torch.linspace(0.5, 0.1, 200, dtype=torch.float64)])
    found = all_vectors(matrix_of(truth, 1), 2)
    torch.testing.assert_close(found.top[:6], values)


def test_nodes_and_weights_have_the_moments_of_their_vector() -> None:
    matrix = matrix_of(spectra(60, 5)["power"], 5)
    vectors = random_vectors(60, 3, 7)
    found = lanczos(lambda block: matrix @ block, vectors, 9)
    for power in range(2 * 9):  # a Gauss quadrature is exact up to 2m − 1
        moments = (vectors * (torch.linalg.matrix_power(matrix, power) @ vectors)).sum(0)
        torch.testing.assert_close((found.weights * found.nodes**power).sum(1), moments)


def test_a_space_that_ends_early_is_all_there_is() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 2.0, 0.0, 0.0], dtype=torch.float64))
    found = lanczos(lambda block: matrix @ block, random_vectors(5, 2, 1), 5)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        known = sorted(round(float(x), 9) for x in nodes[weights > 1e-12])
        assert known == [0.0, 2.0, 3.0]


def both(
    matrix: Tensor, monkeypatch: pytest.MonkeyPatch, **given: Any
) -> tuple[Spectrum, Spectrum]:
    """Return the spectrum that is solved for, and the one that is estimated."""
    solved = Spectrum.from_matrix(matrix, **given)
    monkeypatch.setattr(ratios, "WIDE", 20)
    return solved, Spectrum.from_matrix(matrix, **given)


def assert_holds(solved: Spectrum, found: Spectrum) -> None:
    assert found.status is SpectrumStatus.ESTIMATED
    assert len(found) == len(solved)
    # λ_1 converges to rounding, the trace is a sum of 10² numbers in another order.
    assert found.lambda_max == pytest.approx(solved.lambda_max, rel=1e-12)
    assert found.trace == pytest.approx(solved.trace, rel=1e-11)
    assert found.stable_rank == pytest.approx(solved.stable_rank, rel=1e-11)
    assert math.isnan(found.rank)
    assert math.isnan(found.effective_rank)
    for p in FRACTIONS:
        low, high = found.kappa_interval(p)
        least, most = solved.kappa_interval(p)
        assert low <= most, p
        assert least <= high, p
        assert low <= found.kappa(p) <= high, p


@pytest.mark.parametrize("kind", ["flat", "geometric", "power"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_wide_spectrum_says_what_the_solved_one_says(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype
) -> None:
    matrix = matrix_of(spectra(90, 8)[kind], 8).to(dtype)
    assert_holds(*both(matrix, monkeypatch, dtype=dtype, num_rows=900))


def test_a_dual_has_its_zeros_and_blocks_are_united(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = torch.stack([matrix_of(spectra(60, seed)["flat"], seed) for seed in (1, 2)])
    given: Any = {"dtype": torch.float64, "num_rows": 60, "length": 80, "scale": 0.5}
    solved, found = both(blocks, monkeypatch, **given)
    assert_holds(solved, found)
    assert found.kappa(1.0) == math.inf  # exactly: 60 rows of 80 features
    assert found.lambda_min == 0.0
    known = found.eigenvalues[~found.eigenvalues.isnan()]
    assert len(known) >= 1
    torch.testing.assert_close(known, solved.eigenvalues[: len(known)], rtol=1e-9, atol=1e-12)


def test_products_with_an_estimated_factor_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = matrix_of(spectra(50, 1)["power"], 1), matrix_of(spectra(12, 2)["flat"], 2)
    given: Any = {"dtype": torch.float64, "num_rows": 500}
    small = Spectrum.from_matrix(b, **given)
    solved, found = both(a, monkeypatch, **given)
    exact, product = KroneckerSpectrum(solved, small), KroneckerSpectrum(found, small)
    assert product.status is SpectrumStatus.ESTIMATED
    assert product.trace == pytest.approx(exact.trace, rel=1e-11)
    assert math.isnan(product.rank)
    assert math.isnan(product.kappa_rank)
    for p in FRACTIONS:
        low, high = product.kappa_interval(p)
        assert low <= exact.kappa(p) * (1 + 1e-9)
        assert exact.kappa(p) * (1 - 1e-9) <= high
        assert low <= product.kappa(p) <= high


@pytest.mark.parametrize(("value", "status"), [(0.0, "zero"), (math.nan, "nonfinite")])
def test_a_wide_matrix_without_numbers_is_as_any_other(
    monkeypatch: pytest.MonkeyPatch, value: float, status: str
) -> None:
    monkeypatch.setattr(ratios, "WIDE", 20)
    found = Spectrum.from_matrix(torch.full((30, 30), value), dtype=torch.float32, num_rows=99)
    assert found.status == status
    assert math.isnan(found.kappa(0.5))


def test_a_wide_matrix_that_is_no_moment_is_unreliable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratios, "WIDE", 20)
    values = torch.cat([torch.linspace(1, 0.1, 39), torch.tensor([-0.1])]).double()
    found = Spectrum.from_matrix(matrix_of(values, 1), dtype=torch.float64, num_rows=99)
    assert found.status is SpectrumStatus.UNRELIABLE


def test_raising_the_floor_keeps_what_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratios, "WIDE", 20)
    matrix = matrix_of(spectra(90, 8)["geometric"], 8)
    found = Spectrum.from_matrix(matrix, dtype=torch.float64, num_rows=900)
    raised = found.with_floor_raised(1e-2)
    assert raised.status is SpectrumStatus.ESTIMATED
    assert np.isnan(raised.lambda_min)
    assert raised.kappa_interval(0.9)[1] == math.inf
    assert found.with_floor_raised(1e3).status is SpectrumStatus.ZERO
