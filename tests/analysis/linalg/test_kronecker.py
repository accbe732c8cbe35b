"""Measures of A ⊗ B against the dense product and against all sorted products."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from condexp.analysis.linalg.bounds import PRODUCT_ERROR
from condexp.analysis.linalg.kronecker import KroneckerSpectrum
from condexp.analysis.linalg.pair_products import PairProducts
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.vocabulary import SPECTRUM_MEASURES, SpectrumStatus
from condexp.errors import InputError
from tests.reference import kappa, kronecker_eigenvalues, kronecker_products, measures

EPS32 = torch.finfo(torch.float32).eps


def diagonal(blocks: list[list[float]], dtype: torch.dtype = torch.float64) -> Spectrum:
    matrix = torch.diag_embed(torch.tensor(blocks, dtype=torch.float64))
    return Spectrum.from_matrix(matrix, dtype=dtype, num_rows=1000)


# Few distinct values make ties; zeros make dead directions and dead blocks.
VALUES = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.floats(1e-3, 1e3))


@st.composite
def factors(draw: st.DrawFn) -> tuple[Spectrum, Spectrum]:
    groups = draw(st.integers(1, 3))
    sides = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    a, b = (
        diagonal([draw(st.lists(VALUES, min_size=d, max_size=d)) for _ in range(groups)])
        for d in sides
    )
    return a, b


@given(factors(), st.floats(0, 1, exclude_min=True))
@settings(max_examples=150)
def test_measures_equal_those_of_all_products(pair: tuple[Spectrum, Spectrum], p: float) -> None:
    spectrum = KroneckerSpectrum(*pair)
    products = kronecker_products(pair[0].blocks, pair[1].blocks)
    assert len(spectrum) == len(products)
    if not products.any():
        assert spectrum.status is SpectrumStatus.ZERO
        return
    assert spectrum.status is SpectrumStatus.OK
    # The very product is selected: not a digit may differ.
    assert spectrum.kappa(p) == kappa(products, p)
    assert spectrum.kappa(1.0) == kappa(products, 1.0)
    for name, value in measures(products).items():
        # Closed forms against a sum over at most 147 products, each rounded.
        assert getattr(spectrum, name) == pytest.approx(value, rel=1e-12), name


def test_measures_equal_the_dense_kronecker_product() -> None:
    generator = torch.Generator().manual_seed(0)
    rows_a = torch.randn(30, 6, dtype=torch.float64, generator=generator)
    rows_b = torch.randn(30, 4, dtype=torch.float64, generator=generator)
    a, b = rows_a.mT @ rows_a / 30, rows_b.mT @ rows_b / 30
    spectrum = KroneckerSpectrum(
        *(Spectrum.from_matrix(m, dtype=torch.float64, num_rows=30) for m in (a, b))
    )
    dense = kronecker_eigenvalues(a, b)
    # Both sides err by some eps·λ_1, and λ_1/λ_24 is below 100.
    assert spectrum.kappa(0.5) == pytest.approx(kappa(dense, 0.5), rel=1e-12)
    for name, value in measures(dense).items():
        assert getattr(spectrum, name) == pytest.approx(value, rel=1e-12), name


def test_groups_are_united_not_multiplied() -> None:
    a, b = diagonal([[4.0, 1.0], [2.0, 0.0]]), diagonal([[3.0], [5.0]])
    spectrum = KroneckerSpectrum(a, b)
    # 12, 10, 3, 0 — and not 4·5.
    assert len(spectrum) == 4
    assert (spectrum.lambda_max, spectrum.trace, spectrum.rank) == (12.0, 25.0, 3.0)
    assert [spectrum.kappa(k / 4) for k in (1, 2, 3, 4)] == [1.0, 1.2, 4.0, math.inf]
    assert (spectrum.lambda_min, spectrum.kappa_rank) == (0.0, 4.0)


def test_selection_among_ten_million_products_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = 2304, 4608
    a, b = (
        torch
        .randn(1, d, dtype=torch.float64, generator=generator)
        .mul(4)
        .exp()
        .sort(descending=True)
        .values
        for d in sides
    )
    for index in (1, 5_000_000, 10_000_000, sides[0] * sides[1]):
        selected = products_of(a, b).largest(index)
        # Its place among the products proves it, without sorting them: at least `index` reach it,
        # and fewer exceed it.
        reach = exceed = 0
        for start in range(0, sides[0], 256):
            block = a[0, start : start + 256, None] * b
            reach += int((block >= selected).sum())
            exceed += int((block > selected).sum())
        assert exceed < index <= reach


def products_of(a: Tensor, b: Tensor) -> PairProducts:
    return PairProducts(a.numpy(), b.numpy())


@pytest.mark.parametrize("index", [1, 2_000, 3_999, 4_000])
def test_selection_with_nothing_but_ties(index: int) -> None:
    ties = torch.full((2, 50), 0.1).double(), torch.full((2, 40), 0.3).double()
    assert products_of(*ties).largest(index) == float(ties[0][0, 0] * ties[1][0, 0])


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 999), st.data())
@settings(max_examples=100)
def test_selection_is_exact_where_products_differ_in_the_last_bit(
    groups: int, m: int, n: int, seed: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def nearly_equal(d: int) -> Tensor:
        steps = torch.randint(0, 3, (groups, d), generator=generator).double()
        return (1.1 + steps * 2.0**-52).sort(1, descending=True).values

    a, b = nearly_equal(m), nearly_equal(n)
    index = data.draw(st.integers(1, groups * m * n))
    assert products_of(a, b).largest(index) == float(kronecker_products(a, b)[index - 1])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (SpectrumStatus.OK, SpectrumStatus.OK, SpectrumStatus.OK),
        (SpectrumStatus.OK, SpectrumStatus.ZERO, SpectrumStatus.ZERO),
        (SpectrumStatus.ZERO, SpectrumStatus.UNRELIABLE, SpectrumStatus.UNRELIABLE),
        (SpectrumStatus.NONFINITE, SpectrumStatus.UNRELIABLE, SpectrumStatus.NONFINITE),
        (SpectrumStatus.ZERO, SpectrumStatus.NONFINITE, SpectrumStatus.NONFINITE),
    ],
)
def test_status_is_the_worse_of_the_two(
    first: SpectrumStatus, second: SpectrumStatus, expected: SpectrumStatus
) -> None:
    examples = {
        SpectrumStatus.OK: diagonal([[2.0, 1.0]]),
        SpectrumStatus.ZERO: diagonal([[0.0, 0.0]]),
        SpectrumStatus.UNRELIABLE: diagonal([[1.0, -1.0]]),
        SpectrumStatus.NONFINITE: diagonal([[1.0, math.nan]]),
    }
    for pair in ((first, second), (second, first)):
        spectrum = KroneckerSpectrum(*(examples[status] for status in pair))
        assert spectrum.status is expected
        values = {name: getattr(spectrum, name) for name in SPECTRUM_MEASURES}
        if expected is SpectrumStatus.OK:
            assert all(math.isfinite(value) for value in values.values())
        elif expected is SpectrumStatus.ZERO:
            zeros = {"lambda_max", "lambda_min", "trace", "rank"}
            assert all(values[name] == 0 for name in zeros)
            assert all(math.isnan(values[name]) for name in values.keys() - zeros)
            assert math.isnan(spectrum.kappa(0.5))
        else:
            assert all(math.isnan(value) for value in values.values())
            assert math.isnan(spectrum.kappa(1.0))


def test_blocks_dead_in_turn_are_a_zero_product() -> None:
    spectrum = KroneckerSpectrum(diagonal([[1.0], [0.0]]), diagonal([[0.0], [1.0]]))
    assert spectrum.status is SpectrumStatus.ZERO
    assert (spectrum.rank, spectrum.lambda_max) == (0.0, 0.0)
    assert math.isnan(spectrum.effective_rank)


def test_dtype_is_the_coarser_and_the_floor_bounds_a_products_error() -> None:
    a, b = diagonal([[2.0, 1.0]], torch.float32), diagonal([[3.0, 1.0]], torch.float64)
    spectrum = KroneckerSpectrum(a, b)
    assert spectrum.dtype == KroneckerSpectrum(b, a).dtype == torch.float32
    floor = PRODUCT_ERROR * math.sqrt(2) * EPS32
    assert spectrum.noise_floor == pytest.approx(6 * floor, rel=1e-6)
    moved = (2.0 + a.noise_floor) * (3.0 + b.noise_floor) - 6.0
    # Up to the second-order term.
    assert spectrum.noise_floor == pytest.approx(moved, rel=1e-5)


def test_kappa_of_no_fraction_is_refused() -> None:
    with pytest.raises(InputError, match="0 < p <= 1"):
        KroneckerSpectrum(diagonal([[1.0]]), diagonal([[1.0]])).kappa(0)
