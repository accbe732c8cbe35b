"""Patches that are not laid out, against the explicit ones and against pixel-by-pixel loops."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from condexp.analysis.linalg.moments import Scale, SecondMoment
from condexp.analysis.linalg.rows.bias_column import WithOne
from condexp.analysis.linalg.rows.dense import DenseRows
from condexp.analysis.linalg.rows.patches import Window, unfold_patches
from condexp.analysis.linalg.rows.stride1_patches import PatchRows
from tests.reference import conv_patches

WINDOWS = (
    Window((1, 1)),
    Window((3, 3), padding=(1, 1)),
    Window((3, 3)),
    Window((3, 3), padding=(3, 2)),
    Window((2, 4), padding=(1, 2), dilation=(2, 1)),
    Window((2, 2), padding="same"),
    Window((5, 3), padding="same", dilation=(1, 2)),
    Window((3, 1), padding=(0, 2), groups=2),
    Window((4, 3), padding=(2, 0), groups=4),
)


def images(*shape: int, mean: float = 0.7) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64, generator=generator) + mean


def explicit(inputs: Tensor, window: Window) -> Tensor:
    """Patches by loops, features by offset first: ``[groups, N·T, d]``."""
    patches = conv_patches(
        inputs, window.kernel_size, (1, 1), window.padding, window.dilation, window.groups, "zeros"
    ).flatten(1, 2)
    num_channels = inputs.shape[1] // window.groups
    by_channel = torch.unflatten(patches, 2, (num_channels, -1))
    return by_channel.transpose(2, 3).flatten(2)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("size", [(5, 6), (4, 4)], ids=str)
def test_moments_equal_those_of_explicit_patches(window: Window, size: tuple[int, int]) -> None:
    inputs = images(3, 4, *size)
    rows, plain = PatchRows(inputs, window), explicit(inputs, window)
    assert torch.equal(rows.dense(), plain)
    assert (rows.num_rows, rows.num_features) == plain.shape[1:]
    # Sums of at most 126 products of numbers near 1, in another order.
    close = partial(torch.allclose, rtol=0, atol=1e-12)
    assert close(rows.sums(), plain.sum(1))
    assert close(rows.products(torch.float64), plain.mT @ plain)
    assert rows.square_sum() == pytest.approx(float(plain.square().sum()), rel=1e-13)
    assert close(rows.gram(torch.float64), plain @ plain.mT)
    reference = rows.approximate_mean()
    less = rows.minus(reference, torch.float64)
    shifted = plain - rows.reference_by_feature(reference)[:, None]
    assert close(less.sums(), shifted.sum(1))
    assert close(less.products(torch.float64), shifted.mT @ shifted)
    one = WithOne(rows)
    with_one = torch.cat([plain, plain.new_ones(*plain.shape[:2], 1)], 2)
    assert torch.equal(one.dense(), with_one)
    assert close(one.products(torch.float64), with_one.mT @ with_one)
    assert close(one.gram(torch.float64), with_one @ with_one.mT)


@settings(max_examples=150)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2]),
    channels=st.integers(1, 2),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    center=st.booleans(),
    num_samples=st.integers(1, 3),
)
def test_any_shape(
    kernel: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    channels: int,
    size: tuple[int, int],
    center: bool,
    num_samples: int,
) -> None:
    window = Window(kernel, (1, 1), padding, dilation, groups)
    if min(window.output_size(size)) < 1:  # a window larger than the image
        return
    inputs = images(num_samples, groups * channels, *size)
    ours, oracle = SecondMoment(Scale.MEAN, center=center), SecondMoment(Scale.SUM, center=center)
    ours.add(PatchRows(inputs, window), num_samples, torch.float64)
    patches = unfold_patches(inputs, window)
    num_offsets = kernel[0] * kernel[1]
    order = torch.arange(channels * num_offsets).view(channels, -1).T.flatten()
    oracle.add(DenseRows(patches[..., order]), patches.shape[1], torch.float64)
    assert torch.allclose(ours.matrix(), oracle.matrix(), rtol=0, atol=1e-11)
    # Primal or dual, whichever side is smaller: the same eigenvalues, zeros included.
    dense = torch.linalg.eigvalsh(oracle.matrix()).flip(1).clamp(min=0)
    spectrum = ours.spectrum()
    assert spectrum.noise_floor < 1e-12
    assert torch.allclose(spectrum.blocks, dense, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("center", [False, True])
def test_portions_of_kept_rows_are_united(center: bool) -> None:
    window, inputs = Window((3, 3), padding=(1, 1)), images(6, 8, 2, 2)
    whole, parts = (SecondMoment(Scale.MEAN, center=center) for _ in range(2))
    whole.add(PatchRows(inputs, window), 6, torch.float64)
    for start in (0, 2, 4):
        parts.add(PatchRows(inputs[start : start + 2], window), 2, torch.float64)
    assert parts.num_rows < parts.spectrum().blocks.shape[1]  # dual
    expected = whole.spectrum().eigenvalues
    assert torch.allclose(parts.spectrum().eigenvalues, expected, rtol=0, atol=1e-12)
    assert torch.allclose(parts.matrix(), whole.matrix(), rtol=0, atol=1e-12)
    for _ in range(20):  # more rows than features: the kept ones are folded in
        parts.add(PatchRows(inputs, window), 6, torch.float64)
    repeated = torch.linalg.eigvalsh(whole.matrix()).flip(1).flatten()
    assert torch.allclose(parts.spectrum().eigenvalues, repeated, rtol=0, atol=1e-11)


@pytest.mark.parametrize("num_samples", [1, 31, 256, 300])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("window", [Window((3, 3), padding=(1, 1)), Window((2, 5))], ids=str)
def test_float32_products_count_every_pixel_once(
    window: Window, groups: int, num_samples: int
) -> None:
    # Of small whole numbers float32 sums are exact, whatever is added to what: only counts show.
    window = replace(window, groups=groups)
    inputs = images(num_samples, 4, 7, 12).mul(2).round()
    plain = explicit(inputs, window)
    found = PatchRows(inputs.float(), window).products(torch.float32)
    assert torch.equal(found, plain.mT @ plain)


@pytest.mark.parametrize("mean", [0.0, 1.0, 30.0])
def test_float32_errs_less_than_the_noise_floor(mean: float) -> None:
    """Also of constant channels, whose float32 products all err in the same direction."""
    inputs = images(64, 16, 12, 12, mean=mean).float()
    inputs[:, 8:] = torch.rand(8, 1, 1, generator=torch.Generator().manual_seed(1)) + mean
    for window in (Window((3, 3), padding=(1, 1)), Window((3, 3))):
        moments = SecondMoment(Scale.MEAN), SecondMoment(Scale.MEAN)
        for moment, dtype in zip(moments, (torch.float32, torch.float64), strict=True):
            moment.add(PatchRows(inputs, window), 64, dtype)
        exact, rounded = moments[1].matrix(), moments[0].matrix()
        floor = moments[0].spectrum().noise_floor
        assert torch.linalg.matrix_norm(rounded - exact, 2).item() < floor


@pytest.mark.parametrize("exponent", [-120, 60])
def test_images_whose_squares_leave_float32(exponent: int) -> None:
    inputs = images(8, 4, 6, 6).float()
    expected, scaled = SecondMoment(Scale.MEAN), SecondMoment(Scale.MEAN)
    window = Window((3, 3), padding=(1, 1))
    expected.add(PatchRows(inputs, window), 8, torch.float64)
    scaled.add(PatchRows(inputs * 2.0**exponent, window), 8, torch.float32)
    difference = scaled.matrix() * 4.0**-exponent - expected.matrix()
    floor = expected.spectrum().lambda_max * 4 * torch.finfo(torch.float32).eps
    assert torch.linalg.matrix_norm(difference, 2).item() < floor


@pytest.mark.parametrize(
    ("window", "mode", "size"),
    [
        (Window((5, 5), padding=(2, 2)), "replicate", (1, 1)),
        (Window((2, 3), padding=(2, 3), dilation=(2, 3)), "replicate", (1, 9)),
        (Window((7, 7)), "constant", (7, 7)),
    ],
)
def test_windows_that_see_many_more_pixels_than_they_have_positions(
    window: Window, mode: str, size: tuple[int, int]
) -> None:
    """Their products are not made of sums over all pixels, whose error would be above the floor."""
    (top, _), (left, _) = window.pads
    padded = torch.nn.functional.pad(images(96, 3, *size), (left, left, top, top), mode=mode)
    plain = Window(window.kernel_size, dilation=window.dilation)
    moments = SecondMoment(Scale.MEAN), SecondMoment(Scale.MEAN)
    for moment, dtype in zip(moments, (torch.float32, torch.float64), strict=True):
        moment.add(PatchRows(padded.float(), plain), 96, dtype)
    exact, rounded = moments[1].matrix(), moments[0].matrix()
    floor = 4 * torch.finfo(torch.float32).eps * moments[1].spectrum().lambda_max
    assert torch.linalg.matrix_norm(rounded - exact, 2).item() < floor
    rows = PatchRows(padded, plain).dense()
    oracle = rows.mT @ rows / rows.shape[1]
    whole = SecondMoment(Scale.MEAN)
    whole.add(PatchRows(padded, plain), 96, torch.float64)
    assert torch.allclose(whole.matrix(), oracle, rtol=0, atol=1e-11)
