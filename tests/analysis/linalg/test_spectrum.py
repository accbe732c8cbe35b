"""Spectra with planted eigenvalues; measures against plain Python sums."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from condexp.analysis.linalg.bounds import PRODUCT_ERROR
from condexp.analysis.linalg.moments import Scale, SecondMoment
from condexp.analysis.linalg.ratios import kappa_index
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.vocabulary import SPECTRUM_MEASURES, Precision, SpectrumStatus
from condexp.errors import InputError
from tests.reference import eigenvalues, kappa, measures

EPS32 = torch.finfo(torch.float32).eps
EPS64 = torch.finfo(torch.float64).eps


def orthogonal(side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis: Tensor = torch.linalg.qr(
        torch.randn(side, side, dtype=torch.float64, generator=generator)
    ).Q
    return basis


def planted(values: list[float], seed: int = 0) -> Tensor:
    basis = orthogonal(len(values), seed)
    return basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.mT


def spectrum_of(
    matrix: Tensor, dtype: torch.dtype = torch.float64, num_rows: int = 10**6
) -> Spectrum:
    return Spectrum.from_matrix(matrix, dtype=dtype, num_rows=num_rows)


def diagonal(values: list[float], dtype: torch.dtype = torch.float64) -> Spectrum:
    return spectrum_of(torch.diag(torch.tensor(values, dtype=torch.float64)), dtype)


# Zeros and eight decades, far from the noise floor of 1e-15·λ_1, so that counting is unambiguous.
EIGENVALUES = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-4, 1e4)), min_size=1, max_size=12
).filter(any)
FRACTIONS = st.floats(0, 1, exclude_min=True)


@given(EIGENVALUES, FRACTIONS, st.integers(0, 99))
@settings(max_examples=60)
def test_measures_of_a_planted_spectrum(values: list[float], p: float, seed: int) -> None:
    spectrum = spectrum_of(planted(values, seed))
    expected = torch.tensor(values, dtype=torch.float64).sort(descending=True).values
    assert spectrum.status is SpectrumStatus.OK
    assert len(spectrum) == len(values)
    assert spectrum.rank == sum(value > 0 for value in values)
    # eigvalsh and the rotation err by some 12·eps·λ_1, whatever the eigenvalue's own size.
    tolerance = 1e-13 * spectrum.lambda_max / min(value for value in values if value > 0)
    assert torch.allclose(spectrum.eigenvalues, expected, rtol=tolerance, atol=0)
    low, high = spectrum.kappa_interval(p)
    assert low <= kappa(expected, p) * (1 + 1e-12)
    assert kappa(expected, p) <= high
    if math.isfinite(kappa(expected, p)):
        assert spectrum.kappa(p) == pytest.approx(kappa(expected, p), rel=2 * tolerance)
    else:  # a rotated zero is not exact
        assert spectrum.kappa(p) == low > 1e11
    for name, value in measures(expected).items():
        assert getattr(spectrum, name) == pytest.approx(value, rel=2 * tolerance), name


@given(EIGENVALUES, FRACTIONS)
@settings(max_examples=60)
def test_measures_are_ordered_and_invariant_to_scale(values: list[float], p: float) -> None:
    spectrum, scaled = diagonal(values), diagonal([value * 2.0**20 for value in values])
    assert 1 <= spectrum.stable_rank <= spectrum.effective_rank * (1 + 1e-12)
    assert spectrum.effective_rank <= spectrum.rank * (1 + 1e-12)
    assert 1 <= spectrum.kappa(p) <= spectrum.kappa(1.0)
    # A power of 2 changes no digit.
    assert scaled.kappa(p) == spectrum.kappa(p)
    assert scaled.trace == spectrum.trace * 2.0**20
    for name in ("rank", "kappa_rank", "effective_rank", "stable_rank"):
        assert getattr(scaled, name) == getattr(spectrum, name)


def test_measures_of_a_spectrum_worked_out_by_hand() -> None:
    spectrum = diagonal([1.0, 4.0, 1.0, 2.0])
    assert spectrum.eigenvalues.tolist() == [4.0, 2.0, 1.0, 1.0]
    assert spectrum.eigenvalues.dtype == torch.float64
    assert (spectrum.lambda_max, spectrum.lambda_min, spectrum.trace) == (4.0, 1.0, 8.0)
    assert (spectrum.rank, spectrum.kappa_rank, spectrum.stable_rank) == (4.0, 4.0, 2.0)
    # q = ½, ¼, ⅛, ⅛: entropy 1.75 bits.
    assert spectrum.effective_rank == pytest.approx(2**1.75, rel=1e-14)
    assert [spectrum.kappa(p) for p in (0.25, 0.5, 0.51, 1.0)] == [1.0, 2.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("p", "d", "index"),
    [
        (1.0, 10, 10),
        (0.5, 10, 5),
        (0.5, 9, 5),
        (0.1, 10, 1),
        (0.01, 10, 1),
        (0.8, 64, 52),
        (0.07, 100, 7),  # 0.07·100 = 7.000000000000001 in float64
        (0.55, 100, 55),  # 55.00000000000001
        (1.0, 10**7, 10**7),
        (1e-300, 10**7, 1),
    ],
)
def test_kappa_index(p: float, d: int, index: int) -> None:
    assert kappa_index(p, d) == index


@given(st.integers(1, 10_000), st.data())
def test_kappa_index_of_a_rational_is_not_moved_by_rounding(d: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, d))
    assert kappa_index(k / d, d) == k


@pytest.mark.parametrize("p", [0.0, -0.5, 1.01, 50, math.nan])
def test_a_kappa_that_is_no_fraction_is_refused(p: float) -> None:
    with pytest.raises(InputError, match="0 < p <= 1"):
        diagonal([1.0, 2.0]).kappa(p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_duplicated_feature_is_told_by_float64_products_alone(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 500, 6, generator=generator, dtype=dtype)
    rows[..., 5] = rows[..., 2]
    moment = SecondMoment(Scale.MEAN)
    moment.add(rows, 500, dtype)
    spectrum = spectrum_of(moment.matrix(), dtype, 500)
    assert (spectrum.rank, spectrum.lambda_min) == (5.0, 0.0)
    assert spectrum.kappa_interval(1.0)[1] == math.inf
    # Float32 products of features that differ in the fifth digit could be the same.
    assert (spectrum.kappa(1.0) == math.inf) == (dtype == torch.float64)
    assert spectrum.kappa(5 / 6) == spectrum.kappa_rank < 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvalues_under_the_noise_floor_count_as_zero(dtype: torch.dtype) -> None:
    floor = PRODUCT_ERROR * 2 * torch.finfo(dtype).eps + (8 + 4 * EPS64) * EPS64
    spectrum = diagonal([1.0, 2 * floor, 0.5 * floor, -0.5 * floor], dtype)
    assert spectrum.noise_floor == pytest.approx(floor, rel=1e-12)
    assert spectrum.eigenvalues.tolist() == [1.0, 2 * floor, 0.0, 0.0]
    assert (spectrum.status, spectrum.rank) == (SpectrumStatus.OK, 2.0)


def test_an_eigenvalue_below_minus_the_floor_is_unreliable() -> None:
    spectrum = diagonal([1.0, 0.5, -20 * EPS32], torch.float32)
    assert spectrum.status is SpectrumStatus.UNRELIABLE
    assert spectrum.noise_floor > 0
    assert spectrum.eigenvalues.isnan().all()
    assert all(math.isnan(getattr(spectrum, name)) for name in SPECTRUM_MEASURES)
    assert math.isnan(spectrum.kappa(0.5))
    # Nothing positive at all: the floor is 0.
    assert diagonal([-1.0, -2.0]).status is SpectrumStatus.UNRELIABLE


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_matrices(bad: float) -> None:
    matrix = torch.eye(3)
    matrix[0, 2] = bad  # the upper triangle, which eigvalsh does not read
    spectrum = spectrum_of(matrix)
    assert spectrum.status is SpectrumStatus.NONFINITE
    assert len(spectrum) == 3
    assert spectrum.eigenvalues.isnan().all()
    assert math.isnan(spectrum.noise_floor)
    assert all(math.isnan(getattr(spectrum, name)) for name in SPECTRUM_MEASURES)
    assert math.isnan(spectrum.kappa(1.0))


def test_a_zero_matrix_is_a_finding() -> None:
    spectrum = spectrum_of(torch.zeros(2, 3, 3))
    assert (spectrum.status, spectrum.noise_floor) == (SpectrumStatus.ZERO, 0.0)
    assert spectrum.eigenvalues.tolist() == [0.0] * 6
    for name in ("lambda_max", "lambda_min", "trace", "rank"):
        assert getattr(spectrum, name) == 0.0
    for name in ("kappa_rank", "effective_rank", "stable_rank"):
        assert math.isnan(getattr(spectrum, name))
    assert math.isnan(spectrum.kappa(0.5))


def test_blocks_are_united_under_one_noise_floor() -> None:
    matrix = torch.stack([planted([3.0, 1.0], 1), planted([1e-20, 5.0], 2)])
    spectrum = spectrum_of(matrix, torch.float32)
    assert spectrum.blocks.shape == (2, 2)
    largest = float(matrix.diagonal(dim1=1, dim2=2).max())
    floor = PRODUCT_ERROR * EPS32 * math.sqrt(2) * largest + 5 * 6 * EPS64
    assert spectrum.noise_floor == pytest.approx(floor, rel=1e-12)
    expected = torch.tensor([5.0, 3.0, 1.0, 0.0], dtype=torch.float64)
    assert torch.allclose(spectrum.eigenvalues, expected, rtol=1e-14, atol=0)
    dense = eigenvalues(torch.block_diag(matrix[0], matrix[1]))  # type: ignore[no-untyped-call]
    assert torch.allclose(spectrum.eigenvalues, dense, rtol=0, atol=1e-14)
    assert all(block.diff().le(0).all() for block in spectrum.blocks)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (2, 3, 7), (2, 7, 3)])
def test_a_factor_gives_its_squared_singular_values(shape: tuple[int, ...]) -> None:
    factor = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    spectrum = Spectrum.from_factor(factor, dtype=torch.float64)
    expected = torch.linalg.svdvals(factor.double()).square().flatten().sort(descending=True).values
    assert len(spectrum) == len(expected)
    assert spectrum.num_rows == shape[-1]
    # Squaring a factor of condition below 100 costs at most 100²·eps.
    assert torch.allclose(spectrum.eigenvalues, expected, rtol=1e-11, atol=0)


def test_orthogonal_rotation_of_the_rows_keeps_the_spectrum() -> None:
    rows = torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, rotated = (
        Spectrum.from_factor(features.mT, dtype=torch.float64).eigenvalues
        for features in (rows, rows @ orthogonal(8))
    )
    assert torch.allclose(plain, rotated, rtol=1e-13, atol=0)


def test_fewer_rows_than_features_limit_the_rank() -> None:
    rows = torch.randn(1, 5, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moment = SecondMoment(Scale.MEAN)
    moment.add(rows, 5, torch.float64)
    spectrum = spectrum_of(moment.matrix(), num_rows=5)
    assert (spectrum.rank, spectrum.kappa(0.3)) == (5.0, math.inf)
    dual = torch.linalg.eigvalsh(rows[0] @ rows[0].mT / 5).flip(0)
    assert torch.allclose(spectrum.eigenvalues[:5], dual, rtol=1e-13, atol=0)


def test_precision_names() -> None:
    assert [str(name) for name in Precision] == ["auto", "float32", "float64"]


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_of_the_rows_is_no_eigenvalue(classes: int, dtype: torch.dtype) -> None:
    # Softmax minus one-hot sums to 0 exactly; rounded to dtype, the sum is of order eps, and its
    # square would show up as a condition number of 1/eps² in products that are exact.
    torch.manual_seed(0)
    probabilities = torch.softmax(torch.randn(200, classes, dtype=torch.float64), dim=1)
    rows = probabilities - torch.nn.functional.one_hot(torch.arange(200) % classes, classes)
    exact, rounded = SecondMoment(Scale.SUM), SecondMoment(Scale.SUM)
    exact.add(rows[None], 200, torch.float64)
    rounded.add(rows.to(dtype)[None], 200, torch.float64)
    assert rounded.spectrum().rank == exact.spectrum().rank == classes - 1
    assert math.isinf(rounded.spectrum().kappa_interval(1.0)[1])
    if dtype == torch.bfloat16 and classes > 2:  # what would be published without this floor
        naive = Spectrum.from_matrix(rounded.matrix(), dtype=torch.float64, num_rows=200)
        assert naive.rank == classes
    # The rest is untouched: the smallest true eigenvalue is far above the floor.
    torch.testing.assert_close(
        rounded.spectrum().eigenvalues[:-1],
        exact.spectrum().eigenvalues[:-1],
        rtol=8 * torch.finfo(dtype).eps,  # each entry is rounded once, λ_1/λ_{d-1} is below 10
        atol=0.0,
    )


def test_what_centring_takes_away_was_rounded_too() -> None:
    # A constant offset of 10⁴ σ in float32: the centred rows know the data to 10⁴·eps only.
    torch.manual_seed(0)
    rows = torch.randn(500, 6, dtype=torch.float64)
    rows[:, 5] = rows[:, 4]
    plain = SecondMoment(Scale.MEAN, center=True)
    plain.add(rows.float()[None], 500, torch.float64)
    offset = SecondMoment(Scale.MEAN, center=True)
    means = torch.tensor([1e4, 2e4, 3e4, 1e4, 1e4, 3e4])
    offset.add((rows + means).float()[None], 500, torch.float64)
    assert plain.spectrum().rank == 5
    assert offset.spectrum().rank == 5
    naive = Spectrum.from_matrix(offset.matrix(), dtype=torch.float64, num_rows=500)
    assert naive.rank == 6


def test_a_raised_floor_hides_what_lies_under_it() -> None:
    values = torch.diag(torch.tensor([1.0, 1e-3, 1e-6], dtype=torch.float64))
    spectrum = Spectrum.from_matrix(values, dtype=torch.float64, num_rows=9)
    raised = spectrum.with_floor_raised(1e-5)
    assert (spectrum.rank, raised.rank) == (3, 2)
    assert raised.noise_floor == spectrum.noise_floor + 1e-5
    assert spectrum.with_floor_raised(0.0) is spectrum
    nothing = spectrum.with_floor_raised(2.0)
    assert (nothing.status, nothing.rank, nothing.lambda_max) == (SpectrumStatus.ZERO, 0, 0)
