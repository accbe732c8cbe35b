"""Pixels that are not laid out as rows, against those that are."""

from functools import partial

import pytest
import torch

from condexp.analysis.linalg.rows.dense import DenseRows
from condexp.analysis.linalg.rows.patches import pixel_rows
from condexp.analysis.linalg.rows.pixels import PixelRows


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", [(3, 4), (9, 31), (50, 47)], ids=str)  # ≤, > 256, > 2048 pixels
def test_all_that_rows_can_do(groups: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(11, 4, *size, dtype=torch.float64, generator=generator) + 0.5
    ours, plain = PixelRows(images, groups, 3.0), DenseRows(pixel_rows(images, groups), 3.0)
    assert (ours.num_rows, ours.num_features) == (plain.num_rows, plain.num_features)
    assert (ours.device, ours.dtype, ours.num_bytes) == (plain.device, plain.dtype, plain.num_bytes)
    close = partial(torch.allclose, rtol=1e-12, atol=1e-12)
    assert torch.equal(ours.dense(), plain.dense())
    assert close(ours.sums(), plain.sums())
    assert close(ours.products(torch.float64), plain.products(torch.float64))
    assert ours.square_sum() == pytest.approx(plain.square_sum(), rel=1e-13)
    reference = ours.approximate_mean()
    assert close(reference, plain.approximate_mean())
    assert close(ours.reference_by_feature(reference), plain.reference_by_feature(reference))
    less = ours.minus(reference, torch.float64)
    assert close(less.dense(), plain.minus(reference, torch.float64).dense())
    some = PixelRows(images[:2, :, :3, :3], groups, 3.0)
    assert close(some.gram(torch.float64) * some.factor**2, some.dense() @ some.dense().mT)
    kept, version = ours.copy(), ours.version
    images.add_(1)
    assert ours.version > version
    assert torch.equal(kept.dense(), plain.dense())


@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 33])
@pytest.mark.parametrize("size", [(16, 16), (25, 23), (60, 41)], ids=str)
def test_float32_products_count_every_pixel_once(num_samples: int, size: tuple[int, int]) -> None:
    # Of small whole numbers float32 sums are exact, whatever is added to what: only counts show.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_samples, 3, *size, generator=generator).mul(2).round()
    rows = pixel_rows(images, 1).double()
    assert torch.equal(PixelRows(images).products(torch.float32), rows.mT @ rows)


def test_exploding_and_vanishing_images_keep_their_precision() -> None:
    images = torch.randn(5, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    expected = PixelRows(images).products(torch.float64)
    for exponent in (-120, 60):
        scaled = PixelRows(images * 2.0**exponent).products(torch.float32) * 4.0**-exponent
        assert torch.allclose(scaled, expected, rtol=1e-5, atol=1e-2)
