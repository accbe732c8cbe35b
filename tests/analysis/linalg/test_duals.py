"""Spectra from Gram matrices of fewer rows than features, in float32 against float64."""

import pytest
import torch
from torch import Tensor

from condexp.analysis.linalg.moments import Scale, SecondMoment
from condexp.analysis.linalg.products import inner_products
from condexp.analysis.linalg.rows.bias_column import WithOne
from condexp.analysis.linalg.rows.dense import DenseRows, Rows
from condexp.analysis.linalg.spectrum import Spectrum


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def spectrum(
    rows: Rows, dtype: torch.dtype, *, center: bool = False, scale: Scale = Scale.MEAN
) -> Spectrum:
    moment = SecondMoment(scale, center=center)
    moment.add(rows, 20, dtype)
    return moment.spectrum()


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("num_features", [41, 256, 1024, 1025, 3000, 30_000])
def test_float32_stays_under_the_noise_floor_whatever_the_number_of_features(
    num_features: int, offset: float, center: bool
) -> None:
    # With a mean of 1 every product's error adds up, the worst case.
    rows = draw(2, 40, num_features) + offset
    single = spectrum(DenseRows(rows), torch.float32, center=center)
    double = spectrum(DenseRows(rows.double()), torch.float64, center=center)
    assert len(single) == len(double) == 2 * num_features
    assert not torch.equal(single.eigenvalues, double.eigenvalues)
    low, high = single.bounds
    assert bool(((low <= double.blocks) & (double.blocks <= high)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_doubled_rows_have_half_the_rank(dtype: torch.dtype) -> None:
    rows = draw(1, 20, 2000) + 1
    doubled = DenseRows(torch.cat([rows, 3 * rows], 1))
    assert spectrum(doubled, dtype).rank == 20


@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("num_features", [100, 3000])
@pytest.mark.parametrize("exponent", [-70, 0, 60])
@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_a_factor_and_squares_outside_of_float32(
    factor: float, exponent: int, num_features: int, scale: Scale
) -> None:
    rows = draw(1, 40, num_features)
    expected = spectrum(DenseRows(rows.double() * factor), torch.float64, scale=scale)
    found = spectrum(DenseRows(rows * 2.0**exponent, factor), torch.float32, scale=scale)
    eigenvalues = found.eigenvalues * 4.0**-exponent
    error = (eigenvalues - expected.eigenvalues).abs().max()
    assert float(error) < 1e-6 * expected.lambda_max


def test_an_appended_one() -> None:
    rows = draw(1, 20, 100) * 1e-3
    with_one = torch.cat([rows, torch.ones(1, 20, 1)], 2)
    expected = spectrum(DenseRows(with_one.double()), torch.float64)
    for factor in (1.0, 8.0):
        given = WithOne(DenseRows(rows / factor, factor))
        found = spectrum(given, torch.float32)
        error = (found.eigenvalues - expected.eigenvalues).abs().max()
        assert float(error) < found.noise_floor
        assert found.lambda_max == pytest.approx(expected.lambda_max, rel=1e-6)


def test_chunks_of_features_are_summed_in_float64() -> None:
    # Products of whole numbers are exact in float32 up to 2²⁴; 127²·1024 is, thirty of it plus 1
    # is not.
    rows = torch.full((1, 3, 30 * 1024 + 1), 127.0)
    rows[..., -1] = 1
    assert torch.equal(
        inner_products(rows, torch.float32),
        torch.full((1, 3, 3), 30 * 1024 * 127.0**2 + 1, dtype=torch.float64),
    )
