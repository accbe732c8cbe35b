"""Second moments against loops, and what float32 products are allowed to lose."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from condexp.analysis.linalg.moments import Scale, SecondMoment
from condexp.analysis.linalg.products import cross_products
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.vocabulary import SpectrumStatus
from condexp.errors import InputError
from tests.reference import mean_second_moment, sum_second_moment

ORACLES = {Scale.MEAN: mean_second_moment, Scale.SUM: sum_second_moment}
EPS32 = torch.finfo(torch.float32).eps


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moment_of(
    rows: Tensor,
    scale: Scale = Scale.MEAN,
    *,
    num_samples: int | None = None,
    dtype: torch.dtype = torch.float64,
    center: bool = False,
) -> SecondMoment:
    moment = SecondMoment(scale, center=center)
    moment.add(rows, rows.shape[1] if num_samples is None else num_samples, dtype)
    return moment


@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("num_positions", [1, 7])
@pytest.mark.parametrize("edges", [(0, 60), (0, 1, 37, 60)], ids=["one batch", "three batches"])
def test_moments_equal_loops_over_samples_and_positions(
    scale: Scale, center: bool, num_positions: int, edges: tuple[int, ...]
) -> None:
    # 60 samples of 7 positions cross a chunk's border; a mean of 3 makes centring matter.
    rows = draw(2, 60, num_positions, 5) + 3
    moment = SecondMoment(scale, center=center)
    for start, stop in pairwise(edges):
        moment.add(rows[:, start:stop].flatten(1, 2), stop - start, torch.float64)
    expected = torch.stack([ORACLES[scale](block, center=center) for block in rows])
    # Sums of 420 terms of size 10·7 in float64: 420·eps·70 ≈ 7e-12 at the very worst.
    assert torch.allclose(moment.matrix(), expected, rtol=0, atol=1e-11)
    if center or scale is Scale.MEAN:
        assert torch.allclose(moment.mean(), rows.mean((1, 2)), rtol=0, atol=1e-13)
    else:
        with pytest.raises(InputError, match="with center=True only"):
            moment.mean()
    assert (moment.num_rows, moment.num_samples) == (60 * num_positions, 60)


@pytest.mark.parametrize("num_rows", [1, 255, 256, 257, 513, 20_000])
def test_rows_that_do_not_fill_a_chunk_or_a_stack_are_all_counted(num_rows: int) -> None:
    rows = draw(1, num_rows, 3)
    # 20 000 rows of 3 features are more than one stack of chunks on the CPU.
    expected = rows.mT @ rows / num_rows
    # Both sums err by at most num_rows·eps of terms of size 1.
    assert torch.allclose(moment_of(rows).matrix(), expected, rtol=0, atol=1e-11)


def test_scales_differ_by_the_number_of_positions() -> None:
    rows = draw(1, 12, 4)
    mean = moment_of(rows, Scale.MEAN, num_samples=3).matrix()
    total = moment_of(rows, Scale.SUM, num_samples=3).matrix()
    # A mean's rows are shifted before they are multiplied: a few eps of numbers below 10.
    assert torch.allclose(total, 4 * mean, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("center", [False, True])
def test_repeating_the_samples_changes_nothing_and_scaling_rows_squares(
    scale: Scale, center: bool
) -> None:
    rows = draw(1, 24, 4)
    once = moment_of(rows, scale, num_samples=8, center=center).matrix()
    twice = moment_of(torch.cat([rows, rows], 1), scale, num_samples=16, center=center).matrix()
    # Powers of 2 scale exactly; the order of summation may move the last bits of numbers near 1.
    assert torch.equal(moment_of(8 * rows, scale, num_samples=8, center=center).matrix(), 64 * once)
    assert torch.allclose(twice, once, rtol=0, atol=1e-14)


def test_a_second_use_adds_rows_but_no_samples() -> None:
    rows = draw(1, 20, 3)
    moment = moment_of(rows[:, :10], Scale.SUM, num_samples=5)
    moment.add(rows[:, 10:], 0, torch.float64)
    assert (moment.num_rows, moment.num_samples) == (20, 5)
    assert torch.allclose(moment.matrix()[0], sum_second_moment(rows.reshape(5, 4, 3)), atol=1e-13)


def test_empty_batches_are_skipped_and_no_batch_is_an_error() -> None:
    moment = SecondMoment(Scale.MEAN, center=True)
    moment.add(torch.zeros(1, 0, 3), 0, torch.float32)
    assert (moment.num_rows, moment.dtype) == (0, torch.float64)
    with pytest.raises(InputError, match="0 rows of 0 samples"):
        moment.matrix()
    with pytest.raises(InputError, match="add rows first"):
        moment.mean()
    moment = moment_of(draw(1, 4, 2), Scale.SUM, num_samples=0)
    with pytest.raises(InputError, match="4 rows of 0 samples"):
        moment.matrix()


def test_dtype_is_the_coarsest_of_the_products() -> None:
    moment = moment_of(draw(1, 4, 2))
    assert moment.dtype == torch.float64
    moment.add(draw(1, 4, 2), 4, torch.float32)
    moment.add(draw(1, 4, 2), 4, torch.float64)
    assert moment.dtype == torch.float32


def test_rows_may_be_a_view_and_leave_no_graph_behind() -> None:
    images = draw(6, 4, 5, 5).requires_grad_()
    rows = images.permute(0, 2, 3, 1).reshape(1, -1, 4)
    transposed = images.permute(1, 0, 2, 3).reshape(1, 4, -1).mT
    assert not transposed.is_contiguous()
    moment = moment_of(transposed)
    assert not moment.matrix().requires_grad
    assert torch.allclose(moment.matrix(), moment_of(rows).matrix(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("num_chunks", [3, 4, 7, 8, 31, 32, 45])
def test_chunks_that_are_added_in_float32_first_are_all_counted(num_chunks: int) -> None:
    # Of small whole numbers float32 sums are exact, whatever is added to what: only counts show.
    rows = draw(1, 256 * num_chunks + 5, 3).mul(2).round()
    assert torch.equal(cross_products(rows.float(), rows.float(), torch.float32), rows.mT @ rows)


@pytest.mark.parametrize("num_rows", [300, 100_000])
def test_float32_products_stay_under_the_noise_floor_whatever_the_number_of_rows(
    num_rows: int,
) -> None:
    # A mean of 1 makes every product's error add up, the worst case.
    rows = (draw(1, num_rows, 10) + 1).float()
    moment = moment_of(rows, dtype=torch.float32)
    spectrum, exact = moment.spectrum(), moment_of(rows.double()).spectrum()
    assert not torch.equal(spectrum.blocks, exact.blocks)
    low, high = spectrum.bounds
    assert bool(((low <= exact.blocks) & (exact.blocks <= high)).all())


def test_centred_float32_moments_keep_their_digits_at_a_mean_of_100_sigma() -> None:
    rows = (draw(1, 2000, 8) + 100).float()
    expected = mean_second_moment(rows.reshape(2000, 1, 8).double(), center=True)
    moment = SecondMoment(Scale.MEAN, center=True)
    for start in range(0, 2000, 500):
        moment.add(rows[:, start : start + 500], 500, torch.float32)
    largest = torch.linalg.matrix_norm(expected, 2).item()
    # The floor promised is 4·eps·λ_1 of the *centred* matrix; unshifted products lose far more.
    assert torch.linalg.matrix_norm(moment.matrix()[0] - expected, 2).item() < 4 * EPS32 * largest
    unshifted = moment_of(rows, Scale.SUM, dtype=torch.float32)
    mean = rows.double().mean(1)
    naive = unshifted.matrix() - mean.mT @ mean
    assert torch.linalg.matrix_norm(naive[0] - expected, 2).item() > 4 * EPS32 * largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_centring_a_constant_gives_an_exact_zero(dtype: torch.dtype) -> None:
    # 0.1 is no binary fraction, but what a rounded mean leaves is a few ulps: their squares and
    # sums are exact, and cancel.
    moment = moment_of(torch.full((1, 1000, 3), 0.1, dtype=dtype), dtype=dtype, center=True)
    assert not moment.matrix().any()
    assert (
        Spectrum.from_matrix(moment.matrix(), dtype=dtype, num_rows=1000).status
        is SpectrumStatus.ZERO
    )


@pytest.mark.parametrize("exponent", [-120, -70, 70, 120])
def test_float32_products_of_exploding_and_vanishing_rows_keep_their_precision(
    exponent: int,
) -> None:
    rows = draw(1, 300, 4).float()
    expected = moment_of(rows, dtype=torch.float32).matrix() * 4.0**exponent
    scaled = moment_of(rows * 2.0**exponent, dtype=torch.float32).matrix()
    # The squares, 2^±240, do not fit in float32; a power of 2 is taken out exactly, but the last
    # bits of a shift by 2^-124 are below the smallest number of float32.
    largest = torch.linalg.matrix_norm(expected, 2).item()
    assert torch.linalg.matrix_norm(scaled - expected, 2).item() <= EPS32 * largest


def test_all_zero_rows_give_zero_and_nonfinite_rows_are_not_hidden() -> None:
    rows = torch.zeros(1, 300, 2)
    assert not moment_of(rows, dtype=torch.float32).matrix().any()
    for bad in (torch.nan, torch.inf):
        rows[0, 7, 1] = bad
        matrix = moment_of(rows, dtype=torch.float32).matrix()
        spectrum = Spectrum.from_matrix(matrix, dtype=torch.float32, num_rows=300)
        assert spectrum.status is SpectrumStatus.NONFINITE


@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("edges", [(0, 2, 5), (0, 3, 40), (0, 37, 40), (0, 20, 40), (0, 0, 40)])
def test_merged_moments_are_those_of_all_rows(
    scale: Scale, center: bool, edges: tuple[int, ...]
) -> None:
    # Of 6 features: both sides kept, one of them, or none; the parts' means differ by 100.
    rows = draw(2, edges[-1], 6) + 100 * (torch.arange(edges[-1])[:, None] >= edges[1])
    parts = [moment_of(rows[:, a:b], scale, center=center) for a, b in pairwise(edges)]
    merged = SecondMoment(scale, center=center)
    for part in parts:
        merged.merge(part)
    whole = moment_of(rows, scale, center=center)
    # Sums of 40 terms of size 1e4.
    assert torch.allclose(merged.matrix(), whole.matrix(), rtol=1e-12, atol=1e-11)
    if center or scale is Scale.MEAN:
        assert torch.allclose(merged.mean(), whole.mean(), rtol=0, atol=1e-12)
    assert (merged.num_rows, merged.num_samples) == (whole.num_rows, whole.num_samples)
    spectra = merged.spectrum().eigenvalues, whole.spectrum().eigenvalues
    assert torch.allclose(*spectra, rtol=1e-9, atol=1e-9)
    squares = [float(moment.moment_matrix().mean_square) for moment in (merged, whole)]
    assert squares[0] == pytest.approx(squares[1], rel=1e-12)


def test_merging_leaves_the_other_as_it_is_and_takes_the_coarser_precision() -> None:
    one, other = moment_of(draw(1, 9, 4)), moment_of(draw(1, 9, 4, seed=1), dtype=torch.float32)
    before = other.matrix()
    one.merge(other)
    assert torch.equal(other.matrix(), before)
    assert one.dtype is torch.float32
